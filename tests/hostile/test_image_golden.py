"""Rows 33 to 41: a golden value for every kind of picture and every rule that cuts crops; what is refused, and why.

The encoded bytes are files (`golden_images`): a digest that changes is a decoder, or a rule of ours, that changed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from gamma_runtime import decode as decoder
from gamma_runtime.contract import Contract
from gamma_runtime.crops import prepare
from gamma_runtime.errors import InputError
from tests.hostile.golden_images import CONTRACTS, FOLDER, GOLDEN, KINDS, crops_of, pixels_of, source_of
from tests.runtime.images import png

KNOWN: dict[str, Any] = json.loads(GOLDEN.read_text())
NATIVE = Contract({"s": None})
RESIZE = CONTRACTS["small resize"]
STRICT = dataclasses.replace(NATIVE, frames="refuse")


def test_every_kind_has_its_golden_value() -> None:
    assert set(KNOWN["images"]) == set(KINDS) == {path.name for path in FOLDER.iterdir()} - {GOLDEN.name}
    assert set(KNOWN["contracts"]) == set(CONTRACTS)
    assert {entry["row"] for entry in KNOWN["images"].values()} == {34, 37, 38, 39, 40, 41}


@pytest.mark.parametrize("name", KNOWN["images"])
def test_pixels_are_the_golden_ones(name: str) -> None:
    known = dict(KNOWN["images"][name])
    del known["row"]
    assert pixels_of((FOLDER / name).read_bytes()) == known


@pytest.mark.parametrize("name", CONTRACTS)
def test_crops_are_the_golden_ones(name: str) -> None:
    assert crops_of((FOLDER / source_of(name)).read_bytes(), name) == KNOWN["contracts"][name]


def test_pictures_that_must_be_equal_are() -> None:
    digest = {name: entry["sha256"] for name, entry in KNOWN["images"].items()}
    lossless = ("lies.jpg", "bmp-24.bmp", "webp-lossless.webp", "tiff-lzw.tif", "tiff-deflate.tif")
    for others in (
        (*lossless, "icc.png", "chunks.png", "apng.png", "animated.webp", "pages.tif"),
        ("exif-1.jpg", "exif-broken.jpg", "icc.jpg"),
        ("exif-6.png", "exif-6.webp"),
    ):
        assert len({digest[name] for name in others}) == 1, others
    assert len({digest[f"exif-{value}.jpg"] for value in range(1, 9)}) == 8


@pytest.mark.parametrize("name", ["png-alpha.png", "jpeg-cmyk-adobe.jpg", "bmp-32.bmp"])
def test_a_rule_that_rounds_otherwise_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the golden values: truncating instead of rounding changes pixels by one at most."""
    before = decoder.decode(FOLDER / name, NATIVE.limits).pixels.astype(int)
    monkeypatch.setattr(decoder, "_HALF", np.uint16(0))
    after = decoder.decode(FOLDER / name, NATIVE.limits).pixels
    assert np.abs(after - before).max() == 1
    assert pixels_of((FOLDER / name).read_bytes())["sha256"] != KNOWN["images"][name]["sha256"]


def test_a_resize_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "INTER_AREA", cv2.INTER_LINEAR)
    assert crops_of((FOLDER / source_of("384 five")).read_bytes(), "384 five") != KNOWN["contracts"]["384 five"]


