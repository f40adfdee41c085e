"""Row 47 of the hostile list: too little memory, too few file handles, no folder for temporary files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests import tiny_export
from tests.tiny_export import copy, exported, snapshot, spawn

MIB = 1 << 20
# Limits what the process may take from now on: the libraries are there, as on a machine that slowly fills up.
LIMITED = """
import re, resource, sys
from pathlib import Path
from gamma_runtime.cli import run_command
kind, limit, extra = sys.argv[1], getattr(resource, sys.argv[2]), int(sys.argv[3])
if kind == "export":
    import cv2, onnx.checker, onnxruntime, scipy.stats, torch
    from gamma_export.commands.export import ExportCommand as Options, export_command as function
else:
    import cv2, onnxruntime, simplejpeg
    import gamma_runtime.manifest, gamma_runtime.scorer
    from gamma_runtime.commands.run import RunOptions as Options, run as function
if limit == resource.RLIMIT_AS:
    extra += int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(limit, (extra, extra))
sys.exit(run_command(f"gamma-{kind}", function, Options, sys.argv[4:]))
"""


def limited(kind: str, limit: str, extra: int, *args: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", LIMITED, kind, limit, str(extra), *map(str, args)]
    # One thread: the stacks of many would fill the little that there is.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


def check(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 5, done.stderr
    assert words in done.stderr
    assert "\nhint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 megapixels: 137 MiB when decoded."""
    path = tmp_path_factory.mktemp("large") / "large.png"
    cv2.imwrite(str(path), np.zeros((6000, 8000, 3), np.uint8))
    return path


@pytest.mark.parametrize("mib", [1, 16, 64, 130])
def test_scoring_without_memory_is_code_5(large: Path, mib: int) -> None:
    """OpenVINO is left out: short of memory in a thread of its own, it ends the process itself."""
    args = (exported(), large, "--threads", "1", "--json", "--backend", "onnxruntime")
    done = limited("run", "RLIMIT_AS", mib * MIB, *args)
    check(done, "out of memory")
    assert done.stdout == ""


def test_scoring_with_enough_memory_is_fine(large: Path) -> None:
    """The limit itself is no fault."""
    args = (exported(), large, "--threads", "1", "--json", "--backend", "onnxruntime")
    assert limited("run", "RLIMIT_AS", 4096 * MIB, *args).returncode == 0


@pytest.mark.parametrize("mib", [8, 200])
def test_an_export_without_memory_is_code_5_and_the_bundle_stays(tmp_path: Path, mib: int) -> None:
    bundle = copy(tmp_path / "b.gamma")
    before = snapshot(bundle)
    check(limited("export", "RLIMIT_AS", mib * MIB, *tiny_export.arguments(), "-o", bundle, "--quiet"), "out of memory")
    assert snapshot(bundle) == before


def test_no_file_handles_left_is_code_5(large: Path) -> None:
    """Handles 0 to 2, and those that libraries hold already."""
    done = limited("run", "RLIMIT_NOFILE", 3, exported(), large, "--threads", "1", "--backend", "onnxruntime")
    check(done, "Too many open files")


def test_a_missing_folder_for_temporary_files_is_no_fault(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path / "missing")}
    out = tmp_path / "b.gamma"
    done = spawn("export", [*tiny_export.arguments(), "-o", out], env=environment)
    assert done.returncode == 0, done.stderr
    photo = next(tiny_export.photos().iterdir())
    assert spawn("run", [out, photo, "--threads", "1"], env=environment).returncode == 0


def test_a_command_called_from_python_gives_the_signal_handlers_back(large: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert tiny_export.command("run", exported(), str(large)) == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["run", "verify"])
def test_commands_that_only_read_end_as_they_are_told(command: str, number: int, code: int) -> None:
    """Told as soon as they have said something; they end before they are done, and without a traceback."""
    many = [tiny_export.photos()] * 400
    words = [exported(), *(many if command == "run" else ["--against", tiny_export.checkpoint()])]
    argv = [str(Path(sys.executable).parent / f"gamma-{command}"), *map(str, words)]

    def as_in_a_shell() -> None:  # a background job of some shells ignores SIGINT, and so would its children
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=as_in_a_shell
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == code, first + rest
    assert "Traceback" not in rest


def test_a_clock_that_jumps_cannot_matter() -> None:
    """Durations come from the monotonic clock; only the age of a leftover file, which has no other, is by the wall."""
    root = Path(__file__).parents[2]
    homes = ("gamma_export", "runtime/gamma_runtime", "calib/gamma_calib", "training/gamma_training")
    files = [path for home in homes for path in (root / home).rglob("*.py")]
    users = {path.name: path.read_text().count("time.time(") for path in files}
    assert {name: count for name, count in users.items() if count} == {"files.py": 1}
