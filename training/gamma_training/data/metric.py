"""How much of a clean photo is left in a distorted copy, as one number: the label of synthetic sets.

Three parts, each 1 for the original itself, multiplied:

* structure: scikit-image's SSIM of the luma at three sizes. It sees exposure, contrast and noise, but rates blur and
  compression far too well when it is compared between kinds of distortion.
* detail: the gradient magnitude similarity deviation (Xue, Zhang, Mou and Bovik, 2014), which is even-handed between
  blur, noise and compression; a dozen lines of OpenCV here, because the packages that have it (piq, pyiqa) need
  torchvision.
* colour: the mean similarity of the chroma, as in FSIMc: the other two look at the luma alone.

The exponents make the strongest levels of all kinds end near each other; tests hold what the number is used for:
it falls with every level, on real photos, for every kind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cli import require
from gamma_runtime.decode import Pixels
from gamma_runtime.errors import UsageError

__all__ = ["MIN_SIDE", "VERSION", "local_parts", "quality"]

VERSION = 1  # of the definition; caches of computed labels carry it
MIN_SIDE = 64  # pixels
_SCALES = 3  # the photo, half of it, a quarter
_STRUCTURE, _DETAIL, _COLOUR = 0.5, 2.0, 0.7  # exponents of the three parts
_GRADIENT_FLOOR = 170.0  # grey levels squared; the published constant for a peak of 255
_CHROMA_FLOOR = 130.0  # grey levels squared: chroma differences below it are not seen
_PEAK = 255.0


def quality(original: Pixels, distorted: Pixels) -> float:
    """From 0 (nothing of the original left) to 1 (the original).

    Args:
        original: RGB, uint8 ``[H, W, 3]``, sides of at least 64 pixels.
        distorted: RGB, uint8, of the same shape.

    Raises:
        UsageError: shapes or types that do not fit.
        EnvironmentFault: scikit-image or OpenCV is not installed.

    Example:
        >>> quality(photo, apply(photo, Distortion("jpeg", 3)))
    """
    for pixels in (original, distorted):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < MIN_SIDE:
            raise UsageError(
                f"quality: pixels are {pixels.dtype} {list(pixels.shape)}, not uint8 [H, W, 3] of {MIN_SIDE} or more"
            )
    if original.shape != distorted.shape:
        raise UsageError(f"quality: {list(distorted.shape)} compared with {list(original.shape)}")
    one, other = (_luma_chroma(pixels) for pixels in (original, distorted))
    luma, other_luma = (np.ascontiguousarray(values[:, :, 0]) for values in (one, other))
    return float(
        _structure(luma, other_luma) ** _STRUCTURE
        * _detail(_half(luma), _half(other_luma)) ** _DETAIL
        * _colour(_half(one[:, :, 1:]), _half(other[:, :, 1:])) ** _COLOUR
    )


def local_parts(original: Pixels, distorted: Pixels, side: int) -> NDArray[np.float32]:
    """Where a photo has lost what: the parts of `quality` as they are in each square of the photo.

    Args:
        original: RGB, uint8 ``[H, W, 3]``, sides that are multiples of ``side``.
        distorted: RGB, uint8, of the same shape.
        side: of a square in pixels, a multiple of 4.

    Returns:
        float32 ``[H / side, W / side, 4]``: mean SSIM over the three sizes, mean similarity of the gradients, the mean
        of its square (`quality` takes the deviation), mean similarity of the chroma; 1 is unchanged.
    """
    one, other = (_luma_chroma(pixels) for pixels in (original, distorted))
    luma, other_luma = (np.ascontiguousarray(values[:, :, 0]) for values in (one, other))
    structure = np.zeros((original.shape[0] // side, original.shape[1] // side), np.float32)
    here, there = luma, other_luma
    for scale in range(_SCALES):
        if scale:
            here, there = _half(here), _half(there)
        structure += _in_squares(_similar_structure(here, there), side >> scale) / np.float32(_SCALES)
    gradients = _gradients_similar(_half(luma), _half(other_luma))
    chroma = _chroma_similar(_half(one[:, :, 1:]), _half(other[:, :, 1:]))
    squares = [_in_squares(values, side // 2) for values in (gradients, gradients**2, chroma)]
    return np.stack([structure, *squares], axis=2)


def _in_squares(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Means of squares, ``[H, W]`` to ``[H / side, W / side]``."""
    rows, columns = values.shape[0] // side, values.shape[1] // side
    means: NDArray[np.float32] = values.reshape(rows, side, columns, side).mean(axis=(1, 3))
    return means


