"""External weights: one file beside the graphs, written once, streamed tensor by tensor, named by its content."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.errors import InputError, OutputError
from gamma_runtime.files import temporary_beside

if TYPE_CHECKING:
    from onnx import TensorProto

__all__ = ["DTYPES", "Entry", "Place", "WeightsFile", "encode", "numpy_type", "write_external"]

# onnx.TensorProto.DataType
DTYPES = {"fp32": 1, "uint8": 2, "int8": 3, "int64": 7, "fp16": 10, "bf16": 16, "fp8": 17, "int4": 22}
_PAGE = 4096  # readers map large tensors from page boundaries
_FP16_MAX = 65504.0


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a weights file, made when it is written, so that only one is in memory at a time.

    ``make`` gives the values in any type that ``dtype`` (a key of `DTYPES`) can hold.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor lies in the file; ``offset`` and ``length`` in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """A written weights file: its name in the bundle, size, digest, and where each tensor lies."""

    name: str
    size: int
    sha256: str
    places: Mapping[str, Place]

    def dtype(self, name: str) -> str:
        """A key of `DTYPES`."""
        return self.places[name].dtype

    def reference(self, name: str) -> TensorProto:
        """An initializer that points into this file."""
        from onnx import TensorProto

        place = self.places[name]
        tensor = TensorProto(
            name=name, data_type=DTYPES[place.dtype], dims=place.shape, data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", self.name), ("offset", place.offset), ("length", place.length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def write_external(folder: Path, stem: str, entries: Iterable[Entry]) -> WeightsFile:
    """Stream tensors into ``STEM-DIGEST.bin``; one is in memory at a time.

    Raises:
        InputError: a value does not fit its type. OutputError: the file cannot be written; nothing is left behind.
    """
    digest = hashlib.sha256()
    places: dict[str, Place] = {}
    offset = 0
    try:
        with temporary_beside(folder / "weights") as temporary:
            with temporary.open("wb") as stream:
                for entry in entries:
                    content = encode(entry).tobytes()
                    gap = b"\0" * (-offset % _PAGE)
                    for part in (gap, content):
                        stream.write(part)
                        digest.update(part)
                    offset += len(gap)
                    places[entry.name] = Place(entry.dtype, entry.shape, offset, len(content))
                    offset += len(content)
                stream.flush()
                os.fsync(stream.fileno())
            name = f"{stem}-{digest.hexdigest()[:8]}.bin"
            temporary.replace(folder / name)
    except OSError as error:
        raise OutputError(
            f"{folder}: weights cannot be written ({error})", hint="check the free space and the permissions"
        ) from error
    return WeightsFile(name, offset, digest.hexdigest(), places)


def numpy_type(dtype: str) -> np.dtype[Any]:
    """Numpy's type for a key of `DTYPES`; for bf16 and fp8 those of ml_dtypes."""
    from onnx import helper

    return np.dtype(helper.tensor_dtype_to_np_dtype(DTYPES[dtype]))


def encode(entry: Entry) -> NDArray[Any]:
    """An entry's values as they lie in the file: in its own type, contiguous; of int4 two in a byte, the first one low.

    Raises:
        InputError: another shape than announced, or a value beyond what fp16 holds.
    """
    value = entry.make()
    if value.shape != entry.shape:
        raise InputError(f"{entry.name}: shape {value.shape}, expected {entry.shape}")
    if entry.dtype == "fp16" and (peak := float(np.abs(value).max(initial=0.0))) > _FP16_MAX:
        raise InputError(
            f"{entry.name} reaches {peak:.4g}; fp16 ends at {_FP16_MAX:g}", hint="use --precision bf16 or fp32"
        )
    if entry.dtype == "int4":
        nibbles = (value.astype(np.int8).reshape(-1).view(np.uint8) & 15).astype(np.uint8)
        nibbles = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
        return nibbles[0::2] | nibbles[1::2] << 4
    if entry.dtype not in ("int8", "fp8"):
        value = value.astype(np.float32)  # once through fp32: as a graph that casts its fp32 weights would round
    return np.ascontiguousarray(value.astype(numpy_type(entry.dtype)))
