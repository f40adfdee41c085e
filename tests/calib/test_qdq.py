"""The graph with Q/DQ pairs: what is 8 bits, that it means what it should, and that the libraries run it in 8 bits."""

from __future__ import annotations

import collections
import itertools
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from gamma_calib.lint import check_qdq
from gamma_calib.products import count_macs, find_products, taps_of
from gamma_calib.qdq import Recipe
from gamma_calib.rounding import LEVELS, fp16_scale, quantise_weight
from gamma_runtime import backends
from gamma_runtime.backends.onnxruntime_ import unwanted_optimizers
from gamma_runtime.errors import InputError
from tests.calib.bundles import Tiny, tiny

MOAE = [f"blocks.1/moae/{part}_{which}" for which in ("in", "out") for part in ("shared", "adaptive")]
GROUPS = ["blocks.0/attn/qkv", "blocks.0/attn/out", "blocks.0/mlp/in", "blocks.0/mlp/out"]
GROUPS += ["blocks.1/attn/qkv", "blocks.1/attn/out", *MOAE]
STREAM = "blocks.1/moae/add"  # the residual stream behind both blocks


@pytest.fixture(scope="module")
def model() -> Tiny:
    return tiny()


def stream(path: Path, tiny_model: Tiny, optimised: bool = True) -> NDArray[np.float32]:
    """The last block's output for the first crops."""
    import onnxruntime as ort

    loaded = onnx.load(path, load_external_data=False)
    kind = onnx.TensorProto.FLOAT
    loaded.graph.output.append(onnx.helper.make_tensor_value_info(STREAM, kind, None))
    beside = path.with_name(f"stream-{path.name}")
    beside.write_bytes(loaded.SerializeToString())
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        str(beside), options, providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"]
    )
    return np.concatenate([session.run([STREAM], {"crops": crop[None, None]})[0] for crop in tiny_model.crops[:2]])


@pytest.fixture(scope="module")
def exact(model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float32]:
    folder = tmp_path_factory.mktemp("exact")
    for name in {t.external_data[0].value for t in model.source.model.graph.initializer if t.external_data}:
        (folder / name).write_bytes((model.source.folder / name).read_bytes())
    (folder / "fp32.onnx").write_bytes(model.source.model.SerializeToString())
    return stream(folder / "fp32.onnx", model)


def error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Root mean square of the difference, as a share of what the blocks' output varies."""
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std())


def test_groups_are_the_linear_layers(model: Tiny) -> None:
    assert [product.group for product in model.products] == GROUPS
    every = find_products(model.source.model)
    rest = ["patch/product", "head/proj", "head/adapter_in", "head/adapter_out"]
    assert sorted(p.group for p in every if not p.by_default) == sorted(rest)
    assert [p.group for p in find_products(model.half)] == [p.group for p in every]
    assert [t.name for t in taps_of(find_products(model.half))] == [t.name for t in taps_of(every)]


def test_macs_by_hand(model: Tiny) -> None:
    """Two blocks of width 64: QKV 3, out 1, MLP 4 + 4, MoAE 4 times that; patch, gate, gate's bias, head."""
    square, tokens = 64 * 64, 197
    by_group = {product.group: product.macs for product in find_products(model.source.model)}
    assert by_group["blocks.0/attn/qkv"] == 3 * square * tokens
    assert by_group["blocks.1/moae/adaptive_out"] == 3 * by_group["blocks.1/moae/shared_in"] == 12 * square * tokens
    linear = (2 * 4 + 8 + 4 * 8) * square * tokens
    attention = 2 * 2 * tokens * tokens * 64
    gates = tokens * 64 * (3 + 4)
    dims = model.source.value("head.proj").shape[1]
    head = 64 * dims + 2 * math.prod(model.source.value("head.adapter_in").shape) + dims * 10
    patch = tokens * 16 * 16 * 3 * 64
    assert count_macs(model.source.model) == linear + attention + gates + head + patch
    assert count_macs(model.half) == count_macs(model.source.model)


def test_weights_round_to_the_nearest_code() -> None:
    weight = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32) * np.logspace(-4, 1, 7, dtype=np.float32)
    weight[:, 3] = 0
    codes, scale = quantise_weight(weight)
    assert (codes.dtype, scale.dtype, scale.shape) == (np.int8, np.float16, (7,))
    assert np.abs(codes.astype(int)).max() == LEVELS["int8"]
    assert not codes[:, 3].any()
    assert (scale > 0).all()
    gap = np.abs(codes * scale.astype(np.float32) - weight)
    assert (gap <= scale.astype(np.float32) / 2 * 1.0001).all()


@pytest.mark.parametrize("value", [1.0, 0.1, 1e-3, 7e-5, 1e-9, 0.0, 500.0])
def test_scales_are_rounded_up_to_fp16(value: float) -> None:
    scale = float(fp16_scale(np.array(value)))
    assert value <= scale
    assert scale >= 2**-14
    assert scale <= max(value * 1.001, 2**-14)


@pytest.mark.parametrize("form", ["cpu", "tensorrt"])
@pytest.mark.parametrize(
    "chosen",
    [MOAE[:n] for n in (1, 2, 3, 4)] + [MOAE[n:] for n in (1, 2, 3)] + [GROUPS, GROUPS[:4], [MOAE[0], MOAE[3]]],
)
def test_any_choice_of_groups_scores_alike(
    model: Tiny, exact: NDArray[np.float32], tmp_path: Path, chosen: list[str], form: str
) -> None:
    """Split experts, one half of them in 8 bits, both: always the same block, up to 8-bit rounding."""
    recipe = model.recipe(*chosen)
    path = model.placed(tmp_path, recipe, form)
    check_qdq(path, recipe, "fp32" if form == "cpu" else "fp16")
    assert error(stream(path, model), exact) < 0.02


