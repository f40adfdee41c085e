"""An exported graph with Q/DQ pairs around its linear layers, and the int8 weights that go with it (tensorrt.md 3.3).

Symmetric everywhere, no zero point but 0, weights a scale for each output channel, activations one scale; biases stay
float. As an experiment, groups whose weights alone are rounded, to 4 bits, and whose activations stay float.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gamma_calib.external import DTYPES, Entry, WeightsFile, numpy_type
from gamma_calib.products import Product, find_products
from gamma_calib.rounding import LEVELS, fp16_scale, int4_block, quantise_blocks, quantise_weight
from gamma_calib.smooth import readers
from gamma_runtime.errors import InputError

if TYPE_CHECKING:
    import onnx
    from onnx import NodeProto, TensorProto

__all__ = ["Recipe", "Source", "entries", "packed", "place"]

_ZERO = "qdq.zero"
_FLOATS = ("fp32", "fp16")
_INT4_OPSET = 21  # the first with int4 and with scales for blocks
_IN, _OUT = "moae/in", "moae/out"
_INSIDE = {"scores": ("q", "k"), "mix": ("softmax", "v")}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What runs in 8 bits, and how its activations are scaled.

    Attributes:
        groups: of `find_products`, and for fp8 of `find_attention`.
        ranges: by tap name, the largest |activation| that is represented.
        kind: ``int8``, or ``fp8`` for E4M3.
        smooth: `gamma_calib.smooth.smoothing`; none where it is empty.
        int4: those of the groups of which only the weights are rounded, to 4 bits in blocks of rows.
    """

    groups: frozenset[str]
    ranges: Mapping[str, float]
    kind: str = "int8"
    smooth: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    int4: frozenset[str] = frozenset()

    def scale(self, tap: str) -> float:
        """The step between two codes.

        Raises:
            InputError: nothing is known of that activation.
        """
        if tap not in self.ranges:
            raise InputError(f"no range for {tap}", hint="calibrate the graph that is quantised")
        return float(fp16_scale(np.array(self.ranges[tap] / LEVELS[self.kind])))


@dataclasses.dataclass(frozen=True)
class Source:
    """An exported fp32 graph: what the weights are read from.

    ``scales``: of the MoAE blocks, by the block's name (``blocks.6``); they are in the weights of the second products,
    and leave them in INT8 (merged, per-tensor INT8 would round the experts away).
    """

    model: onnx.ModelProto
    folder: Path
    scales: Mapping[str, float]
    smooth: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    def value(self, name: str) -> NDArray[np.float32]:
        """An initializer, read from the weights file, and smoothed."""
        from onnx import numpy_helper

        tensor = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        value: NDArray[np.float32] = np.asarray(numpy_helper.to_array(tensor, str(self.folder)), np.float32)
        norm, _, part = name.rpartition(".")
        if norm in self.smooth and part in ("weight", "bias"):
            return np.asarray(value / np.array(self.smooth[norm]), np.float32)
        block = ".".join(name.split(".")[:2])
        for norm in (f"{block}.ln_1", f"{block}.ln_2"):
            if norm in self.smooth and name in readers(norm):
                return np.asarray(value * np.array(self.smooth[norm])[:, None], np.float32)
        return value

    def part(self, product: Product) -> NDArray[np.float32]:
        """A group's own weights; the block's scale is taken out of the adaptive experts' second product."""
        value = self.value(product.weight)[slice(*product.rows), slice(*product.columns)]
        if product.node.endswith(_OUT) and product.rows[0] > 0 and (scale := self.scale(product)) != 0:
            value = (value.astype(np.float64) / scale).astype(np.float32)
        return value

    def scale(self, product: Product) -> float:
        """The scale of the product's block."""
        block = product.node.partition("/")[0]
        if block not in self.scales:
            raise InputError(f"the scale of {block}'s experts is not known", hint="export the checkpoint again")
        return self.scales[block]


def entries(source: Source, recipe: Recipe, rest: str) -> Iterator[Entry]:
    """The tensors that a graph with the recipe's pairs needs instead of those it had.

    ``rest``: type of the parts of a split product that stay float.
    """
    source = dataclasses.replace(source, smooth=recipe.smooth)
    for node, products in _by_node(source.model).items():
        for name, parts in _pieces(node, products, recipe):
            if parts[0].group in recipe.groups:
                yield from _codes(name, source, parts, "int4" if parts[0].group in recipe.int4 else recipe.kind)
            elif len(products) > 1:
                yield Entry(name, rest, _shape(parts), lambda p=parts: _joined(source, p))  # type: ignore[misc]


