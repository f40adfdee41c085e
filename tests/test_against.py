"""benchmarks/against.py: a tiny run with every contender of a CPU, its goals, its table, and what trtexec is asked."""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks import tables
from benchmarks.common import RESULTS, ROOT
from gamma_runtime.cuda_probe import CudaState, probe
from gamma_runtime.errors import EnvironmentFault, InputError, UsageError
from tests import tiny_export

ON_A_CPU = (
    "eager", "eager-no-text", "torch-compile", "onnxruntime-fp32", "openvino-fp32", "onnxruntime-int8", "openvino-int8"
)  # fmt: skip
GRAPHS = ON_A_CPU[3:]
NO_GPU = dict.fromkeys(
    (
        "cuda-autocast", "onnxruntime-cuda-fp16", "onnxruntime-tensorrt-fp16", "tensorrt-fp16", "tensorrt-int8",
        "tensorrt-rtx-fp16", "tensorrt-rtx-int8", "trtexec-fp16", "trtexec-int8",
    ),
    "no GPU",
)  # fmt: skip


@pytest.fixture
def against(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("against")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_contender")


def _round(**seconds: float) -> dict[str, Any]:
    return {name: {"seconds": [t], "score": 0.5, "crop_scores": [0.4, 0.6]} for name, t in seconds.items()}


def _summaries(**changes: float) -> dict[str, dict[str, Any]]:
    fine = {"ratio": 3.0, "crop_score_difference": 1e-6, "mean_crop_score_difference": 1e-7}
    return {name: fine | changes for name in ON_A_CPU}


@pytest.mark.long
def test_every_contender_of_a_cpu(tmp_path: Path) -> None:
    recorded = sorted((path.name, path.stat().st_mtime_ns) for path in RESULTS.glob("*"))
    command = [sys.executable, "benchmarks/against.py", "--tiny", "--rounds", "1", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted((path.name, path.stat().st_mtime_ns) for path in RESULTS.glob("*")) == recorded
    text = (tmp_path / "tiny-against.json").read_text()
    result = json.loads(text)
    [one] = result["rounds"]
    assert set(ON_A_CPU) - set(result["skipped"]) <= set(one)
    assert set(result["skipped"]) & set(ON_A_CPU) <= {"torch-compile"}  # where there is no compiler
    for name in one.keys() & set(ON_A_CPU):
        assert len(one[name]["seconds"]) == 3
        assert len(one[name]["crop_scores"]) == 10
        assert one[name]["score"] == pytest.approx(statistics.fmean(one[name]["crop_scores"]), abs=1e-6)
        limit = 2e-2 if name.endswith("int8") else 1e-5
        assert result["contenders"][name]["crop_score_difference"] <= limit
    ratio = statistics.median(one["eager"]["seconds"]) / statistics.median(one["openvino-int8"]["seconds"])
    assert result["contenders"]["openvino-int8"]["ratio"] == pytest.approx(ratio)
    if not probe().usable:
        assert {name for name, why in result["skipped"].items() if why.startswith("no usable GPU: ")} == set(NO_GPU)
    assert str(tmp_path) not in text
    assert str(ROOT) not in text
    assert "a tiny model, which says nothing about speed" in done.stdout
    assert "| PyTorch, the authors' way (text tower each call) |" in done.stdout


def test_fast_and_right_meets_every_goal(against: ModuleType) -> None:
    found = against.goals(_summaries(), NO_GPU, speed=True)
    assert all(goal.met for goal in found)
    speeds = {goal.what.split(":")[0]: goal.limit for goal in found if goal.unit == "times"}
    assert speeds == dict(zip(GRAPHS, (1.0, 1.0, 2.5, 2.5), strict=True))


@pytest.mark.parametrize(("ratio", "missed"), [(2.4, GRAPHS[2:]), (0.9, GRAPHS)])
def test_too_slow_is_not_met(against: ModuleType, ratio: float, missed: tuple[str, ...]) -> None:
    found = against.goals(_summaries(ratio=ratio), NO_GPU, speed=True)
    assert {goal.what.split(":")[0] for goal in found if not goal.met} == set(missed)
    assert all(goal.met for goal in against.goals(_summaries(ratio=ratio), NO_GPU, speed=False))


def test_scores_are_judged_by_the_gate_of_the_precision(against: ModuleType) -> None:
    wrong, off = _summaries(crop_score_difference=1e-3), _summaries(mean_crop_score_difference=6e-3)
    missed = [g.what for g in against.goals(wrong, NO_GPU, speed=True) if not g.met]
    assert missed == [f"{name}: largest score difference" for name in ON_A_CPU[1:5]]
    missed = [g.what for g in against.goals(off, NO_GPU, speed=True) if not g.met]
    assert missed == [f"{name}: mean score difference" for name in GRAPHS[2:]]


def test_a_skipped_contender_meets_nothing(against: ModuleType) -> None:
    skipped = NO_GPU | {"openvino-int8": "no int8 bundle", "torch-compile": "no compiler"}
    found = against.goals({n: s for n, s in _summaries().items() if n not in skipped}, skipped, speed=False)
    [missed] = [goal for goal in found if not goal.met]
    assert missed.what == "openvino-int8: not measured (no int8 bundle)"
    assert not any(name in goal.what for goal in found for name in ("torch-compile", "trtexec"))  # nor is it missed


def test_a_trial_tells_what_lacks_from_what_fails(against: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    field = against.Field.__new__(against.Field)  # without the checkpoint and its exports
    field.missing = {"int8": "no int8 bundle: the gate did not hold"}
    by_name = {one.name: one for one in against.CONTENDERS}
    assert field.trial(by_name["openvino-int8"]) == "no int8 bundle: the gate did not hold"
    monkeypatch.setattr(field, "_ask", lambda one, calls: {"skipped": "no compiler"})
    assert field.trial(by_name["torch-compile"]) == "no compiler"
    monkeypatch.setattr(field, "_ask", lambda one, calls: {"seconds": [1.0]})
    assert field.trial(by_name["torch-compile"]) is None

    def fail(one: Any, calls: int) -> dict[str, Any]:
        raise EnvironmentFault("it fell over")

    monkeypatch.setattr(field, "_ask", fail)
    with pytest.raises(EnvironmentFault, match="it fell over"):
        field.trial(by_name["openvino-fp32"])
    monkeypatch.setattr(against, "probe", lambda: CudaState("ok", "1 GPU"))
    assert field.trial(by_name["trtexec-fp16"]) == "failed: it fell over"
    monkeypatch.setattr(against, "probe", lambda: CudaState("no-driver", "no NVIDIA driver"))
    assert field.trial(by_name["trtexec-fp16"]) == "no usable GPU: no NVIDIA driver"


def test_ratios_are_to_the_authors_way(against: ModuleType) -> None:
    rounds = [_round(eager=4.0, x=2.0), _round(eager=6.0, x=2.0), _round(eager=5.0, x=1.0)]
    rounds[1]["x"]["crop_scores"] = [0.4, 0.7]
    found = against.summary(rounds, against.Contender("x", in_torch=True))
    assert (found["median_ms"], found["ratio"], found["ratio_least"], found["ratio_most"]) == (2000.0, 2.5, 2.0, 5.0)
    assert found["crop_score_difference"] == pytest.approx(0.1)
    assert found["mean_crop_score_difference"] == pytest.approx(0.1 / 6)
    assert not found["same_scores"]
    assert against.summary(rounds, against.CONTENDERS[0])["same_scores"]


def test_the_table_of_a_made_up_result(against: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import against_tables

    monkeypatch.setattr(against_tables, "RESULTS", tmp_path)
    assert against_tables.against() == "not measured"
    rounds = [_round(eager=4.0, **{"openvino-int8": 1.0, "cuda-autocast": 0.0123})]
    rounds[0]["cuda-autocast"]["crop_scores"] = [0.4, 0.61]
    skipped = {"torch-compile": "no compiler", "tensorrt-int8": "no GPU", "trtexec-fp16": "no GPU"}
    runners = [one for one in against.CONTENDERS if one.name in rounds[0]]
    goals = [against.Goal("openvino-int8: times as fast", 2.5, 4.0, "times", True)]
    goals.append(against.Goal("openvino-fp32: not measured (why)", 1.0, 0.0, "runs", False))
    goals += against.score_goals(runners[1], against.summary(rounds, runners[1]))
    result = {
        "tiny": False, "size": "full", "crops": "five", "machine": {"cpu": "Abacus", "cores": 2}, "valid": False,
        "doubts": ["too loud"], "contenders": {one.name: against.summary(rounds, one) for one in runners},
        "skipped": skipped, "goals": [vars(goal) for goal in goals], "rounds": rounds,
    }  # fmt: skip
    (tmp_path / "against-full-abacus.json").write_text(json.dumps(result))
    text = against_tables.against()
    assert text == tables.against()
    assert "full size (Abacus, 2 cores;" in text
    assert "**Not a valid measurement**: too loud." in text
    assert "| openvino, int8 | 1000 ms | 4.00 (4.00 to 4.00) | 0e+00 |" in text
    assert "| PyTorch on CUDA, fp16 autocast, without text tower | 12.3 ms | 325.20 (" in text
    assert ") | 1e-02, NOT comparable |" in text
    assert "Skipped: `torch-compile` (no compiler); `tensorrt-int8`, `trtexec-fp16` (no GPU)." in text
    assert "times as fast: 4 times, met; openvino-fp32: not measured (why): 0 runs, **not met**; " in text
    assert text.endswith("; 2 of 2 gates of scores hold.")


def test_the_old_result_can_still_be_read() -> None:
    assert "| fp32 graph on openvino |" in tables.eager()


def test_reasons_name_no_folders(against: ModuleType) -> None:
    text = "gamma-export /a/folder/a.pth … ended with 7:\n  at /another/x.py: 1/2 of float16/int8, see a/b"
    assert against.reason(text) == "gamma-export a.pth … ended with 7: at x.py: 1/2 of float16/int8, see a/b"


def test_options_that_cannot_be(against: ModuleType, tmp_path: Path) -> None:
    for wrong in ({"crops": "contract"}, {"size": "../x"}, {"calls": 0}):
        with pytest.raises(UsageError):
            against.Options(**wrong)
    for policy in ("cover", "frame640x480", "nonsense"):
        with pytest.raises(UsageError):
            against.policy_of(against.Options(crops=policy))
    assert against.policy_of(against.Options(crops="random10")) == against.AUTHORS
    with pytest.raises(InputError, match="no bundle"):
        against.policy_of(against.Options(crops="contract", int8=tmp_path))


def test_a_given_bundle_must_be_of_the_checkpoint_and_take_the_crops(against: ModuleType, tmp_path: Path) -> None:
    bundle = tiny_export.exported()
    with pytest.raises(InputError, match="no int8 graph of natural-quality"):
        against.check_int8(bundle, tiny_export.checkpoint(), "centre")
    with pytest.raises(UsageError, match="another checkpoint"):
        against.check_int8(bundle, bundle / "manifest.json", "centre")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"][0] |= {"precision": "int8", "scenes": [against.SCENE]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert against.policy_of(against.Options(crops="contract", int8=tmp_path)) == "centre"
    against.check_int8(tmp_path, tiny_export.checkpoint(), "centre")
    with pytest.raises(UsageError, match=r"takes \{1\} crops, five are others"):
        against.check_int8(tmp_path, tiny_export.checkpoint(), "five")


_TRTEXEC = """#!{python}
import json, sys
arguments = dict(word.partition("=")[::2] for word in sys.argv[1:])
open("{log}", "a").write(json.dumps(sys.argv[1:]) + "\\n")
print("&&&& RUNNING TensorRT.trtexec [TensorRT v101303] [b9] # trtexec")
if "--saveEngine" in arguments:
    open(arguments["--saveEngine"], "w").write("plan")
if "--exportTimes" in arguments:
    times = {{"startEnqMs": 0, "endEnqMs": 0.1, "h2dMs": 1, "computeMs": 5, "d2hMs": 1}}
    json.dump([times | {{"latencyMs": 7 + index}} for index in range(3)], open(arguments["--exportTimes"], "w"))
    scores = {{"name": "crop_scores", "dimensions": "1x1", "values": [0.25]}}
    score = {{"name": "score", "dimensions": "1", "values": [0.25]}}
    json.dump([score, scores], open(arguments["--exportOutput"], "w"))
"""


def test_trtexec_gets_the_same_crops_and_stated_flags(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in for the program: what it is asked, and what is made of its files; not that the real one takes it."""
    program, log = tmp_path / "trtexec", tmp_path / "asked"
    program.write_text(_TRTEXEC.format(python=sys.executable, log=log))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    bundle, crops = tiny_export.exported(), np.zeros((1, 224, 224, 3), np.uint8)
    kind = json.loads((bundle / "manifest.json").read_text())["graphs"][0]["precision"]
    for _ in range(2):
        found = gpu.trtexec(bundle, "natural-quality", kind, crops, tmp_path)
    assert (found["version"], found["queries"], found["seconds"]) == ("10.13.3", 3, [0.008])
    assert found["crop_scores"] == [0.25]
    _, build, first, _, second = (json.loads(line) for line in log.read_text().splitlines())  # built once
    assert build[0].startswith("--onnx=")
    assert first == second
    assert {"--stronglyTyped", "--separateProfileRun", "--warmUp=200"} <= set(first)
    assert "--noDataTransfers" not in first
    assert (tmp_path / "trtexec-crops.bin").read_bytes() == crops.tobytes()
    assert str(tmp_path) not in json.dumps(found)
    with pytest.raises(EnvironmentFault, match="no int8 graph"):
        gpu.trtexec(bundle, "natural-quality", "int8", crops, tmp_path)


def test_without_trtexec_there_is_a_reason(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu, "_JETSON", "trtexec")
    with pytest.raises(EnvironmentFault, match="no trtexec on PATH"):
        gpu.trtexec(tmp_path, "natural-quality", "fp16", np.zeros((1, 224, 224, 3), np.uint8), tmp_path)


def test_a_provider_that_is_silently_another_is_a_reason(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ONNX Runtime without a GPU, made to say that it has the provider: it then chooses the CPU's with a warning."""
    import onnxruntime

    wanted = {"onnxruntime-cuda": "CUDAExecutionProvider"}
    if wanted["onnxruntime-cuda"] in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has it")
    bundle, crops = tiny_export.exported(), np.zeros((1, 224, 224, 3), np.uint8)
    kind = json.loads((bundle / "manifest.json").read_text())["graphs"][0]["precision"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", wanted.values)
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(EnvironmentFault, match="chose CPU"):
        gpu.provider("onnxruntime-cuda", bundle, "natural-quality", kind, crops, tmp_path)
    monkeypatch.setattr(gpu, "PROVIDERS", {"onnxruntime-cuda": "CPUExecutionProvider"})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.warns(UserWarning, match="Duplicate"):  # the CPU's stands in for the GPU's, and is the fallback too
        call, facts = gpu.provider("onnxruntime-cuda", bundle, "natural-quality", kind, crops, tmp_path)
    assert call().shape == (1,)
    assert facts["providers"] == ["CPUExecutionProvider"]


def test_a_provider_that_is_not_there_is_a_reason(gpu: ModuleType, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has it")
    with pytest.raises(EnvironmentFault, match="has no CUDAExecutionProvider"):
        gpu.provider("onnxruntime-cuda", tmp_path, "natural-quality", "fp16", np.zeros(1, np.uint8), tmp_path)
