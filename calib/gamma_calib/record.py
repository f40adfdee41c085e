"""What a calibration measured: one file, whole or absent, that fits one model, one list of images and one method.

A record is a cache of hours of work, never a source of truth: one that is broken, half written or made for something
else counts as absent, with a warning (hostile_inputs.md rows 29 to 31). The scales themselves live in the Q/DQ graph.

The file is one line with the SHA-256 of all that follows, one line of JSON, then the histograms' counts as raw
little-endian int64 and the channels' maxima as raw little-endian float32, both in the order of the JSON. There is no
pickle and no archive in it, so nothing runs when it is read, and nothing becomes larger than the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gamma_runtime.bundle import open_plain, parse_json
from gamma_runtime.cli import log, printable
from gamma_runtime.errors import InputError, IntegrityError
from gamma_runtime.files import lock_file, sweep_temporaries, write_atomically
from gamma_runtime.manifest import Line, Sha256

__all__ = ["Histogram", "Key", "Record", "calibrating", "find_record", "read_record", "write_record"]

_MAGIC = b"gamma-calibration 1 "
_START = len(_MAGIC) + 64 + 1  # bytes of the first line
_MAX_FILE = 256 * 2**20  # bytes; 2048 bins and 12288 channels have 64 KiB, the model a few hundred tensors
_MAX_HEADER = 16 * 2**20
_COUNT = np.dtype("<i8")
_MAXIMUM = np.dtype("<f4")
_REDO = "calibrate again"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Number = TypeVar("Number", bound=np.generic)


@dataclasses.dataclass(frozen=True)
class Key:
    """All that decides what a calibration measures; a record is used only where each part is the same."""

    graph: Sha256  # of the ONNX file
    weights: Sha256
    contract: Sha256
    images: Sha256  # of the digests of all images, in order
    method: Line  # how the values were collected, e.g. "histogram 2048"
    versions: tuple[tuple[Line, Line], ...]  # name and version of what measured, sorted by name

    def sha256(self) -> str:
        """Digest of the canonical JSON text."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, other: Key) -> list[str]:
        """Names of the parts that are not the same."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != getattr(other, f.name)]


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """How often a tensor's values fell into each of the bins of equal width between ``low`` and ``high``.

    ``counts``: int64 ``[bins]``.
    """

    low: float
    high: float
    counts: NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """A calibration, finished or not: the first ``done`` of ``total`` images are in it.

    Attributes:
        key: what it was made for.
        done: images that are in it; who resumes goes on with the next one.
        total: images of the whole calibration.
        histograms: by tensor name.
        ranges: by method (``max``, ``percentile``, …) and tensor name: lowest and highest value to represent.
        channels: by tensor name: the largest |value| of every channel (the last axis), float32 ``[width]``.
    """

    key: Key
    done: int
    total: int
    histograms: Mapping[str, Histogram] = dataclasses.field(default_factory=dict)
    ranges: Mapping[str, Mapping[str, tuple[float, float]]] = dataclasses.field(default_factory=dict)
    channels: Mapping[str, NDArray[np.float32]] = dataclasses.field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all images are in it."""
        return self.done == self.total


