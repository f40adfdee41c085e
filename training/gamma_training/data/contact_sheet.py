"""A picture that shows what the distortions of a set look like: a row a kind, a column a level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gamma_runtime.cli import require
from gamma_runtime.crops import mirrored
from gamma_runtime.decode import Pixels
from gamma_training.data.distortions import LEVEL_COUNT, Distortion, apply
from gamma_training.data.metric import quality
from gamma_training.data.pixels import read_photo
from gamma_training.data.synthetic import Plan

__all__ = ["captioned", "contact_sheet"]

_TILE = 176  # pixels, cut from the middle: a reduced copy would hide the distortions
_CAPTION = 18  # pixels


def contact_sheet(plans: Sequence[Plan], short_side: int) -> Pixels:
    """Every kind of a set in its five levels, each kind on another photo, with their labels.

    Args:
        plans: the set; its photos are taken in turn.
        short_side: that photos are reduced to, pixels.

    Returns:
        RGB, uint8 ``[H, W, 3]``.
    """
    kinds = list(dict.fromkeys(plan.distortion.kind for plan in plans if plan.distortion))
    photos = list({plan.content: plan for plan in plans}.values())
    step = max(1, len(photos) // max(1, len(kinds)))
    rows = [_row(kind, photos[number * step % len(photos)], short_side) for number, kind in enumerate(kinds)]
    if not rows:
        rows = [captioned(read_photo(photos[0].path, short_side), "clean")]
    return np.concatenate(rows)


def _row(kind: str, plan: Plan, short_side: int) -> Pixels:
    clean = read_photo(plan.path, short_side)
    tiles = [captioned(clean, "clean")]
    for level in range(1, LEVEL_COUNT + 1):
        copy = apply(clean, Distortion.of_photo(kind, level, content=plan.content, seed=plan.seed))
        tiles.append(captioned(copy, f"{kind} {level}: {quality(clean, copy):.2f}"))
    return np.concatenate(tiles, axis=1)


def captioned(pixels: Pixels, caption: str) -> Pixels:
    """The middle of a photo with a line of text below: uint8 ``[194, 176, 3]``."""
    cv2 = require("cv2", "cpu")
    tile = np.full((_TILE + _CAPTION, _TILE, 3), 255, np.uint8)
    tile[:_TILE] = mirrored(pixels, _TILE, _TILE)
    place = (3, _TILE + _CAPTION - 6)
    cv2.putText(tile, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return tile
