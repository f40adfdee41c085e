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

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cli import require
from gamma_runtime.decode import Pixels
from gamma_runtime.errors import UsageError

__all__ = ["MIN_SIDE", "VERSION", "Similarity", "quality", "similarity"]

VERSION = 1  # of the definition; caches of computed labels carry it
MIN_SIDE = 64  # pixels
_SCALES = 3  # the photo, half of it, a quarter
_STRUCTURE, _DETAIL, _COLOUR = 0.5, 2.0, 0.7  # exponents of the three parts
_GRADIENT_FLOOR = 170.0  # grey levels squared; the published constant for a peak of 255
_CHROMA_FLOOR = 130.0  # grey levels squared: chroma differences below it are not seen
_PEAK = 255.0


@dataclasses.dataclass(frozen=True)
class Similarity:
    """How similar two photos are, part by part and place by place; 1 is the same.

    Attributes:
        ssim: mean SSIM of the luma at each size, borders left out.
        structure: its maps, ``[H, W]``, half of it, a quarter.
        gradients: of the luma, ``[H / 2, W / 2]``.
        chroma: likewise.
    """

    ssim: tuple[float, ...]
    structure: tuple[NDArray[np.float32], ...]
    gradients: NDArray[np.float32]
    chroma: NDArray[np.float32]

    @property
    def quality(self) -> float:
        """See `quality`."""
        # The geometric mean of SSIM; 1 less twice a deviation of numbers within 0 to 1, which is at most 0.5.
        structure = math.prod(max(0.0, mean) for mean in self.ssim) ** (1 / _SCALES)
        detail = max(0.0, 1 - 2 * float(self.gradients.std(dtype=np.float64)))
        colour = max(0.0, float(self.chroma.mean(dtype=np.float64)))
        return float(structure**_STRUCTURE * detail**_DETAIL * colour**_COLOUR)

    def in_squares(self, side: int) -> NDArray[np.float32]:
        """What is left in each square of the photo.

        Args:
            side: of a square in pixels, a multiple of 4 that divides the photo's sides.

        Returns:
            float32 ``[H / side, W / side, 4]``: mean SSIM over the sizes, mean similarity of the gradients, the mean of
            its square (`quality` takes the deviation), mean similarity of the chroma.
        """
        structure = np.mean([_means(one, side >> scale) for scale, one in enumerate(self.structure)], axis=0)
        others = (_means(one, side // 2) for one in (self.gradients, self.gradients**2, self.chroma))
        return np.stack([structure, *others], axis=2)


def quality(original: Pixels, distorted: Pixels) -> float:
    """From 0 (nothing of the original left) to 1 (the original).

    Args and errors: see `similarity`.

    Example:
        >>> quality(photo, apply(photo, Distortion("jpeg", 3)))
    """
    return similarity(original, distorted).quality


def similarity(original: Pixels, distorted: Pixels) -> Similarity:
    """Compare a photo with a copy.

    Args:
        original: RGB, uint8 ``[H, W, 3]``, sides of at least 64 pixels.
        distorted: RGB, uint8, of the same shape.

    Raises:
        UsageError: shapes or types that do not fit.
        EnvironmentFault: scikit-image or OpenCV is not installed.
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
    ssim, structure = _structure(luma, other_luma)
    gradients = _gradients_similar(_half(luma), _half(other_luma))
    return Similarity(ssim, structure, gradients, _chroma_similar(_half(one[:, :, 1:]), _half(other[:, :, 1:])))


def _means(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Of squares, ``[H, W]`` to ``[H / side, W / side]``."""
    rows, columns = values.shape[0] // side, values.shape[1] // side
    means: NDArray[np.float32] = values.reshape(rows, side, columns, side).mean(axis=(1, 3))
    return means


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


def _structure(
    one: NDArray[np.float32], other: NDArray[np.float32]
) -> tuple[tuple[float, ...], tuple[NDArray[np.float32], ...]]:
    """Mean and map of SSIM (Gaussian window, sigma 1.5) at each size."""
    compare: Any = require("skimage.metrics", "train").structural_similarity
    options = {"data_range": _PEAK, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    means, maps = [], []
    for scale in range(_SCALES):
        if scale:
            one, other = _half(one), _half(other)
        mean, places = compare(one, other, full=True, **options)
        means.append(float(mean))
        maps.append(places)
    return tuple(means), tuple(maps)


def _gradient(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Magnitude of Prewitt's gradient."""
    cv2 = require("cv2", "cpu")
    across = np.array([[1, 0, -1]] * 3, np.float32) / np.float32(3)
    magnitude: NDArray[np.float32] = cv2.magnitude(cv2.filter2D(luma, -1, across), cv2.filter2D(luma, -1, across.T))
    return magnitude


def _similar(product: NDArray[np.float32], squares: NDArray[np.float32], floor: float) -> NDArray[np.float32]:
    """1 where both are the same, towards 0 as they differ; what is small against the floor counts as the same."""
    similar: NDArray[np.float32] = (2 * product + np.float32(floor)) / (squares + np.float32(floor))
    return similar


def _gradients_similar(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    here, there = _gradient(one), _gradient(other)
    return _similar(here * there, here**2 + there**2, _GRADIENT_FLOOR)


def _chroma_similar(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the chroma vectors ``[H, W, 2]``."""
    one, other = one - np.float32(_PEAK / 2), other - np.float32(_PEAK / 2)
    squares = (one**2 + other**2).sum(axis=2)
    return _similar((one * other).sum(axis=2), squares, _CHROMA_FLOOR)