class _Bins(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    tensor: str
    low: Finite
    high: Finite
    bins: int = Field(ge=1, le=1 << 20)


class _Channels(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    tensor: str
    width: int = Field(ge=1, le=1 << 20)


class _Header(BaseModel):
    """The line of JSON."""

    model_config = ConfigDict(extra="forbid")

    key: Key
    done: int = Field(ge=0)
    total: int = Field(ge=1)
    histograms: list[_Bins]
    ranges: dict[str, dict[str, tuple[Finite, Finite]]]
    channels: list[_Channels]


def write_record(path: Path, record: Record) -> None:
    """Replace the file as a whole; what writers that were killed left beside it is swept.

    Raises:
        OutputError: disk or permission; the old file is untouched. IntegrityError: a record that nobody could read.
    """
    counts = [np.asarray(h.counts).astype(_COUNT, casting="safe") for h in record.histograms.values()]
    maxima = [np.asarray(values).astype(_MAXIMUM, casting="safe") for values in record.channels.values()]
    header = {
        "key": dataclasses.asdict(record.key),
        "done": record.done,
        "total": record.total,
        "histograms": [
            {"tensor": name, "low": h.low, "high": h.high, "bins": len(array)}
            for (name, h), array in zip(record.histograms.items(), counts, strict=True)
        ],
        "ranges": {method: dict(ranges) for method, ranges in record.ranges.items()},
        "channels": [
            {"tensor": name, "width": len(array)} for name, array in zip(record.channels, maxima, strict=True)
        ],
    }
    arrays: list[NDArray[Any]] = [*counts, *maxima]
    body = json.dumps(header).encode() + b"\n" + b"".join(array.tobytes() for array in arrays)
    content = _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    _parse(path, content)
    sweep_temporaries(path.parent)
    write_atomically(path, content)


def read_record(path: Path) -> Record:
    """Read a record, whatever it was made for.

    Raises:
        InputError: no such file. IntegrityError: not a plain file, too large, cut, changed, or not a record.
    """
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such calibration record", hint="calibrate first")
    with open_plain(path) as stream:
        content = stream.read(_MAX_FILE + 1)
    return _parse(path, content)


def find_record(path: Path, key: Key, warn: Callable[[str], None] = log) -> Record | None:
    """The record that fits ``key``, perhaps of only some of the images; None when there is none to use.

    Args:
        path: where it would be.
        key: what it must have been made for.
        warn: is told why a file that exists is not used; stderr by default.

    Example:
        >>> record = find_record(path, key) or Record(key, 0, len(images))
        >>> remaining = images[record.done :]
    """
    if not os.path.lexists(path):
        return None
    try:
        record = read_record(path)
    except (InputError, IntegrityError) as error:
        warn(f"warning: {error.message}; calibrating anew")
        return None
    if others := key.differences(record.key):
        warn(f"warning: {path}: made for other {', '.join(others)}; calibrating anew")
        return None
    return record


@contextlib.contextmanager
def calibrating(path: Path, timeout: float) -> Iterator[None]:
    """Keep a second calibrator away from the record while the block runs.

    Raises:
        OutputError: it is at work for longer than ``timeout`` seconds, or there can be no lock.
    """
    with lock_file(path.with_name(f"{path.name}.lock"), timeout, f"{path}: another calibration is writing this record"):
        yield


def _parse(path: Path, content: bytes) -> Record:
    def refuse(why: str) -> IntegrityError:
        return IntegrityError(f"{path}: not a calibration record: {why}", hint=_REDO)

    if len(content) > _MAX_FILE:
        raise refuse(f"larger than {_MAX_FILE >> 20} MiB")
    start, body = content[:_START], content[_START:]
    if not start.startswith(_MAGIC) or not start.endswith(b"\n"):
        raise refuse("it begins otherwise")
    if start != _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise refuse("cut or changed, its sha256 does not match")
    end = body.find(b"\n", 0, _MAX_HEADER)
    if end < 0:
        raise refuse("no header")
    try:
        header = _Header.model_validate(parse_json(path, body[:end], _REDO))
        return _assemble(header, body[end + 1 :])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise refuse(printable(f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200])) from error
    except ValueError as error:
        raise refuse(str(error)) from error


def _assemble(header: _Header, data: bytes) -> Record:
    """The record, with arrays that look into ``data``.

    Raises:
        ValueError: a contradiction.
    """
    if header.done > header.total:
        raise ValueError(f"{header.done} of {header.total} images")
    bins = {entry.tensor: entry for entry in header.histograms}
    widths = {entry.tensor: entry.width for entry in header.channels}
    if len(bins) != len(header.histograms) or len(widths) != len(header.channels):
        raise ValueError("a tensor is listed twice")
    pairs = [pair for ranges in header.ranges.values() for pair in ranges.values()]
    if any(low > high for low, high in [*pairs, *((entry.low, entry.high) for entry in bins.values())]):
        raise ValueError("a range is upside down")
    split = sum(entry.bins for entry in bins.values()) * _COUNT.itemsize
    if (size := split + sum(widths.values()) * _MAXIMUM.itemsize) != len(data):
        raise ValueError(f"{len(data)} bytes of counts and channels, the header says {size}")
    counts = _cut(np.frombuffer(data[:split], _COUNT), [entry.bins for entry in bins.values()])
    maxima = _cut(np.frombuffer(data[split:], _MAXIMUM), list(widths.values()))
    if any(array.min() < 0 for array in counts):
        raise ValueError("a negative count")
    if any(not (np.isfinite(array).all() and array.min() >= 0) for array in maxima):
        raise ValueError("a channel whose largest value is not finite, or negative")
    histograms = {
        entry.tensor: Histogram(entry.low, entry.high, array)
        for entry, array in zip(bins.values(), counts, strict=True)
    }
    channels = dict(zip(widths, maxima, strict=True))
    return Record(header.key, header.done, header.total, histograms, header.ranges, channels)


def _cut(values: NDArray[Number], lengths: Sequence[int]) -> list[NDArray[Number]]:
    """The pieces of an array, one after another."""
    return np.split(values, np.cumsum(lengths))[:-1]
