"""PNG: every chunk's bounds and CRC, and a payload of the critical chunks only.

Leaving out the rest keeps gamma, ICC profiles, text and animation away from the decoder, whose versions treat them
differently; the first picture (IDAT) is what is scored.
"""

from __future__ import annotations

import zlib

from gamma_runtime.formats import exif
from gamma_runtime.formats.header import Header, MalformedError, unpack

__all__ = ["SIGNATURE", "read"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY = 0
_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_MAX_CHUNKS = 65_536


def _chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk's content, up to and with IEND; lengths and CRCs checked."""
    found: list[tuple[bytes, int, int]] = []
    at = len(SIGNATURE)
    view = memoryview(data)
    while len(found) < _MAX_CHUNKS:
        length, kind = unpack(">I4s", data, at)
        start, end = at + 8, at + 8 + length
        (crc,) = unpack(">I", data, end)
        if zlib.crc32(view[at + 4 : end]) != crc:
            raise MalformedError(f"chunk {kind!r} at byte {at}: CRC does not match")
        found.append((kind, start, end))
        if kind == b"IEND":
            return found
        at = end + 4
    raise MalformedError(f"more than {_MAX_CHUNKS} chunks")


def read(data: bytes) -> Header:
    """Check the chunk structure and find size, orientation, animation and transparency.

    Raises:
        MalformedError: cut off, a CRC that does not match, or no picture in it.
    """
    chunks = _chunks(data)
    kinds = {kind: data[start:end] for kind, start, end in reversed(chunks) if kind != b"IDAT"}
    unknown = [kind for kind in kinds if kind[0] & 0x20 == 0 and kind not in _KEPT]
    if chunks[0][0] != b"IHDR" or len(kinds[b"IHDR"]) != 13 or unknown:
        raise MalformedError(f"not a standard PNG (first chunk {chunks[0][0]!r}, unknown critical chunks {unknown})")
    width, height, depth, colour = unpack(">IIBB", kinds[b"IHDR"], 0)
    if width == 0 or height == 0:
        raise MalformedError(f"size {width}x{height}")
    kept = _KEPT - {b"tRNS"} if colour == _GREY else _KEPT
    payload = SIGNATURE + b"".join(data[start - 8 : end + 4] for kind, start, end in chunks if kind in kept)
    orientation, broken = exif.orientation(kinds[b"eXIf"]) if b"eXIf" in kinds else (1, False)
    return Header(
        "png",
        width,
        height,
        payload,
        orientation,
        broken,
        frames=b"acTL" in kinds,
        grey_key=_grey_key(kinds.get(b"tRNS"), colour, depth),
    )


def _grey_key(transparency: bytes | None, colour: int, depth: int) -> int | None:
    """The transparent grey in the decoder's scale: OpenCV drops it, so it is applied by our own code."""
    if transparency is None or colour != _GREY or depth not in (1, 2, 4, 8, 16):
        return None
    (key,) = unpack(">H", transparency, 0)
    key &= (1 << depth) - 1
    return int(key) if depth >= 8 else int(key * (255 // ((1 << depth) - 1)))
