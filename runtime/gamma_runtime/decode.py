"""An encoded image becomes RGB pixels, by the rules of the contract and no others.

The order, which the C++ runtime repeats with integers only: first picture · ink colours to RGB · 16 bits to 8 · alpha
on white · grey to three channels · EXIF orientation. ICC profiles are ignored. Everything but JPEG goes through OpenCV,
which reads cut files in part; `sniff` has checked before that the file is whole.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cli import printable, require
from gamma_runtime.contract import Limits
from gamma_runtime.errors import InputError
from gamma_runtime.formats.header import Header
from gamma_runtime.quiet import silent
from gamma_runtime.sniff import FORMATS, sniff

__all__ = ["Decoded", "Encoded", "Pixels", "decode", "name_of", "read_bytes"]

Pixels: TypeAlias = NDArray[np.uint8]
Encoded: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview
_Wide: TypeAlias = NDArray[np.uint16]
_WHITE, _HALF = np.uint16(255), np.uint16(127)
_NO_MEMORY = -4  # OpenCV's StsNoMem
_ROWS = 256  # converted at once: the wider integers of a 64-megapixel image never exist all together
_DAMAGED = "get the original file again, or save it anew as PNG"


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Pixels, uint8 ``[H, W, 3]`` RGB, upright, and what was done to get them.

    Flags: ``alpha``, ``grey``, ``16-bit``, ``cmyk``, ``frames`` (only the first was taken), ``exif-broken`` (ignored).
    """

    pixels: Pixels
    flags: tuple[str, ...]


def name_of(source: object) -> str:
    """How an image is called in messages: its path, or what kind of object it is."""
    if isinstance(source, str | os.PathLike):
        return printable(os.fspath(source))
    return "array" if isinstance(source, np.ndarray) else "image bytes"


def read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """A regular file's content; pipes and devices are refused before a byte is read.

    Raises:
        InputError: missing, unreadable, not a regular file, or larger than ``max_bytes``.
    """
    where = name_of(path)
    try:
        # O_NONBLOCK: opening a pipe without a writer would wait for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{where}: not a regular file (folder, pipe or device)")
            data = b"" if status.st_size > max_bytes else stream.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if max(status.st_size, len(data)) > max_bytes:
        raise InputError(f"{where}: {status.st_size} bytes; the limit is {max_bytes}", hint="save a smaller file")
    return data


def _admit_all(width: int, height: int, frames: bool) -> None:
    pass


def decode(
    source: Encoded,
    limits: Limits,
    formats: Sequence[str] = FORMATS,
    admit: Callable[[int, int, bool], None] = _admit_all,
) -> Decoded:
    """Read, check and decode one image.

    Args:
        source: a path, or the encoded bytes.
        limits: of the contract; checked before any pixel is decoded.
        formats: the contract's allow-list.
        admit: called before any pixel is decoded, with the upright width and height (pixels) and whether the file has
            more than one picture; what it raises refuses the image.

    Raises:
        InputError: not a readable, whole image of an allowed format within the limits.
        EnvironmentFault: the decoder libraries are not installed.

    Example:
        >>> decode("photo.jpg", Limits()).pixels.shape
    """
    where = name_of(source)
    if isinstance(source, str | os.PathLike):
        data = read_bytes(source, limits.max_bytes)
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        if len(data) > limits.max_bytes:
            raise InputError(f"{where}: {len(data)} bytes; the limit is {limits.max_bytes}")
    else:
        raise InputError(f"an image must be a path, bytes or an array, not {type(source).__name__}")
    header = sniff(data, limits, where, formats)
    turned = header.orientation >= 5
    admit(*((header.height, header.width) if turned else (header.width, header.height)), header.frames)
    stored = _decode_jpeg(header, where) if header.format == "jpeg" else _decode_opencv(header, where)
    return _normalise(stored, header, where)


def _decode_jpeg(header: Header, where: str) -> NDArray[Any]:
    """RGB (grey repeated), or four inks."""
    simplejpeg = require("simplejpeg", "cpu")
    try:
        grey = simplejpeg.decode_jpeg_header(header.payload, strict=True)[2] == "Gray"
        space = "CMYK" if header.cmyk else "GRAY" if grey else "RGB"
        pixels: NDArray[Any] = simplejpeg.decode_jpeg(header.payload, colorspace=space, strict=True)
    except ValueError as error:
        raise InputError(f"{where}: jpeg: {error}", hint=_DAMAGED) from error
    return pixels[:, :, 0] if grey else pixels


