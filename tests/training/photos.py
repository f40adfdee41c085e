"""Small real files for the data tests: pictures with edges, texture and colour, made in code."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def picture(seed: int = 0, width: int = 256, height: int = 240) -> Pixels:
    """RGB ``[H, W, 3]``: a gradient, soft texture, and shapes with sharp edges."""
    random = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(random.normal(0, 60, (height, width, 3)).astype(np.float32), (0, 0), 1.5)
    ramp = np.linspace(60, 190, width, dtype=np.float32)[None, :, None]
    pixels = np.clip(texture + ramp, 0, 255).astype(np.uint8)
    for _ in range(12):
        centre = (int(random.integers(width)), int(random.integers(height)))
        colour = tuple(int(value) for value in random.integers(0, 255, 3))
        cv2.circle(pixels, centre, int(random.integers(8, 40)), colour, -1)
    return pixels


def save(path: Path, pixels: Pixels | None = None, seed: int = 0) -> Path:
    """Write a picture in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = picture(seed) if pixels is None else pixels
    assert cv2.imwrite(str(path), np.ascontiguousarray(content[:, :, ::-1]))
    return path


def folder_of(path: Path, count: int) -> Path:
    """A folder with so many different PNG photos."""
    for number in range(count):
        save(path / f"photo{number}.png", seed=number)
    return path
