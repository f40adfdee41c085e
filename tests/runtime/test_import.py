"""The leaf that an edge device installs stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "onnx", "cv2", "pydantic", "tyro", "rich", "onnxruntime", "openvino", "simplejpeg", "scipy"}


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(' '.join(name.split('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_pulls_nothing_heavy() -> None:
    assert not modules_after("import gamma_runtime") & (HEAVY | {"numpy"})


@pytest.mark.parametrize(
    "module", ["scorer", "decode", "crops", "selftest", "backends", "sources", "commands.run", "commands.stream"]
)
def test_modules_pull_nothing_heavy(module: str) -> None:
    assert not modules_after(f"import gamma_runtime.{module}") & HEAVY


def test_available_pulls_nothing_heavy() -> None:
    code = "from gamma_runtime import backends\nbackends.available()"
    assert not modules_after(code) & HEAVY


def test_scoring_needs_no_torch_and_no_onnx() -> None:
    """Even where both are installed."""
    code = "from gamma_runtime.decode import decode\nimport gamma_runtime.scorer, gamma_runtime.manifest"
    assert not modules_after(code) & {"torch", "onnx"}


def test_scoring_on_a_cpu_imports_nothing_that_builds_or_runs_engines() -> None:
    code = "import sys, gamma_runtime.scorer\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "gamma_runtime.graphs" in loaded
    assert not loaded & {f"gamma_runtime.engines.{name}" for name in ("build", "worker", "store", "load", "run")}
    assert "gamma_runtime.backends.tensorrt_" not in loaded
