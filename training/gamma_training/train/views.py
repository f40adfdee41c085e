"""Which photos make a step, and which crop of each: decided by seed, epoch and photo alone.

Nothing is drawn from a running generator, so a resumed run, a run of several processes and a run of one see the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.contract import CROP
from gamma_runtime.crops import reduced, working_size
from gamma_runtime.errors import InputError
from gamma_training.data import Sample, read_pixels

__all__ = ["View", "cut", "epoch_order", "fixed_views", "kept_rows", "repeats_of", "steps_of", "turn_of", "view_of"]

Pixels: TypeAlias = NDArray[np.uint8]
_ORDER, _VIEW, _FIXED, _TURN, _KEPT = 1, 2, 3, 4, 5  # streams of random numbers that have nothing to do with each other


@dataclasses.dataclass(frozen=True)
class View:
    """Where a crop lies, as shares of the room there is (0 to 1), and whether it is mirrored."""

    down: float
    right: float
    mirrored: bool


def view_of(seed: int, epoch: int, index: int, repeat: int = 0) -> View:
    """The random crop of a photo in an epoch: any position, mirrored every second time (model.md section 3).

    Another one where the epoch shows the photo again: ``repeat`` counts these, as in the two functions below.
    """
    down, right, side = np.random.default_rng([_VIEW, seed, epoch, index, *_again(repeat)]).random(3)
    return View(float(down), float(right), bool(side < 0.5))


def fixed_views(seed: int, index: int, count: int) -> list[View]:
    """The views of a photo that a cache holds; every second one mirrored."""
    numbers = np.random.default_rng([_FIXED, seed, index]).random((count, 2))
    return [View(float(down), float(right), number % 2 == 1) for number, (down, right) in enumerate(numbers)]


def turn_of(seed: int, epoch: int, index: int, count: int, repeat: int = 0) -> int:
    """Which of a photo's ``count`` cached views an epoch shows: each once in so many epochs, from any one on."""
    return int(np.random.default_rng([_TURN, seed, index]).integers(count) + epoch + repeat) % count


def _again(repeat: int) -> list[int]:
    return [repeat] if repeat else []


def kept_rows(seed: int, epoch: int, index: int, count: int, share: float, repeat: int = 0) -> NDArray[np.int64]:
    """Rows of a photo's ``count`` tokens that an epoch shows: the class token, and a share of the patches in order."""
    patches = max(1, round(share * (count - 1)))
    drawn = np.random.default_rng([_KEPT, seed, epoch, index, *_again(repeat)]).choice(count - 1, patches, False)
    return np.concatenate([[0], 1 + np.sort(drawn)])


def cut(sample: Sample, views: Sequence[View], short_side: int | None) -> Pixels:
    """Decode a photo, reduce it (never enlarge), and cut the views: uint8 ``[V, 224, 224, 3]``.

    Args:
        sample: its own resize rule was applied by `read_pixels`; what is larger than ``short_side`` is reduced further.
        views: what to cut.
        short_side: pixels; None keeps what `read_pixels` gives.

    Raises:
        InputError: the photo cannot be used.
    """
    pixels = read_pixels(sample)
    pixels = reduced(pixels, working_size(pixels.shape[1], pixels.shape[0], short_side))
    height, width = pixels.shape[:2]
    if min(height, width) < CROP:
        raise InputError(
            f"{sample.path}: {width}x{height} leaves no room for a crop of {CROP} pixels",
            hint="leave it out of the table; gamma-train check-data lists all of them",
        )
    crops = []
    for view in views:
        top, left = int(view.down * (height - CROP + 1)), int(view.right * (width - CROP + 1))
        crop = pixels[top : top + CROP, left : left + CROP]
        crops.append(crop[:, ::-1] if view.mirrored else crop)
    return np.ascontiguousarray(np.stack(crops))


def epoch_order(samples: Sequence[Sample], balance: str, seed: int, epoch: int) -> NDArray[np.int64]:
    """Indices of the samples of an epoch, shuffled; as many as there are samples.

    ``none``: each once. ``equal`` and ``sqrt``: each set in a share of its own, its photos in turn.
    """
    generator = np.random.default_rng([_ORDER, seed, epoch])
    if balance == "none":
        return generator.permutation(len(samples))
    names = np.array([sample.dataset for sample in samples])
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]
    weights = np.array([len(one) ** (0.5 if balance == "sqrt" else 0.0) for one in members])
    bounds = np.rint(np.cumsum(weights) / weights.sum() * len(samples)).astype(int)
    drawn = []
    for one, count in zip(members, np.diff(bounds, prepend=0), strict=True):
        rounds = -(-int(count) // len(one))
        drawn.append(np.concatenate([generator.permutation(one) for _ in range(rounds)] or [one[:0]])[:count])
    return generator.permutation(np.concatenate(drawn))


def repeats_of(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each photo of an epoch's order was there before: more than 0 only where sets are balanced."""
    seen: dict[int, int] = {}
    made = []
    for index in order.tolist():
        made.append(seen.get(index, 0))
        seen[index] = made[-1] + 1
    return np.array(made, np.int64)


def steps_of(order: NDArray[np.int64], batch: int) -> list[NDArray[np.int64]]:
    """Whole batches; the rest of the epoch is dropped, as the authors do."""
    return [order[start : start + batch] for start in range(0, len(order) - batch + 1, batch)]
