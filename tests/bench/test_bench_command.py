"""gamma-bench as a user types it, on a bundle whose scores are known; no time is asserted."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gamma_export.bench.compare import compare
from gamma_export.bench.measure import measure
from gamma_export.bench.result import Result, Row, read_result
from gamma_export.bench.spec import Spec
from gamma_export.bench.split import PARTS, probed
from gamma_export.commands.bench import BenchOptions, bench_command, numbers
from gamma_runtime import crops
from gamma_runtime.errors import EXIT_INVALID_MEASUREMENT, EXIT_OK, InputError, IntegrityError, OutputError, UsageError
from gamma_runtime.scorer import load
from tests.runtime.images import encode, photo
from tests.runtime.tiny_bundle import Tiny, make_bundle

BACKENDS = ("onnxruntime", "openvino")
SHORT = ("--seconds", "0.2", "--batch", "1,2,9", "--rate", "20", "--streams", "2", "--starts", "2", "--threads", "1")
COMMAND = (sys.executable, "-m", "gamma_export.commands.bench")
METRICS = {
    "cold start": 1,
    "first call": 1,
    "end-to-end": 1,
    **{f"split: {part}": 1 for part in PARTS},
    "call": 2,
    "backend": 2,
    "throughput": 2,
    "paced": 1,
    "streams": 1,
    "streams throughput": 1,
}


def make(folder: Path) -> Path:
    """A bundle and two photos."""
    make_bundle(folder / "a bundle.gamma", Tiny(batch=(1, 2, 4)))
    for seed in (0, 1):
        (folder / f"{seed}.jpg").write_bytes(encode(photo(500, 400, seed), "JPEG"))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def run(place: Path) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The real command, both backends, where torch and onnx cannot be imported, as on a Jetson."""
    out = place / "new" / "results"
    words = [*COMMAND, str(place / "a bundle.gamma"), str(place), *SHORT, "--json", "--out", str(out)]
    absent = place / "absent"
    absent.mkdir()
    for name in ("torch", "onnx"):
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name} here', name='{name}')\n")
    paths = os.pathsep.join([str(absent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode in (EXIT_OK, EXIT_INVALID_MEASUREMENT), done.stderr
    return done, out


@pytest.fixture(scope="module")
def found(run: tuple[Any, Path]) -> Result:
    return read_result(run[1] / "result.json")


def rows_of(found: Result, backend: str, metric: str) -> list[Row]:
    return [row for row in found.rows if (row.backend, row.metric) == (backend, metric)]


def test_exit_code_verdict_and_files_agree(run: tuple[Any, Path], found: Result) -> None:
    done, out = run
    assert (done.returncode == EXIT_OK) == found.valid
    assert json.loads(done.stdout) == json.loads((out / "result.json").read_text())
    page = (out / "report.md").read_text()
    assert ("**valid**" if found.valid else "**not valid because**") in page
    assert all(f"- {doubt}\n" in page for doubt in found.doubts)
    assert all(row.name in page for row in found.rows)
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.md", "result.json"]
    assert "next: gamma-bench compare" in done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_metric_is_there(found: Result, backend: str) -> None:
    assert Counter(row.metric for row in found.rows if row.backend == backend) == METRICS
    for row in found.rows:
        one = row.summary
        numbers_of = (*dataclass_values(one), *row.samples)
        assert all(math.isfinite(number) for number in numbers_of)
        assert one.min <= one.p50 <= one.p90 <= one.p99 <= one.max
        assert len(row.samples) == min(one.n, 2000)
    assert [row.batch for row in rows_of(found, backend, "call")] == [1, 2]
    assert any("batch 9 left out; the graph takes 1 to 4" in note for note in found.notes)
    assert rows_of(found, backend, "cold start")[0].summary.n == 2


def dataclass_values(one: object) -> list[float]:
    return [float(value) for value in vars(one).values()]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_split_adds_up_to_each_end_to_end(found: Result, backend: str) -> None:
    (whole,) = rows_of(found, backend, "end-to-end")
    parts = [rows_of(found, backend, f"split: {part}")[0].samples for part in PARTS]
    assert len(whole.samples) >= 10
    assert 0 < whole.extra["infer_share"] < 1
    for total, *pieces in zip(whole.samples, *parts, strict=True):
        assert sum(pieces) == pytest.approx(total, abs=6e-4)  # six numbers rounded to 1e-4
        assert min(pieces) >= 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_takes_no_less_than_its_backend(found: Result, backend: str) -> None:
    for call, inner in zip(rows_of(found, backend, "call"), rows_of(found, backend, "backend"), strict=True):
        assert all(a >= b for a, b in zip(call.samples, inner.samples, strict=True))
    (row,) = rows_of(found, backend, "paced")
    assert row.extra["scored"] + row.extra["dropped"] == row.summary.n


def test_contenders_are_described(found: Result, place: Path) -> None:
    assert [one["backend"] for one in found.contenders] == list(BACKENDS)
    for one in found.contenders:
        with load(place / "a bundle.gamma", backend=one["backend"], threads=1) as scorer:
            assert one["scores"] == [scorer.score(place / f"{seed}.jpg").value for seed in (0, 1)]
        assert one["threads"] == 1
        assert one["peak_host_mib"] > 10
        assert one["gpu_mib"] is None
        assert one["score_difference"] < 1e-6
    assert found.bundle["checkpoint_sha256"] == "0" * 64
    assert (found.photos["count"], found.scene) == (2, "natural-quality")


def test_a_result_is_no_different_from_itself(found: Result) -> None:
    assert {one.word for one in compare(found, found)} == {"no difference"}


def test_the_clocks_are_taken_away_again(place: Path) -> None:
    decode = crops.decode
    with load(place / "a bundle.gamma") as scorer:
        image = (place / "0.jpg").read_bytes()
        before = scorer.score(image)
        with probed(scorer) as probe:
            assert crops.decode is not decode
            parts = probe.end_to_end(image)
            assert set(parts) == {"end-to-end", *PARTS}
        assert crops.decode is decode
        assert "prepare" not in vars(scorer.panel)
        assert "infer_images" not in vars(scorer.panel.graphs[0].backend)
        assert scorer.score(image) == before


def test_a_device_that_has_a_clock_gets_a_row_of_its_own(place: Path) -> None:
    with load(place / "a bundle.gamma") as scorer:
        prepared = scorer.prepare(place / "0.jpg")
        with probed(scorer) as probe:
            assert set(probe.call([prepared])) == {"call", "backend"}
            vars(scorer.panel.graphs[0].backend)["last_device_ms"] = 1.5  # as a TensorRT backend has it
            assert probe.call([prepared])["device"] == 1.5


def test_of_many_photos_the_first_ones_are_timed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gamma_export.bench.measure._MAX_PHOTOS", 1)
    spec = Spec(
        bundle=str(place / "a bundle.gamma"),
        scene="natural-quality",
        backend="onnxruntime",
        precision="fp32",
        threads=1,
        engine_dir=None,
        photos=(str(place / "0.jpg"), str(place / "1.jpg")),
        batches=(9,),
        rates=(),
        streams=(),
        seconds=0.01,
        within=0.5,
    )
    assert Spec.from_json(spec.to_json()) == spec
    said = measure(spec)
    assert "onnxruntime: of 2 photos the first 1 are timed" in said["notes"]
    assert len(said["contender"]["scores"]) == 2
    assert {row["batch"] for row in said["rows"] if row["metric"] == "call"} == {1}  # the graph's least


def test_a_bundle_that_cannot_be_opened(tmp_path: Path, place: Path) -> None:
    with pytest.raises((InputError, IntegrityError)):
        bench_command(BenchOptions(bundle=tmp_path / "no.gamma", photos=(str(place),), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_the_child_meets_is_the_commands_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path)
    for graph in (tmp_path / "a bundle.gamma").glob("*.onnx"):
        graph.write_bytes(b"x" * graph.stat().st_size)
    options = BenchOptions(bundle=tmp_path / "a bundle.gamma", photos=(str(tmp_path),), out=tmp_path / "out")
    with pytest.raises(IntegrityError, match="sha256"):
        bench_command(options)
    assert not (tmp_path / "out").exists()
    assert "measuring onnxruntime" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["text", "missing", "empty folder", "second"])
def test_a_bad_photo_list(tmp_path: Path, which: str) -> None:
    make(tmp_path)
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "empty").mkdir()
    given = {
        "text": (str(tmp_path / "text.jpg"),),
        "missing": (str(tmp_path / "no.jpg"),),
        "empty folder": (str(tmp_path / "empty"),),
        "second": (str(tmp_path / "0.jpg"), str(tmp_path / "text.jpg")),
    }[which]
    options = BenchOptions(bundle=tmp_path / "a bundle.gamma", photos=given, backend=("onnxruntime",), starts=1)
    with pytest.raises(InputError, match=r"text\.jpg|no\.jpg|no images"):
        bench_command(options)


def test_flags_are_checked(tmp_path: Path, place: Path) -> None:
    base = {"bundle": place / "a bundle.gamma", "photos": (str(place),)}
    for wrong in ({"batch": "0"}, {"batch": "none"}, {"rate": "x"}, {"streams": "-1"}, {"seconds": 0.0}, {"starts": 0}):
        with pytest.raises(UsageError):
            BenchOptions(**base, **wrong)
    assert numbers("1,4,4", "--batch", int) == (1, 4)
    assert numbers("none", "--rate", float) == ()
    with pytest.raises(UsageError, match="no photos"):
        bench_command(BenchOptions(bundle=place / "a bundle.gamma", photos=()))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        bench_command(BenchOptions(**base, out=tmp_path / "file" / "out"))


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(what: Any) -> Any:
    deadline = time.monotonic() + 60
    while not (answer := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


@contextlib.contextmanager
def begun(folder: Path, *more: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command while it measures, and the process that does it."""
    make(folder)
    words = [*COMMAND, str(folder / "a bundle.gamma"), str(folder), "--seconds", "60", "--starts", "1"]
    words += ["--threads", "2", *more]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "measuring onnxruntime\n"
        (child,) = wait_for(lambda: children_of(process.pid))
        # By the time it has threads it has asked to end with its parent.
        wait_for(lambda: len(list(Path(f"/proc/{child}/task").iterdir())) > 1)
        yield process, child
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with begun(tmp_path, "--out", str(tmp_path / "o"), TMPDIR=str(temporary)) as (process, child):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGINT
        assert said.strip() == "interrupted"
        assert not Path(f"/proc/{child}").exists()
    assert not (tmp_path / "o").exists()
    assert list(temporary.glob("gamma-bench-*")) == []  # libraries leave files of their own


def gone(pid: int) -> bool:
    """Ended; nobody may have fetched its exit status yet."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_a_killed_parent_leaves_nobody_measuring(tmp_path: Path) -> None:
    with begun(tmp_path) as (process, child):
        assert not gone(child)
        process.kill()
        process.wait()
        wait_for(lambda: gone(child))
