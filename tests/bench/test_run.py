"""The parent of a run: what it makes of its children's answers, and of a child that gives none."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gamma_export.bench import run
from gamma_export.bench.result import Row
from gamma_export.bench.run import measure_all, run_child
from gamma_export.bench.sampling import WarmUp
from gamma_export.bench.spec import Spec
from gamma_runtime.errors import EnvironmentFault, InputError
from tests.bench.made import result, row

BUNDLE = result([row([1.0])]).bundle


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"any bytes: the parent only takes their digest")
    return Spec(
        bundle="a.gamma",
        scene="natural-quality",
        backend="onnxruntime",
        precision="fp32",
        threads=None,
        engine_dir=None,
        photos=(str(photo),),
        batches=(1,),
        rates=(),
        streams=(),
        seconds=1.0,
        within=0.02,
    )


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs and throttling are not this file's matter."""
    monkeypatch.setattr(run.Bystanders, "share", lambda _: 0.01)
    monkeypatch.setattr(run, "changes", lambda *_: [])


def answers(*rows: Row, scores: tuple[float, ...] = (0.5,)) -> Callable[[Spec], dict[str, Any]]:
    """Children that say so; each start takes a millisecond longer than the one before."""
    starts = itertools.count(100)

    def child(spec: Spec) -> dict[str, Any]:
        begin = row([float(next(starts))], metric="cold start", batch=None, backend=spec.backend)
        given = [begin] if spec.start_only else [begin, *(dataclasses.replace(r, backend=spec.backend) for r in rows)]
        contender = {**result([begin]).contenders[0], "backend": spec.backend, "scores": list(scores)}
        return {"rows": [dataclasses.asdict(one) for one in given], "contender": contender, "notes": ["a note"]}

    return child


def test_good_rows_make_a_valid_run_with_all_its_starts(spec: Spec) -> None:
    good = row([10.0] * 30, half_width=0.0, warm_up=WarmUp(9, 1.0, True))
    told: list[str] = []
    found = measure_all([spec], BUNDLE, {}, 3, told.append, answers(good))
    assert found.verdict == "valid"
    start, call = found.rows
    assert start.samples == (100.0, 101.0, 102.0)
    assert call == good
    assert found.contenders[0]["share_of_other_programs"] == 0.01
    assert set(found.contenders[0]) >= {"mhz", "celsius_max"}
    assert (told, found.notes) == (["measuring onnxruntime"], ("a note",))


def test_one_bad_row_makes_the_run_not_valid(spec: Spec) -> None:
    good, bad = (row([10.0] * 30, half_width=width) for width in (0.01, 0.03))
    found = measure_all([spec], BUNDLE, {}, 1, lambda _: None, answers(good, bad))
    assert not found.valid
    assert "known within ±3.0%" in found.verdict


def test_scores_are_held_against_the_first_contenders(spec: Spec) -> None:
    children = {"onnxruntime": answers(scores=(0.5, 0.25)), "openvino": answers(scores=(0.5, 0.375))}
    specs = [dataclasses.replace(spec, backend=name) for name in children]
    found = measure_all(specs, BUNDLE, {}, 1, lambda _: None, lambda one: children[one.backend](one))
    assert [one["score_difference"] for one in found.contenders] == [0.0, 0.125]


def test_the_photos_digest_knows_contents_and_order(spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"other bytes")
    one, other = spec.photos[0], str(tmp_path / "b.jpg")
    digests = {run.identify_photos(photos)["sha256"] for photos in ((one,), (one, other), (other, one))}
    assert len(digests) == 3
    with pytest.raises(InputError, match=r"no\.jpg"):
        run.identify_photos([str(tmp_path / "no.jpg")])


def test_a_child_that_ends_without_an_answer_is_an_error(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho last words >&2\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(EnvironmentFault, match=r"measuring onnxruntime ended with -9:\n  last words"):
        run_child(spec)


def test_what_a_child_says_of_its_input_is_raised_here(spec: Spec) -> None:
    with pytest.raises(InputError, match=r"a\.gamma"):
        run_child(spec)
