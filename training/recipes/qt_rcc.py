"""Files out of Qt's binary resources (.rcc, versions 1 to 3): gcompris keeps its photos in them.

A header, then a tree of fixed-size nodes, the files' data, and the names. All numbers are big-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from gamma_runtime.errors import InputError

__all__ = ["read_rcc"]

_HEADER = struct.Struct(">4sIIII")  # magic, version, places of the tree, the data and the names
_NODE = struct.Struct(">IHII")  # name, flags; of a folder its number of children and the first, of a file its data
_NODE_SIZE = {1: 14, 2: 22, 3: 22}  # bytes; later versions add the time of the last change
_ZLIB, _FOLDER, _ZSTD = 1, 2, 4
_MAX_DEPTH = 32


def read_rcc(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of a resource: its path inside, and its content.

    Raises:
        InputError: not such a file, damaged, or compressed with Zstandard (which Python 3.10 to 3.12 cannot read).

    Example:
        >>> dict(read_rcc(Path("erase.rcc"))).keys()
    """
    content = path.read_bytes()
    try:
        magic, version, tree, data, names = _HEADER.unpack_from(content)
        if magic != b"qres" or version not in _NODE_SIZE:
            raise InputError(f"{path}: not a Qt resource of version 1 to 3")
        yield from _walk(content, (tree, data, names, _NODE_SIZE[version]), 0, "", 0)
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: a damaged Qt resource ({error})") from error


def _walk(
    content: bytes, places: tuple[int, int, int, int], index: int, folder: str, depth: int
) -> Iterator[tuple[str, bytes]]:
    tree, data, names, size = places
    name, flags, first, second = _NODE.unpack_from(content, tree + index * size)
    here = folder + (_name(content, names + name) if index else "")
    if not flags & _FOLDER:
        yield here, _file(content, data + second, flags, here)
        return
    if depth == _MAX_DEPTH:
        raise InputError(f"{here}: folders deeper than {_MAX_DEPTH} in a Qt resource")
    for child in range(second, second + first):
        yield from _walk(content, places, child, f"{here}/" if here else "", depth + 1)


def _name(content: bytes, place: int) -> str:
    (length,) = struct.unpack_from(">H", content, place)
    return content[place + 6 : place + 6 + 2 * length].decode("utf-16-be")  # a hash of four bytes comes first


def _file(content: bytes, place: int, flags: int, name: str) -> bytes:
    (length,) = struct.unpack_from(">I", content, place)
    stored = content[place + 4 : place + 4 + length]
    if flags & _ZSTD:
        raise InputError(f"{name}: compressed with Zstandard, which is not read here")
    return zlib.decompress(stored[4:]) if flags & _ZLIB else stored  # its size comes first
