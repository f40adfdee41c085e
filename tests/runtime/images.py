"""Encoded images of every kind, made by code: by Pillow where it can, byte by byte where it cannot."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def photo(width: int = 320, height: int = 240, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random picture: compresses like a photo and has no symmetry."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    """Encode with Pillow."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int, order: str = "<") -> bytes:
    """A TIFF block with only the orientation tag."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def with_exif(data: bytes, block: bytes) -> bytes:
    """Insert an EXIF block into a JPEG or PNG file."""
    if data[:2] == b"\xff\xd8":
        body = b"Exif\0\0" + block
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
    return data[:33] + png_chunk(b"eXIf", block) + data[33:]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int, height: int, depth: int, colour: int, rows: Sequence[bytes], before: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """A PNG of raw rows, with other chunks between IHDR and IDAT."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    others = b"".join(png_chunk(kind, content) for kind, content in before)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + head + others + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def webp_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(content)) + content + b"\0" * (len(content) & 1)


def riff(body: bytes) -> bytes:
    return struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WEBP") + body


def bmp(pixels: bytes, width: int, height: int, bits: int = 32, header: int = 40, compression: int = 0) -> bytes:
    """A BMP of raw rows; BI_BITFIELDS (3) gets the standard masks, with alpha from 56 header bytes on."""
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    if compression == 3:
        info += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)[: 16 if header >= 56 else 12]
    info = info.ljust(header, b"\0")
    return struct.pack("<2sIHHI", b"BM", 14 + len(info) + len(pixels), 0, 0, 14 + len(info)) + info + pixels


def tiff(
    width: int, height: int, bits: int, photometric: int, samples: int, data: bytes, order: str = "<", **tags: list[int]
) -> bytes:
    """An uncompressed one-strip TIFF; further tags as ``t338=[2]``, all SHORT."""
    values: dict[int, tuple[str, list[int]]] = {
        256: ("H", [width]),
        257: ("H", [height]),
        258: ("H", [bits] * samples),
        259: ("H", [1]),
        262: ("H", [photometric]),
        273: ("I", [0]),
        277: ("H", [samples]),
        278: ("H", [height]),
        279: ("I", [len(data)]),
    }
    values |= {int(name[1:]): ("H", numbers) for name, numbers in tags.items()}
    end = 8 + 2 + 12 * len(values) + 4
    packed = {tag: struct.pack(f"{order}{len(v)}{kind}", *v) for tag, (kind, v) in values.items()}
    values[273] = ("I", [end + sum(len(p) for p in packed.values() if len(p) > 4)])
    packed[273] = struct.pack(order + "I", values[273][1][0])
    entries, extra = b"", b""
    for tag in sorted(values):
        kind, numbers = values[tag]
        entries += struct.pack(order + "HHI", tag, 3 if kind == "H" else 4, len(numbers))
        if len(packed[tag]) > 4:
            entries += struct.pack(order + "I", end + len(extra))
            extra += packed[tag]
        else:
            entries += packed[tag].ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(values))
    return head + entries + struct.pack(order + "I", 0) + extra + data
