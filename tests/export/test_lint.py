"""The lint passes every graph that we export and names each rule that a graph breaks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gamma_export import fold, lint, vision, weights
from gamma_runtime.contract import CropPolicy
from gamma_runtime.errors import InputError
from gamma_training import initialise
from gamma_training.dims import FULL_SIZE, GammaDims

DIMS = initialise.smaller(FULL_SIZE, width=64, layers=2, first_moae=1)
DENSE = initialise.smaller(FULL_SIZE, width=64, layers=1, first_moae=1)  # no MoAE block at all
TEXT = np.random.default_rng(0).normal(size=(512, 10))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, weights.WeightsFile]]:
    folder = tmp_path_factory.mktemp("lint")
    state = initialise.random_state(DIMS, 0)
    made: dict[str, weights.WeightsFile] = {}

    def get(precision: str) -> tuple[Path, weights.WeightsFile]:
        if precision not in made:
            made[precision] = weights.write_weights(folder, fold.fold_vision(state, DIMS), precision)
        return folder, made[precision]

    return get


Files = Callable[[str], tuple[Path, weights.WeightsFile]]


def _graph(files: Files, options: vision.GraphOptions, scenes: int = 2) -> tuple[onnx.ModelProto, Path]:
    folder, file = files(options.precision)
    return vision.build_graph("graph", file, DIMS, TEXT[:, : 5 * scenes], options), folder / "graph.onnx"


def _check(model: onnx.ModelProto, path: Path, options: vision.GraphOptions, dims: GammaDims = DIMS) -> None:
    path.write_bytes(model.SerializeToString())
    lint.check_graph(path, dims, options)


ALL = [
    vision.GraphOptions(precision=p, residual=r, attention=a, crops=c, batch=b)
    for p, r, a, c, b in itertools.product(
        ("fp32", "fp16", "bf16"), ("fp32", "half"), ("decomposed", "op"), (1, 5), ((1, 1, 1), (1, 4, 8))
    )
    for r in [p if r == "half" else r]
    if not (p == "fp32" and a == "op")
]
FRAMES = [
    vision.GraphOptions(precision=p, crops=policy.crops, batch=b, frame=policy)
    for p in ("fp32", "fp16")
    for b in ((1, 1, 1), (1, 2, 4))
    for policy in map(CropPolicy.parse, ("frame640x480:five", "frame224x224:centre", "frame500x300:cover"))
]


@pytest.mark.parametrize("options", dict.fromkeys(ALL + FRAMES), ids=str)
@pytest.mark.parametrize("scenes", [1, 2])
def test_every_exported_graph_passes(files: Files, options: vision.GraphOptions, scenes: int) -> None:
    model, path = _graph(files, options, scenes)
    _check(model, path, options)
    assert model.ir_version == 10
    assert model.opset_import[0].version == (23 if options.attention == "op" else 20)


def test_no_text_tower_resize_or_shape_operator(files: Files) -> None:
    model, _ = _graph(files, vision.GraphOptions())
    ops = {node.op_type for node in model.graph.node}
    assert ops <= lint.OPS
    assert not ops & {"Resize", "Shape", "If", "Loop", "NonZero", "Where", "ArgMax", "Pow", "Sqrt"}
    assert not [t.name for t in model.graph.initializer if "token" in t.name and t.name != "tokens.constant"]


def test_scene_graphs_are_small_and_share_one_weights_file(files: Files) -> None:
    model, _ = _graph(files, vision.GraphOptions(), 1)
    assert len(model.SerializeToString()) < 60_000
    locations = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    assert locations == {files("fp16")[1].name}


def _first(model: onnx.ModelProto, op: str, start: str = "") -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == op and n.name.startswith(start))


def _set_ir(model: onnx.ModelProto) -> None:
    model.ir_version = 11


def _set_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21


def _add_shape(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Shape", ["score"], ["s"], name="shape"))


def _decompose_norm(model: onnx.ModelProto) -> None:
    node = _first(model, "LayerNormalization")
    node.op_type = "Add"
    del node.input[2:], node.attribute[:]


def _fp16_norm(model: onnx.ModelProto) -> None:
    """The first LayerNormalization in fp16, between casts."""
    node = _first(model, "LayerNormalization")
    at = list(model.graph.node).index(node)
    names, output = list(node.input), node.output[0]
    node.output[0] = f"{output}/low"
    for i, name in enumerate(names):
        node.input[i] = f"{name}/low"
    model.graph.node.insert(at + 1, helper.make_node("Cast", [f"{output}/low"], [output], f"{output}/cast_norm", to=1))
    for name in names:
        model.graph.node.insert(at, helper.make_node("Cast", [name], [f"{name}/low"], f"{name}/cast_product", to=10))


def _fp32_product(model: onnx.ModelProto) -> None:
    """The product of block 0's MLP quietly in fp32, between two casts."""
    node = _first(model, "MatMul", "blocks.0/mlp/in")
    at = list(model.graph.node).index(node)
    x, w, y = node.input[0], node.input[1], node.output[0]
    node.input[0], node.input[1], node.output[0] = f"{x}/up", f"{w}/up", f"{y}/up"
    model.graph.node.insert(at, helper.make_node("Cast", [x], [f"{x}/up"], name=f"{x}/cast_softmax", to=1))
    model.graph.node.insert(at, helper.make_node("Cast", [w], [f"{w}/up"], name=f"{w}/cast_softmax", to=1))
    model.graph.node.insert(at + 3, helper.make_node("Cast", [f"{y}/up"], [y], name=f"{y}/cast_product", to=10))


