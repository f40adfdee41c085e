"""The orientation in an EXIF block (a small TIFF); the only metadata that changes pixels (contract)."""

from __future__ import annotations

from gamma_runtime.formats.header import MalformedError, unpack

__all__ = ["orientation"]

_ORIENTATION = 0x0112
_SHORT = 3
_MAX_ENTRIES = 512  # cameras write a few dozen


def orientation(block: bytes) -> tuple[int, bool]:
    """Orientation 1 to 8 of an EXIF block that starts with the TIFF header, and whether the block was unusable.

    A broken block means orientation 1: the picture itself may be fine, so it is scored and flagged.
    """
    try:
        return _find(block), False
    except MalformedError:
        return 1, True


def _find(block: bytes) -> int:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        raise MalformedError("no TIFF header")
    (ifd,) = unpack(order + "I", block, 4)
    (count,) = unpack(order + "H", block, ifd)
    if count > _MAX_ENTRIES:
        raise MalformedError(f"{count} entries")
    for index in range(count):
        tag, kind, number = unpack(order + "HHI", block, ifd + 2 + 12 * index)
        if tag == _ORIENTATION:
            (value,) = unpack(order + "H", block, ifd + 2 + 12 * index + 8)
            if kind != _SHORT or number != 1 or not 1 <= value <= 8:
                raise MalformedError(f"orientation {value}")
            return int(value)
    return 1