def packed(model: onnx.ModelProto, source: Source, recipe: Recipe) -> Iterator[Entry]:
    """A whole weights file: `entries`, and in the types of ``model``, an fp16 graph, what stays as it was."""
    yield from entries(source, recipe, "fp16")
    source = dataclasses.replace(source, smooth=recipe.smooth)
    types = {number: name for name, number in DTYPES.items()}
    replaced = {
        p.weight for node, products in _by_node(model).items() if _pieces(node, products, recipe) for p in products
    }
    for tensor in model.graph.initializer:
        if tensor.external_data and tensor.name not in replaced:
            dtype, name = types[tensor.data_type], tensor.name
            yield Entry(name, dtype, tuple(tensor.dims), lambda name=name: source.value(name))  # type: ignore[misc]


def _codes(name: str, source: Source, parts: Sequence[Product], kind: str) -> Iterator[Entry]:
    shape = _shape(parts)
    scale: dict[str, NDArray[np.float16]] = {}

    def codes() -> NDArray[Any]:
        joined = _joined(source, parts)
        made, scale["fp16"] = quantise_blocks(joined) if kind == "int4" else quantise_weight(joined, kind)
        return made

    yield Entry(name, kind, shape, codes)  # written first, so the scales are there when theirs are
    for dtype in ("fp16", "fp32"):
        blocks = (shape[0] // int4_block(shape[0]),) if kind == "int4" else ()
        yield Entry(f"{name}.scale_{dtype}", dtype, (*blocks, shape[1]), lambda: scale["fp16"])


def _joined(source: Source, parts: Sequence[Product]) -> NDArray[np.float32]:
    return np.concatenate([source.part(part) for part in parts], axis=1)


def _shape(parts: Sequence[Product]) -> tuple[int, int]:
    return parts[0].rows[1] - parts[0].rows[0], sum(part.columns[1] - part.columns[0] for part in parts)


def _by_node(model: onnx.ModelProto) -> dict[str, list[Product]]:
    found: dict[str, list[Product]] = {}
    for product in find_products(model):
        found.setdefault(product.node, []).append(product)
    return found


def _pieces(node: str, products: list[Product], recipe: Recipe) -> list[tuple[str, list[Product]]]:
    """The products that a MatMul becomes, each with its weight's name; none where it stays as it is."""
    chosen = [product for product in products if product.group in recipe.groups]
    if not chosen:
        return []
    alike = len(chosen) == len(products) and len({product.group in recipe.int4 for product in chosen}) == 1
    if len(products) == 1 or (node.endswith(_IN) and alike):
        return [(products[0].weight, products)]
    return [(f"{p.weight.removesuffix('.weight')}.{p.group.rpartition('/')[2]}.weight", [p]) for p in products]


def place(model: onnx.ModelProto, source: Source, recipe: Recipe, file: WeightsFile, half: str) -> onnx.ModelProto:
    """The graph with the recipe's Q/DQ pairs; its weights come from ``file`` where that has them.

    Args:
        model: as exported, decomposed or with the Attention op; not changed.
        source: the fp32 graph that ``file`` was made from.
        recipe: what becomes 8 bits.
        file: has at least `entries`; a weight that it holds in fp16 is cast where the graph wants fp32.
        half: type of the graph's products, ``fp16`` or ``fp32``.

    Raises:
        InputError: a range is not known.
    """
    return _Placer(model, source, recipe, file, half).graph()


class _Placer:
    def __init__(self, model: onnx.ModelProto, source: Source, recipe: Recipe, file: WeightsFile, half: str) -> None:
        self.model, self.source, self.recipe, self.file, self.half = model, source, recipe, file, half
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.pairs: dict[str, str] = {}  # tap -> its dequantised activation

    def graph(self) -> onnx.ModelProto:
        import onnx

        products = _by_node(self.model)
        for node in self.model.graph.node:
            pieces = _pieces(node.name, products.get(node.name, []), self.recipe)
            if not pieces:
                kept = onnx.NodeProto()
                kept.CopyFrom(node)
                self.attention(kept)
                self.nodes.append(kept)
                self.guard(kept)
            elif len(pieces) == 1:
                self.product(node.name, node.input[0], *pieces[0])
            else:
                (self.split_in if node.name.endswith(_IN) else self.split_out)(node, pieces)
        self.nodes[1:1] = self.casts()  # the input's Cast stays first
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        for field in ("node", "initializer", "value_info"):
            result.graph.ClearField(field)
        result.graph.node.extend(self.nodes)
        result.graph.initializer.extend(self.initializers())
        if self.recipe.int4 & self.recipe.groups:
            result.opset_import[0].version = max(_INT4_OPSET, result.opset_import[0].version)
        return result

    def guard(self, node: NodeProto) -> None:
        """max(pixel, -1) of pixels in -1 to 1: it changes nothing, and OpenVINO does not look through it.

        It takes the pixels' Sub and Mul for a dequantisation, moves them through the patches' reshapes, and where the
        batch is a range fails on constants of its own.
        """
        if node.name == "patch/mul":
            name, scaled = node.output[0], f"{node.name}/scaled"
            node.output[0] = node.name = scaled
            self.node("Max", name, [scaled, self.constant("qdq.least_pixel", np.array(-1.0), self.half)])

    def attention(self, node: NodeProto) -> None:
        """Both sides of the products inside attention in 8 bits, the softmax's too, or TensorRT does not fuse them."""
        block, _, name = node.name.partition("/attn/")
        if name in _INSIDE and f"{block}/attn/products" in self.recipe.groups:
            for index, part in enumerate(_INSIDE[name]):
                node.input[index] = self.pair(node.input[index], f"{block}/attn/{part}")

    # The products.

    def product(self, name: str, x: str, weight: str, parts: Sequence[Product]) -> str:
        """``name`` = x times the weight, in 8 bits if the recipe says so, or with the weight in 4."""
        group, rows = parts[0].group, parts[0].rows
        if group in self.recipe.groups:
            how: dict[str, Any] = {"axis": 1}
            if group in self.recipe.int4:
                how = {"axis": 0, "block_size": int4_block(rows[1] - rows[0])}
            else:
                x = self.pair(x, parts[0].tap.name)
            weight = self.node("DequantizeLinear", f"{weight}/dequantised", [weight, self.scale_of(weight)], **how)
        return self.node("MatMul", name, [x, weight])

    def split_in(self, node: NodeProto, pieces: Sequence[tuple[str, list[Product]]]) -> None:
        """Shared and adaptive experts apart, in different precisions, one beside the other."""
        halves = [self.product(parts[0].group, node.input[0], name, parts) for name, parts in pieces]
        self.node("Concat", node.name, halves, axis=1)

    def split_out(self, node: NodeProto, pieces: Sequence[tuple[str, list[Product]]]) -> None:
        """Shared + scale * adaptive: the scale behind the product, where it rounds nothing away."""
        sizes = np.array([parts[0].rows[1] - parts[0].rows[0] for _, parts in pieces])
        rows = [f"{node.name}/{part}_rows" for part in ("shared", "adaptive")]
        self.node("Split", rows[0], [node.input[0], self.constant(f"{node.name}/sizes", sizes, "int64")], rows, axis=1)
        shared, adaptive = (
            self.product(parts[0].group, x, name, parts) for x, (name, parts) in zip(rows, pieces, strict=True)
        )
        scale = self.constant(f"{node.name}/scale", np.array(self.source.scale(pieces[1][1][0])), self.half)
        scaled = self.node("Mul", f"{node.name}/scaled", [adaptive, scale])
        self.node("Add", node.name, [shared, scaled])

    def pair(self, x: str, tap: str) -> str:
        """One Q/DQ pair for all that take the same activation in."""
        if tap not in self.pairs:
            scale = self.constant(f"{tap}/scale", np.array(self.recipe.scale(tap)), self.half)
            zero = self.constant(_ZERO, np.array(0), self.recipe.kind)
            codes = self.node("QuantizeLinear", f"{tap}/quantised", [x, scale, zero])
            self.pairs[tap] = self.node("DequantizeLinear", f"{tap}/dequantised", [codes, scale, zero])
        return self.pairs[tap]

    # The pieces.

    def node(self, op: str, name: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, list(inputs), list(outputs) or [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[Any], dtype: str) -> str:
        from onnx import helper

        cast = value.astype(numpy_type(dtype))
        self.constants[name] = helper.make_tensor(name, DTYPES[dtype], cast.shape, cast.tobytes(), raw=True)
        return name

    def scale_of(self, weight: str) -> str:
        return f"{weight}.scale_{self.half}"

    def casts(self) -> list[NodeProto]:
        """Weights that the file holds in fp16 and this graph wants in fp32; libraries fold them when they load it."""
        from onnx import helper

        own = {tensor.name: tensor.data_type for tensor in self.model.graph.initializer}
        made: dict[str, NodeProto] = {}
        for node in self.nodes:
            for index, name in enumerate(node.input):
                place, wanted = self.file.places.get(name), own.get(name, DTYPES[self.half])
                if place and place.dtype in _FLOATS and DTYPES[place.dtype] != wanted:
                    cast = f"{name}/cast_weight"
                    made[cast] = helper.make_node("Cast", [name], [cast], name=cast, to=wanted)
                    node.input[index] = cast
        return list(made.values())

    def initializers(self) -> Iterator[TensorProto]:
        """Those that are used: from the file, of our own, or the graph's."""
        own = {tensor.name: tensor for tensor in self.model.graph.initializer} | self.constants
        for name in dict.fromkeys(name for node in self.nodes for name in node.input):
            if name in self.file.places:
                yield self.file.reference(name)
            elif name in own:
                yield own[name]
