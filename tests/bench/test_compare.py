"""Two results: faster, slower, no difference, refused; JSON there and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gamma_export.bench.compare import compare, differences, remarks, word
from gamma_export.bench.report import markdown, text
from gamma_export.bench.result import Result, read_result
from gamma_export.bench.sampling import WarmUp
from gamma_export.commands.bench import CompareOptions, compare_command
from gamma_runtime.errors import EXIT_INVALID_MEASUREMENT, EXIT_OK, InputError, UsageError
from tests.bench.made import result, row


def around(middle: float, seed: int = 0, count: int = 200) -> list[float]:
    return np.random.default_rng(seed).normal(middle, middle / 20, count).tolist()


@pytest.mark.parametrize(("middle", "expected"), [(8.0, "faster"), (12.0, "slower"), (10.0, "no difference")])
def test_words_for_latencies(middle: float, expected: str) -> None:
    (found,) = compare(result([row(around(10.0, 1))]), result([row(around(middle, 2))]))
    assert found.word == expected
    assert found.low <= found.ratio <= found.high
    assert found.ratio == pytest.approx(middle / 10, rel=0.02)


@pytest.mark.parametrize(("middle", "expected"), [(12.0, "faster"), (8.0, "slower")])
def test_more_images_a_second_are_faster(middle: float, expected: str) -> None:
    speeds = [result([row(around(m, 3), metric="throughput", unit="images/s")]) for m in (10.0, middle)]
    assert compare(*speeds)[0].word == expected


def test_a_difference_below_the_margin_is_none() -> None:
    assert word(1.015, 1.012, 1.018, "ms") == "no difference"
    assert word(1.03, 1.01, 1.05, "ms") == "slower"
    assert word(1.03, 0.99, 1.06, "ms") == "no difference"


def test_few_samples_show_no_difference() -> None:
    (found,) = compare(result([row([10.0, 14.0, 8.0])]), result([row([9.0, 13.0, 7.0])]))
    assert found.word == "no difference"


def test_only_common_rows_are_compared() -> None:
    first = result([row(around(1.0)), row(around(2.0), batch=4), row(around(3.0), backend="openvino"), row([5.0])])
    second = result([row(around(1.0)), row(around(2.0), batch=8), row(around(3.0), backend="openvino")])
    assert [(one.backend, one.name) for one in compare(first, second)] == [
        ("onnxruntime", "call batch=1"),
        ("openvino", "call batch=1"),
    ]
    with pytest.raises(UsageError, match="no row in common"):
        compare(first, result([row(around(1.0), metric="other")]))


def paced(late: int, dropped: int) -> Result:
    extra = {"late": late, "dropped": dropped, "scored": 200 - dropped}
    return result([row(around(10.0)), row(around(10.0), metric="paced", batch=None, rate=30.0, extra=extra)])


@pytest.mark.parametrize(("late", "dropped"), [(120, 0), (20, 3)])
def test_a_growing_queue_is_not_compared(late: int, dropped: int) -> None:
    calm, behind = paced(20, 0), paced(late, dropped)
    assert [one.name for one in compare(calm, calm)] == ["call batch=1", "paced rate=30"]
    assert (
        [one.name for one in compare(calm, behind)] == [one.name for one in compare(behind, calm)] == ["call batch=1"]
    )
    assert remarks(calm, behind) == ["onnxruntime paced rate=30: B cannot keep up, so its latencies are not compared"]


def test_single_contenders_are_compared_whatever_their_names() -> None:
    (found,) = compare(result([row(around(10.0))]), result([row(around(5.0), backend="openvino")]))
    assert found.backend == "onnxruntime → openvino"
    assert found.word == "faster"


def changed(base: Result, name: str, **fields: Any) -> Result:
    return dataclasses.replace(base, **{name: {**getattr(base, name), **fields}})


def test_different_things_are_refused_unless_asked_for() -> None:
    base = result([row(around(10.0))])
    others = [
        (changed(base, "bundle", checkpoint_sha256="f" * 64), "models"),
        (dataclasses.replace(base, scene="face-quality"), "scenes"),
        (changed(base, "photos", sha256="f" * 64), "photos"),
        (changed(base, "machine", cpu="another"), "machines"),
        (changed(base, "machine", gpus=[{"name": "a"}]), "machines"),
    ]
    for other, what in others:
        with pytest.raises(UsageError, match=f"different {what}"):
            compare(base, other)
        assert len(compare(base, other, anyway=True)) == 1
    assert differences(base, changed(base, "bundle", sha256="f" * 64, precision="int8")) == []


def test_what_may_differ_is_remarked() -> None:
    base = result([row(around(10.0))])
    other = changed(base, "bundle", sha256="f" * 64, precision="int8")
    other = dataclasses.replace(other, contenders=({**base.contenders[0], "threads": 4},))
    assert remarks(base, other) == [
        "another precision: fp32 in A, int8 in B",
        "another bundle: 000000000000 in A, ffffffffffff in B",
        "another onnxruntime threads: 2 in A, 4 in B",
    ]
    assert remarks(base, base) == []


def written(path: Path, made: Result) -> Path:
    path.write_text(made.to_json())
    return path


def test_a_result_comes_back_from_its_json(tmp_path: Path) -> None:
    rows = [
        row(around(10.0), half_width=0.01, warm_up=WarmUp(9, 1.5, True), drift=-0.01),
        row(around(3.0, count=5000), metric="paced", batch=None, rate=30.0, extra={"late": 2, "dropped": 0}),
    ]
    made = result(rows, doubts=("x",), notes=("y",))
    back = read_result(written(tmp_path / "a.json", made))
    assert json.loads(back.to_json()) == json.loads(made.to_json())
    assert back.rows == made.rows
    assert (rows[1].thinned, len(rows[1].samples), rows[1].summary.n) == (True, 2000, 5000)
    assert json.loads(made.to_json())["schema_version"] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no json", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"tool": "gamma-bench"}', "cannot be read"),
        ('{"tool": "other", "schema_version": 1}', "not a result of gamma-bench"),
        ('{"tool": "gamma-bench", "schema_version": 99}', "schema 99"),
        ('{"tool": "gamma-bench", "schema_version": 1, "verdict": "", "valid": true, "rows": [{}]}', "cannot be read"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=words):
        read_result(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_result(tmp_path / "missing.json")


def test_the_command_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = written(tmp_path / "a.json", result([row(around(10.0))]))
    second = written(tmp_path / "b.json", result([row(around(5.0))]))
    assert compare_command(CompareOptions(first=first, second=second)) == EXIT_OK
    assert "faster" in capsys.readouterr().out
    assert compare_command(CompareOptions(first=first, second=second, json=True)) == EXIT_OK
    said = json.loads(capsys.readouterr().out)
    assert [one["word"] for one in said["rows"]] == ["faster"]
    assert said["remarks"] == []


def test_a_comparison_with_what_is_not_valid_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = written(tmp_path / "a.json", result([row(around(10.0))], doubts=("other programs",)))
    second = written(tmp_path / "b.json", result([row(around(5.0))]))
    assert compare_command(CompareOptions(first=first, second=second)) == EXIT_INVALID_MEASUREMENT
    assert "is not valid because other programs" in capsys.readouterr().out
    assert compare_command(CompareOptions(first=first, second=second, anyway=True)) == EXIT_OK


def test_reports_show_rows_notes_and_verdict() -> None:
    made = result([row(around(10.0), half_width=0.013)], doubts=("it was | busy",), notes=("a note",))
    for page in (text(made), markdown(made)):
        assert "call batch=1" in page
        assert "1.3%" in page
        assert "a note" in page
        assert "it was | busy" in page
    assert text(made).endswith("verdict: not valid because it was | busy")
    assert "policy0 2900, 3000, 3000" in markdown(made)
    assert "| governors | policy0 performance | policy0 performance |" in markdown(made)
    assert "| power_mode | not readable here | not readable here |" in markdown(made)
    assert "| slowed_by | none | none |" in markdown(made)
    assert "| threads | default |" in markdown(dataclasses.replace(made, settings={"threads": None}))
    assert "**valid**" in markdown(result([row([1.0])]))
