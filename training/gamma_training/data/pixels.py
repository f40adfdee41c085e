"""A sample becomes pixels: decoded strictly, reduced by its set's rule, distorted.

The authors reduce with torchvision's antialiased bilinear Resize, which also enlarges a smaller photo. Here photos are
reduced as the contract reduces them for the deployed model (OpenCV's INTER_AREA, never enlarged), so that a model
learns from the pixels that it will score. On twelve photos of free_photos.csv the two differ by 0.7 to 0.9 grey levels
in the mean (3.5 on the worst) and by up to 57 at single pixels; INTER_AREA leaves a little more contrast.
"""

from __future__ import annotations

import functools
import os

import numpy as np

from gamma_runtime.contract import Limits
from gamma_runtime.crops import reduced, working_size
from gamma_runtime.decode import Pixels, decode
from gamma_training.data.distortions import apply
from gamma_training.data.samples import Sample

__all__ = ["read_photo", "read_pixels"]

_KEPT = 4  # reduced photos: all distortions of one are usually asked for in a row


def read_pixels(sample: Sample) -> Pixels:
    """The photo that the label is for: RGB, uint8 ``[H, W, 3]``, before any crop is cut.

    Raises:
        InputError: missing, damaged, of another format, or over the limits.
        EnvironmentFault: the decoder libraries are not installed.

    Example:
        >>> read_pixels(open_data(spec).samples[0]).shape
        (384, 512, 3)
    """
    if sample.distortion is None:
        return read_photo(sample.path, sample.short_side)
    return apply(_kept(os.fspath(sample.path), sample.short_side), sample.distortion)


def read_photo(path: str | os.PathLike[str], short_side: int | None) -> Pixels:
    """Decode a photo and reduce it to a short side in pixels; None keeps its own.

    Raises:
        InputError: missing, damaged, of another format, or over the limits.
    """
    pixels = decode(path, Limits()).pixels
    size = working_size(pixels.shape[1], pixels.shape[0], short_side)
    return np.ascontiguousarray(reduced(pixels, size))


@functools.lru_cache(maxsize=_KEPT)
def _kept(path: str, short_side: int | None) -> Pixels:
    pixels = read_photo(path, short_side)
    pixels.flags.writeable = False
    return pixels
