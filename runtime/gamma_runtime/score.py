"""The result for one image and one scene."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

from gamma_runtime.errors import UsageError

__all__ = ["SCALES", "Score", "check_scale"]

SCALES = ("checkpoint", "0-100")


def check_scale(scale: str) -> str:
    """Return ``scale`` if it is one of `SCALES`.

    Raises:
        UsageError: it is not.
    """
    if scale not in SCALES:
        raise UsageError(f"unknown scale {scale!r}", hint=f"one of {', '.join(SCALES)}")
    return scale


@dataclasses.dataclass(frozen=True)
class Score:
    """What an image scores in a scene; higher is better.

    Attributes:
        scene: the scene's name.
        value: mean over the crops, in ``range``.
        range: lowest and highest value the scale knows.
        scale: ``checkpoint`` (its own score levels) or ``0-100``.
        crop_scores: one value a crop, in the contract's order.
        working_size: width and height in pixels that the crops were cut from.
        flags: what is worth knowing: the checkpoint's label (``untrained``), ``alpha``, ``grey``, ``enlarged`` …
        backend: the library that ran the graph.
        bundle: SHA-256 of the bundle's manifest.
        path: the image's path as given; None for bytes and arrays.
    """

    scene: str
    value: float
    range: tuple[float, float]
    scale: str
    crop_scores: tuple[float, ...]
    working_size: tuple[int, int]
    flags: tuple[str, ...]
    backend: str
    bundle: str
    path: str | None = None

    @property
    def crop_std(self) -> float:
        """Population standard deviation of the crop scores: how much the image differs from place to place."""
        return statistics.pstdev(self.crop_scores)

    def scaled(self, scale: str) -> Score:
        """The same score on another scale: ``checkpoint`` values are mapped linearly to 0 … 100.

        Raises:
            UsageError: an unknown scale, or a score that was scaled already.
        """
        if check_scale(scale) == self.scale:
            return self
        if self.scale != "checkpoint":
            raise UsageError(f"a score on the scale {self.scale} cannot go back to {scale}")
        low, high = self.range
        factor = 100.0 / (high - low)
        return dataclasses.replace(
            self,
            value=(self.value - low) * factor,
            range=(0.0, 100.0),
            scale=scale,
            crop_scores=tuple((crop - low) * factor for crop in self.crop_scores),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; ``score`` is the value, ``error`` is None.

        Raises:
            ValueError: a value is not finite, which JSON cannot say.
        """
        if not all(math.isfinite(number) for number in (self.value, *self.crop_scores)):
            raise ValueError("a score is not finite")
        return {
            "path": self.path,
            "scene": self.scene,
            "score": self.value,
            "range": list(self.range),
            "scale": self.scale,
            "crop_scores": list(self.crop_scores),
            "crop_std": self.crop_std,
            "working_size": list(self.working_size),
            "flags": list(self.flags),
            "backend": self.backend,
            "bundle": self.bundle,
            "error": None,
        }
