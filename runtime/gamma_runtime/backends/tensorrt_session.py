"""One thread's way through an engine: its execution context, stream, buffers, events and CUDA graph."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cuda.api import CudaError, CudaRt
from gamma_runtime.cuda.arrays import DeviceCrops, DeviceFrame
from gamma_runtime.cuda.owner import Buffer, Owner
from gamma_runtime.engines.load import LoadedEngine, logged
from gamma_runtime.errors import EnvironmentFault, GammaError, InputError

if TYPE_CHECKING:
    from gamma_runtime.engines.runtime_cache import RuntimeCache
    from gamma_runtime.engines.use import EngineUse

__all__ = ["HungError", "Session", "Source", "Tensor", "read_tensors"]

Source: TypeAlias = "NDArray[np.uint8] | Sequence[DeviceCrops | DeviceFrame]"
_DTYPES = {"UINT8": "uint8", "FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64"}
_SPIN = 0.002  # seconds of asking without a pause; after that the thread sleeps between two questions
_PAUSE = 0.0001  # seconds
_ABANDONED: list[object] = []  # kept until the process ends, so that no destructor runs
_MEMORY_WORDS = ("out of memory", "outofmemory", "insufficient memory")


class HungError(EnvironmentFault):
    """An inference did not end within its time limit; the GPU's state is unknown."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An engine's input or output: None in ``shape`` is a range."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    is_input: bool

    def size(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of that shape."""
        return math.prod(shape) * np.dtype(self.dtype).itemsize


def read_tensors(engine: Any) -> list[Tensor]:
    """Inputs and outputs, as the engine names them."""
    found = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
        is_input = engine.get_tensor_mode(name).name == "INPUT"
        found.append(Tensor(name, _DTYPES.get(kind, kind.lower()), shape, is_input))
    return found


class Session:
    """Runs an engine on the thread that made it. Not for two threads at once.

    The first call of a shape runs plainly, so that TensorRT initialises outside any capture; then the uploads, the
    kernels and the downloads are captured, and later calls of that shape replay them. One graph at a time: a context's
    scratch memory belongs to the last shape.

    Attributes:
        device_ms: milliseconds of the last run between two events on the stream, copies included.
        graph_fault: why nothing could be captured; None while all is well.
        replays: runs that replayed a graph.
    """

    def __init__(
        self, cuda: CudaRt, loaded: LoadedEngine, name: str, use: EngineUse, cache: RuntimeCache | None
    ) -> None:
        self.cuda = cuda
        self.name = name
        self.device_ms = 0.0
        self.graph_fault: str | None = None if use.cuda_graph else "switched off"
        self.replays = 0
        self._timeout = use.infer_timeout
        self._loaded = loaded
        self._tensors = read_tensors(loaded.engine)
        cuda.bind(0)
        self._zero_copy = cuda.properties(0).zero_copy
        self._shape: tuple[int, ...] = ()
        self._capacity: tuple[int, ...] = ()
        self._buffers: dict[str, Buffer] = {}
        self._sizes: dict[str, int] = {}
        self._profile = 0
        self._graph: tuple[bool, int] | None = None  # with uploads or not, executable
        self._memory, self._graphs = Owner(cuda), Owner(cuda)
        self._owner = Owner(cuda)
        with contextlib.ExitStack() as undo:
            undo.callback(self._owner.close)
            self._stream = self._owner.stream()
            self._start, self._end = self._owner.event(), self._owner.event()
            self._context = self._new_context(cache)
            undo.pop_all()

    def run(self, source: Source, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """Run once and wait.

        Args:
            source: the whole input on the host, or each image's crops on the device.
            shape: of the input.

        Returns:
            Copies of the outputs by name.

        Raises:
            HungError: no end within the time limit. CudaError, EnvironmentFault: CUDA or TensorRT failed.
            InputError: no profile takes the shape.
        """
        self.cuda.bind(0)
        if shape != self._shape:
            self._set_shape(shape)
        upload = isinstance(source, np.ndarray)
        self._fill(source)
        self.cuda.event_record(self._start, self._stream)
        replay = self._graph is not None and self._graph[0] == upload
        if self._graph is not None and replay:
            self.cuda.graph_launch(self._graph[1], self._stream)
            self.replays += 1
        else:
            self._enqueue(upload)
        self.cuda.event_record(self._end, self._stream)
        self._wait()
        self.device_ms = self.cuda.event_elapsed_ms(self._start, self._end)
        outputs = {tensor.name: self._output(tensor) for tensor in self._tensors if not tensor.is_input}
        if not replay and self.graph_fault is None:
            self._capture(upload)
        return outputs

    def close(self) -> None:
        """Wait for what a failed call left on the stream, then free graph, context and buffers, in this order."""
        self.cuda.bind(0)
        with contextlib.ExitStack() as stack:
            for owner in (self._owner, self._memory, self._graphs):  # the stack closes the last one first
                stack.callback(owner.close)
            stack.callback(self._drop_context)
            stack.callback(self._drop_graph)
            stack.callback(self.cuda.stream_synchronize, self._stream)

    def abandon(self) -> None:
        """Forget everything: in a lost CUDA context nothing can be freed, and a destructor may never return."""
        _ABANDONED.append((self._context, self._loaded))
        for owner in (self._owner, self._memory, self._graphs):
            owner.abandon()

    def _drop_context(self) -> None:
        self._context = None

    def _drop_graph(self) -> None:
        self._graph = None
        self._graphs.close()

    def _must(self, result: Any, what: str) -> Any:
        """The result of a TensorRT call, unless it says that the call failed.

        Raises:
            CudaError: CUDA knows why, and it is not to be repaired. EnvironmentFault: with TensorRT's own words.
        """
        if result is not None and result is not False:
            return result
        error = self.cuda.last_error()
        if error is not None and error.sticky:
            raise error
        words = logged(self._loaded.logger)
        if (error is not None and error.out_of_memory) or any(word in words.lower() for word in _MEMORY_WORDS):
            free, total = self.cuda.memory_info()
            words = f"out of memory, {free >> 20} of {total >> 20} MiB are free:\n  {words}"
            raise CudaError(f"{self.name}: {what}", 2, words, hint="smaller --batch, or close other programs")
        raise EnvironmentFault(
            f"{self.name}: TensorRT's {what} failed:\n  {words}",
            hint="gamma-doctor; gamma-build makes the engine again",
        )

    def _new_context(self, cache: RuntimeCache | None) -> Any:
        engine = self._loaded.engine
        if cache is None or not hasattr(engine, "create_runtime_config"):
            return self._must(engine.create_execution_context(), "create_execution_context")
        config = self._must(engine.create_runtime_config(), "create_runtime_config")
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # LAZY, the default, swaps kernels in the background; a captured graph would keep the slow ones.
            kind = type(config.dynamic_shapes_kernel_specialization_strategy)
            config.dynamic_shapes_kernel_specialization_strategy = kind.EAGER
        if hasattr(config, "create_runtime_cache"):
            self._must(cache.attach(config), "set_runtime_cache")
        return self._must(engine.create_execution_context(runtime_config=config), "create_execution_context")

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        self._shape = ()  # until all of it is done
        self._drop_graph()
        (given,) = (tensor for tensor in self._tensors if tensor.is_input)
        self._choose_profile(given, shape)
        self._must(self._context.set_input_shape(given.name, shape), f"set_input_shape({given.name}, {list(shape)})")
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:  # how the bindings report a failed inference
            raise EnvironmentFault(f"{self.name}: TensorRT's infer_shapes failed ({error})") from error
        if missing:
            raise EnvironmentFault(f"{self.name}: TensorRT does not know the shape of {', '.join(missing)}")
        shapes = {t.name: tuple(int(size) for size in self._context.get_tensor_shape(t.name)) for t in self._tensors}
        if any(size < 0 for found in shapes.values() for size in found):
            raise EnvironmentFault(f"{self.name}: TensorRT leaves shapes open: {shapes}")
        self._sizes = {tensor.name: tensor.size(shapes[tensor.name]) for tensor in self._tensors}
        self._output_shapes = shapes
        self._allocate()
        self._shape = shape

    def _choose_profile(self, given: Tensor, shape: tuple[int, ...]) -> None:
        """The narrowest optimisation profile that takes the shape."""
        engine = self._loaded.engine
        fitting = []
        for index in range(engine.num_optimization_profiles):
            least, _, most = (tuple(size) for size in engine.get_tensor_profile_shape(given.name, index))
            if all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
                fitting.append((math.prod(most), index))
        if not fitting:
            raise InputError(f"{self.name}: no profile of the engine takes {given.name} {list(shape)}")
        _, index = min(fitting)
        if index != self._profile:
            switched = self._context.set_optimization_profile_async(index, self._stream)
            self._must(switched, f"set_optimization_profile_async({index})")
            self.cuda.stream_synchronize(self._stream)
            self._profile = index

    def _allocate(self) -> None:
        """Buffers that persist, made anew only when they are too small."""
        enough = self._buffers and all(len(self._buffers[name].host) >= size for name, size in self._sizes.items())
        if not enough:
            self._buffers = {}
            self._memory.close()
            self._buffers = {
                name: self._memory.buffer(size, zero_copy=self._zero_copy) for name, size in self._sizes.items()
            }
        for name, buffer in self._buffers.items():
            self._must(self._context.set_tensor_address(name, buffer.device), f"set_tensor_address({name})")

    def _fill(self, source: Source) -> None:
        (given,) = (tensor for tensor in self._tensors if tensor.is_input)
        buffer, size = self._buffers[given.name], self._sizes[given.name]
        if isinstance(source, np.ndarray):
            np.copyto(buffer.host[:size], source.reshape(-1).view(np.uint8))
            return
        place = buffer.device
        for image in source:
            image.copy_to(place, self._stream)
            place += math.prod(image.shape)

    def _enqueue(self, upload: bool) -> None:
        for tensor in self._tensors:
            if tensor.is_input and upload:
                self._buffers[tensor.name].upload(self.cuda, self._sizes[tensor.name], self._stream)
        self._must(self._context.execute_async_v3(self._stream), "execute_async_v3")
        for tensor in self._tensors:
            if not tensor.is_input:
                self._buffers[tensor.name].download(self.cuda, self._sizes[tensor.name], self._stream)

    def _output(self, tensor: Tensor) -> NDArray[Any]:
        flat = self._buffers[tensor.name].host[: self._sizes[tensor.name]].copy()
        return flat.view(tensor.dtype).reshape(self._output_shapes[tensor.name])

    def _wait(self) -> None:
        """Ask the event until it is reached, so that a hang is noticed; polling costs less than a thread switch."""
        start = time.monotonic()
        while not self.cuda.event_query(self._end):
            elapsed = time.monotonic() - start
            if elapsed > self._timeout:
                raise HungError(
                    f"{self.name}: no result after {elapsed:.1f} s (limit {self._timeout:g} s); the GPU hangs",
                    hint="restart this process; raise --infer-timeout if the GPU is only slow; check nvidia-smi",
                )
            if elapsed > _SPIN:
                time.sleep(_PAUSE)

    def _capture(self, upload: bool) -> None:
        """Record one run as a graph; what cannot be captured runs plainly from now on, and `graph_fault` says why."""
        self._drop_graph()
        try:
            if hasattr(self._context, "is_stream_capturable") and not self._context.is_stream_capturable(self._stream):
                self.graph_fault = "TensorRT says that this stream cannot be captured"
                return
            with self._captured() as graph:
                self._enqueue(upload)
            self._graph = (upload, self._graphs.executable(graph[0]))
        except GammaError as error:
            if isinstance(error, CudaError) and error.sticky:
                raise
            self.graph_fault = error.message
            self.cuda.last_error()  # forgotten: the next call must not stumble over it

    @contextlib.contextmanager
    def _captured(self) -> Iterator[list[int]]:
        """What is queued inside is recorded; the capture ends, and its graph is freed, on every way out."""
        graph: list[int] = []
        self.cuda.begin_capture(self._stream)
        try:
            yield graph
        except BaseException:
            with contextlib.suppress(CudaError):
                if spoilt := self.cuda.end_capture(self._stream):
                    self.cuda.graph_destroy(spoilt)
            raise
        graph.append(self.cuda.end_capture(self._stream))
