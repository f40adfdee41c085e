"""The Makefile on machines that lack something, and what `make gpu-check` makes of a report."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def checkout(tmp_path: Path, root: Path) -> Path:
    """A folder with what `make venv` reads, and a PATH of its own in bin/."""
    for name in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt"):
        shutil.copy(root / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for tool in ("make", "id", "uname", "awk"):
        found = shutil.which(tool)
        assert found, tool
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path


def _make(checkout: Path, target: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", target], cwd=checkout, env={"PATH": str(checkout / "bin")}, capture_output=True, text=True, check=False
    )


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_help_lists_the_targets(checkout: Path) -> None:
    done = _make(checkout, "help")
    assert done.returncode == 0
    for target in ("demo", "test", "test-long", "bench", "gpu-check", "lint", "format", "clean", "venv", "help"):
        assert f"make {target} " in done.stdout


def test_no_python_is_a_sentence(checkout: Path) -> None:
    done = _make(checkout, "venv")
    assert done.returncode != 0
    assert "error: Python 3.10, 3.11 or 3.12 is needed" in done.stderr
    assert "hint:" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_that_does_not_run_is_no_python(checkout: Path) -> None:
    _script(checkout / "bin" / "python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    assert "error: Python 3.10, 3.11 or 3.12 is needed" in _make(checkout, "venv").stderr


def test_missing_venv_module_is_a_sentence(checkout: Path) -> None:
    version = (
        'case "$2" in *version_info*print*|*print*version_info*) echo python3.11-venv;; *ensurepip*) exit 1;; esac'
    )
    _script(checkout / "bin" / "python3.11", version)
    done = _make(checkout, "venv")
    assert done.returncode != 0
    assert "has no venv module" in done.stderr
    assert "apt-get install python3.11-venv" in done.stderr


@pytest.mark.parametrize(("overlap", "code"), [(0, 0), (7, 7)])
def test_bench_goes_on_after_a_goal_that_is_not_met(checkout: Path, overlap: int, code: int) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    stand_in = f'echo "ran $*"; case "$*" in *overlap*full*) exit {overlap};; esac'
    _script(checkout / ".venv" / "bin" / "python", stand_in)
    _script(checkout / "bin" / "cmake", "exit 0")
    (checkout / ".venv" / ".installed").touch()
    done = _make(checkout, "bench")
    ran = [line.split("ran benchmarks/")[1] for line in done.stdout.splitlines() if "ran benchmarks/" in line]
    assert ran == [
        "against.py",
        "overlap.py",
        "overlap.py --size full --photos 8",
        "cpp_overhead.py",
        "cpp_overhead.py --size full --photos 5",
        "tables.py",
    ]
    assert bool(done.returncode) == bool(code)
    assert (f"Error {code}" in done.stderr) == bool(code)


@pytest.fixture(scope="module")
def gpu_check(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", root / "tests" / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gpu_check_reads_the_reason_that_conftest_writes(gpu_check: ModuleType, root: Path) -> None:
    assert f'NO_GPU = "{gpu_check.NO_GPU}"' in (root / "tests" / "conftest.py").read_text()


def test_gpu_check_without_a_gpu_accepts_only_that_reason(gpu_check: ModuleType) -> None:
    missing = "no usable GPU: no driver"
    assert gpu_check.verdict(False, 0, [missing, missing])[0] == 0
    assert gpu_check.verdict(False, 0, [missing, "no TensorRT"])[0] == 1
    assert gpu_check.verdict(False, 0, [missing, None])[0] == 1
    assert gpu_check.verdict(False, 2, [missing])[0] == 2
    assert gpu_check.verdict(False, 0, [])[0] == 1


def test_gpu_check_with_a_gpu_is_pytests_word(gpu_check: ModuleType) -> None:
    assert gpu_check.verdict(True, 0, [None, "no TensorRT"]) == (
        0,
        "gpu-check: 1 tests ran on the GPU, 1 were skipped",
    )
    assert gpu_check.verdict(True, 1, [None])[0] == 1


def test_gpu_check_reads_a_report(gpu_check: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped message="why"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert gpu_check.skip_reasons(report) == [None, "why"]
