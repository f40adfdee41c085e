"""An ONNX file that a manifest vouches for, looked at before any library opens it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from gamma_runtime.onnx_scan import check_graph_file
from tests.fuzz.harness import Target
from tests.runtime.tiny_bundle import make_bundle

WEIGHTS = "weights-00000000.bin"


def _seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "b.gamma")
        graphs = [((bundle.folder / g.onnx).read_bytes(), g.weights.encode()) for g in bundle.manifest.graphs]
    return [b"garbage", *(content.replace(weights, WEIGHTS.encode()) for content, weights in graphs)]


TARGET = Target(
    _seeds,
    lambda folder, data: (folder / "graph.onnx").write_bytes(data),
    lambda folder, _: check_graph_file(folder / "graph.onnx", WEIGHTS, 4096),
)
