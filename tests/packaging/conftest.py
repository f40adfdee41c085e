"""The project as pyproject.toml describes it, a wheel built from a clean copy, and a registry that answers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("gamma_export", "runtime", "calib", "training")
NETWORK_ERROR = "connection broken by"  # pip's own words when a registry does not answer


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def project() -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips when pip cannot reach its registry; any other answer of pip's is an answer."""
    cache = tmp_path_factory.mktemp("pip-cache")
    command = [sys.executable, "-m", "pip", "index", "versions", "tyro", "--retries", "1", "--cache-dir", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    broken = [line for line in done.stderr.splitlines() if NETWORK_ERROR in line]
    if done.returncode and broken:
        pytest.skip(f"no package registry is reachable: {broken[0]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools would pick up leftovers of older builds beside the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    compiled = copy / "training/gamma_training/data/__pycache__/samples.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built
