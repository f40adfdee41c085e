"""Everything that was allocated is freed once, newest first, also when something fails on the way."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cuda.api import CudaError, CudaRt, Kind

__all__ = ["Buffer", "Owner"]


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Memory with a host and a device side: one and the same on an integrated GPU, else a pinned and a device one.

    Attributes:
        host: uint8 ``[size]``, a view of pinned memory; gone with the owner.
        device: address that kernels use.
        zero_copy: both sides are the same memory; uploads and downloads do nothing.
    """

    host: NDArray[np.uint8]
    device: int
    zero_copy: bool

    def upload(self, cuda: CudaRt, size: int, stream: int) -> None:
        """Queue a copy of the first ``size`` bytes to the device."""
        if not self.zero_copy:
            cuda.memcpy_async(self.device, self.host.ctypes.data, size, Kind.HOST_TO_DEVICE, stream)

    def download(self, cuda: CudaRt, size: int, stream: int) -> None:
        """Queue a copy of the first ``size`` bytes to the host."""
        if not self.zero_copy:
            cuda.memcpy_async(self.host.ctypes.data, self.device, size, Kind.DEVICE_TO_HOST, stream)


class Owner:
    """Owns CUDA objects; a context manager.

    Example:
        >>> with Owner(open_cuda()) as owner:
        ...     owner.buffer(1024, zero_copy=False).host[:] = 1
    """

    def __init__(self, cuda: CudaRt) -> None:
        self.cuda = cuda
        self._stack = contextlib.ExitStack()

    def _keep(self, handle: int, free: Callable[[int], None]) -> int:
        self._stack.callback(free, handle)
        return handle

    def device(self, size: int) -> int:
        """Device memory.

        Raises:
            CudaError: too little; the message has the size asked for and what is free.
        """
        try:
            return self._keep(self.cuda.malloc(size), self.cuda.free)
        except CudaError as error:
            raise self._explained(error, size) from error

    def pinned(self, size: int, *, mapped: bool = False) -> int:
        """Pinned host memory.

        Raises:
            CudaError: as `device`.
        """
        try:
            return self._keep(self.cuda.host_alloc(size, mapped=mapped), self.cuda.host_free)
        except CudaError as error:
            raise self._explained(error, size) from error

    def buffer(self, size: int, *, zero_copy: bool) -> Buffer:
        """Both sides of ``size`` bytes.

        Raises:
            CudaError: as `device`.
        """
        address = self.pinned(size, mapped=zero_copy)
        host = np.frombuffer((ctypes.c_ubyte * size).from_address(address), np.uint8)
        device = self.cuda.host_device_pointer(address) if zero_copy else self.device(size)
        return Buffer(host, device, zero_copy)

    def stream(self) -> int:
        """A stream."""
        return self._keep(self.cuda.stream_create(), self.cuda.stream_destroy)

    def event(self) -> int:
        """An event."""
        return self._keep(self.cuda.event_create(), self.cuda.event_destroy)

    def executable(self, graph: int) -> int:
        """An executable graph; ``graph`` itself is destroyed at once, also on failure."""
        try:
            return self._keep(self.cuda.graph_instantiate(graph), self.cuda.graph_exec_destroy)
        finally:
            self.cuda.graph_destroy(graph)

    def _explained(self, error: CudaError, size: int) -> CudaError:
        if not error.out_of_memory:
            return error
        free, total = self.cuda.memory_info()
        words = f"out of memory: {size / 2**20:.1f} MiB asked for, {free >> 20} of {total >> 20} MiB are free"
        hint = "smaller --batch, or close other programs that use the GPU"
        return CudaError(error.function, error.code, words, hint=hint)

    def abandon(self) -> None:
        """Forget everything without freeing it: in a lost context every call fails or hangs."""
        self._stack.pop_all()

    def close(self) -> None:
        """Free everything, newest first; what fails does not keep the rest from being freed."""
        self._stack.close()

    def __enter__(self) -> Owner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
