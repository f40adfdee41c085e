"""Adaptive experts with weights in 4 bits: what is stored, that it means what it should, and what is refused."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from gamma_calib.external import DTYPES, Entry, encode, numpy_type
from gamma_calib.lint import check_qdq, lint
from gamma_calib.qdq import Recipe
from gamma_calib.rounding import INT4_BLOCK, int4_block, quantise_blocks
from gamma_runtime import backends
from gamma_runtime.onnx_scan import check_graph_file
from tests.calib.bundles import Tiny, tiny
from tests.calib.test_lint import constant, node
from tests.calib.test_qdq import MOAE, error, int8_products_onnxruntime, stream

ADAPTIVE = frozenset([MOAE[1], MOAE[3]])
FIRST = "blocks.1.moae.in.adaptive_in.weight"


@pytest.fixture(scope="module")
def model() -> Tiny:
    return tiny()


def recipe(model: Tiny, *groups: str) -> Recipe:
    return dataclasses.replace(model.recipe(*groups), int4=ADAPTIVE)


@pytest.mark.parametrize("shape", [(256, 5), (64, 3), (384, 1)])
def test_weights_round_to_the_nearest_code_of_their_block(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight[: shape[0] // 2] *= 100
    weight[:, 0] = 0
    codes, scale = quantise_blocks(weight)
    block = int4_block(shape[0])
    assert block == min(INT4_BLOCK, shape[0])
    assert (codes.shape, scale.shape, scale.dtype) == (shape, (shape[0] // block, shape[1]), np.float16)
    assert np.abs(codes).max(initial=0) <= 7
    assert not codes[:, 0].any()
    steps = np.repeat(scale, block, axis=0).astype(np.float32)
    assert (np.abs(codes * steps - weight) <= steps / 2 * 1.0001).all()


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_two_codes_lie_in_a_byte_as_onnx_packs_them(count: int) -> None:
    codes = np.random.default_rng(count).integers(-7, 8, count).astype(np.int8)
    packed = encode(Entry("x", "int4", (count,), lambda: codes)).tobytes()
    wanted = helper.make_tensor("x", DTYPES["int4"], (count,), codes.astype(numpy_type("int4")))
    assert packed == numpy_helper.from_array(numpy_helper.to_array(wanted)).raw_data
    read = helper.make_tensor("x", DTYPES["int4"], (count,), packed, raw=True)
    assert numpy_helper.to_array(read).astype(np.int8).tolist() == codes.tolist()


@pytest.mark.parametrize("form", ["cpu", "tensorrt"])
@pytest.mark.parametrize("groups", [(), sorted(ADAPTIVE), (MOAE[1],), (MOAE[0], MOAE[3])])
def test_the_graph_keeps_every_rule(model: Tiny, tmp_path: Path, groups: tuple[str, ...], form: str) -> None:
    chosen = recipe(model, *groups)
    path = model.placed(tmp_path, chosen, form)
    check_qdq(path, chosen, "fp32" if form == "cpu" else "fp16")
    (weights,) = tmp_path.glob("weights-int8-*.bin")
    check_graph_file(path, weights.name, weights.stat().st_size)
    loaded = onnx.load(path, load_external_data=False)
    assert loaded.opset_import[0].version == 21
    stored = {t.name: list(t.dims) for t in loaded.graph.initializer if t.data_type == onnx.TensorProto.INT4}
    sizes = {MOAE[1]: [64, 768], MOAE[3]: [768, 64]}
    assert sorted(stored.values()) == sorted(sizes[group] for group in ADAPTIVE & chosen.groups)


def inline(model: Tiny, changed: dict[str, np.ndarray]) -> bytes:
    """The fp32 graph with its weights inside it, some of them changed."""
    made = onnx.ModelProto()
    made.CopyFrom(model.source.model)
    for tensor in made.graph.initializer:
        if tensor.external_data:
            value = changed.get(tensor.name, model.source.value(tensor.name))
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return made.SerializeToString()


def rounded_by_hand(model: Tiny) -> dict[str, np.ndarray]:
    changed = {}
    for product in model.products:
        if product.group in ADAPTIVE:
            codes, scale = quantise_blocks(model.source.part(product))
            rounded = codes * np.repeat(scale, int4_block(len(codes)), axis=0).astype(np.float32)
            factor = model.source.scale(product) if product.group == MOAE[3] else 1.0
            whole = model.source.value(product.weight).copy()
            whole[slice(*product.rows), slice(*product.columns)] = rounded * factor
            changed[product.weight] = whole
    return changed


def test_it_computes_with_the_rounded_weights(model: Tiny, tmp_path: Path) -> None:
    """The fp32 graph with the same weights rounded by hand gives the same; with other ones it does not."""
    made, file = model.tried(recipe(model, *ADAPTIVE))
    beside = model.source.folder / "four.onnx"
    beside.write_bytes(made.SerializeToString())
    try:
        found = stream(beside, model, optimised=False)
    finally:
        for path in (beside, beside.with_name(f"stream-{beside.name}"), model.source.folder / file.name):
            path.unlink(missing_ok=True)
    changed = rounded_by_hand(model)
    assert len(changed) == 2
    (tmp_path / "rounded.onnx").write_bytes(inline(model, changed))
    (tmp_path / "exact.onnx").write_bytes(inline(model, {}))
    wanted, exact = (stream(tmp_path / f"{name}.onnx", model, optimised=False) for name in ("rounded", "exact"))
    assert error(found, wanted) < 1e-5
    assert error(exact, wanted) > 1e-4


def test_onnxruntime_runs_them_in_4_bits(model: Tiny, tmp_path: Path) -> None:
    """Seven products in 8 bits: both first ones of a MoAE block are apart now."""
    ran = int8_products_onnxruntime(model.placed(tmp_path, recipe(model)), tmp_path)
    assert (ran["MatMulNBits"], ran["MatMulIntegerToFloat"], ran["DequantizeLinear"]) == (2, 8, 0)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_backends_score_like_the_exact_graph(model: Tiny, tmp_path: Path, name: str) -> None:
    batch = model.crops[:1][None]
    entry = next(graph for graph in model.bundle.manifest.graphs if (graph.name, graph.precision) == ("joint", "fp32"))
    with backends.create(name, model.bundle.folder / entry.onnx, threads=1) as backend:
        wanted = backend.infer(batch).crop_scores
    for form in ("cpu", "tensorrt"):
        with backends.create(name, model.placed(tmp_path, recipe(model), form), threads=1) as backend:
            assert np.abs(backend.infer(batch).crop_scores - wanted).max() < 2e-2


def wrong_axis(model: onnx.ModelProto) -> None:
    (axis,) = (a for a in node(model, f"{FIRST}/dequantised").attribute if a.name == "axis")
    axis.i = 1


def another_block(model: onnx.ModelProto) -> None:
    (block,) = (a for a in node(model, f"{FIRST}/dequantised").attribute if a.name == "block_size")
    block.i = 16


def scale_of_columns(model: onnx.ModelProto) -> None:
    constant(model, f"{FIRST}.scale_fp32", np.full(768, 0.1, np.float32))


def zero_point(model: onnx.ModelProto) -> None:
    node(model, f"{FIRST}/dequantised").input.append("qdq.zero")


def rounded_activation(model: onnx.ModelProto) -> None:
    node(model, MOAE[1]).input[0] = "blocks.1/ln_2/dequantised"


def into_an_addition(model: onnx.ModelProto) -> None:
    node(model, "blocks.1/moae/add").input[1] = f"{FIRST}/dequantised"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (wrong_axis, "on axis 1, not of rows"),
        (another_block, "blocks of 16"),
        (scale_of_columns, "not a scale for each block"),
        (zero_point, "a zero point; TensorRT takes int4 without one"),
        (rounded_activation, "8 bits times 4"),
        (into_an_addition, "goes into Add blocks.1/moae/add"),
    ],
)
def test_broken_rules_are_named(
    model: Tiny, tmp_path: Path, break_it: Callable[[onnx.ModelProto], None], message: str
) -> None:
    chosen = recipe(model)
    path = model.placed(tmp_path, chosen)
    broken = onnx.load(path, load_external_data=False)
    assert list(lint(broken, tmp_path, chosen, "fp32")) == []
    break_it(broken)
    assert message in "; ".join(lint(broken, tmp_path, chosen, "fp32"))


def test_a_recipe_that_promises_more(model: Tiny, tmp_path: Path) -> None:
    chosen = recipe(model)
    loaded = onnx.load(model.placed(tmp_path, chosen), load_external_data=False)
    counted = collections.Counter(node.op_type for node in loaded.graph.node)
    assert counted["MatMul"] > 2
    less = dataclasses.replace(chosen, int4=frozenset())
    assert "2 products with weights in 4 bits, the recipe has 0" in "; ".join(lint(loaded, tmp_path, less, "fp32"))
