"""A graph run with a runtime's own profiler on, in the way that our backends run it.

Profiling costs time (each node is timed), so these numbers say where time goes, not how long a call takes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gamma_export.bench.parts import Parts, parts_of
from gamma_export.bench.profile import Profile, group, openvino_times, parse_onnxruntime
from gamma_runtime import backends
from gamma_runtime.cli import require
from gamma_runtime.errors import GammaError, InputError, UsageError
from gamma_runtime.threads import inference_threads

__all__ = ["profile_graph"]

_WARM_UP = 3  # calls


def profile_graph(
    graph: Path,
    backend: Literal["onnxruntime", "openvino"],
    *,
    batch: int = 1,
    calls: int = 10,
    threads: int | None = None,
) -> Profile:
    """Profile a bundle's graph, its weights beside it, on pixels drawn at random.

    Args:
        graph: the ONNX file.
        backend: whose profiler.
        batch: images of a call.
        calls: to take the mean of, behind three that do not count.
        threads: of the inference.

    Raises:
        UsageError: no calls, another backend, or a batch that the graph does not take. InputError: the runtime refuses
            the graph. EnvironmentFault: the runtime is not installed.
    """
    import onnx

    if calls < 1:
        raise UsageError(f"{calls} calls; at least 1 is needed")
    if backend not in ("onnxruntime", "openvino"):
        raise UsageError(f"{backend} has no profiler that is read here", hint="onnxruntime or openvino")
    with backends.create(backend, graph, threads=threads) as opened:  # also says, in our words, why it cannot run
        io = opened.io
    if batch < 1 or io.batch not in (None, batch):
        raise UsageError(f"a batch of {batch}; the graph takes {io.batch or 'one or more'}")
    parts = parts_of(onnx.load(str(graph), load_external_data=False))
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *io.image_shape), np.uint8)
    run = _onnxruntime if backend == "onnxruntime" else _openvino
    try:
        return run(graph, parts, {io.input: pixels}, calls, inference_threads(threads))
    except GammaError:
        raise
    except Exception as error:  # the libraries' exceptions share no base class
        text = " ".join(str(error).split())[:300]
        raise InputError(f"{graph}: {backend} cannot profile it ({text})") from error


def _onnxruntime(graph: Path, parts: Parts, feed: Mapping[str, NDArray[np.uint8]], calls: int, threads: int) -> Profile:
    from gamma_runtime.backends.onnxruntime_ import session_options, unwanted_optimizers

    ort = require("onnxruntime", "cpu")
    with tempfile.TemporaryDirectory(prefix="gamma-profile-") as folder:
        options = session_options(ort, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(
            str(graph.absolute()),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=unwanted_optimizers(graph),
        )
        for _ in range(_WARM_UP + calls):
            session.run(None, dict(feed))
        content = Path(session.end_profiling()).read_text(encoding="utf-8")
    return parse_onnxruntime(content, parts, skip=_WARM_UP)


def _openvino(graph: Path, parts: Parts, feed: Mapping[str, NDArray[np.uint8]], calls: int, threads: int) -> Profile:
    from gamma_runtime.backends.openvino_ import compile_config

    ov = require("openvino", "cpu")
    config = compile_config(threads) | {"PERF_COUNT": True}
    compiled = ov.Core().compile_model(str(graph.absolute()), "CPU", config)
    request = compiled.create_infer_request()
    for _ in range(_WARM_UP):
        request.infer(dict(feed))
    early = _counters(request)
    start = time.perf_counter()
    for _ in range(calls):
        request.infer(dict(feed))
    spent = (time.perf_counter() - start) * 1e3 / calls
    nodes = openvino_times(early, _counters(request), (_WARM_UP, _WARM_UP + calls), _fused(compiled, parts))
    return group("openvino", calls, nodes, parts, spent)


def _counters(request: Any) -> dict[str, tuple[str, float]]:
    """Kernel and microseconds of every node that ran."""
    found = {}
    for info in request.get_profiling_info():
        if info.status == type(info).Status.EXECUTED:
            kernel = f"{info.node_type} {info.exec_type}"
            found[str(info.node_name)] = (kernel, info.real_time.total_seconds() * 1e6)
    return found


def _fused(compiled: Any, parts: Parts) -> dict[str, tuple[str, ...]]:
    """The ONNX nodes that each node of the compiled model came from.

    One that carries no name of ours belongs to what takes its result in: OpenVINO splits a LayerNorm, and only its
    second half keeps the name.
    """
    found: dict[str, tuple[str, ...]] = {}
    for node in reversed(compiled.get_runtime_model().get_ordered_ops()):
        facts = node.get_rt_info()
        if "originalLayersNames" not in facts:
            continue
        names = tuple(name for name in facts["originalLayersNames"].astype(str).split(",") if name)
        if not any(parts.of(name) for name in names):
            takers = (port.get_node() for output in node.outputs() for port in output.get_target_inputs())
            names += tuple(name for taker in takers for name in found.get(str(taker.get_friendly_name()), ()))
        found[str(node.get_friendly_name())] = names
    return found
