"""What an encoded image is, by its content, and whether it may be decoded: size, aspect and wholeness come first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gamma_runtime.contract import Limits
from gamma_runtime.errors import InputError
from gamma_runtime.formats import bmp, jpeg, png, tiff, webp
from gamma_runtime.formats.header import Header, MalformedError

__all__ = ["FORMATS", "check_size", "identify", "sniff"]

_READERS: dict[str, Callable[[bytes], Header]] = {
    "jpeg": jpeg.read,
    "png": png.read,
    "webp": webp.read,
    "bmp": bmp.read,
    "tiff": tiff.read,
}
FORMATS = tuple(_READERS)

# Only to say what a refused file is; none of these reaches a decoder.
_FOREIGN = (
    (b"GIF8", "GIF"),
    (b"8BPS", "Photoshop PSD"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"\x89HDF", "HDF5"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"v/1\x01", "OpenEXR"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"version https://git-lfs", "a Git LFS pointer, not the picture itself"),
    (b"<", "a text file (HTML, SVG or XML)"),
)


def identify(data: bytes) -> str | None:
    """The format by magic bytes: one of `FORMATS`, or None. The file's name is never looked at."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(png.SIGNATURE):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"II*\0", b"MM\0*")):
        return "tiff"
    # Two letters are weak evidence; the header size behind them makes it strong.
    if data.startswith(b"BM") and data[15:18] == b"\0\0\0":
        return "bmp"
    return None


def _foreign(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return "HEIC, AVIF or video"
    return next((name for magic, name in _FOREIGN if data.startswith(magic)), "not an image that is known here")


def check_size(width: int, height: int, limits: Limits, where: str) -> None:
    """Hold width and height (pixels) against the limits.

    Raises:
        InputError: too large, or too long and thin.
    """
    hint = "reduce or crop the picture first"
    if max(width, height) > limits.max_side:
        raise InputError(f"{where}: {width}x{height}; the limit is {limits.max_side} pixels a side", hint=hint)
    if width * height > limits.max_pixels:
        raise InputError(
            f"{where}: {width}x{height} is {width * height} pixels; the limit is {limits.max_pixels}", hint=hint
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise InputError(f"{where}: {width}x{height}; the longest allowed aspect is {limits.max_aspect:g}:1", hint=hint)


def sniff(data: bytes, limits: Limits, where: str, formats: Sequence[str] = FORMATS) -> Header:
    """Identify, read the header, check that the file is whole, and hold its size against the limits.

    Args:
        data: the whole encoded file.
        limits: from the contract.
        where: the file's name for messages.
        formats: the contract's allow-list.

    Raises:
        InputError: empty, another format, cut off, damaged, too large, too long and thin.

    Example:
        >>> sniff(Path("a.jpg").read_bytes(), Limits(), "a.jpg").width
    """
    if not data:
        raise InputError(f"{where}: the file is empty")
    kind = identify(data)
    if kind is None or kind not in formats:
        what = _foreign(data) if kind is None else kind
        raise InputError(f"{where}: {what}", hint=f"these formats are read: {', '.join(formats)}")
    try:
        header = _READERS[kind](data)
        check_size(header.width, header.height, limits, where)
        if kind == "tiff":
            tiff.verify(header.payload)
    except MalformedError as error:
        raise InputError(
            f"{where}: {kind}: {error}", hint="get the original file again, or save it anew as PNG"
        ) from error
    return header