def test_the_adaptive_experts_scale_counts(model: Tiny, exact: NDArray[np.float32], tmp_path: Path) -> None:
    """The check above would notice a wrong scale behind the adaptive product."""
    path = model.placed(tmp_path, model.recipe(MOAE[3]))
    loaded = onnx.load(path, load_external_data=False)
    (scale,) = (t for t in loaded.graph.initializer if t.name == "blocks.1/moae/out/scale")
    value = numpy_helper.to_array(scale)
    assert value == np.float32(model.source.scales["blocks.1"])
    scale.CopyFrom(numpy_helper.from_array(np.array(value * 2), scale.name))
    path.write_bytes(loaded.SerializeToString())
    assert error(stream(path, model), exact) > 0.02


def test_kernels_do_what_the_graph_says(model: Tiny, tmp_path: Path) -> None:
    """Integer kernels against Q and DQ computed one by one in floating point; a few sums fall over a rounding edge."""
    path = model.placed(tmp_path, model.recipe())
    assert error(stream(path, model), stream(path, model, optimised=False)) < 1e-3


def test_a_trial_without_an_fp16_graph(model: Tiny, exact: NDArray[np.float32]) -> None:
    """Only the 8-bit weights are in a file of their own; the rest stays where it was."""
    made, file = model.tried(model.recipe())
    beside = model.source.folder / "tried.onnx"
    beside.write_bytes(made.SerializeToString())
    try:
        assert error(stream(beside, model), exact) < 0.02
    finally:
        for path in (beside, beside.with_name(f"stream-{beside.name}"), model.source.folder / file.name):
            path.unlink(missing_ok=True)


def test_both_forms_hold_the_same_codes(model: Tiny, tmp_path: Path) -> None:
    """One weights file, and scales that fp16 and fp32 both hold exactly."""
    recipe = model.recipe()
    scales: list[dict[str, float]] = []
    for form in ("cpu", "tensorrt"):
        loaded = onnx.load(model.placed(tmp_path, recipe, form), load_external_data=False)
        pairs = [node for node in loaded.graph.node if node.op_type == "QuantizeLinear"]
        constants = {t.name: t for t in loaded.graph.initializer}
        scales.append({n.name: float(numpy_helper.to_array(constants[n.input[1]])) for n in pairs})
    assert scales[0] == scales[1]
    assert len(list(tmp_path.glob("weights-int8-*.bin"))) == 1
    assert len(scales[0]) == 9  # QKV, MoAE's two and MLP's inputs once each, attention outputs, hidden layers


def int8_products_onnxruntime(path: Path, tmp_path: Path) -> collections.Counter[str]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    left_out = unwanted_optimizers(path)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out)
    nodes = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node
    return collections.Counter(node.op_type for node in nodes)


def test_onnxruntime_runs_every_product_in_8_bits(model: Tiny, tmp_path: Path) -> None:
    """Ten matrix products: the two first ones of a MoAE block are one."""
    path = model.placed(tmp_path, model.recipe())
    ran = int8_products_onnxruntime(path, tmp_path)
    assert ran["MatMulIntegerToFloat"] == 9
    assert ran["Gemm"] == ran["DequantizeLinear"] == 0


def test_openvino_runs_every_product_in_8_bits(model: Tiny, tmp_path: Path) -> None:
    with backends.create("openvino", model.placed(tmp_path, model.recipe()), threads=1) as backend:
        operations = backend._compiled.get_runtime_model().get_ops()  # type: ignore[attr-defined]
    facts = [operation.get_rt_info() for operation in operations]
    ran = collections.Counter(
        fact["runtimePrecision"].astype(str) for fact in facts if fact["layerType"].astype(str) == "FullyConnected"
    )
    assert ran["i8"] == 9


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_backends_agree(model: Tiny, tmp_path: Path, name: str) -> None:
    recipe = model.recipe()
    batch = model.crops[:1][None]
    found = {}
    for form in ("cpu", "tensorrt"):
        with backends.create(name, model.placed(tmp_path, recipe, form), threads=1) as backend:
            found[form] = backend.infer(batch).crop_scores
    assert np.abs(found["cpu"] - found["tensorrt"]).max() < 2e-2


def test_an_unknown_range_is_refused(model: Tiny, tmp_path: Path) -> None:
    recipe = Recipe(frozenset(["blocks.0/attn/qkv"]), {})
    with pytest.raises(InputError, match=r"no range for blocks\.0/ln_1"):
        model.placed(tmp_path, recipe)


def test_a_graph_of_somebody_else_is_refused(model: Tiny) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(model.source.model)
    (tokens,) = (t for t in other.graph.initializer if t.name == "tokens.constant")
    tokens.name = "something"
    with pytest.raises(InputError, match="not made by gamma-export"):
        find_products(other)


def test_the_source_graph_is_not_changed(model: Tiny, tmp_path: Path) -> None:
    before = model.source.model.SerializeToString(deterministic=True), model.half.SerializeToString(deterministic=True)
    for form in ("cpu", "tensorrt"):
        model.placed(tmp_path, model.recipe(), form)
    after = model.source.model.SerializeToString(deterministic=True), model.half.SerializeToString(deterministic=True)
    assert before == after


def test_the_order_of_groups_changes_nothing(model: Tiny, tmp_path: Path) -> None:
    files = set()
    for order in itertools.islice(itertools.permutations(GROUPS), 3):
        files.add(model.weights(tmp_path, model.recipe(*order)).name)
    assert len(files) == 1
