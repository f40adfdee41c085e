"""Ask the NVIDIA driver what it has, before any CUDA or TensorRT library is touched.

TensorRT 11 without a driver hands out a bogus pointer and dies with SIGSEGV, so every path into it goes through here
first. Only ctypes is used: nothing is imported, and no CUDA context is made.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import sys
from typing import Literal

__all__ = ["CudaDevice", "CudaState", "probe"]

Cause = Literal["ok", "no-driver", "driver-too-old", "no-gpu", "hidden", "error"]

# CUresult values of cuda.h; the driver API has kept them since CUDA 4.
_STUB_LIBRARY = 34
_TOO_OLD = frozenset({35, 36, 803, 804})  # insufficient driver, call needs a newer one, mismatch, no compatibility
_NO_DEVICE = 100
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*

_HINTS: dict[Cause, str] = {
    "no-driver": "install the NVIDIA driver until nvidia-smi lists the GPU (in a container: start it with --gpus all)",
    "driver-too-old": "update the NVIDIA driver, or install the libraries built for the CUDA version it offers",
    "no-gpu": "check with nvidia-smi that the driver sees the GPU (in a container: start it with --gpus all)",
    "hidden": "unset CUDA_VISIBLE_DEVICES",
    "error": "run nvidia-smi; a driver that was just updated needs a reboot",
}


@dataclasses.dataclass(frozen=True)
class CudaDevice:
    """One visible GPU: ``compute_capability`` as ``"8.7"``, ``total_memory`` in bytes."""

    index: int
    name: str
    compute_capability: str
    total_memory: int


@dataclasses.dataclass(frozen=True)
class CudaState:
    """What the driver said.

    ``cause`` is ``ok`` or the one reason why no GPU can be used; ``detail`` says it in a sentence; ``driver`` is the
    newest CUDA version that the driver offers, such as ``"13.0"``, or None without a driver.
    """

    cause: Cause
    detail: str
    driver: str | None = None
    devices: tuple[CudaDevice, ...] = ()

    @property
    def usable(self) -> bool:
        """At least one GPU answered."""
        return self.cause == "ok"

    @property
    def hint(self) -> str | None:
        """What to do about the cause; None when all is well."""
        return _HINTS.get(self.cause)


class _DriverError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def probe() -> CudaState:
    """Initialise the driver API and list the GPUs; never raises, and takes milliseconds.

    Example:
        >>> state = probe()
        >>> state.usable or state.detail
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
        call = _Caller(driver)
    except (OSError, AttributeError) as error:
        return CudaState("no-driver", f"no NVIDIA driver ({error})")
    version = None
    try:
        version = _driver_version(call)
        call("cuInit", ctypes.c_uint(0))
        devices = _devices(call)
    except _DriverError as error:
        return _failed(error, version)
    except AttributeError as error:
        return CudaState("driver-too-old", f"NVIDIA driver too old: it lacks a function ({error})", version)
    if not devices:
        return _no_device(version)
    return CudaState("ok", f"{len(devices)} GPU{'s' if len(devices) > 1 else ''}, CUDA {version}", version, devices)


class _Caller:
    """Calls a driver function by name and turns a result other than 0 into an exception with the driver's words."""

    def __init__(self, driver: ctypes.CDLL) -> None:
        self._driver = driver
        self._text = driver.cuGetErrorString
        self._text.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]

    def __call__(self, function: str, *arguments: object) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self._text(code, ctypes.byref(text))
            words = (text.value or b"unknown error").decode(errors="replace")
            raise _DriverError(code, f"{function}: CUDA error {code}, {words}")


def _driver_version(call: _Caller) -> str:
    number = ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(number))
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _devices(call: _Caller) -> tuple[CudaDevice, ...]:
    count = ctypes.c_int()
    call("cuDeviceGetCount", ctypes.byref(count))
    return tuple(_device(call, index) for index in range(count.value))


def _device(call: _Caller, index: int) -> CudaDevice:
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(index))
    call("cuDeviceGetName", name, ctypes.c_int(len(name)), handle)
    call("cuDeviceGetAttribute", ctypes.byref(major), ctypes.c_int(_MAJOR), handle)
    call("cuDeviceGetAttribute", ctypes.byref(minor), ctypes.c_int(_MINOR), handle)
    call("cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    return CudaDevice(index, name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)


def _failed(error: _DriverError, version: str | None) -> CudaState:
    if error.code == _NO_DEVICE:
        return _no_device(version)
    if error.code == _STUB_LIBRARY:
        return CudaState("no-driver", f"no NVIDIA driver, only the stub library of the CUDA toolkit ({error})", version)
    if error.code in _TOO_OLD:
        return CudaState("driver-too-old", f"NVIDIA driver too old for this CUDA ({error})", version)
    return CudaState("error", f"CUDA does not start ({error})", version)


def _no_device(version: str | None) -> CudaState:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return CudaState("hidden", f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU", version)
    if visible is not None:  # an index or a name that does not exist hides every GPU too
        return CudaState("hidden", f"no GPU answers with CUDA_VISIBLE_DEVICES={visible!r}", version)
    return CudaState("no-gpu", f"an NVIDIA driver (CUDA {version or 'unknown'}) but no GPU", version)
