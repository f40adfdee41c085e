"""The Python runtime on 64-bit Arm, emulated by qemu: Debian's Python, the wheels that a board would install.

Needs qemu-user-static, and apt-get and pip that can fetch packages for Arm; skipped elsewhere. GAMMA_ARM_FOLDER names a
folder to keep what was fetched.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gamma_export.photos import packaged_photos
from gamma_runtime.area import reduce_by_area
from gamma_runtime.scorer import load
from tests import tiny_export
from tests.runtime import images

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent.parent
DEBIAN = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "libgomp1", "zlib1g")
WHEELS = (
    "numpy",
    "opencv-python-headless",
    "simplejpeg",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "typing-extensions",
    "openvino",
    "packaging",
)
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_35_aarch64")
SIZES = [((1280, 720), (683, 384)), ((401, 300), (299, 224)), ((1000, 385), (997, 384)), ((640, 480), (512, 384))]


def _fetch_debian(folder: Path) -> None:
    """Packages for Arm, unpacked into ``folder``/sysroot; apt-get gets a state of its own, nothing is installed."""
    apt = folder / "apt"
    (apt / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (apt / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "1",
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
    }
    command = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in settings.items())]
    install = ["install", "--yes", "--download-only", "--no-install-recommends", *DEBIAN]
    for words in (["update"], install):
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"apt-get cannot fetch arm64 packages here: {done.stderr.strip()[-200:]}")
    for package in (apt / "cache" / "archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder / "sysroot"], check=True)


def _fetch_wheels(folder: Path) -> None:
    """Of the very versions that are installed here."""
    flags = ["--no-deps", "--only-binary=:all:", "--python-version", "3.11"]
    flags += [word for platform in PLATFORMS for word in ("--platform", platform)]
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    target = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "--python-version",
        "3.11",
    ]
    done = subprocess.run(
        [*target, *flags, "-d", folder / "wheels", *pins], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"pip cannot fetch wheels for Arm here: {done.stderr.strip()[-200:]}")
    for wheel in (folder / "wheels").glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder / "site")


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that starts Python for Arm with the runtime of this tree."""
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if qemu is None or shutil.which("apt-get") is None:
        pytest.skip("no qemu-aarch64 or no apt-get here: on Debian, apt-get install qemu-user-static")
    folder = Path(os.environ.get("GAMMA_ARM_FOLDER") or tmp_path_factory.mktemp("arm"))
    if not (folder / "sysroot").is_dir():
        _fetch_debian(folder)
    if not (folder / "site").is_dir():
        _fetch_wheels(folder)
    sysroot = folder / "sysroot"
    paths = f"PYTHONPATH={folder / 'site'}:{ROOT / 'runtime'}"
    return [
        qemu,
        "-L",
        str(sysroot),
        "-E",
        paths,
        "-E",
        f"PYTHONHOME={sysroot / 'usr'}",
        f"{sysroot}/usr/bin/python3.11",
    ]


def run(arm: list[str], program: str, *words: str | Path) -> str:
    done = subprocess.run(
        [*arm, "-c", program, *map(str, words)], capture_output=True, text=True, check=False, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


REDUCE = """
import json, platform, sys
import cv2, numpy
from gamma_runtime.area import reduce_by_area
assert platform.machine() == "aarch64"
pictures, differ = numpy.load(sys.argv[1]), 0
made = {}
for name in pictures.files:
    width, height = map(int, name.split("x"))
    made[name] = reduce_by_area(pictures[name], width, height)
    plain = cv2.resize(pictures[name], (width, height), interpolation=cv2.INTER_AREA)
    differ += int((plain != made[name]).sum())
numpy.savez(sys.argv[2], **made)
print(differ)
"""


def test_photos_are_reduced_to_x86s_bytes(arm: list[str], tmp_path: Path) -> None:
    """OpenCV's own are others there: else this would not be needed any more."""
    pictures = {}
    for (width, height), (to_width, to_height) in SIZES:
        noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        pictures[f"{to_width}x{to_height}"] = noise // 2 + images.photo(width, height) // 2
    np.savez(tmp_path / "in.npz", **pictures)
    differ = int(run(arm, REDUCE, tmp_path / "in.npz", tmp_path / "out.npz"))
    made = np.load(tmp_path / "out.npz")
    for name, picture in pictures.items():
        width, height = map(int, name.split("x"))
        assert np.array_equal(made[name], reduce_by_area(picture, width, height)), name
    assert differ > 0


SCORE = """
import json, sys
import gamma_runtime
from gamma_runtime.crops import prepare
import hashlib
with gamma_runtime.load(sys.argv[1], backend="openvino", threads=1) as scorer:
    found = []
    for path in sys.argv[2:]:
        crops = prepare(path, scorer.panel.contract, scorer.scene).crops
        found.append([scorer.score(path).value, hashlib.sha256(crops.tobytes()).hexdigest()])
print(json.dumps(found))
"""


def test_crops_and_scores_are_x86s(arm: list[str]) -> None:
    """The same crops of packaged photos; scores of OpenVINO's Arm kernels within 1e-5."""
    import hashlib

    from gamma_runtime.crops import prepare

    bundle = tiny_export.exported(precision="fp32")
    photos = packaged_photos()[:4]
    found = json.loads(run(arm, SCORE, bundle, *photos))
    with load(bundle, backend="openvino", threads=1) as scorer:
        for (value, digest), photo in zip(found, photos, strict=True):
            crops = prepare(photo, scorer.panel.contract, scorer.scene).crops
            assert digest == hashlib.sha256(crops.tobytes()).hexdigest()
            assert value == pytest.approx(scorer.score(photo).value, abs=1e-5)
