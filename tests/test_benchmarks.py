"""The benchmarks' scripts run, on a tiny model: what they record, not how fast anything is."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import tables
from benchmarks.common import RESULTS, ROOT, Bystanders, in_turn, medians, run_child, unsteady
from gamma_export.photos import packaged_photos
from gamma_runtime.errors import EXIT_GATE, EXIT_OK, EnvironmentFault
from tests import tiny_export
from tests.cpp.conftest import build
from tests.runtime.engine_bundle import needs_rtx


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both scripts find the checkpoint of the other."""
    return tmp_path_factory.mktemp("work")


def _recorded() -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_mtime_ns) for path in RESULTS.glob("*"))


def _run(script: str, work: Path, *more: str) -> tuple[str, dict[str, Any]]:
    """Standard output and the result file of one round; the recorded results stay as they are."""
    recorded = _recorded()
    command = [sys.executable, f"benchmarks/{script}.py", "--tiny", "--rounds", "1", "--work", str(work), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert _recorded() == recorded
    result: dict[str, Any] = json.loads((work / f"tiny-{script}.json").read_text())
    assert result["tiny"]
    assert len(result["rounds"]) == 1
    assert {"cpu", "cores", "memory_mib", "libraries", "date", "commit", "load_average_at_start"} <= set(
        result["machine"]
    )
    return done.stdout, result


@pytest.mark.long
def test_export_full(work: Path) -> None:
    output, result = _run("export_full", work)
    [one] = result["rounds"]
    assert one["published"]
    assert len(one["scenes"]) == 5
    assert 1e6 < one["bundle_bytes"] < 20e6
    assert 1e8 < one["peak_rss_bytes"] < 4e9  # torch alone takes 200 MB
    steps = {step["what"]: step["seconds"] for step in one["steps"]}
    assert any(what.startswith("PyTorch reference") for what in steps)
    assert sum(steps.values()) < one["seconds"]
    assert [goal["limit"] for goal in result["goals"]] == [90.0, 4.0, 350.0]
    assert output.startswith("a tiny model: its numbers say nothing")


@pytest.mark.long
def test_train_throughput(work: Path) -> None:
    output, result = _run("train_throughput", work, "--steps", "1", "--threads", "1")
    assert set(result["rounds"][0]) == {"authors", "once", "cached"}
    assert all(len(one["losses"]) == 2 and one["threads"] == 1 for one in result["rounds"][0].values())
    assert result["loss_difference"] < 1e-4
    assert result["goals"][0]["met"]
    assert "a tiny model, which says nothing about speed" in output


@pytest.mark.long
def test_train_scaling(work: Path) -> None:
    output, result = _run("train_scaling", work, "--steps", "1")
    [one] = result["rounds"]
    assert {way: found["threads"] for way, found in one.items()} == {
        "one thread": 1,
        "two threads": 2,
        "two processes": 1,
    }
    assert all(len(found["losses"]) == 2 for found in one.values())
    both = one["two processes"]
    assert both["processes"] == 2
    assert result["exchange_share"] == pytest.approx(1 - both["seconds_without_exchange"][0] / both["seconds"][0])
    assert result["loss_difference"] < 1e-4
    assert result["goals"][0]["met"]
    assert "a tiny model, which says nothing about speed" in output
    assert f"| {both['seconds'][0]:.2f} s |" in tables.scaling(result)


@needs_rtx
@pytest.mark.long
def test_build_memory(work: Path) -> None:
    output, result = _run("build_memory", work)
    assert result["what"].endswith("not TensorRT, not a board")
    assert set(result["worst"]) == {
        f"{precision} {variant}" for precision in ("fp32", "fp16") for variant in ("plain", "low memory", "level 0")
    }
    for row in result["worst"].values():
        assert 100 < row["peak_mib"] < row["predicted_mib"] * 1.3  # the libraries alone are 110 MiB
        assert row["seconds"] > 0
    assert output.count("predicted") == 6


@pytest.mark.long
def test_overlap(work: Path) -> None:
    output, result = _run("overlap", work, "--photos", "10")
    [one] = result["rounds"]
    assert set(one) == {"one after another", "overlapped"}
    assert {len(contender["scores_sha256"]) for contender in one.values()} == {64}
    assert all(contender["same_scores"] for contender in result["contenders"].values())
    assert result["contenders"]["one after another"]["ratio"] == 1.0
    assert output.startswith("one after another: ")


@pytest.mark.long
def test_cpp_overhead(work: Path, tmp_path: Path) -> None:
    build(tmp_path / "build")
    output, result = _run("cpp_overhead", work, "--photos", "3", "--build", str(tmp_path / "build"))
    [one] = result["rounds"]
    assert set(one) == {"Python", "C++"}
    assert {goal["what"]: goal["met"] for goal in result["goals"]}["largest difference of a score"]
    assert all(summary["infer_ms"] > 0 and summary["overhead_ms"] > 0 for summary in result["contenders"].values())
    assert output.startswith("Python: ")


@pytest.mark.long
def test_accuracy(work: Path) -> None:
    photos = packaged_photos()
    rows = [f"{path.name},{number / len(photos):.3f},test" for number, path in enumerate(photos)]
    (work / "table.csv").write_text("\n".join(["path,mos,split", *rows]) + "\n")
    lines = ("data:", "  - table: table.csv", f"    root: {photos[0].parent}", "    name: made-up", "    range: [0, 1]")
    (work / "data.yaml").write_text("\n".join(lines) + "\n")
    words = [tiny_export.checkpoint(), "--data", work / "data.yaml", "--name", "tiny", "--result", work]
    command = [sys.executable, "benchmarks/accuracy.py", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (work / "accuracy-tiny.json").is_file(), done.stderr
    result = json.loads((work / "accuracy-tiny.json").read_text())
    assert [len(source["sets"]) for source in result["sources"].values()] == [1, 1, 1]
    eager, fp32, fp16 = (source["sets"][0]["srcc"] for source in result["sources"].values())
    assert fp32 == pytest.approx(eager, abs=1e-6)  # the very ranks
    gaps = [abs(fp32 - eager), abs(fp16 - eager)]
    assert [goal["measured"] for goal in result["goals"]] == pytest.approx(gaps)
    assert done.returncode == (EXIT_OK if max(gaps) <= 1e-3 else EXIT_GATE), done.stderr
    assert str(photos[0]) not in json.dumps(result)


def test_goals_can_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    good = {"seconds": 80.0, "peak_rss_bytes": 3e9, "bundle_bytes": 340e6}
    slow, large = {**good, "seconds": 91.0}, {**good, "peak_rss_bytes": 4.1e9, "bundle_bytes": 351e6}
    goals = importlib.import_module("export_full").goals
    assert [goal.met for goal in goals([good, good])] == [True, True, True]
    assert [goal.met for goal in goals([good, slow])] == [False, True, True]
    assert [goal.met for goal in goals([large, good])] == [True, False, False]
    overlap = importlib.import_module("overlap")
    good = {"same_scores": True, "ratio": 1.2}
    for changed, met in (({}, [True, True]), ({"ratio": 0.9}, [True, False]), ({"same_scores": False}, [False, True])):
        assert [goal.met for goal in overlap.goals({"overlapped": good | changed})] == met
    scaling = importlib.import_module("train_scaling")
    one, two = {"seconds": [3.0, 3.1, 2.9], "losses": [0.2]}, {"seconds": [1.5, 1.6, 1.7], "losses": [0.2]}
    for changed, met in (({}, [True, True]), ({"seconds": [2.1]}, [True, False]), ({"losses": [0.201]}, [False, True])):
        assert [goal.met for goal in scaling.goals([{"one thread": one, "two processes": two | changed}])] == met


def test_rounds_that_differ_are_a_doubt() -> None:
    assert unsteady({"still": [1.0, 1.1, 1.05], "moving": [1.0, 1.3, 1.2]}) == [
        "moving: the rounds differ by 25%; the limit is 15%"
    ]


def test_contenders_take_turns_in_going_first() -> None:
    asked: list[str] = []

    def run(name: str) -> dict[str, Any]:
        asked.append(name)
        return {"seconds": [len(asked)]}

    rounds = in_turn(["a", "b", "c"], 3, run)
    assert "".join(asked) == "abcbcacab"
    assert medians(rounds, "a") == [1, 6, 8]


_TWO_CHILDREN = """
import sys
from benchmarks.common import run_child
for code in ("x = b'x' * (200 << 20)", ""):
    print(run_child([sys.executable, "-c", code]).peak_bytes)
"""


def test_a_childs_memory_is_its_own() -> None:
    """From a small parent, as the benchmarks are: a child's peak begins with its parent's (pytest's is 300 MB)."""
    command = [sys.executable, "-c", _TWO_CHILDREN]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    large, small = map(int, done.stdout.split())
    assert small < 60 << 20
    assert 180 << 20 < large - small < 230 << 20


def test_a_child_that_fails_is_a_sentence() -> None:
    with pytest.raises(EnvironmentFault, match=r"ended with 3:\n  no luck"):
        run_child([sys.executable, "-c", "import sys; sys.stderr.write('no luck'); sys.exit(3)"])


def test_a_busy_bystander_is_noticed() -> None:
    bystanders = Bystanders()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(2.0)
        share, doubts = bystanders.share(), bystanders.doubts()
        other.kill()
    if share is None:
        pytest.skip("this kernel has no /proc/stat")
    assert share > 0.0
    # One core's worth of many may stay under the limit.
    assert bool(doubts) == (share > 0.1)


@pytest.mark.long
@needs_rtx
def test_int8(work: Path, tmp_path: Path) -> None:
    photos = packaged_photos()
    (tmp_path / "seen.txt").write_text("\n".join(map(str, photos[:8])))
    (tmp_path / "unseen.txt").write_text("\n".join(map(str, photos[8:])))
    flags = ["--tiny", "--rounds", "1", "--work", str(work), "--name", "x", "--calib", str(tmp_path / "seen.txt")]
    command = [sys.executable, "benchmarks/int8.py", *flags, "--photos", str(tmp_path / "unseen.txt")]
    recorded = _recorded()
    # The packaged photos verify the export, so none would be left to calibrate with.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "left out: the result is verified with them" in done.stderr
    copies = tmp_path / "copies"
    copies.mkdir()
    for photo in photos[:8]:
        (copies / photo.name).write_bytes(photo.read_bytes() + b"\0")  # another digest, the same picture
    flags[-1] = str(copies)
    command = [sys.executable, "benchmarks/int8.py", *flags, "--photos", str(tmp_path / "unseen.txt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert _recorded() == recorded
    result = json.loads((work / "tiny-int8-x.json").read_text())
    assert result["photos"] == 8
    assert set(result["int8"]) == set(result["speed"]) == {"onnxruntime", "openvino"}
    worst = max(row["mean_abs"] for rows in result["int8"].values() for row in rows)
    assert 0 < worst < max(row["mean_abs"] for row in result["naive"])
    assert result["engine"]["network"]["weight_bytes"]["int8"] > 0
    assert [goal["what"] for goal in result["goals"]] == ["mean |shift| against fp32", "SRCC against fp32"]
    flags = ["--tiny", "--rounds", "1", "--work", str(work), "--name", "x", "--photos", str(tmp_path / "unseen.txt")]
    command = [
        sys.executable,
        "benchmarks/int4.py",
        str(work / "gamma-tiny-untrained-1.pth"),
        str(work / "int8-x.gamma"),
    ]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((work / "tiny-int4-x.json").read_text())
    assert result["groups_in_int4"]
    assert result["weights_bytes"]["int4"] < result["weights_bytes"]["int8"]
    assert result["engine"]["network"]["weight_bytes"]["int4"] > 0
    means = {n: max(row["mean_abs"] for rows in of.values() for row in rows) for n, of in result["scores"].items()}
    assert 0 < means["int8"] < 0.02
    assert 0 < means["int4"] < 0.1
    assert {name for times in result["milliseconds"].values() for name in times} == {"int8", "int4", "fp32"}


def test_the_experts_scale_belongs_behind_their_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ways to round, on numbers like a block's: apart is right to a few percent, merged loses the experts."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    int8_scale = importlib.import_module("int8_scale")
    numbers = np.random.default_rng(0)
    shared, adaptive = (np.abs(numbers.normal(size=(200, 64))).astype(np.float32) for _ in range(2))
    weights = tuple(numbers.normal(size=(64, 32)).astype(np.float32) for _ in range(2))
    found = int8_scale.errors(shared, adaptive, weights, -0.0117)
    assert found["apart"]["error"] < 0.03
    assert found["on the gate"]["error"] > 0.3
    assert found["on the gate"]["activations_at_0"] > 0.3
    assert found["in the weights"]["error"] > 0.3
    assert found["in the weights"]["largest_weight_code"] <= 5
    plain = int8_scale.errors(shared, adaptive, weights, 1.0)
    assert all(way["error"] < 0.03 for way in plain.values())


@pytest.mark.long
def test_calibration_memory(work: Path, tmp_path: Path) -> None:
    for photo in packaged_photos()[:8]:
        (tmp_path / photo.name).write_bytes(photo.read_bytes() + b"\0")  # another digest, the same picture
    flags = ["--tiny", "--work", str(work), "--calib", str(tmp_path), "--few", "4", "--many", "8"]
    command = [sys.executable, "benchmarks/calib_memory.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((work / "tiny-calib_memory.json").read_text())
    assert [(row["photos"], row["published"]) for row in result["rounds"]] == [(4, True), (8, True)]
    assert result["goals"][0]["measured"] == max(row["peak_bytes"] for row in result["rounds"]) / 1e9 > 0.1
