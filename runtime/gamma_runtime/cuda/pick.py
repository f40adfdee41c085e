"""Which library speaks to CUDA: the first that is there, or the one that GAMMA_CUDA names."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from gamma_runtime.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from gamma_runtime.cuda.api import CudaRt

__all__ = ["IMPLEMENTATIONS", "open_cuda"]


def _bindings() -> CudaRt:
    from gamma_runtime.cuda.bindings_ import Bindings

    return Bindings()


def _ctypes() -> CudaRt:
    from gamma_runtime.cuda.ctypes_ import Ctypes

    return Ctypes()


def _pycuda() -> CudaRt:
    from gamma_runtime.cuda.pycuda_ import PyCuda

    return PyCuda()


IMPLEMENTATIONS: dict[str, Callable[[], CudaRt]] = {"cuda-bindings": _bindings, "ctypes": _ctypes, "pycuda": _pycuda}


def open_cuda(name: str | None = None) -> CudaRt:
    """CUDA on the first GPU, made current on this thread.

    Args:
        name: one of `IMPLEMENTATIONS`; when None what the environment variable GAMMA_CUDA names, else the first that
            loads. One that was named is never replaced by another.

    Raises:
        UsageError: no such name. EnvironmentFault: none loads. CudaError: it loads, but CUDA has no device.

    Example:
        >>> open_cuda().memory_info()
    """
    name = name or os.environ.get("GAMMA_CUDA") or None
    if name is not None and name not in IMPLEMENTATIONS:
        raise UsageError(f"GAMMA_CUDA: unknown {name!r}", hint=f"one of {', '.join(IMPLEMENTATIONS)}")
    failed = []
    for candidate in (name,) if name else IMPLEMENTATIONS:
        try:
            cuda = IMPLEMENTATIONS[candidate]()
        except (ImportError, OSError, AttributeError, EnvironmentFault) as error:
            failed.append(f"{candidate}: {getattr(error, 'message', error)}")
            continue
        cuda.bind(0)
        return cuda
    raise EnvironmentFault(
        f"CUDA cannot be used from Python: {'; '.join(failed)}", hint="pip install cuda-bindings, then gamma-doctor"
    )
