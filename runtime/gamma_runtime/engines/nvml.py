"""How much GPU memory is free, asked from NVML: unlike CUDA's own answer it costs no context (200 MB on the GPU)."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

__all__ = ["free_gpu_bytes"]

_LIBRARY = "libnvidia-ml.so.1"
_BUS_ID = 32  # characters


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def free_gpu_bytes() -> int | None:
    """Free memory of CUDA's first visible GPU; None where NVML or the driver does not say (a Jetson has none).

    Example:
        >>> free_gpu_bytes()
        7969177600
    """
    with contextlib.suppress(OSError, AttributeError):
        return _ask(ctypes.CDLL("libcuda.so.1"), ctypes.CDLL(_LIBRARY))
    return None


def _ask(cuda: Any, nvml: Any) -> int | None:
    """CUDA and NVML number GPUs differently, so the first visible one is found by its bus address."""
    bus = ctypes.create_string_buffer(_BUS_ID)
    device, memory = ctypes.c_void_p(), _Memory()
    if cuda.cuInit(0) or cuda.cuDeviceGetPCIBusId(bus, _BUS_ID, 0) or nvml.nvmlInit_v2():
        return None
    try:
        failed = nvml.nvmlDeviceGetHandleByPciBusId_v2(bus, ctypes.byref(device))
        failed = failed or nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
    finally:
        nvml.nvmlShutdown()
    return None if failed else int(memory.free)
