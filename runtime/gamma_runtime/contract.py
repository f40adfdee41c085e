"""The contract: everything that turns an encoded image into the uint8 crops that the graph eats.

One frozen object, hashed, stored in the manifest; training evaluation, parity, calibration, the Python runtime and the
C++ runtime all obey it (design.md section 2). The values are data here; `decode` and `crops` carry them out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

__all__ = ["CROP", "Contract", "CropPolicy", "Limits"]

_NUMBERS_END = 2**53  # above it JSON readers differ
CROP = 224  # pixels; the model's input, fixed by its position table (model.md 1.5)


@dataclasses.dataclass(frozen=True)
class CropPolicy:
    """Where the crops are cut; every policy has a fixed number of crops, so graphs stay static.

    ``kind``: ``centre`` (1), ``five`` (centre and four corners, 5), ``grid`` (rows x cols, spread edge to edge),
    ``random`` (``count`` uniform positions from ``seed``: the authors' protocol made repeatable).
    """

    kind: str = "five"
    rows: int = 0
    cols: int = 0
    count: int = 0
    seed: int = 0

    @property
    def crops(self) -> int:
        """Number of crops C of one image."""
        return {"centre": 1, "five": 5, "grid": self.rows * self.cols, "random": self.count}[self.kind]

    @classmethod
    def parse(cls, text: str) -> CropPolicy:
        """Read ``centre``, ``five``, ``grid3x2`` (rows x columns), ``random10`` or ``random10:seed7``.

        Raises:
            UsageError: anything else, or more than 64 crops.
        """
        import re

        from gamma_runtime.errors import UsageError

        if text in ("centre", "five"):
            return cls(kind=text)
        if match := re.fullmatch(r"grid(\d+)x(\d+)", text):
            policy = cls(kind="grid", rows=int(match[1]), cols=int(match[2]))
        elif match := re.fullmatch(r"random(\d+)(?::seed(\d+))?", text):
            policy = cls(kind="random", count=int(match[1]), seed=int(match[2] or 0))
        else:
            raise UsageError(
                f"unknown crop policy {text!r}", hint="one of centre, five, gridRxC (grid2x3), randomN (random10:seed7)"
            )
        if not 1 <= policy.crops <= 64:
            raise UsageError(f"crop policy {text!r} means {policy.crops} crops; the limit is 1 to 64")
        return policy

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return {"grid": f"grid{self.rows}x{self.cols}", "random": f"random{self.count}:seed{self.seed}"}.get(
            self.kind, self.kind
        )


@dataclasses.dataclass(frozen=True)
class Limits:
    """Refused before any pixel is decoded (hostile_inputs.md rows 35 and 36)."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64 * 10**6
    max_side: int = 16384
    max_aspect: float = 20.0


@dataclasses.dataclass(frozen=True)
class Contract:
    """The rules, in the order they are applied.

    ``short_sides`` maps a scene to the short side in pixels that larger photos are first reduced to with INTER_AREA
    (never enlarged); ``None`` keeps the pixels (``--native``).
    """

    short_sides: dict[str, int | None]
    crop: CropPolicy = CropPolicy()
    limits: Limits = Limits()
    version: int = 1
    formats: tuple[str, ...] = ("jpeg", "png", "webp", "bmp", "tiff")
    exif_orientation: str = "apply"
    alpha: str = "composite on white"
    sixteen_bit: str = "divide by 257, rounded"
    grey: str = "repeat to three channels"
    jpeg_decoder: str = "libjpeg-turbo, warnings are errors"
    resize_kernel: str = "INTER_AREA"
    small: str = "refuse"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with sorted keys throughout."""
        data = dataclasses.asdict(self)
        data["formats"] = list(self.formats)
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Contract:
        """The inverse of `to_json`. What is not known here is refused, so a newer contract is never half obeyed.

        Raises:
            TypeError, KeyError, ValueError: a missing or unknown key, or a rule that `decode` and `crops` do not have.
        """
        fields = dict(data)
        fields["crop"] = CropPolicy(**fields["crop"])
        fields["limits"] = Limits(**fields["limits"])
        fields["formats"] = tuple(fields["formats"])
        contract = cls(**fields)
        contract._check()
        if contract.to_json() != data:
            raise KeyError("a rule is missing")
        return contract

    def _check(self) -> None:
        known = Contract(self.short_sides, self.crop, self.limits, small=self.small)
        for field in dataclasses.fields(self):
            if getattr(self, field.name) != getattr(known, field.name):
                raise ValueError(f"{field.name}: {getattr(self, field.name)!r}")
        if self.small not in ("refuse", "resize"):
            raise ValueError(f"small: {self.small!r}")
        if CropPolicy.parse(str(self.crop)) != self.crop:
            raise ValueError(f"crop: {self.crop}")
        sides = [side for side in self.short_sides.values() if side is not None]
        for number in (*sides, *dataclasses.astuple(self.limits)):
            if type(number) not in (int, float) or not 1 <= number < _NUMBERS_END:
                raise ValueError(f"{number!r} where a size was expected")
        if any(type(side) is not int for side in sides):
            raise ValueError("short_sides: not whole pixels")

    def sha256(self) -> str:
        """Digest of the canonical JSON text."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()
