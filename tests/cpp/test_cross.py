"""Compiled for 64-bit Arm by runtime/cpp/scripts/cross-aarch64, and run on emulated Arm: the same crops as here?"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gamma_export.photos import packaged_photos
from tests.cpp.conftest import ROOT
from tests.cpp.test_cpp import made
from tests.runtime import tiny_bundle
from tests.runtime.tiny_bundle import Tiny, make_bundle

pytestmark = pytest.mark.long

SCRIPT = ROOT / "runtime" / "cpp" / "scripts" / "cross-aarch64"
LIBRARY = "libgamma_runtime.so.0.1.0"


def run(command: list[str | Path], timeout: float = 900) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=timeout)


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with sysroot/ and build/. GAMMA_CROSS_FOLDER names one to keep, with its sysroot."""
    for tool in ("apt-get", "dpkg-deb", "cmake", "aarch64-linux-gnu-g++", "file"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here: on Debian, apt-get install cmake g++-aarch64-linux-gnu file")
    folder = Path(os.environ.get("GAMMA_CROSS_FOLDER") or tmp_path_factory.mktemp("aarch64"))
    done = run([SCRIPT, folder])
    if done.returncode == 5 and "apt-get cannot fetch" in done.stderr:
        pytest.skip("apt-get cannot fetch arm64 packages here")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def emulated(arm: Path) -> list[str | Path]:
    """The command that runs gamma-run-cpp for Arm."""
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if qemu is None:
        pytest.skip("no qemu-aarch64 here: on Debian, apt-get install qemu-user-static")
    return [qemu, "-L", arm / "sysroot", arm / "build" / "runtime" / "cpp" / "gamma-run-cpp"]


def test_the_library_is_for_arm(arm: Path) -> None:
    for name in (LIBRARY, "gamma-run-cpp", "gamma-selftest-cpp"):
        said = run(["file", "-b", arm / "build" / "runtime" / "cpp" / name]).stdout
        assert "ELF 64-bit LSB" in said, name
        assert "ARM aarch64" in said, name


def test_cmake_says_what_is_left_out(arm: Path) -> None:
    done = run(["cmake", "-S", ROOT, "-B", arm / "build"])
    assert (done.returncode, "no OpenVINO, so nothing scores on the CPU" in done.stdout) == (0, True), done.stderr


def test_it_starts(emulated: list[str | Path]) -> None:
    done = run([*emulated, "--help"])
    assert (done.returncode, done.stdout.startswith("gamma-run-cpp BUNDLE SOURCE...")) == (0, True), done.stderr


def test_scoring_is_refused(emulated: list[str | Path], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma").folder
    done = run([*emulated, bundle, packaged_photos()[0]])
    assert (done.returncode, "built without OpenVINO" in done.stderr) == (5, True)


def crops(command: list[str | Path], bundle: Path, images: list[Path], small: str, to: Path) -> np.ndarray:
    done = run([*command, bundle, *images, "--small", small, "--dump-crops", to])
    assert done.returncode == 0, done.stderr
    return np.fromfile(to, np.uint8)


def every_kind(folder: Path) -> list[Path]:
    data = sorted(path for path in (ROOT / "tests" / "data" / "images").iterdir() if path.suffix != ".json")
    images = [*packaged_photos(), *data, *made(folder)]
    assert len(images) > 90
    return images


@pytest.mark.parametrize("small", ["pad", "resize"])
def test_decoded_and_enlarged_pixels_are_the_same(
    emulated: list[str | Path], tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: str
) -> None:
    """Every format, orientation and colour, whole, never reduced; small ones enlarged or mirrored: byte for byte."""
    monkeypatch.setattr(tiny_bundle, "SHORT_SIDES", dict.fromkeys(tiny_bundle.SHORT_SIDES))
    bundle = make_bundle(tmp_path / "native.gamma", Tiny(crop="cover")).folder
    images = [path for path in every_kind(tmp_path) if path.name != "huge.jpg"]  # it takes too many crops to cover
    here = crops([tools / "gamma-run-cpp"], bundle, images, small, tmp_path / "x86")
    assert np.array_equal(here, crops(emulated, bundle, images, small, tmp_path / "arm"))


@pytest.mark.parametrize("scene", list(tiny_bundle.SHORT_SIDES))
def test_reduced_pixels_are_the_same(emulated: list[str | Path], tools: Path, tmp_path: Path, scene: str) -> None:
    """OpenCV's area reduction would be 1 of 255 off here and there: it rounds once on Arm and twice on x86."""
    bundle, images = make_bundle(tmp_path / "five.gamma").folder, every_kind(tmp_path)
    flags = ["--scene", scene]
    here = crops([tools / "gamma-run-cpp", *flags], bundle, images, "pad", tmp_path / "x86")
    assert np.array_equal(here, crops([*emulated, *flags], bundle, images, "pad", tmp_path / "arm"))
