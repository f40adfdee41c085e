"""What a graph with Q/DQ pairs must be, so that every TensorRT from 10.3 on, RTX and the CPU libraries take it.

TensorRT's parser refuses zero points other than 0, biases in int32, unsigned codes and scales that are not positive; it
accepts much that is slow or wrong without a word: pairs on the residual stream, per-tensor weights, codes that lose the
sign (tensorrt.md sections 3.1 and 3.3). Here both kinds are refused, on the file's own bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    return _Linter(model, folder, recipe, half).faults()


class _Linter:
    def __init__(self, model: onnx.ModelProto, folder: Path, recipe: Recipe, half: str) -> None:
        self.nodes, self.folder, self.recipe, self.half = list(model.graph.node), folder, recipe, half
        self.weights: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers: dict[str, NodeProto] = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def faults(self) -> Iterator[str]:
        for node in self.nodes:
            if node.op_type == "QuantizeLinear":
                yield from self.quantise(node)
            elif node.op_type == "DequantizeLinear":
                yield from self.dequantise(node)
        yield from self.products()
        yield from self.unused()

    def quantise(self, node: NodeProto) -> Iterator[str]:
        if node.input[0] in self.weights:
            yield f"{node.name}: a weight in floating point before its Q; weights are stored in 8 bits"
        yield from self.scale(node, rank=0)
        yield from self.zero(node, required=True)
        if [reader.op_type for reader in self.readers.get(node.output[0], [])] != ["DequantizeLinear"]:
            yield f"{node.name}: not followed by one DequantizeLinear"

    def dequantise(self, node: NodeProto) -> Iterator[str]:
        """Behind a Q with the same scale, or of a stored weight with scales for its output channels or blocks."""
        stored = self.weights.get(node.input[0])
        if stored is not None and stored.data_type == DTYPES["int4"]:
            yield from self.blocks(node, stored)
            return
        if stored is None:
            maker = self.makers.get(node.input[0])
            if maker is None or maker.op_type != "QuantizeLinear" or maker.input[1] != node.input[1]:
                yield f"{node.name}: not behind a QuantizeLinear of the same scale"
        else:
            if stored.data_type != DTYPES[self.recipe.kind]:
                yield f"{node.name}: dequantises type {stored.data_type}; only {self.recipe.kind} is taken"
            if _attributes(node).get("axis") != 1:
                yield f"{node.name}: its axis is not 1, the output channels"
        yield from self.scale(node, rank=0 if stored is None else 1)
        yield from self.zero(node, required=False)
        for reader in self.readers.get(node.output[0], []):
            if reader.op_type != "MatMul":
                yield f"{node.name}: goes into {reader.op_type} {reader.name}, not into a product"

    def blocks(self, node: NodeProto, stored: TensorProto) -> Iterator[str]:
        """A stored weight in 4 bits with a scale for each block of rows, the second side of a product of floats."""
        how = _attributes(node)
        block, scale = how.get("block_size", 0), self.weights.get(node.input[1])
        if how.get("axis") != 0 or block != int4_block(stored.dims[0]):
            yield f"{node.name}: int4 in blocks of {block} on axis {how.get('axis')}, not of rows"
        elif scale is not None and list(scale.dims) != [stored.dims[0] // block, stored.dims[1]]:
            yield f"{node.name}: not a scale for each block of rows"
        if len(node.input) > 2:
            yield f"{node.name}: a zero point; TensorRT takes int4 without one"
        yield from self.scale(node, rank=2)
        for reader in self.readers.get(node.output[0], []):
            if reader.op_type != "MatMul" or reader.input[1] != node.output[0]:
                yield f"{node.name}: goes into {reader.op_type} {reader.name}, not into a product's second side"

    def scale(self, node: NodeProto, *, rank: int) -> Iterator[str]:
        from onnx import numpy_helper

        tensor = self.weights.get(node.input[1])
        if tensor is None:
            yield f"{node.name}: its scale is computed, not stored"
            return
        if tensor.data_type != _HALF[self.half]:
            yield f"{node.name}: its scale has type {tensor.data_type}, expected {self.half}"
        if len(tensor.dims) != rank:
            yield f"{node.name}: a scale of shape {list(tensor.dims)}"
        value = numpy_helper.to_array(tensor, str(self.folder)).astype(np.float64)
        if not (np.isfinite(value).all() and (value > 0).all()):
            yield f"{node.name}: a scale that is not positive and finite"

    def zero(self, node: NodeProto, *, required: bool) -> Iterator[str]:
        """A zero point of 0 in the codes' type. QuantizeLinear needs it: without one its codes are unsigned."""
        from onnx import numpy_helper

        kind = self.recipe.kind
        if len(node.input) < 3:
            if required:
                yield f"{node.name}: no zero point, so its codes are uint8"
            return
        tensor = self.weights.get(node.input[2])
        if tensor is None or tensor.data_type != DTYPES[kind] or numpy_helper.to_array(tensor).astype(np.float32).any():
            yield f"{node.name}: its zero point is not {kind} 0"

    def products(self) -> Iterator[str]:
        """Both sides of a product in 8 bits or neither, in 4 bits only the second; and all that the recipe promises."""
        found, found_four = 0, 0
        for node in self.nodes:
            if node.op_type != "MatMul":
                continue
            sides = [self.dequantised(name) for name in node.input]
            if sides[1] == DTYPES["int4"]:
                found_four += 1
                if sides[0] is not None:
                    yield f"{node.name}: 8 bits times 4; the activation has to be float"
                continue
            if (sides[0] is None) != (sides[1] is None):
                yield f"{node.name}: only one side is 8 bits"
            found += None not in sides
        recipe = self.recipe
        if found != (promised := len(_products_of(recipe.groups - recipe.int4))):
            yield f"{found} products in 8 bits, the recipe has {promised}"
        if found_four != (promised := len(recipe.groups & recipe.int4)):
            yield f"{found_four} products with weights in 4 bits, the recipe has {promised}"

    def dequantised(self, name: str) -> int | None:
        """The type of the codes that a tensor was dequantised from, 0 where they are computed; None of a float one."""
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        stored = self.weights.get(maker.input[0])
        return 0 if stored is None else int(stored.data_type)

    def unused(self) -> Iterator[str]:
        for name in self.weights:
            if name not in self.readers:
                yield f"{name}: weight is not used"
        names = [node.name for node in self.nodes]
        if len(set(names)) != len(names) or "" in names:
            yield "node names are not unique"


def _attributes(node: NodeProto) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def _products_of(groups: frozenset[str]) -> set[str]:
    """Names of the products that groups become; both first ones of a MoAE block are one."""
    found = set()
    for group in groups:
        if group.endswith("/attn/products"):
            found |= {f"{group}/scores", f"{group}/mix"}
        else:
            found.add(group.replace("/moae/shared_in", "/moae/in").replace("/moae/adaptive_in", "/moae/in"))
    return found
