"""CUDA's rules on the CPU: memory is really allocated, work is really queued and done later by another thread.

What CUDA leaves undefined is an error here: an address outside live memory, freeing twice, a copy from pageable memory,
allocating or waiting while a stream is captured, destroying what still runs. Work waits a moment before it is done, so
a missing synchronisation shows as stale data.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Callable

from gamma_runtime.cuda.api import CudaError, Kind, Properties

__all__ = ["HostCuda", "LeakError"]

_INVALID, _ILLEGAL, _CAPTURE = 1, 700, 900
_LEGACY = 1
Work = Callable[[], None]


class LeakError(AssertionError):
    """Something was not freed."""


@dataclasses.dataclass
class _Stream:
    work: queue.Queue[Work | None]
    thread: threading.Thread
    captured: list[Work] | None = None
    spoilt: bool = False
    captor: int = 0


class HostCuda:
    """The protocol `gamma_runtime.cuda.CudaRt`.

    ``integrated`` makes it a Jetson; ``limit`` is the device's memory in bytes; ``delay`` in seconds before each piece
    of work; ``stall`` set keeps all work from being done, as a hang would; ``refuse_capture`` refuses every capture.
    """

    name = "host"

    def __init__(self, *, integrated: bool = False, limit: int = 1 << 30, delay: float = 0.0005) -> None:
        self.integrated = integrated
        self.limit = limit
        self.delay = delay
        self.stall = threading.Event()
        self.refuse_capture = False
        self.calls: list[str] = []
        self.memory: dict[int, tuple[int, str, object]] = {}  # address -> size, kind, what holds it
        self.handles: dict[int, object] = {}
        self.sticky: CudaError | None = None
        self._lock = threading.RLock()
        self._numbers = itertools.count(1000)

    # Rules

    def _fail(self, function: str, code: int, words: str) -> CudaError:
        return CudaError(function, code, words)

    def _alive(self, function: str) -> None:
        self.calls.append(function)
        if self.sticky is not None:
            raise CudaError(function, self.sticky.code, f"{self.sticky.message} (sticky)")

    def _not_captured(self, function: str) -> None:
        """This thread's captures are spoilt by what cannot be recorded, as cudaStreamCaptureModeThreadLocal has it."""
        self._alive(function)
        for stream in list(self.handles.values()):
            if isinstance(stream, _Stream) and stream.captured is not None and stream.captor == threading.get_ident():
                stream.spoilt = True
                raise self._fail(function, _CAPTURE, "operation not permitted when stream is capturing")

    def _inside(self, address: int, size: int, kinds: tuple[str, ...]) -> bool:
        with self._lock:
            found = list(self.memory.items())
        return any(start <= address and address + size <= start + n for start, (n, kind, _) in found if kind in kinds)

    def touch(self, function: str, address: int, size: int, kinds: tuple[str, ...] = ("device", "mapped")) -> None:
        """What a kernel does when it runs: an address that is not alive loses the context."""
        if not self._inside(address, size, kinds):
            self.sticky = CudaError(function, _ILLEGAL, "an illegal memory access was encountered")
            raise self.sticky

    def queue(self, function: str, stream: int, work: Work) -> None:
        """Do something later on a stream, or record it."""
        target = self._stream(function, stream)
        if target.captured is not None:
            target.captured.append(work)
        else:
            target.work.put(work)

    def _stream(self, function: str, stream: int) -> _Stream:
        found = self.handles.get(stream)
        if not isinstance(found, _Stream):
            raise self._fail(function, _INVALID, f"no stream {stream}")
        return found

    def _serve(self, work: queue.Queue[Work | None]) -> None:
        while (item := work.get()) is not None:
            time.sleep(self.delay)
            while self.stall.is_set():
                time.sleep(0.001)
            if self.sticky is None:
                try:
                    item()
                except CudaError as error:
                    if error.sticky:
                        self.sticky = error

    def close(self) -> None:
        """Everything must be gone.

        Raises:
            LeakError: something is not.
        """
        left = [f"{kind} of {size}" for size, kind, _ in self.memory.values()]
        left += [type(value).__name__ for value in self.handles.values()]
        for stream in [s for s in self.handles.values() if isinstance(s, _Stream)]:
            stream.work.put(None)
        if left:
            raise LeakError(f"not freed: {left}")

    # The protocol

    def device_count(self) -> int:
        return 1

    def properties(self, device: int) -> Properties:
        return Properties(self.integrated, True)

    def bind(self, device: int) -> None:
        self._alive("cudaSetDevice")

    def used(self) -> int:
        with self._lock:
            return sum(size for size, kind, _ in self.memory.values() if kind != "pinned")

    def memory_info(self) -> tuple[int, int]:
        return self.limit - self.used(), self.limit

    def _allocate(self, function: str, size: int, kind: str) -> int:
        self._not_captured(function)
        if kind != "pinned" and self.used() + size > self.limit:
            raise self._fail(function, 2, "out of memory")
        block = (ctypes.c_ubyte * size)(*([0xCD] * min(size, 64)))
        with self._lock:
            self.memory[ctypes.addressof(block)] = (size, kind, block)
        return ctypes.addressof(block)

    def _free(self, function: str, address: int, kinds: tuple[str, ...]) -> None:
        self._not_captured(function)
        with self._lock:
            if address not in self.memory or self.memory[address][1] not in kinds:
                raise self._fail(function, _INVALID, "invalid argument: not allocated, or freed already")
            del self.memory[address]

    def malloc(self, size: int) -> int:
        return self._allocate("cudaMalloc", size, "device")

    def free(self, address: int) -> None:
        self._free("cudaFree", address, ("device",))

    def host_alloc(self, size: int, *, mapped: bool) -> int:
        return self._allocate("cudaHostAlloc", size, "mapped" if mapped else "pinned")

    def host_free(self, address: int) -> None:
        self._free("cudaFreeHost", address, ("pinned", "mapped"))

    def host_device_pointer(self, address: int) -> int:
        self._alive("cudaHostGetDevicePointer")
        if address not in self.memory or self.memory[address][1] != "mapped":
            raise self._fail("cudaHostGetDevicePointer", _INVALID, "invalid argument: not mapped memory")
        return address

    def _copy(self, function: str, target: int, source: int, size: int, kind: Kind) -> Work:
        sides = {
            Kind.HOST_TO_DEVICE: (("device", "mapped"), ("pinned", "mapped")),
            Kind.DEVICE_TO_HOST: (("pinned", "mapped"), ("device", "mapped")),
            Kind.DEVICE_TO_DEVICE: (("device", "mapped"), ("device", "mapped")),
        }[kind]
        for address, kinds in zip((target, source), sides, strict=True):
            if not self._inside(address, size, kinds):
                raise self._fail(function, _INVALID, f"invalid argument: {size} bytes at {address:#x} are not {kinds}")

        def work() -> None:
            for address, kinds in zip((target, source), sides, strict=True):
                self.touch(function, address, size, kinds)
            ctypes.memmove(target, source, size)

        return work

    def memcpy_async(self, target: int, source: int, size: int, kind: Kind, stream: int) -> None:
        self._alive("cudaMemcpyAsync")
        self.queue("cudaMemcpyAsync", stream, self._copy("cudaMemcpyAsync", target, source, size, kind))

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
        self._alive("cudaMemcpy2DAsync")
        if width > min(target_pitch, source_pitch):
            raise self._fail("cudaMemcpy2DAsync", 12, "invalid pitch argument")
        rows = [
            self._copy("cudaMemcpy2DAsync", target + y * target_pitch, source + y * source_pitch, width, kind)
            for y in range(height)
        ]

        def work() -> None:
            for row in rows:
                row()

        self.queue("cudaMemcpy2DAsync", stream, work)

    def _handle(self, value: object) -> int:
        number = next(self._numbers)
        self.handles[number] = value
        return number

    def stream_create(self) -> int:
        self._not_captured("cudaStreamCreate")
        work: queue.Queue[Work | None] = queue.Queue()
        thread = threading.Thread(target=self._serve, args=(work,), daemon=True)
        thread.start()
        return self._handle(_Stream(work, thread))

    def stream_destroy(self, stream: int) -> None:
        self._not_captured("cudaStreamDestroy")
        found = self._stream("cudaStreamDestroy", stream)
        found.work.put(None)
        found.thread.join(timeout=10)
        del self.handles[stream]

    def stream_synchronize(self, stream: int) -> None:
        self._not_captured("cudaStreamSynchronize")
        if stream == _LEGACY:
            return
        reached = threading.Event()
        self._stream("cudaStreamSynchronize", stream).work.put(reached.set)
        while not reached.wait(0.001):
            self._alive("cudaStreamSynchronize")
        self._alive("cudaStreamSynchronize")

    def event_create(self) -> int:
        self._alive("cudaEventCreate")
        return self._handle([])

    def event_destroy(self, event: int) -> None:
        self._destroy("cudaEventDestroy", event, list)

    def event_record(self, event: int, stream: int) -> None:
        self._alive("cudaEventRecord")
        mark: list[float] = []
        self.handles[event] = mark
        self.queue("cudaEventRecord", stream, lambda: mark.append(time.perf_counter()))

    def event_query(self, event: int) -> bool:
        self._alive("cudaEventQuery")
        return bool(self.handles[event])

    def event_elapsed_ms(self, start: int, end: int) -> float:
        self._alive("cudaEventElapsedTime")
        times = [self.handles[event] for event in (start, end)]
        if not all(isinstance(mark, list) and mark for mark in times):
            raise self._fail("cudaEventElapsedTime", 600, "device not ready")
        return (times[1][0] - times[0][0]) * 1e3  # type: ignore[index]

    def begin_capture(self, stream: int) -> None:
        self._alive("cudaStreamBeginCapture")
        if self.refuse_capture:
            raise self._fail("cudaStreamBeginCapture", 801, "operation not supported")
        found = self._stream("cudaStreamBeginCapture", stream)
        found.captured, found.captor = [], threading.get_ident()

    def end_capture(self, stream: int) -> int:
        self._alive("cudaStreamEndCapture")
        found = self._stream("cudaStreamEndCapture", stream)
        recorded, spoilt = found.captured, found.spoilt
        found.captured, found.spoilt = None, False
        if recorded is None or spoilt:
            raise self._fail("cudaStreamEndCapture", 901, "operation failed due to a previous error during capture")
        return self._handle(tuple(recorded))

    def graph_instantiate(self, graph: int) -> int:
        self._alive("cudaGraphInstantiate")
        recorded = self.handles[graph]
        if not isinstance(recorded, tuple):
            raise self._fail("cudaGraphInstantiate", _INVALID, "no graph")
        return self._handle(frozenset(enumerate(recorded)))

    def graph_launch(self, executable: int, stream: int) -> None:
        self._alive("cudaGraphLaunch")
        recorded = self.handles.get(executable)
        if not isinstance(recorded, frozenset):
            raise self._fail("cudaGraphLaunch", _INVALID, "no executable graph")
        for _, work in sorted(recorded, key=lambda pair: int(pair[0])):
            self.queue("cudaGraphLaunch", stream, work)

    def _destroy(self, function: str, handle: int, kind: type) -> None:
        self._alive(function)
        if not isinstance(self.handles.get(handle), kind):
            raise self._fail(function, _INVALID, "invalid handle: never made, or destroyed already")
        del self.handles[handle]

    def graph_destroy(self, graph: int) -> None:
        self._destroy("cudaGraphDestroy", graph, tuple)

    def graph_exec_destroy(self, executable: int) -> None:
        self._destroy("cudaGraphExecDestroy", executable, frozenset)

    def last_error(self) -> CudaError | None:
        return self.sticky
