"""The facts that a format's reader hands to the decoder, and the bounded reading that they share."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

__all__ = ["Header", "MalformedError", "unpack"]


class MalformedError(Exception):
    """The bytes are not a whole picture of a kind we read; `sniff` turns it into an InputError with the file's name."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What is known before any pixel is decoded.

    ``payload`` is what the decoder gets: the file reduced to the parts that make up the first picture, so that no
    decoder applies metadata, animation or orientation on its own.

    Attributes:
        width: pixels as stored, before ``orientation``.
        height: pixels as stored.
        orientation: EXIF value 1 to 8.
        exif_broken: an EXIF block was there and could not be used.
        frames: more than one picture in the file; only the first is scored.
        cmyk: None, or how JPEG stores the inks: ``ink`` (0 is no ink) or ``inverted`` (Adobe: 255 is no ink).
        grey_key: the decoded grey value that PNG declares transparent.
        premultiplied: the decoder gives colour already multiplied by alpha.
        ignore_alpha: a fourth channel is padding, not alpha.
        canvas: width, height, x and y where the first frame of an animation covers only a part.
    """

    format: str
    width: int
    height: int
    payload: bytes
    orientation: int = 1
    exif_broken: bool = False
    frames: bool = False
    cmyk: str | None = None
    grey_key: int | None = None
    premultiplied: bool = False
    ignore_alpha: bool = False
    canvas: tuple[int, int, int, int] | None = None


def unpack(layout: str, data: bytes, at: int) -> tuple[Any, ...]:
    """`struct.unpack_from` that calls a read past the end what it is.

    Raises:
        MalformedError: the data ends before.
    """
    if at < 0 or at + struct.calcsize(layout) > len(data):
        raise MalformedError(f"cut off: {len(data)} bytes, needs {at + struct.calcsize(layout)}")
    return struct.unpack_from(layout, data, at)
