"""The external weights file: written once a precision, streamed tensor by tensor, shared by all graphs of a bundle."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gamma_export.graph import DTYPES
from gamma_runtime.errors import InputError, OutputError
from gamma_runtime.files import temporary_beside

if TYPE_CHECKING:
    from onnx import TensorProto

    from gamma_export.fold import Folded

__all__ = ["WeightsFile", "write_weights"]

_PAGE = 4096  # readers map large tensors from page boundaries
_FP16_MAX = 65504.0


@dataclasses.dataclass(frozen=True)
class _Place:
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
    precision: str
    places: dict[str, _Place]

    def dtype(self, name: str) -> str:
        """``fp32``, ``fp16`` or ``bf16``."""
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


def write_weights(folder: Path, weights: Sequence[Folded], precision: str) -> WeightsFile:
    """Stream the weights into ``weights-PRECISION-DIGEST.bin``; one tensor is in memory at a time.

    Raises:
        InputError: a weight does not fit fp16. OutputError: the file cannot be written; nothing is left behind.
    """
    digest = hashlib.sha256()
    places: dict[str, _Place] = {}
    offset = 0
    try:
        with temporary_beside(folder / "weights") as temporary:
            with temporary.open("wb") as stream:
                for weight in weights:
                    dtype = precision if weight.role == "product" else "fp32"
                    content = _encode(weight, dtype).tobytes()
                    gap = b"\0" * (-offset % _PAGE)
                    for part in (gap, content):
                        stream.write(part)
                        digest.update(part)
                    offset += len(gap)
                    places[weight.name] = _Place(dtype, weight.shape, offset, len(content))
                    offset += len(content)
                stream.flush()
                os.fsync(stream.fileno())
            name = f"weights-{precision}-{digest.hexdigest()[:8]}.bin"
            temporary.replace(folder / name)
    except OSError as error:
        raise OutputError(
            f"{folder}: weights cannot be written ({error})", hint="check the free space and the permissions"
        ) from error
    return WeightsFile(name, offset, digest.hexdigest(), precision, places)


def _encode(weight: Folded, dtype: str) -> np.ndarray[Any, Any]:
    from onnx import helper

    value = weight.make()
    if value.shape != weight.shape:
        raise InputError(f"{weight.name}: shape {value.shape}, expected {weight.shape}")
    peak = float(np.abs(value).max(initial=0.0))
    if dtype == "fp16" and peak > _FP16_MAX:
        raise InputError(
            f"{weight.name} reaches {peak:.4g}; fp16 ends at {_FP16_MAX:g}", hint="use --precision bf16 or fp32"
        )
    return np.ascontiguousarray(value.astype(np.float32).astype(helper.tensor_dtype_to_np_dtype(DTYPES[dtype])))
