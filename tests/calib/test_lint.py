"""The lint of Q/DQ graphs names each rule that a graph breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper, numpy_helper

from gamma_calib.lint import check_qdq, lint
from gamma_calib.qdq import Recipe
from gamma_runtime.errors import InputError
from tests.calib.bundles import tiny

Model = onnx.ModelProto
FIRST = "blocks.0/ln_1"
WEIGHT = "blocks.0.attn.qkv.weight"


def constant(model: Model, name: str, value: np.ndarray) -> None:
    """Replace an initializer, or add one."""
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(value, name)])


def node(model: Model, name: str) -> NodeProto:
    (found,) = (n for n in model.graph.node if n.name == name)
    return found


def zero_point(model: Model) -> None:
    constant(model, "qdq.zero", np.array(3, np.int8))


def unsigned(model: Model) -> None:
    constant(model, "qdq.zero", np.array(0, np.uint8))


def no_zero_point(model: Model) -> None:
    del node(model, f"{FIRST}/quantised").input[2]


def negative_scale(model: Model) -> None:
    constant(model, f"{FIRST}/scale", np.array(-1, np.float32))


def half_scale(model: Model) -> None:
    constant(model, f"{FIRST}/scale", np.array(0.01, np.float16))


def scale_per_row(model: Model) -> None:
    constant(model, f"{FIRST}/scale", np.full(64, 0.1, np.float32))


def weight_per_tensor(model: Model) -> None:
    constant(model, f"{WEIGHT}.scale_fp32", np.array(0.1, np.float32))


def weight_axis(model: Model) -> None:
    (axis,) = node(model, f"{WEIGHT}/dequantised").attribute
    axis.i = 0


def int32_bias(model: Model) -> None:
    """As onnxruntime's quantiser writes biases, and TensorRT refuses them."""
    constant(model, "bias", np.zeros(64, np.int32))
    constant(model, "bias.scale", np.full(64, 0.1, np.float32))
    add = node(model, "blocks.0/attn/out/bias")
    add.input[1] = "bias/dequantised"
    made = helper.make_node(
        "DequantizeLinear", ["bias", "bias.scale"], ["bias/dequantised"], "bias/dequantised", axis=1
    )
    model.graph.node.insert(1, made)


def residual_pair(model: Model) -> None:
    """On the stream itself, where CLIP's outliers are."""
    add = node(model, "blocks.0/mlp/add")
    source = add.input[0]
    where = [n.name for n in model.graph.node].index(add.name)
    pair = (
        helper.make_node("QuantizeLinear", [source, f"{FIRST}/scale", "qdq.zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", f"{FIRST}/scale", "qdq.zero"], ["dq"], "dq"),
    )
    add.input[0] = "dq"
    for made in reversed(pair):
        model.graph.node.insert(where, made)


def one_side(model: Model) -> None:
    product = node(model, "blocks.0/attn/qkv")
    product.input[0] = FIRST


def float_weight(model: Model) -> None:
    pair = node(model, f"{FIRST}/quantised")
    constant(model, "values", np.zeros((3, 64), np.float32))
    pair.input[0] = "values"


def another_scale(model: Model) -> None:
    constant(model, "other", np.array(0.5, np.float32))
    node(model, f"{FIRST}/dequantised").input[1] = "other"


def unused_weight(model: Model) -> None:
    constant(model, "left", np.zeros(3, np.float32))


RULES: list[tuple[Callable[[Model], None], str]] = [
    (zero_point, "zero point is not int8 0"),
    (unsigned, "zero point is not int8 0"),
    (no_zero_point, "no zero point, so its codes are uint8"),
    (negative_scale, "not positive and finite"),
    (half_scale, "its scale has type 10, expected fp32"),
    (scale_per_row, r"a scale of shape \[64\]"),
    (weight_per_tensor, r"a scale of shape \[\]"),
    (weight_axis, "its axis is not 1"),
    (int32_bias, "dequantises type 6; only int8 is taken"),
    (int32_bias, "goes into Add"),
    (residual_pair, "dq: goes into Add blocks.0/mlp/add"),
    (one_side, "blocks.0/attn/qkv: only one side is 8 bits"),
    (one_side, "products in 8 bits, the recipe has"),
    (float_weight, "a weight in floating point before its Q"),
    (another_scale, "not behind a QuantizeLinear of the same scale"),
    (unused_weight, "left: weight is not used"),
]


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    recipe = tiny().recipe()
    return tiny().placed(tmp_path_factory.mktemp("lint"), recipe), recipe


@pytest.mark.parametrize(("break_it", "message"), RULES)
def test_broken_rules_are_named(placed: tuple[Path, Recipe], break_it: Callable[[Model], None], message: str) -> None:
    path, recipe = placed
    model = onnx.load(path, load_external_data=False)
    assert list(lint(model, path.parent, recipe, "fp32")) == []
    break_it(model)
    faults = "; ".join(lint(model, path.parent, recipe, "fp32"))
    with pytest.raises(InputError, match=message):
        raise InputError(faults)


def test_a_recipe_that_promises_more(placed: tuple[Path, Recipe]) -> None:
    path, recipe = placed
    less = Recipe(recipe.groups - {"blocks.0/attn/qkv"}, recipe.ranges)
    with pytest.raises(InputError, match="9 products in 8 bits, the recipe has 8"):
        check_qdq(path, less, "fp32")


def test_the_wrong_form(placed: tuple[Path, Recipe]) -> None:
    path, recipe = placed
    with pytest.raises(InputError, match="expected fp16"):
        check_qdq(path, recipe, "fp16")
