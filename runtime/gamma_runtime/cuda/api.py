"""What the rest of the runtime asks of CUDA. Addresses and handles are plain integers, sizes are bytes."""

from __future__ import annotations

import dataclasses
import enum
from typing import Protocol

from gamma_runtime.errors import EnvironmentFault

__all__ = ["CudaError", "CudaRt", "Kind", "Properties"]

OUT_OF_MEMORY = 2
NOT_READY = 600
# After these the context is lost: every later call fails, and CUDA says that the process must end.
_STICKY = frozenset({214, 220, 700, 702, 708, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999})


class Kind(enum.IntEnum):
    """Direction of a copy, with cudaMemcpyKind's values."""

    HOST_TO_DEVICE = 1
    DEVICE_TO_HOST = 2
    DEVICE_TO_DEVICE = 3


@dataclasses.dataclass(frozen=True)
class Properties:
    """What decides how memory is used: on an ``integrated`` GPU (Jetson) host and device share it."""

    integrated: bool
    can_map_host_memory: bool

    @property
    def zero_copy(self) -> bool:
        """Mapped host memory serves both sides, and nothing needs to be copied."""
        return self.integrated and self.can_map_host_memory


class CudaError(EnvironmentFault):
    """A CUDA function failed. Carries its name, the error's number and CUDA's own words."""

    def __init__(self, function: str, code: int, words: str, *, hint: str | None = None) -> None:
        super().__init__(f"{function}: CUDA error {code}, {words}", hint=hint)
        self.function = function
        self.code = code

    @property
    def sticky(self) -> bool:
        """The CUDA context is lost, and with it everything in this process that uses the GPU."""
        return self.code in _STICKY

    @property
    def out_of_memory(self) -> bool:
        """Too little memory on the device."""
        return self.code == OUT_OF_MEMORY


class CudaRt(Protocol):
    """CUDA as the backends use it; every method raises `CudaError`.

    Only the primary context is used, so torch, ONNX Runtime and TensorRT in the same process share it.
    """

    name: str

    def device_count(self) -> int:
        """Number of visible GPUs."""

    def properties(self, device: int) -> Properties:
        """How the device's memory works."""

    def bind(self, device: int) -> None:
        """Make the device current on the calling thread; cheap when it is."""

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes of the current device."""

    def malloc(self, size: int) -> int:
        """Address of new device memory."""

    def free(self, address: int) -> None:
        """Free device memory."""

    def host_alloc(self, size: int, *, mapped: bool) -> int:
        """Host address of new pinned memory; mapped memory has a device address too."""

    def host_free(self, address: int) -> None:
        """Free pinned memory."""

    def host_device_pointer(self, address: int) -> int:
        """Device address of mapped memory."""

    def memcpy_async(self, target: int, source: int, size: int, kind: Kind, stream: int) -> None:
        """Queue a copy; host memory must be pinned and stay alive until the stream is synchronised."""

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
        """Queue a copy of ``height`` rows of ``width`` bytes; a pitch is the distance of two rows in bytes."""

    def stream_create(self) -> int:
        """A stream that does not wait for the default stream."""

    def stream_destroy(self, stream: int) -> None:
        """Destroy a stream."""

    def stream_synchronize(self, stream: int) -> None:
        """Wait until everything queued so far is done; an error of that work is raised here."""

    def event_create(self) -> int:
        """An event that can be timed."""

    def event_destroy(self, event: int) -> None:
        """Destroy an event."""

    def event_record(self, event: int, stream: int) -> None:
        """Queue a mark."""

    def event_query(self, event: int) -> bool:
        """Whether the mark was reached; an error of the work before it is raised here."""

    def event_elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two marks that were reached."""

    def begin_capture(self, stream: int) -> None:
        """Record what this thread queues on the stream instead of doing it."""

    def end_capture(self, stream: int) -> int:
        """The recorded graph."""

    def graph_instantiate(self, graph: int) -> int:
        """An executable graph."""

    def graph_launch(self, executable: int, stream: int) -> None:
        """Queue the recorded work once more."""

    def graph_destroy(self, graph: int) -> None:
        """Destroy a recorded graph."""

    def graph_exec_destroy(self, executable: int) -> None:
        """Destroy an executable graph."""

    def last_error(self) -> CudaError | None:
        """The last error that no call reported yet, which this forgets; None when there is none."""
