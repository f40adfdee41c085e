"""OpenVINO on the CPU, always in float32: left alone it takes bf16 on recent CPUs, 3e-3 off in score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.backends.base import Backend, Outputs, Shape, read_io
from gamma_runtime.cli import require
from gamma_runtime.errors import EnvironmentFault, GammaError, InputError
from gamma_runtime.threads import inference_threads, usable_cpus

__all__ = ["OpenVinoBackend", "compile_config"]

_DEVICE = "CPU"
_NAMES = ("crops", "frames", "score", "crop_scores")
_TYPES = {"u8": "uint8", "f32": "float32"}


class OpenVinoBackend(Backend):
    """A model compiled for the CPU plug-in with INFERENCE_PRECISION_HINT f32, read back after compiling."""

    name = "openvino"

    def __init__(self, graph: Path, threads: int | None = None) -> None:
        count = inference_threads(threads)
        ov = require("openvino", "cpu")
        try:
            compiled = ov.Core().compile_model(str(graph.absolute()), _DEVICE, compile_config(count))
            precision = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
            devices = list(compiled.get_property("EXECUTION_DEVICES"))
        except Exception as error:  # the library's exceptions share no base class
            raise _explain(graph, error) from error
        if precision not in ("f32", "float32") or devices != [_DEVICE]:
            raise EnvironmentFault(f"{graph}: OpenVINO compiled {precision} for {devices}, asked for f32 on {_DEVICE}")
        io = read_io(graph, _table(compiled.inputs), _table(compiled.outputs))
        super().__init__(graph, str(ov.__version__).split("-")[0], io)
        self.precision = precision
        self.threads = count
        self._compiled: Any = compiled
        self._request: Any = compiled.create_infer_request()

    def _infer(self, crops: NDArray[np.uint8]) -> Outputs:
        try:
            results = self._request.infer({self.io.input: crops})
        except Exception as error:  # as above
            raise _explain(self.graph, error) from error
        # Copies: the request reuses its own memory on the next call.
        return Outputs(np.array(results["score"]), np.array(results["crop_scores"]))

    def _close(self) -> None:
        self._request = None
        self._compiled = None


def compile_config(threads: int) -> dict[str, Any]:
    """How every model of ours is compiled, for so many threads."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # Where a call takes every processor. With fewer threads, two processes would be pinned to the same ones.
        "ENABLE_CPU_PINNING": threads >= usable_cpus(),
    }


def _table(ports: list[Any]) -> dict[str, tuple[str, Shape]]:
    def shape(port: Any) -> Shape:
        return tuple(None if size.is_dynamic else int(size.get_length()) for size in port.partial_shape)

    def name(port: Any) -> str:
        # Where OpenVINO removes a node that does nothing, the names before and after it belong to one port.
        names = set(port.get_names())
        return next((known for known in _NAMES if known in names), str(port.any_name))

    def kind(port: Any) -> str:
        found = str(port.element_type.to_string())
        return _TYPES.get(found, found)

    return {name(port): (kind(port), shape(port)) for port in ports}


def _explain(graph: Path, error: Exception) -> GammaError:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or "bad_alloc" in text or "not enough memory" in text.lower():
        return EnvironmentFault(f"{graph}: out of memory ({text})", hint="smaller --batch, or close other programs")
    return InputError(f"{graph}: OpenVINO refuses it ({text})", hint="gamma-doctor lists the versions")
