"""WEBP: RIFF sizes, and a payload that holds only the first picture.

Animated files are beyond older OpenCV versions and composed by newer ones; cutting out the first frame's bit stream
gives the same pixels everywhere.
"""

from __future__ import annotations

import struct

from gamma_runtime.formats import exif
from gamma_runtime.formats.header import Header, MalformedError, unpack

__all__ = ["read"]

_MAX_CHUNKS = 10_000
_Chunk = tuple[bytes, bytes]


def _chunks(data: bytes, at: int, end: int) -> list[_Chunk]:
    found: list[_Chunk] = []
    while at < end:
        kind, length = unpack("<4sI", data, at)
        if at + 8 + length > end:
            raise MalformedError(f"cut off: chunk {kind!r} of {length} bytes at byte {at}, {end} in all")
        found.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + length + (length & 1)
        if len(found) > _MAX_CHUNKS:
            raise MalformedError(f"more than {_MAX_CHUNKS} chunks")
    return found


def read(data: bytes) -> Header:
    """Check the RIFF structure and find size, orientation and the first frame.

    Raises:
        MalformedError: cut off, or no picture in it.
    """
    (size,) = unpack("<I", data, 4)
    if size + 8 > len(data):
        raise MalformedError(f"cut off: {len(data)} bytes, the header says {size + 8}")
    chunks = _chunks(data, 12, size + 8)
    named = dict(reversed(chunks))
    orientation, broken = (1, False)
    if b"EXIF" in named:
        orientation, broken = exif.orientation(named[b"EXIF"].removeprefix(b"Exif\0\0"))
    if b"ANMF" in named:
        width, height, canvas, parts = _first_frame(named)
    else:
        parts = [chunk for chunk in chunks if chunk[0] in (b"ALPH", b"VP8 ", b"VP8L")]
        canvas = None
        width, height = _stream_size(parts)
        if b"VP8X" in named and _canvas(named[b"VP8X"]) != (width, height):
            raise MalformedError(f"canvas {_canvas(named[b'VP8X'])} is not the picture's {(width, height)}")
    return Header("webp", width, height, _still(parts), orientation, broken, b"ANMF" in named, canvas=canvas)


def _canvas(extended: bytes) -> tuple[int, int]:
    low_w, high_w, low_h, high_h = unpack("<HBHB", extended, 4)
    return low_w + (high_w << 16) + 1, low_h + (high_h << 16) + 1


def _first_frame(named: dict[bytes, bytes]) -> tuple[int, int, tuple[int, int, int, int] | None, list[_Chunk]]:
    frame = named[b"ANMF"]
    width, height = _canvas(named.get(b"VP8X", b""))
    low_x, high_x, low_y, high_y = unpack("<HBHB", frame, 0)
    parts = [chunk for chunk in _chunks(frame, 16, len(frame)) if chunk[0] in (b"ALPH", b"VP8 ", b"VP8L")]
    inner_w, inner_h = _stream_size(parts)
    x, y = 2 * (low_x + (high_x << 16)), 2 * (low_y + (high_y << 16))
    if x + inner_w > width or y + inner_h > height:
        raise MalformedError(f"a frame of {inner_w}x{inner_h} at {x},{y} leaves the canvas {width}x{height}")
    canvas = None if (inner_w, inner_h) == (width, height) else (width, height, x, y)
    return width, height, canvas, parts


def _stream_size(parts: list[_Chunk]) -> tuple[int, int]:
    """Width and height in the bit stream itself."""
    for kind, body in parts:
        if kind == b"VP8L":
            signature, bits = unpack("<BI", body, 0)
            if signature != 0x2F:
                raise MalformedError("damaged lossless stream")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if kind == b"VP8 ":
            start, width, height = unpack("<3sHH", body, 3)
            if start != b"\x9d\x01\x2a" or width & 0x3FFF == 0 or height & 0x3FFF == 0:
                raise MalformedError("damaged lossy stream")
            return width & 0x3FFF, height & 0x3FFF
    raise MalformedError("no picture in it")


def _still(parts: list[_Chunk]) -> bytes:
    """A plain still WEBP of one bit stream, with its alpha plane if there is one."""
    width, height = _stream_size(parts)
    body = b""
    if any(kind == b"ALPH" for kind, _ in parts):
        body += struct.pack("<4sIB3x", b"VP8X", 10, 0x10)
        body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    for kind, content in parts:
        body += struct.pack("<4sI", kind, len(content)) + content + b"\0" * (len(content) & 1)
    return struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WEBP") + body
