"""NVIDIA's cuda-bindings, 12.x and 13.x: the functions used here have the same arguments in both."""

# ruff: noqa: D102 - `CudaRt` documents the methods
from __future__ import annotations

import importlib
from typing import Any

from gamma_runtime.cuda.api import CudaError
from gamma_runtime.cuda.runtime_api import RuntimeApi

__all__ = ["Bindings"]

_ENUMS = {  # the argument that must be a member of an enumeration
    "cudaDeviceGetAttribute": (0, "cudaDeviceAttr"),
    "cudaMemcpyAsync": (3, "cudaMemcpyKind"),
    "cudaMemcpy2DAsync": (6, "cudaMemcpyKind"),
    "cudaStreamBeginCapture": (1, "cudaStreamCaptureMode"),
}


class Bindings(RuntimeApi):
    """Calls through ``cuda.bindings.runtime``."""

    name = "cuda-bindings"

    def __init__(self) -> None:
        self._runtime: Any = importlib.import_module("cuda.bindings.runtime")

    def call(self, function: str, *arguments: int) -> Any:
        given: list[Any] = list(arguments)
        if function in _ENUMS:
            place, enumeration = _ENUMS[function]
            given[place] = getattr(self._runtime, enumeration)(given[place])
        code, *values = getattr(self._runtime, function)(*given)
        if int(code) != 0:
            words = self._runtime.cudaGetErrorString(code)[1]
            raise CudaError(function, int(code), words.decode() if isinstance(words, bytes) else str(words))
        return values[0] if len(values) == 1 else tuple(values) or None
