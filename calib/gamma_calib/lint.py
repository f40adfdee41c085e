"""What a graph with Q/DQ pairs must be, so that every TensorRT from 10.3 on, RTX and the CPU libraries take it.

TensorRT's parser refuses zero points other than 0, biases in int32, unsigned codes and scales that are not positive; it
accepts much that is slow or wrong without a word: pairs on the residual stream, per-tensor weights, codes that lose the
sign (tensorrt.md sections 3.1 and 3.3). Here both kinds are refused, on the file's own bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gamma_calib.external import DTYPES
from gamma_calib.rounding import int4_block
from gamma_runtime.errors import InputError

if TYPE_CHECKING:
    import onnx
    from onnx import NodeProto, TensorProto

    from gamma_calib.qdq import Recipe

__all__ = ["check_qdq", "lint"]

_HALF = {"fp32": DTYPES["fp32"], "fp16": DTYPES["fp16"]}


def check_qdq(path: Path, recipe: Recipe, half: str) -> None:
    """onnx.checker's full check with shape inference, then `lint`.

    Raises:
        InputError: the graph breaks a rule; all broken rules are listed.
    """
    import onnx

    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    if faults := list(lint(model, path.parent, recipe, half)):
        raise InputError(f"{path.name}: " + "; ".join(faults))


def lint(model: onnx.ModelProto, folder: Path, recipe: Recipe, half: str) -> Iterator[str]:
    """One sentence for each broken rule.

    Args:
        model: a graph with Q/DQ pairs.
        folder: where its weights lie.
        recipe: what it was made by.
        half: type of what is not 8 bits, ``fp32`` or ``fp16``.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            yield from _quantise(node, weights, folder, readers, half, recipe.kind)
        elif node.op_type == "DequantizeLinear":
            yield from _dequantise(node, weights, makers, folder, readers, half, recipe.kind)
    yield from _products(model, makers, recipe)
    yield from _unused(model, readers)


def _quantise(
    node: NodeProto,
    weights: Mapping[str, TensorProto],
    folder: Path,
    readers: Mapping[str, list[NodeProto]],
    half: str,
    kind: str,
) -> Iterator[str]:
    if node.input[0] in weights:
        yield f"{node.name}: a weight in floating point before its Q; weights are stored in 8 bits"
    yield from _scale(node, weights, folder, half, rank=0)
    yield from _zero(node, weights, kind, required=True)
    if [reader.op_type for reader in readers.get(node.output[0], [])] != ["DequantizeLinear"]:
        yield f"{node.name}: not followed by one DequantizeLinear"


def _dequantise(
    node: NodeProto,
    weights: Mapping[str, TensorProto],
    makers: Mapping[str, NodeProto],
    folder: Path,
    readers: Mapping[str, list[NodeProto]],
    half: str,
    kind: str,
) -> Iterator[str]:
    """Behind a Q with the same scale, or of a stored weight in 8 bits with a scale for each output channel."""
    stored = weights.get(node.input[0])
    if stored is not None and stored.data_type == DTYPES["int4"]:
        yield from _blocks(node, stored, weights, readers)
        yield from _scale(node, weights, folder, half, rank=2)
        return
    if stored is not None and stored.data_type != DTYPES[kind]:
        yield f"{node.name}: dequantises type {stored.data_type}; only {kind} is taken"
    if stored is None:
        maker = makers.get(node.input[0])
        if maker is None or maker.op_type != "QuantizeLinear" or maker.input[1] != node.input[1]:
            yield f"{node.name}: not behind a QuantizeLinear of the same scale"
    elif next((a.i for a in node.attribute if a.name == "axis"), None) != 1:
        yield f"{node.name}: its axis is not 1, the output channels"
    yield from _scale(node, weights, folder, half, rank=0 if stored is None else 1)
    yield from _zero(node, weights, kind, required=False)
    for reader in readers.get(node.output[0], []):
        if reader.op_type != "MatMul":
            yield f"{node.name}: goes into {reader.op_type} {reader.name}, not into a product"


