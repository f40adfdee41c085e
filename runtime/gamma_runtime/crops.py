"""Pixels become the crops that the graph eats: reduce, then cut. The other half of the contract."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import TypeAlias, cast

import numpy as np

from gamma_runtime.cli import require
from gamma_runtime.contract import CROP, Contract, CropPolicy
from gamma_runtime.cuda.arrays import DeviceFrame, SupportsArray, is_array, read_array
from gamma_runtime.decode import Decoded, Encoded, Pixels, decode, name_of
from gamma_runtime.errors import InputError, UsageError
from gamma_runtime.sniff import check_size

__all__ = ["Image", "Prepared", "positions", "prepare", "prepare_scenes", "splitmix64", "working_size"]

Image: TypeAlias = Encoded | Pixels | SupportsArray
_MASK = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One image, ready for a graph.

    Attributes:
        crops: uint8 ``[C, 224, 224, 3]`` RGB; of a frame on the GPU they stay there, and numpy reads them through
            ``__array__``.
        working_size: width and height in pixels that the crops were cut from.
        flags: of decoding, plus ``enlarged`` and ``native`` (the scene keeps the photo's own pixels).
    """

    crops: Pixels
    working_size: tuple[int, int]
    flags: tuple[str, ...]

    def sha256(self) -> str:
        """Digest of the crops' bytes in row-major order; the golden self-test compares it."""
        return hashlib.sha256(np.ascontiguousarray(self.crops).tobytes()).hexdigest()


def prepare(source: Image, contract: Contract, scene: str) -> Prepared:
    """Decode, reduce and cut one image for one scene.

    Args:
        source: a path, encoded bytes, or uint8 RGB ``[H, W, 3]``.
        contract: of the bundle.
        scene: one of the contract's scenes; it decides the working size.

    Raises:
        InputError: the image cannot be used. UsageError: the contract does not know the scene.

    Example:
        >>> prepare("photo.jpg", contract, "natural-quality").crops.shape
        (5, 224, 224, 3)
    """
    return prepare_scenes(source, contract, (scene,))[scene]


def prepare_scenes(source: Image, contract: Contract, scenes: Sequence[str]) -> dict[str, Prepared]:
    """Like `prepare` for several scenes: decoded once; scenes with the same working size share one object.

    Raises:
        InputError: the image cannot be used. UsageError: the contract does not know a scene.
    """
    decoded = _pixels(source, contract)
    height, width = decoded.pixels.shape[:2]
    made: dict[tuple[tuple[int, int], bool], Prepared] = {}
    result: dict[str, Prepared] = {}
    for scene in scenes:
        if scene not in contract.short_sides:
            raise UsageError(f"unknown scene {scene!r}", hint=f"one of {', '.join(sorted(contract.short_sides))}")
        short = contract.short_sides[scene]
        key = (working_size(width, height, short), short is None)
        if key not in made:
            made[key] = _prepare(decoded, key[0], key[1], contract, name_of(source))
        result[scene] = made[key]
    return result


def _pixels(source: Image, contract: Contract) -> Decoded:
    if not isinstance(source, np.ndarray) and is_array(source):
        return _foreign(source, contract)
    if not isinstance(source, np.ndarray):
        return decode(cast("Encoded", source), contract.limits, contract.formats)
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
        raise InputError(
            f"array: {source.dtype} {list(source.shape)}; needed is uint8 [H, W, 3] in RGB order",
            hint="convert to 8 bits and three channels first",
        )
    check_size(source.shape[1], source.shape[0], contract.limits, "array")
    return Decoded(np.ascontiguousarray(source), ())


def _foreign(source: Image, contract: Contract) -> Decoded:
    """Another library's array. On the device it stays there for as long as no pixel needs to be computed."""
    pixels = read_array(source)
    check_size(pixels.shape[1], pixels.shape[0], contract.limits, "array")
    return Decoded(cast("Pixels", pixels), ())


def working_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height (pixels) after reducing to ``short_side``; never larger than the photo.

    The long side is rounded half up in integers, so that every language gets the same number.
    """
    short, long = min(width, height), max(width, height)
    if short_side is None or short <= short_side:
        return width, height
    reduced = (2 * long * short_side + short) // (2 * short)
    return (short_side, reduced) if width <= height else (reduced, short_side)


def _prepare(decoded: Decoded, size: tuple[int, int], native: bool, contract: Contract, where: str) -> Prepared:
    pixels, flags = decoded.pixels, list(decoded.flags)
    if native:
        flags.append("native")
    if size != (pixels.shape[1], pixels.shape[0]):
        cv2 = require("cv2", "cpu")
        pixels = cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA)
    if min(size) < CROP:
        pixels = _enlarge(np.ascontiguousarray(pixels), contract.small, where)
        flags.append("enlarged")
    height, width = pixels.shape[:2]
    places = positions(contract.crop, width, height)
    if isinstance(pixels, DeviceFrame):
        return Prepared(cast("Pixels", pixels.cut(places)), (width, height), tuple(flags))
    crops = np.stack([pixels[y : y + CROP, x : x + CROP] for y, x in places])
    return Prepared(crops, (width, height), tuple(flags))


def _enlarge(pixels: Pixels, small: str, where: str) -> Pixels:
    height, width = pixels.shape[:2]
    if small != "resize":
        raise InputError(
            f"{where}: {width}x{height} leaves no room for a crop of {CROP} pixels",
            hint="--small resize enlarges it (blur to a quality model; the score is flagged)",
        )
    short, long = min(width, height), max(width, height)
    longer = (2 * long * CROP + short) // (2 * short)
    size = (CROP, longer) if width <= height else (longer, CROP)
    cv2 = require("cv2", "cpu")
    enlarged: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
    return enlarged


def positions(policy: CropPolicy, width: int, height: int) -> list[tuple[int, int]]:
    """Top and left of each crop, in pixels; sides are at least 224.

    Raises:
        UsageError: a policy of another kind.
    """
    down, right = height - CROP, width - CROP
    centre = (down // 2, right // 2)
    if policy.kind == "centre":
        return [centre]
    if policy.kind == "five":
        return [centre, (0, 0), (0, right), (down, 0), (down, right)]
    if policy.kind == "grid":
        return [
            (_spread(row, policy.rows, down), _spread(column, policy.cols, right))
            for row in range(policy.rows)
            for column in range(policy.cols)
        ]
    if policy.kind == "random":
        numbers = splitmix64(policy.seed)
        return [(_below(next(numbers), down + 1), _below(next(numbers), right + 1)) for _ in range(policy.count)]
    raise UsageError(f"unknown crop policy {policy.kind!r}")


def _spread(index: int, count: int, room: int) -> int:
    """The index-th of ``count`` positions from 0 to ``room``, rounded half up; a single one is in the middle."""
    return room // 2 if count == 1 else (2 * index * room + count - 1) // (2 * (count - 1))


def splitmix64(seed: int) -> Iterator[int]:
    """Steele, Lea and Flood's SplitMix64: 64-bit numbers from a seed, all arithmetic modulo 2**64.

    NumPy's and the C++ library's generators change between versions; this one is its own definition.
    """
    state = seed & _MASK
    while True:
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        yield mixed ^ (mixed >> 31)


def _below(number: int, limit: int) -> int:
    """The upper 32 bits scaled to 0 … limit-1; for limits of 16384 the bias is under four in a million."""
    return ((number >> 32) * limit) >> 32
