"""Values become codes: weights with a scale for each output channel, or in 4 bits with one for each block of rows.

Scales are numbers that fp16 holds, so that a graph whose rest is fp16 and one whose rest is fp32 round alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gamma_calib.external import numpy_type

__all__ = ["INT4_BLOCK", "LEVELS", "fp16_scale", "int4_block", "quantise_blocks", "quantise_weight"]

# The largest number that a code stands for, in steps: int8 without -128, so that it is symmetric; E4M3's largest.
LEVELS = {"int8": 127.0, "fp8": 448.0}
INT4_BLOCK = 128  # rows with one scale; what TensorRT runs best (tensorrt.md section 3.1)
_INT4_LEVELS = 7  # int4 without -8
_LEAST = 2.0**-14  # smallest normal fp16: below it a scale loses its digits


def fp16_scale(scale: NDArray[Any]) -> NDArray[np.float16]:
    """The next number up that fp16 holds, never 0 and never subnormal, so that nothing is clipped by the rounding."""
    rounded = np.maximum(scale, _LEAST).astype(np.float16)
    low = rounded.astype(np.float64) < scale
    up = np.nextafter(rounded, np.float16(np.inf))
    return np.asarray(np.where(low, up, rounded), np.float16)


def quantise_weight(weight: NDArray[np.float32], kind: str = "int8") -> tuple[NDArray[Any], NDArray[np.float16]]:
    """Codes ``[K, N]``, int8 or float8_e4m3fn, and a scale for each output channel ``[N]``."""
    levels = LEVELS[kind]
    scale = fp16_scale(np.abs(weight).max(axis=0).astype(np.float64) / levels)
    codes = np.clip(weight / scale.astype(np.float32), -levels, levels)
    return (np.rint(codes) if kind == "int8" else codes).astype(numpy_type(kind)), scale


def int4_block(rows: int) -> int:
    """Rows with one scale: `INT4_BLOCK`, or what divides a small layer's rows."""
    return math.gcd(rows, INT4_BLOCK)


def quantise_blocks(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codes from -7 to 7 ``[K, N]``, and a scale for each block of rows and output channel, ``[K / block, N]``."""
    rows, columns = weight.shape
    blocks = weight.reshape(-1, int4_block(rows), columns)
    scale = fp16_scale(np.abs(blocks).max(axis=1).astype(np.float64) / _INT4_LEVELS)
    codes = np.clip(np.rint(blocks / scale[:, None].astype(np.float32)), -_INT4_LEVELS, _INT4_LEVELS)
    return codes.reshape(rows, columns).astype(np.int8), scale
