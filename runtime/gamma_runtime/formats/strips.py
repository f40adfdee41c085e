"""Does a compressed TIFF strip hold all of its bytes? libtiff, as OpenCV calls it, paints what is missing black.

Only lengths are computed: nothing is decoded, and memory stays at a megabyte whatever the strip claims.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.formats.header import MalformedError

__all__ = ["deflate_length", "lzw_length"]

_CHUNK = 1 << 20
_CLEAR, _END, _FIRST = 256, 257, 258
# TIFF's LZW grows a code by a bit one entry early; after a clear code, code i has this many bits.
_WIDTHS = np.repeat([9, 10, 11, 12], [254, 512, 1024, 2050])
_OFFSETS = np.concatenate([[0], np.cumsum(_WIDTHS)[:-1]])


def deflate_length(strip: bytes, expected: int) -> int:
    """Bytes that a zlib stream gives; stops soon after ``expected``.

    Raises:
        MalformedError: damaged, or cut off before its checksum.
    """
    stream = zlib.decompressobj()
    total, rest = 0, strip
    try:
        while not stream.eof and total <= expected:
            piece = stream.decompress(rest, _CHUNK)
            if not piece and not stream.eof:
                raise MalformedError(f"cut off: a deflate strip ends after {total} of {expected} bytes")
            total, rest = total + len(piece), stream.unconsumed_tail
    except zlib.error as error:
        raise MalformedError(f"damaged deflate strip ({error})") from error
    return total


def lzw_length(strip: bytes, expected: int) -> int:
    """Bytes that an LZW stream gives; stops soon after ``expected``.

    Raises:
        MalformedError: a code that does not exist yet, or the old bit order.
    """
    data = np.frombuffer(strip + b"\0\0\0", np.uint8)
    bits = 8 * len(strip)
    if bits < 9 or (strip[0] << 1 | strip[1] >> 7) != _CLEAR:
        raise MalformedError("an LZW strip that does not start with a clear code")
    start, total, last = 9, 0, _CLEAR
    while last == _CLEAR and total < expected:
        codes = _codes(data, start, bits)
        stops = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        count = int(stops[0]) if len(stops) else len(codes)
        last = int(codes[count]) if len(stops) else _END
        total += _strings(codes[:count])
        start += int(_WIDTHS[: count + 1].sum())
    return total


def _codes(data: NDArray[np.uint8], start: int, bits: int) -> NDArray[np.int64]:
    """The codes from bit ``start`` on, as if no clear code came."""
    at = start + _OFFSETS
    at = at[at + _WIDTHS <= bits]
    widths = _WIDTHS[: len(at)]
    first = at >> 3
    window = (data[first].astype(np.int64) << 16) | (data[first + 1].astype(np.int64) << 8) | data[first + 2]
    codes: NDArray[np.int64] = (window >> (24 - (at & 7) - widths)) & ((1 << widths) - 1)
    return codes


def _strings(codes: NDArray[np.int64]) -> int:
    """Total length of the strings of a run of codes.

    Code i >= 258 repeats the string of code i' = code - 258 and one byte more. So a string is as long as its chain of
    references, and the chains are followed all at once, doubling their steps.
    """
    parent = np.where(codes < _CLEAR, -1, codes - _FIRST)
    if np.any(parent >= np.arange(len(codes))):
        raise MalformedError("damaged LZW strip: a code before its entry")
    lengths = np.ones(len(codes), np.int64)
    while np.any(parent >= 0):
        known = parent >= 0
        lengths[known] += lengths[parent[known]]
        parent[known] = parent[parent[known]]
    return int(lengths.sum())
