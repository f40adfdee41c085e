"""Is a file a video, by its content, and is it all there? Playlists and scripts, which name other files, never are."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from gamma_runtime.cli import quoted
from gamma_runtime.decode import name_of
from gamma_runtime.errors import InputError

__all__ = ["check_video"]

_HEAD = 400
_MP4 = (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_MAX_PARTS = 1 << 20  # top-level boxes; a fragmented recording has two a fragment
_KNOWN = "MP4 and MOV, Matroska and WebM, AVI, MPEG (program, transport), motion JPEG"


def check_video(path: str) -> None:
    """Refuse what is no video, and a video that is shorter than it says itself.

    MPEG and motion JPEG have no length, so they cannot be too short.

    Raises:
        InputError: missing, unreadable, not a regular file, not a known container, or cut off.
    """
    where = name_of(path)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{where}: not a regular file (pipe or device)")
            missing = _missing(stream, status.st_size, where)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        hint = "a folder of images: put a slash behind it" if isinstance(error, IsADirectoryError) else None
        raise InputError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})", hint=hint) from error
    if missing > 0:
        raise InputError(
            f"{where}: the file ends {missing} bytes before the video does: it was cut off",
            hint=f"copy it again, or keep what is there: ffmpeg -i {quoted(path)} -c copy whole.mkv",
        )


def _missing(stream: BinaryIO, size: int, where: str) -> int:
    """How many bytes a container promises beyond the file's end."""
    head = stream.read(_HEAD)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _riff(stream, size)
    if head[4:8] in _MP4:
        return _boxes(stream, size)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska(head, size)
    transport = any(set(head[first : first + 2 * step + 1 : step]) == {0x47} for first, step in ((0, 188), (4, 192)))
    if transport or head[:4] in (b"\0\0\x01\xba", b"\0\0\x01\xb3") or head[:3] == b"\xff\xd8\xff":
        return 0
    raise InputError(f"{where}: not a video, by its content" if head else f"{where}: the file is empty", hint=_KNOWN)


def _riff(stream: BinaryIO, size: int) -> int:
    """AVI: RIFF chunks one after another, each with its length; more than one in files over 1 GB."""
    at = 0
    while size - at >= 8:
        stream.seek(at)
        head = stream.read(8)
        if head[:4] != b"RIFF":
            break  # what programs append
        at += 8 + int.from_bytes(head[4:], "little")
        at += at & 1
    return at - size if at > size + 1 else 0  # the filler byte of an odd chunk may be left out


def _boxes(stream: BinaryIO, size: int) -> int:
    """MP4 and MOV: boxes one after another. The last may say "to the end"."""
    at = 0
    for _ in range(_MAX_PARTS):
        if at >= size:
            break
        stream.seek(at)
        head = stream.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big") if len(head) == 16 else 16
        if length == 0:
            break
        if length < 8:
            return 0  # nothing that has a length: the decoder will say what it thinks of it
        at += length
    return max(0, at - size)


def _matroska(head: bytes, size: int) -> int:
    """Matroska and WebM: a header, then one segment; its length is all ones where it was written live."""
    at = 4
    length, width = _vint(head, at)
    at += width + length
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return 0
    length, width = _vint(head, at + 4)
    unknown = length == (1 << 7 * width) - 1
    return 0 if unknown else max(0, at + 4 + width + length - size)


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """Matroska's numbers: as many bytes as the first has leading zeros, and one more; value and width."""
    first = data[at] if at < len(data) else 0
    width = 9 - first.bit_length()
    return int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1), width
