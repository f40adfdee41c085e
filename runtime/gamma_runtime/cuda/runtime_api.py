"""`CudaRt` in calls of the CUDA runtime API (12 and 13); how one call is made is left to the subclasses."""

# ruff: noqa: D102 - `CudaRt` documents the methods
from __future__ import annotations

import abc
from typing import Any

from gamma_runtime.cuda.api import NOT_READY, CudaError, Kind, Properties

__all__ = ["RuntimeApi"]

_INTEGRATED, _CAN_MAP = 18, 19  # cudaDevAttr*
_PORTABLE, _MAPPED = 1, 2  # cudaHostAlloc*
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal: other threads may allocate meanwhile


class RuntimeApi(abc.ABC):
    """The protocol's methods, each one call of the CUDA runtime."""

    name: str

    @abc.abstractmethod
    def call(self, function: str, *arguments: int) -> Any:
        """Call a runtime function by its C name, without its output pointers.

        Returns:
            None, the output, or a tuple of outputs.

        Raises:
            CudaError: it returned another code than 0.
        """

    def device_count(self) -> int:
        return int(self.call("cudaGetDeviceCount"))

    def properties(self, device: int) -> Properties:
        integrated, can_map = (self.call("cudaDeviceGetAttribute", what, device) for what in (_INTEGRATED, _CAN_MAP))
        return Properties(bool(integrated), bool(can_map))

    def bind(self, device: int) -> None:
        self.call("cudaSetDevice", device)

    def memory_info(self) -> tuple[int, int]:
        free, total = self.call("cudaMemGetInfo")
        return int(free), int(total)

    def malloc(self, size: int) -> int:
        return int(self.call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self.call("cudaFree", address)

    def host_alloc(self, size: int, *, mapped: bool) -> int:
        return int(self.call("cudaHostAlloc", size, _PORTABLE | (_MAPPED if mapped else 0)))

    def host_free(self, address: int) -> None:
        self.call("cudaFreeHost", address)

    def host_device_pointer(self, address: int) -> int:
        return int(self.call("cudaHostGetDevicePointer", address, 0))

    def memcpy_async(self, target: int, source: int, size: int, kind: Kind, stream: int) -> None:
        self.call("cudaMemcpyAsync", target, source, size, int(kind), stream)

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
        places = (target, target_pitch, source, source_pitch, width, height)
        self.call("cudaMemcpy2DAsync", *places, int(kind), stream)

    def stream_create(self) -> int:
        return int(self.call("cudaStreamCreateWithFlags", _NON_BLOCKING))

    def stream_destroy(self, stream: int) -> None:
        self.call("cudaStreamDestroy", stream)

    def stream_synchronize(self, stream: int) -> None:
        self.call("cudaStreamSynchronize", stream)

    def event_create(self) -> int:
        return int(self.call("cudaEventCreate"))

    def event_destroy(self, event: int) -> None:
        self.call("cudaEventDestroy", event)

    def event_record(self, event: int, stream: int) -> None:
        self.call("cudaEventRecord", event, stream)

    def event_query(self, event: int) -> bool:
        try:
            self.call("cudaEventQuery", event)
        except CudaError as error:
            if error.code == NOT_READY:
                return False
            raise
        return True

    def event_elapsed_ms(self, start: int, end: int) -> float:
        return float(self.call("cudaEventElapsedTime", start, end))

    def begin_capture(self, stream: int) -> None:
        self.call("cudaStreamBeginCapture", stream, _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        return int(self.call("cudaStreamEndCapture", stream))

    def graph_instantiate(self, graph: int) -> int:
        return int(self.call("cudaGraphInstantiate", graph, 0))

    def graph_launch(self, executable: int, stream: int) -> None:
        self.call("cudaGraphLaunch", executable, stream)

    def graph_destroy(self, graph: int) -> None:
        self.call("cudaGraphDestroy", graph)

    def graph_exec_destroy(self, executable: int) -> None:
        self.call("cudaGraphExecDestroy", executable)

    def last_error(self) -> CudaError | None:
        try:
            self.call("cudaGetLastError")
        except CudaError as error:
            return error
        return None