JPEG = (FOLDER / "jpeg-444.jpg").read_bytes()
REFUSED: dict[str, tuple[Contract, bytes, str]] = {
    "33 empty": (NATIVE, b"", "image bytes: the file is empty"),
    "33 cut": (RESIZE, JPEG[:-40], "image bytes: jpeg: Premature end of JPEG file"),
    "33 cut, EOI appended": (RESIZE, JPEG[:-400] + b"\xff\xd9", "image bytes: jpeg: "),
    "34 GIF": (NATIVE, b"GIF89a" + bytes(50), "image bytes: GIF"),
    "35 bomb": (NATIVE, png(16384, 16384, 8, 0, [b""]), "16384x16384 is 268435456 pixels; the limit is 64000000"),
    "35 side": (NATIVE, png(1, 65535, 8, 0, [b""]), "1x65535; the limit is 16384 pixels a side"),
    "36 1x1": (NATIVE, png(1, 1, 8, 0, [b"\0"]), "1x1 leaves no room for a crop of 224 pixels"),
    "36 1xN": (RESIZE, png(1, 500, 8, 0, [b""]), "1x500; the longest allowed aspect is 20:1"),
    "36 Nx1": (CONTRACTS["small pad"], png(500, 1, 8, 0, [b""]), "500x1; the longest allowed aspect is 20:1"),
    "36 side under 224": (NATIVE, png(400, 223, 8, 0, [b""]), "400x223 leaves no room"),
    **{f"40 {name}": (STRICT, (FOLDER / name).read_bytes(), "more than one picture in it")
       for name in ("apng.png", "animated.webp", "pages.tif", "mpo.jpg")},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_what_and_the_limit(name: str) -> None:
    contract, data, words = REFUSED[name]
    with pytest.raises(InputError) as caught:
        prepare(data, contract, "s")
    assert words in caught.value.message
    assert caught.value.exit_code == 3


_PEAK = """
import re, sys, cv2, numpy, simplejpeg
from pathlib import Path
from gamma_runtime import decode
from gamma_runtime.contract import Contract, CropPolicy, Limits
from gamma_runtime.crops import prepare
from gamma_runtime.errors import InputError
path, rows, policy, small = sys.argv[1:]
decode._ROWS = int(rows)
contract = Contract({"s": None}, crop=CropPolicy.parse(policy), small=small, limits=Limits(max_aspect=20000))
def memory(which):
    return int(re.search(which + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
before = memory("VmRSS")
try:
    prepare(path, contract, "s")
except InputError as error:
    sys.stderr.write(error.message)
print(memory("VmHWM") - before)
"""


def peak_mib(path: Path, rows: int = decoder._ROWS, policy: str = "centre", small: str = "refuse") -> tuple[float, str]:
    """How far preparing one file lifts the peak memory of a process of its own (MiB), and what it said.

    Not by ru_maxrss: that one begins with the peak of the process that started it.
    """
    command = [sys.executable, "-c", _PEAK, str(path), str(rows), policy, small]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return int(done.stdout) / 1024, done.stderr


def test_the_widest_legal_pixels_stay_within_bounds(tmp_path: Path) -> None:
    """Row 35: 16-bit RGBA takes 8 bytes a pixel as stored, 8 for its copy in RGB order, 3 for the result.

    The wider integers of the conversion exist for some rows only; the control converts all rows at once.
    """
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((2000, 3000, 4), np.uint16))
    bound = 6e6 * (8 + 8 + 3) / 2**20 + 24
    assert peak_mib(tmp_path / "a.png")[0] < bound
    assert peak_mib(tmp_path / "a.png", rows=10**6)[0] > bound


@pytest.mark.parametrize(
    ("width", "height", "policy", "small", "words"),
    [
        (16384, 16384, "centre", "resize", "the limit is 64000000"),
        (1, 16384, "centre", "resize", "would become 224x3670016"),
        (8000, 8000, "cover", "refuse", "1296 crops to cover; the limit is 256"),
        (8000, 8000, "frame1280x720", "refuse", "takes frames of 1280x720"),
    ],
)
def test_what_the_size_decides_costs_no_memory(
    tmp_path: Path, width: int, height: int, policy: str, small: str, words: str
) -> None:
    """Rows 35 and 36: refused from the header; the file promises pixels that nobody asks it for."""
    (tmp_path / "a.png").write_bytes(png(width, height, 8, 0, [bytes(width)] * 4))
    peak, said = peak_mib(tmp_path / "a.png", policy=policy, small=small)
    assert words in said
    assert peak < 16
