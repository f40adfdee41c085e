"""The probe against a stub driver that answers as it is told, and against this machine's own."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gamma_runtime.cuda_probe import probe
from tests.runtime.engine_bundle import no_driver, stub_driver

_ASK = """
import dataclasses, json, sys
from gamma_runtime.cuda_probe import probe
state = probe()
print(json.dumps({**dataclasses.asdict(state), "usable": state.usable, "hint": state.hint,
                  "heavy": sorted({"numpy", "pydantic", "torch", "tensorrt", "tensorrt_rtx"} & set(sys.modules))}))
"""


def _ask(env: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", _ASK], env=env, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_devices_are_listed(tmp_path: Path) -> None:
    state = _ask({**stub_driver(tmp_path), "STUB_COUNT": "2", "STUB_VERSION": "12060"})
    assert state["usable"]
    assert (state["cause"], state["driver"], state["detail"]) == ("ok", "12.6", "2 GPUs, CUDA 12.6")
    assert state["devices"] == [
        {"index": i, "name": "Stub Orin", "compute_capability": "8.7", "total_memory": 8 << 30} for i in (0, 1)
    ]
    assert state["hint"] is None
    assert state["heavy"] == []


@pytest.mark.parametrize(
    ("stub", "cause"),
    [
        ({"STUB_INIT": "100"}, "no-gpu"),
        ({"STUB_COUNT": "0"}, "no-gpu"),
        ({"STUB_INIT": "100", "CUDA_VISIBLE_DEVICES": "-1"}, "hidden"),
        ({"STUB_COUNT": "0", "CUDA_VISIBLE_DEVICES": ""}, "hidden"),
        ({"STUB_COUNT": "0", "CUDA_VISIBLE_DEVICES": "7"}, "hidden"),
        ({"STUB_INIT": "803"}, "driver-too-old"),
        ({"STUB_INIT": "34"}, "no-driver"),
        ({"STUB_INIT": "999"}, "error"),
    ],
)
def test_causes(tmp_path: Path, stub: dict[str, str], cause: str) -> None:
    state = _ask({**stub_driver(tmp_path), **stub})
    assert (state["cause"], state["usable"], state["devices"]) == (cause, False, [])
    assert state["hint"]


def test_library_that_does_not_load_is_no_driver(tmp_path: Path) -> None:
    state = _ask(no_driver(tmp_path))
    assert state["cause"] == "no-driver"
    assert "libcuda.so.1" in state["detail"]


def test_driver_without_a_function_is_too_old(tmp_path: Path) -> None:
    source = tmp_path / "old.c"
    source.write_text("int cuGetErrorString(int c, const char **t) { *t = 0; return c & 0; }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(source)], check=True)
    state = _ask({"LD_LIBRARY_PATH": str(tmp_path)})
    assert state["cause"] == "driver-too-old"


def test_this_machine_answers_the_same_twice() -> None:
    state = probe()
    assert state == probe()
    assert state.usable == bool(state.devices)
    assert dataclasses.asdict(state)["detail"]


@pytest.mark.gpu
def test_this_gpu_is_what_nvidia_smi_says() -> None:
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    )
    told = {tuple(part.strip() for part in line.split(",")) for line in asked.stdout.splitlines()}
    assert {(gpu.name, gpu.compute_capability) for gpu in probe().devices} <= told
