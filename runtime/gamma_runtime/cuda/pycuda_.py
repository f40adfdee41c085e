"""PyCUDA as an adaptor, for programs that have it anyway. Written from its documentation; not run on a GPU.

The device's primary context is used, never ``pycuda.autoinit``'s own one, so that TensorRT and torch share it. PyCUDA
has no CUDA graphs: captures are refused, and the backend stays with plain launches.
"""

# ruff: noqa: D102 - `CudaRt` documents the methods
from __future__ import annotations

import ctypes
import importlib
import threading
from typing import Any, NoReturn

import numpy as np

from gamma_runtime.cuda.api import CudaError, Kind, Properties

__all__ = ["PyCuda"]

_NOT_SUPPORTED = 801  # cudaErrorNotSupported
_UNKNOWN = 999  # counts as sticky


class PyCuda:
    """PyCUDA's objects behind the integers of `gamma_runtime.cuda.CudaRt`."""

    name = "pycuda"

    def __init__(self) -> None:
        self._driver: Any = importlib.import_module("pycuda.driver")
        self._ask(self._driver.init)
        self._context: Any = None
        self._bound = threading.local()
        self._objects: dict[int, Any] = {}  # PyCUDA frees an object when its last reference goes

    def _ask(self, function: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except self._driver.MemoryError as error:
            raise CudaError(f"pycuda {function.__name__}", 2, str(error)) from error
        except self._driver.Error as error:
            code = getattr(error, "code", None)
            raise CudaError(
                f"pycuda {function.__name__}", code if isinstance(code, int) else 999, str(error)
            ) from error

    def _store(self, handle: int, value: Any) -> int:
        self._objects[handle] = value
        return handle

    def device_count(self) -> int:
        return int(self._ask(self._driver.Device.count))

    def properties(self, device: int) -> Properties:
        kinds = self._driver.device_attribute
        asked = self._ask(self._driver.Device, device)
        flags = (asked.get_attribute(kind) for kind in (kinds.INTEGRATED, kinds.CAN_MAP_HOST_MEMORY))
        return Properties(*map(bool, flags))

    def bind(self, device: int) -> None:
        if self._context is None:
            self._context = self._ask(self._ask(self._driver.Device, device).retain_primary_context)
        if not getattr(self._bound, "done", False):
            self._ask(self._context.push)
            self._bound.done = True

    def memory_info(self) -> tuple[int, int]:
        free, total = self._ask(self._driver.mem_get_info)
        return int(free), int(total)

    def malloc(self, size: int) -> int:
        made = self._ask(self._driver.mem_alloc, size)
        return self._store(int(made), made)

    def free(self, address: int) -> None:
        self._ask(self._objects.pop(address).free)

    def host_alloc(self, size: int, *, mapped: bool) -> int:
        flags = self._driver.host_alloc_flags
        chosen = flags.PORTABLE | (flags.DEVICEMAP if mapped else 0)
        made = self._ask(self._driver.pagelocked_empty, size, np.uint8, mem_flags=chosen)
        return self._store(int(made.ctypes.data), made)

    def host_free(self, address: int) -> None:
        self._ask(self._objects.pop(address).base.free)

    def host_device_pointer(self, address: int) -> int:
        return int(self._ask(self._objects[address].base.get_device_pointer))

    def memcpy_async(self, target: int, source: int, size: int, kind: Kind, stream: int) -> None:
        queue = self._objects[stream]
        if kind is Kind.HOST_TO_DEVICE:
            self._ask(self._driver.memcpy_htod_async, target, _view(source, size), queue)
        elif kind is Kind.DEVICE_TO_HOST:
            self._ask(self._driver.memcpy_dtoh_async, _view(target, size), source, queue)
        else:
            self._ask(self._driver.memcpy_dtod_async, target, source, size, queue)

    def memcpy_2d_async(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: Kind,
        stream: int,
    ) -> None:
        copy = self._driver.Memcpy2D()
        if kind is Kind.HOST_TO_DEVICE:
            copy.set_src_host(_view(source, source_pitch * (height - 1) + width))
        else:
            copy.set_src_device(source)
        if kind is Kind.DEVICE_TO_HOST:
            copy.set_dst_host(_view(target, target_pitch * (height - 1) + width))
        else:
            copy.set_dst_device(target)
        copy.src_pitch, copy.dst_pitch = source_pitch, target_pitch
        copy.width_in_bytes, copy.height = width, height
        self._ask(copy, self._objects[stream])

    def stream_create(self) -> int:
        made = self._ask(self._driver.Stream)
        return self._store(int(made.handle), made)

    def stream_destroy(self, stream: int) -> None:
        del self._objects[stream]

    def stream_synchronize(self, stream: int) -> None:
        known = self._objects.get(stream)
        self._ask(known.synchronize if known is not None else self._context.synchronize)

    def event_create(self) -> int:
        made = self._ask(self._driver.Event)
        return self._store(id(made), made)

    def event_destroy(self, event: int) -> None:
        del self._objects[event]

    def event_record(self, event: int, stream: int) -> None:
        self._ask(self._objects[event].record, self._objects[stream])

    def event_query(self, event: int) -> bool:
        return bool(self._ask(self._objects[event].query))

    def event_elapsed_ms(self, start: int, end: int) -> float:
        return float(self._ask(self._objects[end].time_since, self._objects[start]))

    def _no_graphs(self, function: str) -> NoReturn:
        raise CudaError(f"pycuda {function}", _NOT_SUPPORTED, "PyCUDA has no CUDA graphs")

    def begin_capture(self, stream: int) -> None:
        self._no_graphs("begin_capture")

    def end_capture(self, stream: int) -> int:
        self._no_graphs("end_capture")

    def graph_instantiate(self, graph: int) -> int:
        self._no_graphs("graph_instantiate")

    def graph_launch(self, executable: int, stream: int) -> None:
        self._no_graphs("graph_launch")

    def graph_destroy(self, graph: int) -> None:
        self._no_graphs("graph_destroy")

    def graph_exec_destroy(self, executable: int) -> None:
        self._no_graphs("graph_exec_destroy")

    def last_error(self) -> CudaError | None:
        """PyCUDA reports every error where it happens."""
        return None


def _view(address: int, size: int) -> Any:
    return (ctypes.c_ubyte * size).from_address(address)
