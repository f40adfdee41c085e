"""The full-size graph compiles: one joint plan in fp32 and one in fp16, without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gamma_export.fold import fold_vision
from gamma_export.publish import add_file
from gamma_export.vision import GraphOptions, build_graph, graph_io
from gamma_export.weights import write_weights
from gamma_runtime.bundle import Bundle
from gamma_runtime.engines import EngineOptions, build_engines
from gamma_training.dims import FULL_SIZE
from gamma_training.initialise import random_state
from tests.runtime.engine_bundle import SCENES, needs_rtx, write_manifest

pytestmark = [pytest.mark.full, needs_rtx]


def _entry(folder: Path, vision: list[Any], precision: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The joint graph of two scenes, with its weights file."""
    text = np.random.default_rng(0).standard_normal((FULL_SIZE.embed, len(SCENES) * FULL_SIZE.levels))
    options = GraphOptions(precision=precision, crops=1)
    weights = write_weights(folder, vision, precision)
    model = build_graph("joint", weights, FULL_SIZE, text, options)
    graph = add_file(folder, f"joint-{precision}", ".onnx", model.SerializeToString(deterministic=True))
    inputs, outputs = graph_io(options, FULL_SIZE, len(SCENES))
    entry = {
        "name": "joint",
        "scenes": list(SCENES),
        "precision": precision,
        "attention": options.attention,
        "opset": options.opset,
        "moae": "exact",
        "onnx": graph.name,
        "weights": weights.name,
        "crops": options.crops,
        "batch": options.batch,
        "inputs": inputs,
        "outputs": {name: ("float32", shape) for name, (_, shape) in outputs.items()},
    }
    return entry, [graph.model_dump(), {"name": weights.name, "size": weights.size, "sha256": weights.sha256}]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("full")
    vision = fold_vision(random_state(FULL_SIZE, 0), FULL_SIZE)
    made = [_entry(folder, vision, precision) for precision in ("fp32", "fp16")]
    return write_manifest(folder, [entry for entry, _ in made], [file for _, pair in made for file in pair], SCENES)


def test_full_size_plans_compile_for_two_targets(full: Bundle) -> None:
    options = EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6", "8.9"))
    fp32, fp16 = build_engines(full, options)
    sizes = {entry.name: entry.size for entry in full.manifest.files}
    for entry, graph in zip((fp32, fp16), full.manifest.graphs, strict=True):
        # A plan is its weights and little else: nothing was dropped, nothing was kept in another precision.
        assert 0.98 < entry.size / sizes[graph.weights] < 1.1
        assert entry.compute_capabilities == ["8.6", "8.9"]
    assert 1.9 < fp32.size / fp16.size < 2.1
    for entry in (fp32, fp16):
        (full.folder / entry.file).unlink()  # a gigabyte that pytest would keep
    for file in full.manifest.files:
        (full.folder / file.name).unlink()
