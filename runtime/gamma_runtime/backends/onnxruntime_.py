"""ONNX Runtime on the CPU: the embedded default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.backends.base import Backend, Outputs, Shape, read_io
from gamma_runtime.cli import require
from gamma_runtime.errors import EnvironmentFault, GammaError, InputError
from gamma_runtime.threads import inference_threads

__all__ = ["OnnxRuntimeBackend", "session_options", "unwanted_optimizers"]

_PROVIDERS = ["CPUExecutionProvider"]
_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
_ERRORS_ONLY = 3  # ONNX Runtime's severity scale: 2 warning, 3 error


class OnnxRuntimeBackend(Backend):
    """A session with the CPU provider only; anything else that the library would choose is refused."""

    name = "onnxruntime"

    def __init__(self, graph: Path, threads: int | None = None) -> None:
        count = inference_threads(threads)
        ort = require("onnxruntime", "cpu")
        options = session_options(ort, count)
        try:
            # An absolute path: external data is looked up beside it, and nowhere else.
            session = ort.InferenceSession(
                str(graph.absolute()), options, providers=_PROVIDERS, disabled_optimizers=unwanted_optimizers(graph)
            )
        except Exception as error:  # the library's exceptions share no base class
            raise _explain(graph, error) from error
        if session.get_providers() != _PROVIDERS:
            raise EnvironmentFault(f"{graph}: ONNX Runtime chose {session.get_providers()}, asked for {_PROVIDERS}")
        io = read_io(graph, _table(session.get_inputs()), _table(session.get_outputs()))
        super().__init__(graph, str(ort.__version__), io)
        self.threads = count
        self._session: Any = session

    def _infer(self, crops: NDArray[np.uint8]) -> Outputs:
        try:
            score, crop_scores = self._session.run(["score", "crop_scores"], {self.io.input: crops})
        except Exception as error:  # as above
            raise _explain(self.graph, error) from error
        return Outputs(score, crop_scores)

    def _close(self) -> None:
        self._session = None


def session_options(ort: Any, threads: int) -> Any:
    """How every session of ours runs, on so many threads; ``ort`` is the library."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads  # left alone, the library also pins them to processors
    options.inter_op_num_threads = 1
    # Threads spin between the products of a call (sleeping costs a few percent), on processors that `BUDGET` has
    # given to the call; when it ends they stop at once, or they would keep a decoder off its processor.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def unwanted_optimizers(graph: Path) -> list[str]:
    """Optimizers to leave out: for 8 bits the one that turns product and bias into a Gemm, which has no int8 kernel."""
    with graph.open("rb") as stream:
        return ["MatMulAddFusion"] if b"QuantizeLinear" in stream.read() else []


def _table(arguments: list[Any]) -> dict[str, tuple[str, Shape]]:
    def shape(argument: Any) -> Shape:
        return tuple(size if isinstance(size, int) else None for size in argument.shape)

    return {a.name: (_TYPES.get(a.type, a.type), shape(a)) for a in arguments}


def _explain(graph: Path, error: Exception) -> GammaError:
    """Our error for one of the library's: by its kind and, for memory, its text."""
    text = " ".join(str(error).split())[:300]
    kind = type(error).__name__
    if kind == "NotImplemented":
        return InputError(
            f"{graph}: ONNX Runtime has no CPU kernel for a node of this graph ({text})",
            hint="bf16 graphs: --backend openvino",
        )
    if isinstance(error, MemoryError) or "Failed to allocate memory" in text or "bad_alloc" in text:
        return EnvironmentFault(f"{graph}: out of memory ({text})", hint="smaller --batch, or close other programs")
    return InputError(f"{graph}: ONNX Runtime refuses it ({kind}: {text})", hint="gamma-doctor lists the versions")