def _similar_structure(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """SSIM's map, up to the border; scikit-image's takes ten times as long."""
    cv2 = require("cv2", "cpu")
    mean, other_mean, square, other_square, product = (
        cv2.GaussianBlur(values, (11, 11), 1.5) for values in (one, other, one * one, other * other, one * other)
    )
    first, second = ((share * _PEAK) ** 2 for share in (0.01, 0.03))
    shift = _similar(mean * other_mean, mean**2 + other_mean**2, first)
    detail = (2 * (product - mean * other_mean) + second) / (square - mean**2 + other_square - other_mean**2 + second)
    found: NDArray[np.float32] = shift * detail
    return found


def _luma_chroma(pixels: Pixels) -> NDArray[np.float32]:
    """Y, Cr, Cb of 0 to 255 ``[H, W, 3]``; no colour is 127.5."""
    cv2 = require("cv2", "cpu")
    values: NDArray[np.float32] = cv2.cvtColor(pixels.astype(np.float32) / np.float32(_PEAK), cv2.COLOR_RGB2YCrCb)
    return values * np.float32(_PEAK)


def _half(values: NDArray[np.float32]) -> NDArray[np.float32]:
    cv2 = require("cv2", "cpu")
    size = (values.shape[1] // 2, values.shape[0] // 2)
    half: NDArray[np.float32] = cv2.resize(np.ascontiguousarray(values), size, interpolation=cv2.INTER_AREA)
    return half


def _structure(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The geometric mean of SSIM (Gaussian window, sigma 1.5) over the sizes."""
    compare: Any = require("skimage.metrics", "train").structural_similarity
    product = 1.0
    for scale in range(_SCALES):
        if scale:
            one, other = _half(one), _half(other)
        found = compare(one, other, data_range=_PEAK, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        product *= max(0.0, float(found))
    return float(product ** (1 / _SCALES))


def _gradient(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Magnitude of Prewitt's gradient."""
    cv2 = require("cv2", "cpu")
    across = np.array([[1, 0, -1]] * 3, np.float32) / np.float32(3)
    magnitude: NDArray[np.float32] = cv2.magnitude(cv2.filter2D(luma, -1, across), cv2.filter2D(luma, -1, across.T))
    return magnitude


def _similar(
    product: NDArray[np.float32], squares: NDArray[np.float32], floor: float | np.float32
) -> NDArray[np.float32]:
    """1 where both are the same, towards 0 as they differ; what is small against the floor counts as the same."""
    similar: NDArray[np.float32] = (2 * product + np.float32(floor)) / (squares + np.float32(floor))
    return similar


def _detail(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """1 less twice the deviation of the gradients' similarity (a deviation of numbers within 0 to 1: at most 0.5)."""
    return max(0.0, 1 - 2 * float(_gradients_similar(one, other).std(dtype=np.float64)))


def _gradients_similar(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    here, there = _gradient(one), _gradient(other)
    return _similar(here * there, here**2 + there**2, _GRADIENT_FLOOR)


def _colour(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean similarity of the chroma vectors ``[H, W, 2]``."""
    return max(0.0, float(_chroma_similar(one, other).mean(dtype=np.float64)))


def _chroma_similar(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    one, other = one - np.float32(_PEAK / 2), other - np.float32(_PEAK / 2)
    squares = (one**2 + other**2).sum(axis=2)
    return _similar((one * other).sum(axis=2), squares, _CHROMA_FLOOR)
