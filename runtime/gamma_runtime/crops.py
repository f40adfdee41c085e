"""Pixels become the crops that the graph eats: reduce, then cut. The other half of the contract."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.area import reduce_by_area
from gamma_runtime.cli import require
from gamma_runtime.contract import CROP, MAX_COVER, Contract, CropPolicy
from gamma_runtime.cuda.arrays import DeviceFrame, SupportsArray, is_array, read_array
from gamma_runtime.decode import Decoded, Encoded, Pixels, decode, name_of
from gamma_runtime.errors import InputError, UsageError
from gamma_runtime.sniff import check_size

__all__ = [
    "Image",
    "Prepared",
    "mirrored",
    "positions",
    "prepare",
    "prepare_scenes",
    "reduced",
    "splitmix64",
    "working_size",
]

Image: TypeAlias = Encoded | Pixels | SupportsArray
_MASK = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One image, ready for a graph.

    Attributes:
        crops: uint8 ``[C, 224, 224, 3]`` RGB; of a frame on the GPU they stay there, and numpy reads them through
            ``__array__``.
        working_size: width and height in pixels that the crops were cut from.
        flags: of decoding, plus ``enlarged`` or ``padded`` (it was too small) and ``native`` (its own pixels).
        frame: uint8 ``[H, W, 3]`` RGB, where the graph cuts the crops itself.
    """

    crops: Pixels
    working_size: tuple[int, int]
    flags: tuple[str, ...]
    frame: Pixels | None = None

    @property
    def graph_input(self) -> Pixels:
        """What the graph takes of this image: the frame, or the crops."""
        return self.crops if self.frame is None else self.frame

    def sha256(self) -> str:
        """Digest of the crops' bytes in row-major order; the golden self-test compares it."""
        return hashlib.sha256(np.ascontiguousarray(self.crops).tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What happens to the pixels of one size: reduced first, then grown where a side is under 224; width and height."""

    reduced: tuple[int, int]
    final: tuple[int, int]
    native: bool


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

    Everything that the image's size decides is decided before a pixel is decoded.

    Raises:
        InputError: the image cannot be used. UsageError: the contract does not know a scene.
    """
    for scene in scenes:
        if scene not in contract.short_sides:
            raise UsageError(f"unknown scene {scene!r}", hint=f"one of {', '.join(sorted(contract.short_sides))}")
    where = name_of(source)

    def plan(width: int, height: int, scene: str) -> _Plan:
        return _plan(width, height, contract.short_sides[scene], contract, where)

    def admit(width: int, height: int, frames: bool) -> None:
        if frames and contract.frames == "refuse":
            raise InputError(
                f"{where}: more than one picture in it (animation, burst or pages)",
                hint="leave out --strict to score the first one",
            )
        for scene in scenes:
            plan(width, height, scene)

    decoded = _pixels(source, contract, admit)
    height, width = decoded.pixels.shape[:2]
    plans = {scene: plan(width, height, scene) for scene in scenes}
    made = {one: _prepare(decoded, one, contract) for one in dict.fromkeys(plans.values())}
    return {scene: made[plans[scene]] for scene in scenes}


def _pixels(source: Image, contract: Contract, admit: Callable[[int, int, bool], None]) -> Decoded:
    if not isinstance(source, np.ndarray) and is_array(source):
        return _foreign(source, contract, admit)
    if not isinstance(source, np.ndarray):
        return decode(cast("Encoded", source), contract.limits, contract.formats, admit)
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
        raise InputError(
            f"array: {source.dtype} {list(source.shape)}; needed is uint8 [H, W, 3] in RGB order",
            hint="convert to 8 bits and three channels first",
        )
    check_size(source.shape[1], source.shape[0], contract.limits, "array")
    admit(source.shape[1], source.shape[0], False)
    return Decoded(np.ascontiguousarray(source), ())


def _foreign(source: Image, contract: Contract, admit: Callable[[int, int, bool], None]) -> Decoded:
    """Another library's array. On the device it stays there for as long as no pixel needs to be computed."""
    pixels = read_array(source)
    check_size(pixels.shape[1], pixels.shape[0], contract.limits, "array")
    admit(pixels.shape[1], pixels.shape[0], False)
    return Decoded(cast("Pixels", pixels), ())


def _scaled(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height with the given short side; the long one rounded half up, in integers for every language."""
    short, long = min(width, height), max(width, height)
    other = (2 * long * short_side + short) // (2 * short)
    return (short_side, other) if width <= height else (other, short_side)


def working_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height (pixels) after reducing to ``short_side``; never larger than the photo."""
    if short_side is None or min(width, height) <= short_side:
        return width, height
    return _scaled(width, height, short_side)


def _plan(width: int, height: int, short_side: int | None, contract: Contract, where: str) -> _Plan:
    """Sizes by arithmetic alone.

    Raises:
        InputError: not the frame's size, too small, or more crops or pixels than the limits allow.
    """
    frame = contract.crop.frame
    if frame and (width, height) != frame:
        raise InputError(
            f"{where}: {width}x{height}; this bundle's graph takes frames of {frame[0]}x{frame[1]}",
            hint=f"set the camera to {frame[0]}x{frame[1]}, or gamma-export --crops frame{width}x{height}",
        )
    reduced = final = working_size(width, height, short_side)
    if min(reduced) < CROP:
        if contract.small == "refuse":
            raise InputError(
                f"{where}: {reduced[0]}x{reduced[1]} leaves no room for a crop of {CROP} pixels",
                hint="--small resize enlarges it, --small pad mirrors it at its edges (the score is flagged)",
            )
        padded = max(reduced[0], CROP), max(reduced[1], CROP)
        final = padded if contract.small == "pad" else _scaled(*reduced, CROP)
        limits = contract.limits
        if max(final) > limits.max_side or final[0] * final[1] > limits.max_pixels:
            raise InputError(f"{where}: {width}x{height} would become {final[0]}x{final[1]}, over the limits")
    rows, cols = _cover(*final)
    if contract.crop.varies and rows * cols > MAX_COVER:
        raise InputError(
            f"{where}: {final[0]}x{final[1]} takes {rows * cols} crops to cover; the limit is {MAX_COVER}",
            hint="reduce the picture, or export without --native",
        )
    return _Plan(reduced, final, short_side is None)


def _prepare(decoded: Decoded, plan: _Plan, contract: Contract) -> Prepared:
    pixels, flags = decoded.pixels, list(decoded.flags)
    if plan.native:
        flags.append("native")
    pixels = reduced(pixels, plan.reduced)
    if plan.final != plan.reduced:
        pixels = _grow(np.ascontiguousarray(pixels), plan.final, contract.small)
        flags.append("padded" if contract.small == "pad" else "enlarged")
    places = positions(contract.crop, *plan.final)
    frame = pixels if contract.crop.frame else None
    if isinstance(pixels, DeviceFrame):
        return Prepared(cast("Pixels", pixels.cut(places)), plan.final, tuple(flags), frame)
    crops = np.stack([pixels[y : y + CROP, x : x + CROP] for y, x in places])
    return Prepared(crops, plan.final, tuple(flags), frame)


def reduced(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """The picture at a working size (width and height, pixels) that is not larger than it."""
    if size == (pixels.shape[1], pixels.shape[0]):
        return pixels
    return reduce_by_area(np.ascontiguousarray(pixels), *size)


def _grow(pixels: Pixels, size: tuple[int, int], small: str) -> Pixels:
    if small == "pad":
        return mirrored(pixels, *size)
    cv2 = require("cv2", "cpu")
    enlarged: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
    return enlarged


def mirrored(pixels: Pixels, width: int, height: int) -> Pixels:
    """A picture of exactly this size, centred: cut where it is larger, mirrored at its edges where it is smaller.

    The edge's own pixel is repeated: ``abc`` continues ``cba abc cba``, as often as needed.

    Args:
        pixels: uint8 ``[H, W, 3]``.
        width: pixels.
        height: pixels.
    """
    rows, columns = _mirror(pixels.shape[0], height), _mirror(pixels.shape[1], width)
    return np.ascontiguousarray(pixels[rows[:, None], columns])


def _mirror(length: int, wanted: int) -> NDArray[np.intp]:
    """For each of ``wanted`` places, which of ``length`` pixels is seen there; rounded down, the smaller part first."""
    places = (np.arange(wanted) - (wanted - length) // 2) % (2 * length)
    return np.minimum(places, 2 * length - 1 - places)


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
    if policy.kind in ("grid", "cover"):
        rows, cols = (policy.rows, policy.cols) if policy.kind == "grid" else _cover(width, height)
        return [
            (_spread(row, rows, down), _spread(column, cols, right)) for row in range(rows) for column in range(cols)
        ]
    if policy.kind == "random":
        numbers = splitmix64(policy.seed)
        return [(_below(next(numbers), down + 1), _below(next(numbers), right + 1)) for _ in range(policy.count)]
    raise UsageError(f"unknown crop policy {policy.kind!r}")


def _cover(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of the fewest crops that see every pixel."""
    return -(-height // CROP), -(-width // CROP)


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