def _decode_opencv(header: Header, where: str) -> NDArray[Any]:
    """Grey, RGB or RGBA; 8 or 16 bits."""
    cv2 = require("cv2", "cpu")
    try:
        with silent(cv2):
            pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(header.payload, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if error.code == _NO_MEMORY:
            raise MemoryError(error.err) from error
        raise InputError(f"{where}: {header.format}: {error.err}", hint=_DAMAGED) from error
    if pixels is None:
        raise InputError(f"{where}: {header.format}: damaged or cut off", hint=_DAMAGED)
    if pixels.ndim == 2:
        return pixels
    to_rgb = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    converted: NDArray[Any] = cv2.cvtColor(
        pixels, cv2.COLOR_BGRA2RGB if header.ignore_alpha and pixels.shape[2] == 4 else to_rgb
    )
    return converted


def _normalise(stored: NDArray[Any], header: Header, where: str) -> Decoded:
    placed = header.canvas is not None
    if not placed and stored.shape[:2] != (header.height, header.width):
        raise InputError(
            f"{where}: {stored.shape[1]}x{stored.shape[0]} pixels, the header says {header.width}x{header.height}"
        )
    if stored.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{where}: {stored.dtype} samples; 8 and 16 bits are read")
    see_through = header.grey_key is not None or (stored.ndim == 3 and stored.shape[2] == 4 and not header.cmyk)
    flags = {
        "alpha": see_through or placed,
        "grey": stored.ndim == 2,
        "16-bit": stored.dtype == np.uint16,
        "cmyk": header.cmyk is not None,
        "frames": header.frames,
        "exif-broken": header.exif_broken,
    }
    pixels = _to_rgb(stored, header)
    if header.canvas is not None:
        pixels = _on_canvas(pixels, header.canvas)
    return Decoded(_upright(pixels, header.orientation), tuple(name for name, present in flags.items() if present))


def _to_rgb(stored: NDArray[Any], header: Header) -> Pixels:
    if stored.dtype == np.uint8 and stored.ndim == 3 and stored.shape[2] == 3:
        return stored
    pixels = np.empty((*stored.shape[:2], 3), np.uint8)
    for top in range(0, stored.shape[0], _ROWS):
        pixels[top : top + _ROWS] = _rows_to_rgb(stored[top : top + _ROWS], header)
    return pixels


def _rows_to_rgb(rows: NDArray[Any], header: Header) -> _Wide:
    """Stored samples ``[h, W]`` or ``[h, W, 3 or 4]`` to RGB ``[h, W, 3]`` in 0 to 255."""
    hidden = None if header.grey_key is None else rows == header.grey_key
    if rows.dtype == np.uint16:
        rows = (rows.astype(np.uint32) + 128) // 257  # v / 257 to the nearest; 65535 becomes 255; there are no ties
    wide: _Wide = rows.astype(np.uint16)
    if hidden is not None:
        wide[hidden] = 255
    if wide.ndim == 2:
        return np.repeat(wide[:, :, None], 3, axis=2)
    if wide.shape[2] == 3:
        return wide
    if header.cmyk:
        return _inks(wide, header.cmyk == "inverted")
    return _on_white(wide, header.premultiplied)


def _inks(rows: _Wide, inverted: bool) -> _Wide:
    """CMYK without a profile: what the inks leave of white, ``(255-c)(255-k)/255``; Adobe stores 255-c already."""
    light: _Wide = rows if inverted else _WHITE - rows
    mixed: _Wide = (light[:, :, :3] * light[:, :, 3:] + _HALF) // _WHITE
    return mixed


def _on_white(rows: _Wide, premultiplied: bool) -> _Wide:
    """Straight or premultiplied alpha over white, rounded."""
    colour, alpha = rows[:, :, :3], rows[:, :, 3:]
    mixed: _Wide = np.minimum(colour + (_WHITE - alpha), _WHITE)
    if not premultiplied:
        mixed = (colour * alpha + _WHITE * (_WHITE - alpha) + _HALF) // _WHITE  # at most 65152: fits 16 bits
    return mixed


def _on_canvas(pixels: Pixels, canvas: tuple[int, int, int, int]) -> Pixels:
    width, height, x, y = canvas
    whole = np.full((height, width, 3), 255, np.uint8)
    whole[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return whole


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply EXIF orientation 1 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # After the swap 5 is done, 6 is turned clockwise by a mirror in x, 7 needs both mirrors, 8 a mirror in y.
    mirror_x, mirror_y = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    return np.ascontiguousarray(pixels[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1])
