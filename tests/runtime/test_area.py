"""Reduction with the same bytes everywhere: the way that Arm takes, run here, against OpenCV's on x86."""

from __future__ import annotations

import platform
from typing import Any

import cv2
import numpy as np
import pytest

from gamma_runtime import area
from gamma_runtime.area import reduce_by_area, steady_area
from tests.runtime import images

SIZES = [
    ((1280, 720), (683, 384)),
    ((640, 480), (512, 384)),
    ((401, 300), (299, 224)),
    ((1000, 385), (997, 384)),
    ((385, 2000), (384, 1995)),
    ((517, 516), (385, 384)),
    ((900, 672), (300, 224)),
    ((225, 224), (224, 224)),
    ((2500, 250), (2240, 224)),
]
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="OpenCV's own bytes are the wanted ones on x86 only")


def noise(width: int, height: int) -> area.Pixels:
    return np.random.default_rng(width + height).integers(0, 256, (height, width, 3), np.uint8)


def by_opencv(pixels: area.Pixels, size: tuple[int, int]) -> area.Pixels:
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


@x86
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_the_way_of_arm_makes_the_bytes_of_x86(source: tuple[int, int], target: tuple[int, int]) -> None:
    for pixels in (noise(*source), images.photo(*source)):
        assert np.array_equal(steady_area(cv2, pixels, *target), by_opencv(pixels, target))


@x86
@pytest.mark.parametrize("off", [-1, 1])
def test_another_rounding_of_opencv_changes_nothing(off: int) -> None:
    """In 16 bits Arm is at most 1 off; a plain rounding of its numbers is seen to be wrong."""

    class Arm:
        INTER_AREA = cv2.INTER_AREA

        @staticmethod
        def resize(pixels: Any, size: tuple[int, int], interpolation: int) -> Any:
            made = np.asarray(cv2.resize(pixels, size, interpolation=interpolation)).astype(np.int32)
            return np.clip(made + off, 0, 65280).astype(np.uint16)

    pixels, size = noise(1280, 720), (683, 384)
    wanted = by_opencv(pixels, size)
    assert np.array_equal(steady_area(Arm, pixels, *size), wanted)
    plain = (Arm.resize(pixels.astype(np.uint16) << 8, size, cv2.INTER_AREA) + 128) >> 8
    assert not np.array_equal(plain.astype(np.uint8), wanted)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_whole_factors_are_opencvs_everywhere(factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(area, "_X86", False)
    monkeypatch.setattr(area, "steady_area", None)  # not called
    pixels = noise(224 * factor, 230 * factor)
    assert np.array_equal(reduce_by_area(pixels, 224, 230), by_opencv(pixels, (224, 230)))


def test_other_processors_take_that_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(area, "_X86", False)
    monkeypatch.setattr(area, "steady_area", lambda _cv2, pixels, width, height: (pixels.shape, width, height))
    assert reduce_by_area(noise(640, 480), 512, 384) == ((480, 640, 3), 512, 384)