def _blocks(
    node: NodeProto, stored: TensorProto, weights: Mapping[str, TensorProto], readers: Mapping[str, list[NodeProto]]
) -> Iterator[str]:
    """A stored weight in 4 bits with a scale for each block of rows, the second side of a product of floats."""
    how = {attribute.name: attribute.i for attribute in node.attribute}
    block = how.get("block_size", 0)
    if how.get("axis") != 0 or block != int4_block(stored.dims[0]):
        yield f"{node.name}: int4 in blocks of {block} on axis {how.get('axis')}, not of rows"
        return
    scale = weights.get(node.input[1])
    if scale is not None and list(scale.dims) != [stored.dims[0] // block, stored.dims[1]]:
        yield f"{node.name}: not a scale for each block of rows"
    if len(node.input) > 2:
        yield f"{node.name}: a zero point; TensorRT takes int4 without one"
    for reader in readers.get(node.output[0], []):
        if reader.op_type != "MatMul" or reader.input[1] != node.output[0]:
            yield f"{node.name}: goes into {reader.op_type} {reader.name}, not into a product's second side"


def _scale(node: NodeProto, weights: Mapping[str, TensorProto], folder: Path, half: str, *, rank: int) -> Iterator[str]:
    from onnx import numpy_helper

    tensor = weights.get(node.input[1])
    if tensor is None:
        yield f"{node.name}: its scale is computed, not stored"
        return
    if tensor.data_type != _HALF[half]:
        yield f"{node.name}: its scale has type {tensor.data_type}, expected {half}"
    if len(tensor.dims) != rank:
        yield f"{node.name}: a scale of shape {list(tensor.dims)}"
    value = numpy_helper.to_array(tensor, str(folder)).astype(np.float64)
    if not (np.isfinite(value).all() and (value > 0).all()):
        yield f"{node.name}: a scale that is not positive and finite"


def _zero(node: NodeProto, weights: Mapping[str, TensorProto], kind: str, *, required: bool) -> Iterator[str]:
    """A zero point of 0 in the codes' type. QuantizeLinear needs it: without one its codes are unsigned."""
    from onnx import numpy_helper

    if len(node.input) < 3:
        if required:
            yield f"{node.name}: no zero point, so its codes are uint8"
        return
    tensor = weights.get(node.input[2])
    if tensor is None or tensor.data_type != DTYPES[kind] or numpy_helper.to_array(tensor).astype(np.float32).any():
        yield f"{node.name}: its zero point is not {kind} 0"


def _products(model: onnx.ModelProto, makers: Mapping[str, NodeProto], recipe: Recipe) -> Iterator[str]:
    """Both sides of a product in 8 bits or neither; and all that the recipe promises."""
    found, found_four = 0, 0
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == DTYPES["int4"]}
    four = {name for name, maker in makers.items() if maker.input and maker.input[0] in stored}
    for node in model.graph.node:
        if node.op_type != "MatMul":
            continue
        if node.input[1] in four:
            found_four += 1
            if node.input[0] in makers and makers[node.input[0]].op_type == "DequantizeLinear":
                yield f"{node.name}: 8 bits times 4; the activation has to be float"
            continue
        sides = [makers[x].op_type == "DequantizeLinear" if x in makers else False for x in node.input]
        if any(sides) and not all(sides):
            yield f"{node.name}: only one side is 8 bits"
        found += all(sides)
    pairs = set()
    for group in recipe.groups - recipe.int4:
        if group.endswith("/attn/products"):
            pairs |= {f"{group}/scores", f"{group}/mix"}
        else:  # both first products of a MoAE block are one
            pairs.add(group.replace("/moae/shared_in", "/moae/in").replace("/moae/adaptive_in", "/moae/in"))
    if found != len(pairs):
        yield f"{found} products in 8 bits, the recipe has {len(pairs)}"
    if found_four != (promised := len(recipe.groups & recipe.int4)):
        yield f"{found_four} products with weights in 4 bits, the recipe has {promised}"


def _unused(model: onnx.ModelProto, readers: Mapping[str, list[NodeProto]]) -> Iterator[str]:
    for tensor in model.graph.initializer:
        if tensor.name not in readers:
            yield f"{tensor.name}: weight is not used"
    names = [node.name for node in model.graph.node]
    if len(set(names)) != len(names) or "" in names:
        yield "node names are not unique"
