"""Reduction by pixel area with the same bytes on every processor.

OpenCV's INTER_AREA multiplies and adds in two roundings on x86 and in one on Arm, so that a byte here and there is 1 of
255 off. Crops are compared by their digests (the golden images), so x86's bytes are what everybody makes. The C++
runtime has the same in runtime/cpp/src/area.cpp.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cli import require

__all__ = ["reduce_by_area", "steady_area"]

_X86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
_EPSILON = float(np.finfo(np.float64).eps)
_SLIVER = 1e-3  # of a pixel: less does not count, as in OpenCV
_CHUNK = 1 << 14  # pixels computed together
Pixels = NDArray[np.uint8]


def reduce_by_area(pixels: Pixels, width: int, height: int) -> Pixels:
    """What ``cv2.resize`` with INTER_AREA makes on x86.

    Args:
        pixels: uint8 ``[H, W, 3]``, contiguous.
        width: pixels, at most those of the picture.
        height: likewise.
    """
    cv2 = require("cv2", "cpu")
    if _X86 or (_whole_factor(pixels.shape[1], width) and _whole_factor(pixels.shape[0], height)):
        smaller: Pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        return smaller  # whole factors: OpenCV adds integers there, which no processor rounds
    return steady_area(cv2, pixels, width, height)


def steady_area(cv2: Any, pixels: Pixels, width: int, height: int) -> Pixels:
    """The same in 16 bits, which leaves only pixels near a half open; those are computed here, with two roundings."""
    wide = cv2.resize(pixels.astype(np.uint16) << 8, (width, height), interpolation=cv2.INTER_AREA)
    smaller: Pixels = ((wide + 128) >> 8).astype(np.uint8)
    near_half = np.abs((wide & 255).astype(np.int16) - 128) <= 1
    rows, columns = np.nonzero(near_half.any(axis=2))
    down, across = _spans(pixels.shape[0], height), _spans(pixels.shape[1], width)
    for start in range(0, len(rows), _CHUNK):
        some = slice(start, start + _CHUNK)
        smaller[rows[some], columns[some]] = _computed(pixels, rows[some], columns[some], down, across)
    return smaller


def _whole_factor(source: int, target: int) -> bool:
    factor = 1 / (target / source)  # in OpenCV's words: 1 / inv_scale
    return abs(factor - round(factor)) < _EPSILON


Spans = tuple[NDArray[np.intp], NDArray[np.float32]]  # source pixels [target, most], and the share of each in float32


def _spans(source: int, target: int) -> Spans:
    """Along one axis, the source pixels under each target pixel, in ascending order; a share of 0 fills up."""
    factor = 1 / (target / source)
    begin = np.arange(target) * factor
    end = begin + factor
    cell = np.minimum(factor, source - begin)
    last = np.minimum(np.floor(end).astype(np.intp), source - 1)
    first = np.minimum(np.ceil(begin).astype(np.intp), last)
    places = first[:, None] - 1 + np.arange(int((last - first).max()) + 2)
    shares = np.where((places >= first[:, None]) & (places < last[:, None]), 1 / cell[:, None], 0.0)
    head, tail = first - begin, end - last
    index = np.arange(target)
    shares[:, 0] = np.where(head > _SLIVER, head / cell, 0.0)
    shares[index, last - first + 1] = np.where(tail > _SLIVER, np.minimum(np.minimum(tail, 1.0), cell) / cell, 0.0)
    return np.clip(places, 0, source - 1), shares.astype(np.float32)


def _computed(pixels: Pixels, rows: NDArray[np.intp], columns: NDArray[np.intp], down: Spans, across: Spans) -> Pixels:
    """Target pixels ``[n, 3]``: each row's products added up in float32, then the rows."""
    total = np.zeros((len(rows), 3), np.float32)
    for y in range(down[0].shape[1]):
        line = np.zeros((len(rows), 3), np.float32)
        for x in range(across[0].shape[1]):
            source = pixels[down[0][rows, y], across[0][columns, x]].astype(np.float32)
            line = line + source * across[1][columns, x, None]
        total = total + down[1][rows, y, None] * line
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)
