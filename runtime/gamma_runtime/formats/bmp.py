"""BMP: the kinds that every OpenCV version decodes alike (palette, 24 and 32 bits, not compressed)."""

from __future__ import annotations

from gamma_runtime.formats.header import Header, MalformedError, unpack

__all__ = ["read"]

_RGB, _BITFIELDS = 0, 3
_BGR_MASKS = (0xFF0000, 0xFF00, 0xFF)


def read(data: bytes) -> Header:
    """Check that the declared pixels are all there.

    Raises:
        MalformedError: cut off, or a kind of BMP that decoders disagree about (run-length, 16-bit, OS/2).
    """
    pixels, size = unpack("<II", data, 10)
    if size not in (40, 52, 56, 108, 124):
        raise MalformedError(f"BMP header of {size} bytes; 40 to 124 are read")
    width, height, planes, bits, compression = unpack("<iiHHI", data, 18)
    kind_known = bits in (1, 4, 8, 24, 32) and compression == _RGB
    if not kind_known:
        kind_known = bits == 32 and compression == _BITFIELDS and unpack("<III", data, 54) == _BGR_MASKS
    if planes != 1 or not kind_known:
        raise MalformedError(f"BMP of {bits} bits, compression {compression}, is not read")
    if width <= 0 or height in (0, -(2**31)):
        raise MalformedError(f"size {width}x{height}")
    row = (width * bits + 31) // 32 * 4
    if pixels < 14 + size or pixels + row * abs(height) > len(data):
        raise MalformedError(f"cut off: {len(data)} bytes, needs {pixels + row * abs(height)}")
    # The fourth byte is alpha only where a mask says so; unused, it is mostly 0: the picture would be all background.
    alpha = compression == _BITFIELDS and size >= 56 and unpack("<I", data, 66) == (0xFF000000,)
    return Header("bmp", width, abs(height), data, ignore_alpha=not alpha)
