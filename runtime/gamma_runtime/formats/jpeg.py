"""JPEG: size, orientation, ink colours, and whether every scan is there.

libjpeg's own warnings (which the decoder turns into errors) catch a cut inside a scan. They do not catch a progressive
file cut between two scans with an EOI appended: that is a legal, blurred picture, which a quality model must never
score. So the scans are counted here.
"""

from __future__ import annotations

import dataclasses
import re

from gamma_runtime.formats import exif
from gamma_runtime.formats.header import Header, MalformedError, unpack

__all__ = ["read"]

_EOI, _SOS = 0xD9, 0xDA
_SOF = {0xC0: False, 0xC1: False, 0xC2: True}  # marker -> progressive
_OTHER_SOF = {0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
_MAX_MARKERS = 10_000  # a photo has a few dozen; large profiles and previews some hundred
_MAX_SCANS = 100  # each costs a pass over the whole picture; encoders write about ten
# In entropy-coded data FF is followed by 00 or a restart marker; anything else ends the scan.
_END_OF_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)


@dataclasses.dataclass
class _State:
    """What the markers have said so far. ``missing``: per component, the lowest bit not yet sent of 64 coefficients."""

    width: int = 0
    height: int = 0
    progressive: bool = False
    missing: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    exif: bytes | None = None
    adobe: bool = False
    frames: bool = False
    scans: int = 0


def read(data: bytes) -> Header:
    """Read all markers; entropy-coded data is skipped, not decoded.

    Raises:
        MalformedError: cut off, a lossless, arithmetic or 12-bit JPEG, or scans missing.
    """
    state = _State()
    at = 2
    for _ in range(_MAX_MARKERS):
        marker, at = _next_marker(data, at)
        if marker == _EOI:
            break
        (length,) = unpack(">H", data, at)
        body = data[at + 2 : at + length]
        if length < 2 or len(body) != length - 2:
            raise MalformedError(f"cut off in marker {marker:02x} at byte {at}")
        _take(state, marker, body)
        at += length
        if marker == _SOS:
            if not state.progressive and _complete(state):
                break  # the usual file: one scan with everything; libjpeg checks it to the end
            end = _END_OF_SCAN.search(data, at)
            if end is None:
                raise MalformedError("cut off: no end-of-image marker")
            at = end.start()
    else:
        raise MalformedError(f"more than {_MAX_MARKERS} markers")
    return _finish(state, data)


def _next_marker(data: bytes, at: int) -> tuple[int, int]:
    if data[at : at + 1] != b"\xff":
        raise MalformedError(f"cut off or damaged: no marker at byte {at}")
    while data[at : at + 1] == b"\xff":
        at += 1
    (marker,) = unpack("B", data, at)
    return int(marker), at + 1


def _take(state: _State, marker: int, body: bytes) -> None:
    if marker in _SOF:
        _frame(state, body, _SOF[marker])
    elif marker in _OTHER_SOF:
        raise MalformedError(f"a lossless, hierarchical or arithmetic-coded JPEG (SOF {marker:02x}) is not read")
    elif marker == _SOS:
        _scan(state, body)
    elif marker == 0xE1 and body.startswith(b"Exif\0") and state.exif is None:
        state.exif = body[6:]
    elif marker == 0xE2 and body.startswith(b"MPF\0"):
        state.frames = True
    elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
        state.adobe = True


def _frame(state: _State, body: bytes, progressive: bool) -> None:
    if state.missing:
        raise MalformedError("two frame headers")
    precision, state.height, state.width, components = unpack(">BHHB", body, 0)
    if precision != 8:
        raise MalformedError(f"{precision} bits a sample; only 8-bit JPEG is read")
    if components not in (1, 3, 4):
        raise MalformedError(f"{components} colour components; 1, 3 or 4 are read")
    state.progressive = progressive
    for index in range(components):
        (name,) = unpack("B", body, 6 + 3 * index)
        state.missing[int(name)] = [255] * 64


def _scan(state: _State, body: bytes) -> None:
    state.scans += 1
    if state.scans > _MAX_SCANS:
        raise MalformedError(f"more than {_MAX_SCANS} scans")
    (count,) = unpack("B", body, 0)
    start, end, bits = unpack("BBB", body, 1 + 2 * count)
    if not state.progressive:
        start, end, bits = 0, 63, 0
    for index in range(count):
        (name,) = unpack("B", body, 1 + 2 * index)
        if name not in state.missing or end > 63:
            raise MalformedError(f"a scan of unknown component {name} or coefficient {end}")
        for coefficient in range(start, end + 1):
            state.missing[name][coefficient] = bits & 15


def _complete(state: _State) -> bool:
    return all(not any(bits) for bits in state.missing.values())


def _finish(state: _State, data: bytes) -> Header:
    if not state.missing:
        raise MalformedError("cut off: no frame header")
    if state.width == 0 or state.height == 0:
        raise MalformedError(f"size {state.width}x{state.height}")
    if not _complete(state):
        raise MalformedError("cut off: the last scans are missing")
    orientation, broken = (1, False) if state.exif is None else exif.orientation(state.exif)
    cmyk = None
    if len(state.missing) == 4:
        cmyk = "inverted" if state.adobe else "ink"
    return Header("jpeg", state.width, state.height, data, orientation, broken, state.frames, cmyk)
