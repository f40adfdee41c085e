"""libcudart through ctypes: nothing to install on a Jetson, where JetPack brings the library."""

# ruff: noqa: D102 - `CudaRt` documents the methods
from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from ctypes import c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

from gamma_runtime.cuda.api import CudaError
from gamma_runtime.cuda.runtime_api import RuntimeApi
from gamma_runtime.errors import EnvironmentFault

__all__ = ["Ctypes"]

_LEAST = 12000  # cudaGraphInstantiate had other arguments before CUDA 12
# Outputs, then inputs; in C the outputs come first, but for cudaStreamEndCapture.
_FUNCTIONS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "cudaRuntimeGetVersion": ((c_int,), ()),
    "cudaGetDeviceCount": ((c_int,), ()),
    "cudaDeviceGetAttribute": ((c_int,), (c_int, c_int)),
    "cudaSetDevice": ((), (c_int,)),
    "cudaMemGetInfo": ((c_size_t, c_size_t), ()),
    "cudaMalloc": ((c_void_p,), (c_size_t,)),
    "cudaFree": ((), (c_void_p,)),
    "cudaHostAlloc": ((c_void_p,), (c_size_t, c_uint)),
    "cudaFreeHost": ((), (c_void_p,)),
    "cudaHostGetDevicePointer": ((c_void_p,), (c_void_p, c_uint)),
    "cudaMemcpyAsync": ((), (c_void_p, c_void_p, c_size_t, c_int, c_void_p)),
    "cudaMemcpy2DAsync": ((), (c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_int, c_void_p)),
    "cudaStreamCreateWithFlags": ((c_void_p,), (c_uint,)),
    "cudaStreamDestroy": ((), (c_void_p,)),
    "cudaStreamSynchronize": ((), (c_void_p,)),
    "cudaEventCreate": ((c_void_p,), ()),
    "cudaEventDestroy": ((), (c_void_p,)),
    "cudaEventRecord": ((), (c_void_p, c_void_p)),
    "cudaEventQuery": ((), (c_void_p,)),
    "cudaEventElapsedTime": ((c_float,), (c_void_p, c_void_p)),
    "cudaStreamBeginCapture": ((), (c_void_p, c_int)),
    "cudaStreamEndCapture": ((c_void_p,), (c_void_p,)),
    "cudaGraphInstantiate": ((c_void_p,), (c_void_p, c_ulonglong)),
    "cudaGraphLaunch": ((), (c_void_p, c_void_p)),
    "cudaGraphDestroy": ((), (c_void_p,)),
    "cudaGraphExecDestroy": ((), (c_void_p,)),
    "cudaGetLastError": ((), ()),
}


class Ctypes(RuntimeApi):
    """Calls into libcudart.

    Attributes:
        path: the library that was loaded.
    """

    name = "ctypes"

    def __init__(self) -> None:
        self.path, self._library = _load()
        self._words = self._library.cudaGetErrorString
        self._words.argtypes, self._words.restype = [c_int], ctypes.c_char_p
        version = int(self.call("cudaRuntimeGetVersion"))
        if version < _LEAST:
            raise EnvironmentFault(
                f"{self.path}: CUDA runtime {version // 1000}.{version % 1000 // 10}; 12.0 or newer is needed",
                hint="install the CUDA runtime of your JetPack, or pip install cuda-bindings",
            )

    def call(self, function: str, *arguments: int) -> Any:
        outputs, inputs = _FUNCTIONS[function]
        made = [kind() for kind in outputs]
        pointers = [ctypes.byref(value) for value in made]
        given = [kind(value) for kind, value in zip(inputs, arguments, strict=True)]
        last = function == "cudaStreamEndCapture"
        code = getattr(self._library, function)(*(given + pointers if last else pointers + given))
        if code != 0:
            words = self._words(code) or b"unknown error"
            raise CudaError(function, code, words.decode(errors="replace"))
        values = [value.value or 0 for value in made]  # ctypes has None for a null pointer
        return values[0] if len(values) == 1 else tuple(values) or None


def _load() -> tuple[str, Any]:
    tried = []
    for name in _candidates():
        try:
            return name, ctypes.CDLL(name)
        except OSError as error:
            tried.append(str(error))
    raise EnvironmentFault(
        f"no CUDA runtime library: {'; '.join(tried)}", hint="pip install cuda-bindings, or add it to LD_LIBRARY_PATH"
    )


def _candidates() -> Iterator[str]:
    """What the system's loader finds, then the folders of NVIDIA's wheels."""
    yield from ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
    spec = importlib.util.find_spec("nvidia")
    for home in (spec.submodule_search_locations or ()) if spec else ():
        yield from map(str, sorted(Path(home).glob("*/lib/libcudart.so.*"), reverse=True))
