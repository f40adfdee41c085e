"""An encoded image from a stranger: decoded whole and within the limits, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gamma_runtime.contract import Limits
from gamma_runtime.decode import decode
from tests.fuzz.harness import Target
from tests.runtime.images import encode, exif, photo, with_exif

LIMITS = Limits(max_bytes=1 << 14, max_pixels=1 << 16, max_side=1024)


def _seeds() -> list[bytes]:
    small = photo(24, 16)
    jpeg = encode(small, "jpeg", quality=60)
    encoded = [jpeg, *(encode(small, kind) for kind in ("png", "webp", "bmp", "tiff"))]
    return [
        *encoded,
        jpeg[:-20],
        b"GIF89a",
        with_exif(jpeg, exif(6)),
        encode(small[:, :, 0], "png"),
        encode(small, "webp", lossless=True),
    ]


def _read(_: Path, data: bytes) -> None:
    pixels = decode(data, LIMITS).pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size > 3 << 16:
        raise AssertionError(f"{pixels.dtype} {pixels.shape}")


TARGET = Target(_seeds, lambda folder, data: None, _read, codes=(3,))
