"""Labelled crops for the demo's base: pieces of clean photos at several sizes, distorted, each with its own labels.

The labels of a set are those of whole photos; a crop of sky in a blurred photo has lost nothing. Here kind, level and
quality are those of the very pixels, and a photo is seen at several sizes: more to learn from the same few photos.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.contract import CROP
from gamma_runtime.files import write_atomically
from gamma_runtime.prefetch import prefetched
from gamma_runtime.steps import Steps
from gamma_training.data.distortions import LEVEL_COUNT, Distortion, apply
from gamma_training.data.metric import similarity
from gamma_training.data.pixels import read_photo

__all__ = ["Crops", "Labels", "draw_crops"]

Pixels: TypeAlias = NDArray[np.uint8]
Parts: TypeAlias = NDArray[np.float32]
SIZES = (288, 336, 384, 448, 512, 640)  # short sides in pixels, about; a photo is never enlarged
ABOUT = 0.12  # a photo's own sizes are up to so much larger or smaller
HARD = {"motion-blur": 2.0, "jpeg2000": 2.0}  # kinds that are drawn more often: their cost depends on the content most
TONES = (0.2, 0.15, 0.25)  # spread of gamma, contrast and saturation, natural logarithm
CHANNEL = 0.05  # spread of a channel's gain
HALF, SOFTEST = 0.5, 0.8  # how many are softer or sharper, and the widest blur, in pixels
SQUARE = 16  # pixels; of a patch whose parts are known
PARTS = 4  # of `Similarity.in_squares`
MARGIN = 24  # pixels that are distorted around a crop: JPEG's grid and a blur's edge are not the crop's


@dataclasses.dataclass(frozen=True)
class Labels:
    """What is known of each sample.

    Kind (0 is clean), level as a share (0 to 1) and quality left (0 to 1), arrays [N]; and what is left of the metric's
    parts in each patch, [N, patches, PARTS].
    """

    kind: NDArray[np.int64]
    level: NDArray[np.float32]
    quality: NDArray[np.float32]
    parts: NDArray[np.float16]

    def __add__(self, more: Labels) -> Labels:
        """These, and then others."""
        fields = [field.name for field in dataclasses.fields(self)]
        return Labels(*(np.concatenate([getattr(self, name), getattr(more, name)]) for name in fields))


class Crops:
    """One crop a sample: arrays of uint8 ``[N, 224, 224, 3]``, one after another."""

    crops = 1

    def __init__(self, *arrays: Pixels) -> None:
        self._arrays = arrays

    def __call__(self, index: int, _view: int) -> Pixels:
        """The crop of a sample."""
        for pixels in self._arrays:
            if index < len(pixels):
                return np.asarray(pixels[index])
            index -= len(pixels)
        raise IndexError(index)

    def __add__(self, more: Crops) -> Crops:
        """These, and then others."""
        return Crops(*self._arrays, *more._arrays)


def draw_crops(
    photos: Mapping[str, Path], kinds: Sequence[str], each: int, seed: int, folder: Path, steps: Steps
) -> tuple[Crops, Labels]:
    """Draw the crops, or find them in the folder.

    Args:
        photos: clean photos by content.
        kinds: of distortion; as many crops are clean as have one of them, but for those that are `HARD`.
        each: crops of a photo at one size.
        seed: of everything that is drawn.
        folder: for ``crops.npy``, ``parts.npy`` and ``crops.json``, gigabytes.
        steps: progress.
    """
    pixels_file, parts_file, labels_file = folder / "crops.npy", folder / "parts.npy", folder / "crops.json"
    if not labels_file.is_file():
        jobs = [(number, size) for number in range(len(photos)) for size in SIZES]
        paths = list(photos.values())

        def work(job: tuple[int, int]) -> list[tuple[Pixels, Parts, tuple[int, float, float]]]:
            random = np.random.default_rng([seed, *job])
            size = max(CROP, round(job[1] * (1 + random.uniform(-ABOUT, ABOUT))))
            return list(_crops_of(read_photo(paths[job[0]], size), kinds, each, random))

        folder.mkdir(parents=True, exist_ok=True)
        shape = (len(jobs) * each, CROP, CROP, 3)
        pixels = np.lib.format.open_memmap(pixels_file, mode="w+", dtype=np.uint8, shape=shape)
        parts = np.ones((len(pixels), (CROP // SQUARE) ** 2, PARTS), np.float16)
        rows: list[tuple[int, float, float]] = []
        with steps.step(f"{len(jobs) * each} labelled crops of {len(photos)} photos", len(jobs)) as tick:
            for _, made in prefetched(work, iter(jobs), 2, 4):
                for crop, left, row in made:
                    pixels[len(rows)], parts[len(rows)] = crop, left.reshape(-1, PARTS)
                    rows.append(row)
                tick(1)
        pixels.flush()
        np.save(parts_file, parts)
        write_atomically(labels_file, json.dumps(rows).encode())
    values = np.array(json.loads(labels_file.read_bytes()))
    kind, level, left = values[:, 0].astype(np.int64), values[:, 1].astype(np.float32), values[:, 2].astype(np.float32)
    labels = Labels(kind, level, left, np.load(parts_file))
    return Crops(np.load(pixels_file, mmap_mode="r")), labels


def _turned(pixels: Pixels, way: int) -> Pixels:
    """One of the eight ways to turn and mirror a square."""
    turned = np.rot90(pixels, way % 4)
    return np.ascontiguousarray(turned[:, ::-1] if way >= 4 else turned)


def _varied(clean: Pixels, random: np.random.Generator) -> Pixels:
    """The crop as another camera might have taken it: other tones, colours and sharpness, all of them usual ones.

    It then is the reference. A tower that knows a photo by heart could otherwise tell its losses by what is missing:
    crops that it had never seen had an SRCC of 0.944 on photos that it knew and of 0.849 on others.
    """
    import cv2

    pixels = clean.astype(np.float32) / 255
    gamma, contrast, saturation = np.exp(random.normal(0, TONES)).tolist()
    pixels = pixels**gamma * np.exp(random.normal(0, CHANNEL, 3)).astype(np.float32)
    grey = pixels @ np.array((0.299, 0.587, 0.114), np.float32)
    pixels = grey[:, :, None] + saturation * (pixels - grey[:, :, None])
    pixels = grey.mean() + contrast * (pixels - grey.mean())
    if random.random() < HALF:
        soft = cv2.GaussianBlur(pixels, (0, 0), float(random.uniform(0.2, SOFTEST)))
        amount = float(random.choice((1.0, -0.5)))  # softer, or sharper
        pixels = pixels + amount * (soft - pixels)
    varied: Pixels = np.clip(pixels * 255 + 0.5, 0, 255).astype(np.uint8)
    return varied


def _crops_of(
    photo: Pixels, kinds: Sequence[str], each: int, random: np.random.Generator
) -> Iterator[tuple[Pixels, Parts, tuple[int, float, float]]]:
    weights = np.array([1.0, *(HARD.get(kind, 1.0) for kind in kinds)])
    height, width = photo.shape[:2]
    side = min(CROP + 2 * MARGIN, height, width)
    for _ in range(each):
        top, left = (int(random.integers(room - side + 1)) for room in (height, width))
        clean = photo[top : top + side, left : left + side]
        clean = _varied(_turned(clean, int(random.integers(8))), random)
        kind = int(random.choice(len(weights), p=weights / weights.sum()))
        level = int(random.integers(LEVEL_COUNT)) + 1
        own = int(random.integers(2**63))
        worse = apply(clean, Distortion(kinds[kind - 1], level, own)) if kind else clean
        inside = tuple(slice(start, start + CROP) for start in random.integers(side - CROP + 1, size=2))
        crop = np.ascontiguousarray(worse[inside])
        found = similarity(np.ascontiguousarray(clean[inside]), crop)
        yield crop, found.in_squares(SQUARE), (kind, level / LEVEL_COUNT if kind else 0.0, found.quality)
