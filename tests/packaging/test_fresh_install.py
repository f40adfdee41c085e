"""A fresh virtual environment with the wheel and no extra: light import, and every command explains itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
IMPORT_LIMIT = 0.3  # seconds: the README's promise
HEAVY = ("torch", "onnx", "cv2", "pydantic", "tyro", "onnxruntime", "openvino", "scipy", "rich")
TIMED_IMPORT = f"""
import sys, time, json
start = time.perf_counter()
import gamma_runtime
taken = time.perf_counter() - start
print(json.dumps([taken, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


@pytest.fixture(scope="session")
def fresh(registry: None, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with nothing but the wheel and its base dependencies."""
    home = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(home, with_pip=True)
    _run([home / "bin" / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel], home)
    return home / "bin"


def _run(command: list[str | Path], cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_no_heavy_library_is_installed(fresh: Path, tmp_path: Path) -> None:
    listed = json.loads(_run([fresh / "python", "-m", "pip", "list", "--format", "json"], tmp_path))
    names = {entry["name"].lower() for entry in listed}
    assert not names & {"torch", "onnx", "onnxruntime", "openvino", "opencv-python-headless", "scipy"}
    assert "gamma-edge" in names


def test_runtime_imports_light_and_fast(fresh: Path, tmp_path: Path) -> None:
    runs = [json.loads(_run([fresh / "python", "-c", TIMED_IMPORT], tmp_path)) for _ in range(5)]
    assert all(loaded == [] for _, loaded in runs)
    assert min(taken for taken, _ in runs) < IMPORT_LIMIT


def test_scorer_needs_no_exporter_library(fresh: Path, tmp_path: Path) -> None:
    code = "import gamma_runtime, sys; gamma_runtime.load; print({'torch', 'onnx', 'cv2', 'tyro'} & set(sys.modules))"
    assert _run([fresh / "python", "-c", code], tmp_path).strip() == "set()"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_extra(fresh: Path, tmp_path: Path, script: str) -> None:
    text = _run([fresh / script, "--help"], tmp_path)
    assert script in text
    assert "--json" in text


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_flag_is_a_usage_error(fresh: Path, tmp_path: Path, script: str) -> None:
    command = [str(fresh / script), "--no-such-flag"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{script} --help" in done.stderr
    assert "Traceback" not in done.stderr
