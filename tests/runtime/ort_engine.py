"""An engine that really computes, with TensorRT's names: ONNX Runtime on the same graph, run from device addresses.

The kernel is queued on a stream of `HostCuda` with the shapes and addresses of that moment, as TensorRT's are. Contexts
refuse two threads, and a first run inside a capture fails, because that is where TensorRT initialises.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from gamma_runtime.engines.load import LoadedEngine
from tests.runtime.host_cuda import HostCuda

__all__ = ["Faults", "OrtEngine", "loaded"]

DataType = enum.Enum("DataType", ["UINT8", "FLOAT"])
TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
Strategy = enum.Enum("Strategy", ["LAZY", "EAGER", "NONE"])
_KINDS = {"tensor(uint8)": DataType.UINT8, "tensor(float)": DataType.FLOAT}
_TYPES = {DataType.UINT8: np.uint8, DataType.FLOAT: np.float32}


class Logger:
    def __init__(self) -> None:
        self.lines: list[str] = []


@dataclasses.dataclass
class Faults:
    """``refuse`` names a method that says no; ``crash`` lets a kernel touch memory that is not its own."""

    refuse: str = ""
    words: str = "[executionContext.cpp::refused] the engine's own words"
    crash: bool = False
    scratch: int = 0  # bytes of device memory that a run of one image needs
    uncapturable: bool = False


class OrtEngine:
    def __init__(
        self,
        graph: Path | bytes,
        cuda: HostCuda,
        profiles: tuple[tuple[int, int, int], ...] = ((1, 1, 1),),
        rtx: bool = False,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = graph if isinstance(graph, bytes) else str(graph)
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.cuda = cuda
        self.profiles = profiles
        self.faults = Faults()
        self.logger = Logger()
        self.contexts: list[Context] = []
        self.runtime_cache = Cache()
        if rtx:
            self.create_runtime_config = lambda: Config(self)
        arguments = [(a, TensorIOMode.INPUT) for a in self.session.get_inputs()]
        arguments += [(a, TensorIOMode.OUTPUT) for a in self.session.get_outputs()]
        self.tensors = {a.name: (a, mode) for a, mode in arguments}

    num_io_tensors = property(lambda self: len(self.tensors))
    num_optimization_profiles = property(lambda self: len(self.profiles))

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.tensors[name][1]

    def get_tensor_dtype(self, name: str) -> DataType:
        return _KINDS[self.tensors[name][0].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.tensors[name][0].shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        tail = self.get_tensor_shape(name)[1:]
        return [(size, *tail) for size in self.profiles[index]]

    def refused(self, method: str) -> bool:
        if self.faults.refuse == method:
            self.logger.lines.append(self.faults.words)
        return self.faults.refuse == method

    def create_execution_context(self, runtime_config: Any = None) -> Context | None:
        if self.refused("create_execution_context"):
            return None
        if runtime_config is not None:
            assert runtime_config.dynamic_shapes_kernel_specialization_strategy is Strategy.EAGER
            self.runtime_cache = runtime_config.cache
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    def __init__(self, engine: OrtEngine) -> None:
        self.engine = engine
        self.thread = threading.get_ident()
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.profile = 0
        self.ran: set[tuple[int, ...]] = set()

    def _mine(self) -> None:
        assert threading.get_ident() == self.thread, "an execution context in two threads"

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return not self.engine.refused("set_optimization_profile_async")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._mine()
        least, _, most = self.engine.profiles[self.profile]
        tail = self.engine.get_tensor_shape(name)[1:]
        if self.engine.refused("set_input_shape") or shape[1:] != tail or not least <= shape[0] <= most:
            return False
        self.shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        if self.engine.refused("infer_shapes"):
            raise RuntimeError("shape inference failed")
        return [] if self.shape else [next(n for n, (_, m) in self.engine.tensors.items() if m is TensorIOMode.INPUT)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], *self.engine.get_tensor_shape(name)[1:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return not self.engine.refused("set_tensor_address")

    def is_stream_capturable(self, stream: int) -> bool:
        return not self.engine.faults.uncapturable

    def execute_async_v3(self, stream: int) -> bool:
        self._mine()
        engine, cuda = self.engine, self.engine.cuda
        if engine.refused("execute_async_v3"):
            return False
        if self.shape not in self.ran:
            # The first run of a shape takes memory, which a capture forbids and a full device has not got.
            cuda.free(cuda.malloc(max(engine.faults.scratch * self.shape[0], 1)))
            self.ran.add(self.shape)
        shapes = {name: self.get_tensor_shape(name) for name in engine.tensors}
        addresses, crash = dict(self.addresses), engine.faults.crash

        def view(name: str) -> np.ndarray[Any, Any]:
            kind = np.dtype(_TYPES[engine.get_tensor_dtype(name)])
            size = math.prod(shapes[name]) * kind.itemsize
            cuda.touch("kernel", 8 if crash else addresses[name], size)
            block = (ctypes.c_ubyte * size).from_address(addresses[name])
            return np.frombuffer(block, kind).reshape(shapes[name])

        def kernel() -> None:
            inputs = {n: view(n).copy() for n, (_, mode) in engine.tensors.items() if mode is TensorIOMode.INPUT}
            names = [n for n in engine.tensors if n not in inputs]
            for name, value in zip(names, engine.session.run(names, inputs), strict=True):
                view(name)[...] = value

        cuda.queue("execute_async_v3", stream, kernel)
        return True


class Cache:
    def __init__(self) -> None:
        self.content = b""

    def serialize(self) -> bytes:
        return self.content + b"compiled "

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return content.startswith(b"compiled")


class Config:
    dynamic_shapes_kernel_specialization_strategy = Strategy.LAZY

    def __init__(self, engine: OrtEngine) -> None:
        self.engine = engine
        self.cache = Cache()

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.cache = cache
        return not self.engine.refused("set_runtime_cache")


def loaded(engine: OrtEngine) -> LoadedEngine:
    return LoadedEngine(engine, None, engine.logger)
