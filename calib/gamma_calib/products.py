"""The products of an exported graph that may run in 8 bits, by name, and what each takes in.

A group is what a recipe keeps or sends back: a block's QKV, its attention output, the two products of its MLP; of a
MoAE block each product is two groups, of the shared and of the adaptive experts. Patch embedding and head are found
too: they can be measured, but no recipe of ours takes them (tensorrt.md section 3.3 rule 1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gamma_calib.collect import Tap
from gamma_runtime.errors import InputError

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Attention",
    "Product",
    "count_macs",
    "find_attention",
    "find_products",
    "node_macs",
    "stream_taps",
    "taps_of",
]

_INSIDE = ("attn/qkv", "attn/out", "mlp/in", "mlp/out", "moae/in", "moae/out")
_STREAM = ("attn/add", "mlp/add", "moae/add")
_OUTSIDE = ("patch/product", "head/proj", "head/adapter_in", "head/adapter_out")


@dataclasses.dataclass(frozen=True)
class Product:
    """One group.

    Attributes:
        group: its name, e.g. ``blocks.6/moae/shared_in``.
        node: the MatMul it is, or is a part of.
        weight: that one's initializer, ``[rows, columns]``.
        rows, columns: the part of the weight that belongs to the group.
        tap: what it takes in; products with the same tap share one Q/DQ pair.
        macs: multiply-adds of one crop.
        by_default: whether a recipe takes it unless told otherwise.
    """

    group: str
    node: str
    weight: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    tap: Tap
    macs: int
    by_default: bool


def find_products(model: onnx.ModelProto) -> list[Product]:
    """All groups of a graph, in its order; weights need not be loaded.

    Raises:
        InputError: not a graph of ours.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    if "tokens.constant" not in shapes:
        raise InputError(f"graph {model.graph.name}: not made by gamma-export (it has no tokens.constant)")
    tokens = shapes["tokens.constant"][0]
    found: list[Product] = []
    for node in model.graph.node:
        inside = node.name.partition("/")[2] in _INSIDE
        if node.op_type != "MatMul" or not (inside or node.name in _OUTSIDE):
            continue
        weight = node.input[1]
        rows = 1 if node.name.startswith("head/") else tokens
        if not node.name.endswith(("moae/in", "moae/out")):
            tap = Tap(_tap_name(node), node.input[0])
            whole = (0, shapes[weight][0]), (0, shapes[weight][1])
            macs = rows * math.prod(shapes[weight])
            found.append(Product(node.name, node.name, weight, *whole, tap, macs, inside))
            continue
        experts = shapes[f"{weight.rsplit('.', 2)[0]}.out.bias"][0]  # the shared one included
        found += _halves(node, weight, shapes[weight], experts, rows)
    return found


def _halves(node: onnx.NodeProto, weight: str, shape: tuple[int, ...], experts: int, rows: int) -> list[Product]:
    """Shared and adaptive experts of a merged product: columns of the first one, rows of the second."""
    stem, _, which = node.name.rpartition("/")
    first = which == "in"
    hidden = shape[1 if first else 0] // experts
    halves = []
    for name, part in (("shared", (0, hidden)), ("adaptive", (hidden, hidden * experts))):
        group = f"{stem}/{name}_{which}"
        inputs, outputs = ((0, shape[0]), part) if first else (part, (0, shape[1]))
        tap = Tap(_tap_name(node), node.input[0]) if first else Tap(group, node.input[0], part)
        macs = rows * (inputs[1] - inputs[0]) * (outputs[1] - outputs[0])
        halves.append(Product(group, node.name, weight, inputs, outputs, tap, macs, True))
    return halves


def _tap_name(node: onnx.NodeProto) -> str:
    """The activation's name in the fp32 graph; in one with half-precision products a cast stands between."""
    return str(node.input[0]).removesuffix("/cast_product")


def taps_of(products: Sequence[Product]) -> list[Tap]:
    """What must be measured for them, each once."""
    return list({product.tap.name: product.tap for product in products}.values())


@dataclasses.dataclass(frozen=True)
class Attention:
    """Both products inside the attention of a block: FP8 fuses them where INT8 does not (tensorrt.md section 3.2).

    Attributes:
        group: its name, ``blocks.0/attn/products``.
        taps: query, key and value, columns of the packed product; the softmax needs none, it ends at 1.
        macs: multiply-adds of one crop.
    """

    group: str
    taps: tuple[Tap, ...]
    macs: int


def find_attention(model: onnx.ModelProto) -> list[Attention]:
    """The attention of every block, where it is spelled as products and not as the Attention operator."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    tokens, width = shapes["tokens.constant"]
    blocks = [n.name.partition("/")[0] for n in model.graph.node if n.name.endswith("/attn/scores")]
    return [
        Attention(
            f"{block}/attn/products",
            tuple(
                Tap(f"{block}/attn/{part}", f"{block}/attn/qkv/bias", (i * width, (i + 1) * width))
                for i, part in enumerate("qkv")
            ),
            2 * tokens * tokens * width,
        )
        for block in blocks
    ]


def stream_taps(model: onnx.ModelProto) -> list[Tap]:
    """The residual stream behind every attention and every MLP: never 8 bits, but where a ViT's outliers live."""
    names = [node.name for node in model.graph.node if node.op_type == "Add" and node.name.endswith(_STREAM)]
    return [Tap(name, name) for name in names]


def node_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-adds of one crop in each matrix product of a graph, by node; also where weights are in 8 or 4 bits."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    tokens, width = shapes["tokens.constant"]
    for node in model.graph.node:
        if node.op_type in ("Cast", "DequantizeLinear") and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    found = {}
    for node in model.graph.node:
        if node.op_type == "Attention":
            found[node.name] = 2 * tokens * tokens * width
        elif node.op_type == "MatMul" and node.input[1] in shapes:
            rows = 1 if node.name.startswith("head/") else tokens
            found[node.name] = rows * math.prod(shapes[node.input[1]])
        elif node.op_type == "MatMul":  # of two activations: attention's scores, and their mix of the values
            found[node.name] = tokens * tokens * width
    return found


def count_macs(model: onnx.ModelProto) -> int:
    """Multiply-adds of one crop in all matrix products of a graph."""
    return sum(node_macs(model).values())
