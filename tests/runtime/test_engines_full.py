"""The full-size graph compiles without a GPU: joint plans in fp32 and fp16, and (long) in int8, fp8 and int4."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from gamma_calib.collect import collect
from gamma_calib.external import write_external
from gamma_calib.lint import check_qdq
from gamma_calib.products import count_macs, find_attention, find_products, taps_of
from gamma_calib.qdq import Recipe, Source, packed, place
from gamma_calib.ranges import with_ranges
from gamma_calib.record import Record
from gamma_export.fold import fold_vision
from gamma_export.photos import packaged_photos
from gamma_export.publish import add_file
from gamma_export.vision import GraphOptions, build_graph, graph_io
from gamma_export.weights import write_weights
from gamma_runtime.bundle import Bundle
from gamma_runtime.crops import prepare
from gamma_runtime.engines import EngineOptions, build_engines
from gamma_training.dims import FULL_SIZE
from gamma_training.initialise import random_state
from tests.calib.records import KEY
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
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    folder = tmp_path_factory.mktemp("full")
    vision = fold_vision(random_state(FULL_SIZE, 0), FULL_SIZE)
    made = [_entry(folder, vision, precision) for precision in ("fp32", "fp16")]
    yield write_manifest(folder, [entry for entry, _ in made], [file for _, pair in made for file in pair], SCENES)
    shutil.rmtree(folder)  # a gigabyte that pytest would keep


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


def _eight_bits(full_size: Bundle, folder: Path, kind: str, int4: bool) -> Bundle:
    """The graph for TensorRT with every group in 8 bits, ranges from one crop of one photo."""
    models = {}
    for graph in full_size.manifest.graphs:
        models[graph.precision] = onnx.load(full_size.folder / graph.onnx, load_external_data=False)
    products = [product for product in find_products(models["fp32"]) if product.by_default]
    inside = find_attention(models["fp32"]) if kind == "fp8" else []
    taps = taps_of(products) + [tap for attention in inside for tap in attention.taps]
    crop = prepare(packaged_photos()[0], full_size.contract(), SCENES[0]).crops
    fp32 = full_size.folder / full_size.manifest.graphs[0].onnx
    record = collect(fp32, taps, iter([crop[None]]), Record(KEY, 0, 1), lambda _: None, threads=2)
    ranges = {tap: high for tap, (_, high) in with_ranges(record, ("max",)).ranges["max"].items()}
    ranges |= {attention.group.replace("products", "softmax"): 1.0 for attention in inside}
    groups = frozenset(group.group for group in (*products, *inside))
    four = frozenset(group for group in groups if int4 and "/moae/adaptive_" in group)
    recipe = Recipe(groups, ranges, kind, int4=four)
    scales = dict.fromkeys((f"blocks.{i}" for i in range(6, 12)), -0.0117)
    source = Source(models["fp32"], full_size.folder, scales)
    weights = write_external(folder, f"weights-{kind}", packed(models["fp16"], source, recipe))
    model = place(models["fp16"], source, recipe, weights, "fp16")
    file = add_file(folder, f"joint-{kind}", ".onnx", model.SerializeToString(deterministic=True))
    check_qdq(folder / file.name, recipe, "fp16")
    entry = full_size.manifest.graphs[1].model_dump(mode="json") | {
        "precision": kind,
        "int8_share": sum(p.macs for p in products if p.group not in four) / count_macs(models["fp32"]),
        "opset": model.opset_import[0].version,
        "onnx": file.name,
        "weights": weights.name,
    }
    stored = {"name": weights.name, "size": weights.size, "sha256": weights.sha256}
    return write_manifest(folder, [entry], [file.model_dump(), stored], SCENES)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "int4", "capability", "megabytes"),
    [("int8", False, "8.6", (170, 180)), ("int8", True, "8.6", (130, 145)), ("fp8", False, "8.9", (170, 180))],
)
def test_full_size_plans_in_8_bits(
    full: Bundle, tmp_path: Path, kind: str, int4: bool, capability: str, megabytes: tuple[int, int]
) -> None:
    bundle = _eight_bits(full, tmp_path, kind, int4)
    (engine,) = build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", compute_capabilities=(capability,)))
    counted = engine.proof["network"]["weight_bytes"]
    linear = 4 * 12 + 8 * 6 + 8 * 4 * 6  # attention; plain MLPs; MoAE, four experts each; in squares of the width
    adaptive = 8 * 3 * 6
    width = FULL_SIZE.vision.width
    assert counted[kind] == (linear - (adaptive if int4 else 0)) * width * width
    assert counted.get("int4", 0) == (adaptive * width * width // 2 if int4 else 0)
    least, most = megabytes
    size = sum(file.size for file in bundle.manifest.files)
    assert least * 1e6 <= size <= most * 1e6
    assert 0.98 < engine.size / size < 1.1
    for path in (bundle.folder / engine.file, *(bundle.folder / file.name for file in bundle.manifest.files)):
        path.unlink()
