"""The contract: everything that turns an encoded image into the uint8 crops that the graph eats.

One frozen object, hashed, stored in the manifest; training evaluation, parity, calibration, the Python runtime and the
C++ runtime all obey it (design.md section 2). The values are data here; `decode` and `crops` carry them out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

__all__ = ["CROP", "FRAMES", "MAX_COVER", "MAX_CROPS", "MAX_FRAME", "SMALL", "Contract", "CropPolicy", "Limits"]

_NUMBERS_END = 2**53  # above it JSON readers differ
CROP = 224  # pixels; the model's input, fixed by its position table (model.md 1.5)
MAX_CROPS = 64  # of a policy whose crops are part of the graph
MAX_COVER = 256  # crops that `cover` may need for one photo: 34 GMAC each at full size
MAX_FRAME = 7680  # pixels a side of a camera frame: 8K
SMALL = ("refuse", "resize", "pad")
FRAMES = ("first", "refuse")


@dataclasses.dataclass(frozen=True)
class CropPolicy:
    """Where the crops are cut.

    ``kind``: ``centre`` (1), ``five`` (centre and four corners, 5), ``grid`` (rows x cols, spread edge to edge),
    ``random`` (``count`` uniform positions from ``seed``: the authors' protocol made repeatable), ``cover`` (the fewest
    crops that see every pixel, spread edge to edge: their number depends on the photo, see `varies`).

    ``width`` and ``height``, pixels: of the camera frame that the graph itself takes; it cuts the crops. 0 and 0: the
    graph takes crops.
    """

    kind: str = "five"
    rows: int = 0
    cols: int = 0
    count: int = 0
    seed: int = 0
    width: int = 0
    height: int = 0

    @property
    def frame(self) -> tuple[int, int] | None:
        """Width and height of the frame that the graph takes; None when it takes crops."""
        return (self.width, self.height) if self.width or self.height else None

    @property
    def varies(self) -> bool:
        """The number of crops depends on the photo: the graph takes one, and photos take turns in its batch."""
        return self.kind == "cover" and self.frame is None

    @property
    def crops(self) -> int:
        """Number of crops C of one image in the graph; 1 where it `varies`."""
        rows, cols = (-(-side // CROP) for side in (self.height, self.width)) if self.frame else (1, 1)
        fixed = {"centre": 1, "five": 5, "grid": self.rows * self.cols, "random": self.count, "cover": rows * cols}
        return fixed[self.kind]

    @classmethod
    def parse(cls, text: str) -> CropPolicy:
        """Read ``centre``, ``five``, ``cover``, ``grid3x2`` (rows x columns), ``random10`` or ``random10:seed7``.

        ``frame1280x720`` (width x height) in front, with one of these behind a colon (else ``five``), makes the camera
        frame the graph's input.

        Raises:
            UsageError: anything else, more than 64 crops, or a frame with a side under 224 or over 7680 pixels.
        """
        import re

        from gamma_runtime.errors import UsageError

        match = re.fullmatch(r"(?:frame(\d{1,5})x(\d{1,5})(?::(?=.)|$))?(.*)", text)
        width, height, inner = (int(match[1] or 0), int(match[2] or 0), match[3]) if match else (0, 0, text)
        if match and match[1]:
            inner = inner or "five"
            short, long = min(width, height), max(width, height)
            if not CROP <= short <= long <= MAX_FRAME or long > Limits.max_aspect * short:
                raise UsageError(
                    f"crop policy {text!r}: a frame's sides are {CROP} to {MAX_FRAME} pixels, "
                    f"at most {Limits.max_aspect:g}:1"
                )
        if inner in ("centre", "five", "cover"):
            policy = cls(inner, width=width, height=height)
        elif match := re.fullmatch(r"grid(\d+)x(\d+)", inner):
            policy = cls("grid", rows=int(match[1]), cols=int(match[2]), width=width, height=height)
        elif match := re.fullmatch(r"random(\d+)(?::seed(\d+))?", inner):
            policy = cls("random", count=int(match[1]), seed=int(match[2] or 0), width=width, height=height)
        else:
            raise UsageError(
                f"unknown crop policy {text!r}",
                hint="one of centre, five, gridRxC (grid2x3), cover, randomN (random10:seed7); frameWxH or "
                "frameWxH:POLICY (frame1280x720:five) for camera frames",
            )
        if not 1 <= policy.crops <= MAX_CROPS:
            raise UsageError(f"crop policy {text!r} means {policy.crops} crops; the limit is 1 to {MAX_CROPS}")
        return policy

    def __str__(self) -> str:
        """The text that `parse` reads."""
        numbers = {"grid": f"grid{self.rows}x{self.cols}", "random": f"random{self.count}:seed{self.seed}"}
        inner = numbers.get(self.kind, self.kind)
        return f"frame{self.width}x{self.height}:{inner}" if self.frame else inner


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
    (never enlarged); ``None`` keeps the pixels (``--native``, and always where the graph takes frames).
    ``frames``: of several pictures in a file score the ``first``, or ``refuse`` the file (``--strict``).
    ``small``: images with a side under 224 pixels are refused; ``resize`` enlarges, ``pad`` mirrors them.
    """

    short_sides: dict[str, int | None]
    crop: CropPolicy = CropPolicy()
    limits: Limits = Limits()
    formats: tuple[str, ...] = ("jpeg", "png", "webp", "bmp", "tiff")
    exif_orientation: str = "apply"
    alpha: str = "composite on white"
    sixteen_bit: str = "divide by 257, rounded"
    grey: str = "repeat to three channels"
    jpeg_decoder: str = "libjpeg-turbo, warnings are errors"
    resize_kernel: str = "INTER_AREA"
    small: str = "refuse"
    frames: str = "first"

    @property
    def version(self) -> int:
        """2 for what readers of version 1 do not know: cover, camera frames, pad, refused animations; else 1."""
        new = self.crop.kind == "cover" or self.crop.frame or self.small == "pad" or self.frames != "first"
        return 2 if new else 1

    def to_json(self) -> dict[str, Any]:
        """A JSON object; version 1 has no ``frames`` and no frame size."""
        data = dataclasses.asdict(self) | {"version": self.version, "formats": list(self.formats)}
        if self.version == 1:
            del data["frames"], data["crop"]["width"], data["crop"]["height"]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Contract:
        """The inverse of `to_json`. What is not known here is refused, so a newer contract is never half obeyed.

        Raises:
            TypeError, KeyError, ValueError: a missing or unknown key, or a rule that `decode` and `crops` do not have.
        """
        fields = dict(data)
        version = fields.pop("version")
        fields["crop"] = CropPolicy(**fields["crop"])
        fields["limits"] = Limits(**fields["limits"])
        fields["formats"] = tuple(fields["formats"])
        contract = cls(**fields)
        contract._check()
        if version != contract.version:
            raise ValueError(f"version: {version!r}")
        if contract.to_json() != data:
            raise KeyError("a rule is missing")
        return contract

    def _check(self) -> None:
        known = Contract(self.short_sides, self.crop, self.limits, small=self.small, frames=self.frames)
        for field in dataclasses.fields(self):
            if getattr(self, field.name) != getattr(known, field.name):
                raise ValueError(f"{field.name}: {getattr(self, field.name)!r}")
        if self.small not in SMALL or self.frames not in FRAMES:
            raise ValueError(f"small: {self.small!r}, frames: {self.frames!r}")
        if CropPolicy.parse(str(self.crop)) != self.crop:
            raise ValueError(f"crop: {self.crop}")
        sides = [side for side in self.short_sides.values() if side is not None]
        for number in (*sides, *dataclasses.astuple(self.limits)):
            if type(number) not in (int, float) or not 1 <= number < _NUMBERS_END:
                raise ValueError(f"{number!r} where a size was expected")
        if any(type(side) is not int for side in sides):
            raise ValueError("short_sides: not whole pixels")
        if self.crop.frame and sides:
            raise ValueError("short_sides: frames are scored at their own pixels")

    def sha256(self) -> str:
        """Digest of the canonical JSON text."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()
