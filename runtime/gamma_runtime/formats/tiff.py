"""TIFF: the kinds that every decoder reads alike, in strips, with lossless compression.

Grey of 1, 8 or 16 bits, palette of 8, RGB and RGBA of 8 or 16; not compressed, LZW or deflate.
"""

from __future__ import annotations

import struct

from gamma_runtime.formats.header import Header, MalformedError, unpack
from gamma_runtime.formats.strips import deflate_length, lzw_length

__all__ = ["read", "verify"]

_MAX_ENTRIES = 4096
_MAX_STRIPS = 1 << 20
_SIZES = {1: "B", 3: "H", 4: "I"}
_NONE, _LZW, _DEFLATE = 1, 5, (8, 32946)
# photometric, samples a pixel -> bits. 16-bit white-is-zero, 2- and 4-bit differ between decoders.
_KINDS = {(0, 1): (1, 8), (1, 1): (1, 8, 16), (3, 1): (8,), (2, 3): (8, 16), (2, 4): (8, 16)}
_Entries = dict[int, tuple[int, int, int]]  # tag -> type, count, offset of the values


class _Tags:
    """The first directory: integers by tag, with bounds checked."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order = "<" if data[:2] == b"II" else ">"
        (start,) = unpack(self.order + "I", data, 4)
        (count,) = unpack(self.order + "H", data, start)
        if count > _MAX_ENTRIES:
            raise MalformedError(f"{count} directory entries; the limit is {_MAX_ENTRIES}")
        self.entries: _Entries = {}
        for index in range(count):
            self._add(start + 2 + 12 * index)
        (next_directory,) = unpack(self.order + "I", data, start + 2 + 12 * count)
        self.more = next_directory != 0

    def _add(self, at: int) -> None:
        tag, kind, number = unpack(self.order + "HHI", self.data, at)
        if kind in _SIZES:
            inline = number * struct.calcsize(_SIZES[kind]) <= 4
            where = at + 8 if inline else unpack(self.order + "I", self.data, at + 8)[0]
            self.entries.setdefault(tag, (kind, number, where))

    def many(self, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        if tag not in self.entries:
            return default
        kind, number, where = self.entries[tag]
        if number > _MAX_STRIPS:
            raise MalformedError(f"tag {tag} has {number} values; the limit is {_MAX_STRIPS}")
        return unpack(f"{self.order}{number}{_SIZES[kind]}", self.data, where)

    def one(self, tag: int, default: int) -> int:
        values = self.many(tag, (default,))
        if not values:
            raise MalformedError(f"tag {tag} has no value")
        return values[0]


def read(data: bytes) -> Header:
    """Check the first directory and that every strip lies inside the file; `verify` looks into the strips.

    Raises:
        MalformedError: cut off, or a kind of TIFF that is not on the allow-list.
    """
    tags = _Tags(data)
    width, height = tags.one(256, 0), tags.one(257, 0)
    if width == 0 or height == 0:
        raise MalformedError(f"size {width}x{height}")
    samples, bits = _check_kind(tags)
    _check_strips(tags)
    value = tags.one(274, 1)
    good = 1 <= value <= 8
    # OpenCV always turns TIFF by its tag, and differently for each sample type; with tag 1 it leaves the pixels alone.
    payload = _with_orientation_one(data, tags)
    premultiplied = samples == 4 and (bits == 8 or tags.one(338, 0) == 1)
    return Header(
        "tiff", width, height, payload, value if good else 1, not good, frames=tags.more, premultiplied=premultiplied
    )


def _check_kind(tags: _Tags) -> tuple[int, int]:
    """Samples a pixel and bits a sample."""
    if tags.one(339, 1) != 1:
        raise MalformedError("floating-point or signed samples are not read")
    compression = tags.one(259, 1)
    if compression not in (_NONE, _LZW, *_DEFLATE):
        raise MalformedError(f"TIFF compression {compression} is not read")
    photometric, samples = tags.one(262, -1), tags.one(277, 1)
    bits = set(tags.many(258, (1,)))
    if len(bits) != 1 or not bits <= set(_KINDS.get((photometric, samples), ())):
        raise MalformedError(f"TIFF of photometric {photometric}, {samples} samples of {sorted(bits)} bits is not read")
    if (samples > 1 and tags.one(284, 1) != 1) or 322 in tags.entries or 324 in tags.entries:
        raise MalformedError("tiled or planar TIFF is not read")
    if samples == 4 and tags.one(338, 0) not in (1, 2):
        raise MalformedError("a fourth sample that is not declared as alpha")
    return samples, bits.pop()


def _check_strips(tags: _Tags) -> None:
    offsets, counts = tags.many(273, ()), tags.many(279, ())
    if not offsets or len(offsets) != len(counts):
        raise MalformedError(f"{len(offsets)} strips with {len(counts)} lengths")
    needed = max(offset + count for offset, count in zip(offsets, counts, strict=True))
    if needed > len(tags.data):
        raise MalformedError(f"cut off: {len(tags.data)} bytes, needs {needed}")


def verify(data: bytes) -> None:
    """Check that every strip holds all of its rows. Time grows with the declared size: hold it against limits before.

    Raises:
        MalformedError: a strip is damaged or too short.
    """
    tags = _Tags(data)
    height, bits = tags.one(257, 0), tags.one(258, 1)
    row = (tags.one(256, 0) * tags.one(277, 1) * bits + 7) // 8
    strips = list(zip(tags.many(273, ()), tags.many(279, ()), strict=True))
    rows = min(tags.one(278, height), height)
    if rows == 0 or len(strips) != -(-height // rows):
        raise MalformedError(f"{len(strips)} strips of {rows} rows for {height} rows")
    for index, (offset, count) in enumerate(strips):
        expected = min(rows, height - index * rows) * row
        found = _length(tags.one(259, 1), data[offset : offset + count], expected)
        if found < expected:
            raise MalformedError(f"cut off: strip {index} gives {found} of {expected} bytes")


def _length(compression: int, strip: bytes, expected: int) -> int:
    if compression == _NONE:
        return len(strip)
    return lzw_length(strip, expected) if compression == _LZW else deflate_length(strip, expected)


def _with_orientation_one(data: bytes, tags: _Tags) -> bytes:
    if 274 not in tags.entries:
        return data
    kind, _, where = tags.entries[274]
    changed = bytearray(data)
    struct.pack_into(tags.order + _SIZES[kind], changed, where, 1)
    return bytes(changed)
