"""A graph with extra outputs: a copy in memory whose weights stay in the bundle's file; nothing is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cli import require
from gamma_runtime.errors import InputError, UsageError

__all__ = ["TappedGraph", "open_tapped"]

Floats: TypeAlias = NDArray[np.float32]

_ERRORS_ONLY = 3
_NAMES = {
    **{"tensor(float)": "fp32", "tensor(float16)": "fp16", "tensor(bfloat16)": "bf16"},
    **{"f32": "fp32", "float32": "fp32", "f16": "fp16", "float16": "fp16", "bf16": "bf16", "bfloat16": "bf16"},
}


class TappedGraph:
    """A compiled graph that also gives its inner tensors.

    Attributes:
        types: tap -> ``fp32``, ``fp16`` or ``bf16``.
    """

    def __init__(self, types: Mapping[str, str], run: Any) -> None:
        self.types = dict(types)
        self._run = run

    def run(self, feed: Mapping[str, NDArray[np.uint8]]) -> dict[str, Floats]:
        """Every tap as float32, for one call of the graph."""
        return {name: np.asarray(value, dtype=np.float32) for name, value in self._run(feed).items()}


@contextlib.contextmanager
def open_tapped(backend: str, graph: Path, taps: Sequence[str], threads: int | None) -> Iterator[TappedGraph]:
    """Compile a graph with taps.

    Args:
        backend: ``onnxruntime`` or ``openvino``, on the CPU as `gamma_runtime.backends` has them.
        graph: checked file (`Bundle.graph_file`); its external data lies beside it.
        taps: names of tensors inside the graph.
        threads: CPU threads of one inference; the library's choice when None.

    Raises:
        InputError: the graph lacks a tap, or the library refuses it. UsageError: another backend.
    """
    openers = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    if backend not in openers:
        raise UsageError(f"--layers cannot tap a graph on {backend}", hint=f"--backend {' or '.join(openers)}")
    _check_names(graph, taps)
    try:
        tapped = openers[backend](graph, taps, threads)
    except (UsageError, InputError):
        raise
    except Exception as error:  # the libraries' exceptions share no base class
        words = " ".join(str(error).split())[:300]
        raise InputError(f"{graph}: {backend} refuses its copy with taps ({words})") from error
    yield tapped


def _check_names(graph: Path, taps: Sequence[str]) -> None:
    import onnx

    model = onnx.load(graph, load_external_data=False)
    have = {name for node in model.graph.node for name in node.output}
    if missing := [tap for tap in taps if tap not in have]:
        raise InputError(
            f"{graph}: no tensor {missing[0]!r} ({len(missing)} of {len(taps)} taps are missing)",
            hint="export the bundle again with this version: --layers knows the graph by its names",
        )


def _onnxruntime(graph: Path, taps: Sequence[str], threads: int | None) -> TappedGraph:
    import onnx

    ort = require("onnxruntime", "cpu")
    model = onnx.load(graph, load_external_data=False)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=tap) for tap in taps)  # the library infers the types
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(graph.absolute().parent)
    )
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    types = {item.name: _NAMES.get(item.type, item.type) for item in session.get_outputs()}
    return TappedGraph(types, lambda feed: dict(zip(taps, session.run(list(taps), dict(feed)), strict=True)))


def _openvino(graph: Path, taps: Sequence[str], threads: int | None) -> TappedGraph:
    ov = require("openvino", "cpu")
    core = ov.Core()
    model = core.read_model(str(graph.absolute()))
    ports = {tap: model.add_outputs(tap)[0] for tap in taps}
    types = {tap: _NAMES.get(str(port.element_type.to_string()), "fp32") for tap, port in ports.items()}
    places = {tap: port.get_node().get_friendly_name() for tap, port in ports.items()}
    order = [result.get_friendly_name() for result in model.get_results()]
    shaper = ov.preprocess.PrePostProcessor(model)
    for index in range(len(order)):
        shaper.output(index).tensor().set_element_type(ov.Type.f32)  # numpy has no bfloat16
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    request = core.compile_model(shaper.build(), "CPU", config).create_infer_request()
    indices = {tap: order.index(places[tap]) for tap in taps}

    def run(feed: Mapping[str, NDArray[np.uint8]]) -> dict[str, Any]:
        request.infer(dict(feed))
        return {tap: np.array(request.get_output_tensor(index).data) for tap, index in indices.items()}

    return TappedGraph(types, run)