def _nameless_cast(model: onnx.ModelProto) -> None:
    _first(model, "Cast").name = "cast"


def _drop_expert(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "blocks.1.moae.out.weight":
            tensor.dims[0] -= 256


def _unused_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("spare", 1, [1], [0.0]))


def _second_file(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.external_data)
    next(e for e in tensor.external_data if e.key == "location").value = "../weights.bin"


def _dynamic_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"


def _same_name(model: onnx.ModelProto) -> None:
    model.graph.node[1].name = model.graph.node[0].name


BROKEN: list[tuple[Callable[[Any], None], str]] = [
    (_set_ir, "ir_version 11"),
    (_set_opset, "opsets"),
    (_add_shape, "operator Shape is not allowed"),
    (_decompose_norm, "LayerNormalization nodes, expected"),
    (_fp16_norm, "LayerNormalization is not in fp32"),
    (_fp32_product, "blocks.0/mlp/in: product is not in fp16"),
    (_nameless_cast, "a Cast without a reason"),
    (_drop_expert, "expected 1 shared and 3 adaptive experts"),
    (_unused_weight, "spare: weight is not used"),
    (_second_file, "external data in"),
    (_dynamic_input, "does not fit batch"),
    (_same_name, "node names are not unique"),
]


@pytest.mark.parametrize(("break_it", "sentence"), BROKEN, ids=lambda v: getattr(v, "__name__", ""))
def test_each_broken_rule_is_named(files: Files, break_it: Callable[[Any], None], sentence: str) -> None:
    options = vision.GraphOptions()
    model, _ = _graph(files, options)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    assert not list(lint.lint(inferred, DIMS, options))
    break_it(model)
    faults = list(lint.lint(onnx.shape_inference.infer_shapes(model, data_prop=True), DIMS, options))
    assert any(sentence in fault for fault in faults), faults


def _move_a_crop(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "frame.start_1")
    tensor.CopyFrom(helper.make_tensor("frame.start_1", TensorProto.INT64, [2], [0, 1]))


def _cut_before_the_cast(model: onnx.ModelProto) -> None:
    _first(model, "Slice").input[0] = "frames"


def _leave_a_crop_out(model: onnx.ModelProto) -> None:
    del _first(model, "Concat").input[-1]


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (_move_a_crop, "crops are cut at"),
        (_cut_before_the_cast, "TensorRT wants one Cast in front"),
        (_leave_a_crop_out, "Concat of [4], expected one of 5"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_each_broken_cut_is_named(files: Files, break_it: Callable[[Any], None], sentence: str) -> None:
    options = FRAMES[0]
    model, _ = _graph(files, options)
    assert not list(lint.lint(onnx.shape_inference.infer_shapes(model, data_prop=True), DIMS, options))
    break_it(model)
    assert any(sentence in fault for fault in lint.lint(model, DIMS, options))


def test_cuts_in_a_graph_that_takes_crops_are_named(files: Files) -> None:
    model, _ = _graph(files, FRAMES[0])
    assert any("crops are cut at" in fault for fault in lint.lint(model, DIMS, vision.GraphOptions(precision="fp32")))


def test_asking_for_another_precision_than_the_graph_has_fails(files: Files) -> None:
    model, path = _graph(files, vision.GraphOptions(precision="fp32"))
    with pytest.raises(InputError, match=re.escape("product is not in fp16")):
        _check(model, path, vision.GraphOptions(precision="fp16"))


def test_a_model_without_moae_blocks_exports(tmp_path: Path) -> None:
    state = initialise.random_state(DENSE, 0)
    file = weights.write_weights(tmp_path, fold.fold_vision(state, DENSE), "fp16")
    options = vision.GraphOptions()
    model = vision.build_graph("graph", file, DENSE, TEXT[:, :5], options)
    _check(model, tmp_path / "graph.onnx", options, DENSE)
