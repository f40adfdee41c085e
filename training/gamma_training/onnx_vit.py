"""A plain ViT's weights out of an ONNX graph, found by the graph's structure and never by the tensors' names.

Exporters transpose weights, name them after a counter, decompose LayerNorm and GELU, and pack q, k and v or do not.
From the last norm backwards a ViT can only be read in one way; whatever does not read like one is refused here, and
whatever was misread is found by running the file beside the module that was made of it (`gamma_training.bases`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gamma_runtime.errors import InputError
from gamma_training.dims import HEAD_WIDTH, Activation
from gamma_training.intake import shown
from gamma_training.onnx_graph import NOT_ONE, Graph, MismatchError, attributes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

__all__ = ["Vit", "find_vit"]

_SHAPE_ONLY = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Cast", "Identity", "Split", "Slice", "Gather"}
)
_QUICK_GELU = 1.702
_NO_BRANCH = "no sum of a tensor and a branch that reads its norm"


@dataclasses.dataclass(frozen=True)
class Vit:
    """What the graph says of its backbone.

    Attributes:
        image: name of the graph's input, normalised RGB [N, 3, 224, 224].
        embedding: the tensor [N, T, D] that the first block reads.
        features: the tensor [N, T, D] that the last norm makes.
        weights: float32, in OpenAI's names, without class token and position table (``embedding`` of a black image
            is the two); a LayerScale is in the weights of the product before it.
        activation: of every MLP.
        epsilon: of every norm.
    """

    image: str
    embedding: str
    features: str
    weights: dict[str, NDArray[np.float32]]
    activation: Activation
    epsilon: float


@dataclasses.dataclass(frozen=True)
class _Norm:
    source: str
    weight: Any
    bias: Any
    epsilon: float


@dataclasses.dataclass(frozen=True)
class _Linear:
    source: str
    weight: Any  # [out, in], as torch has it
    bias: Any


def find_vit(model: ModelProto) -> Vit:
    """The ViT in a graph: of all norms, the one with the most blocks of a ViT before it ends the backbone.

    Raises:
        InputError: no norm has any, or it is a ViT of another kind.
    """
    graph = Graph(model)
    best, why = _Chain("", "", [], ""), _NO_BRANCH
    for node in model.graph.node:
        try:
            source = _norm(graph, node.output[0]).source
        except NOT_ONE:
            continue
        embedding, blocks, stopped = _blocks(graph, source)
        why = stopped if not blocks and stopped != _NO_BRANCH else why
        if len(blocks) > len(best.blocks):
            best = _Chain(node.output[0], embedding, blocks, stopped)
    if not best.blocks:
        raise InputError(
            f"no ViT was found in it, blocks of x + attention(norm x), x + mlp(norm x) before a norm ({shown(why)})",
            hint="expected the ONNX file of a plain pre-norm ViT, such as DINOv2's",
        )
    if any(node.op_type == "Softmax" for node in graph.ancestors(best.embedding)):
        raise InputError(
            f"only its last {len(best.blocks)} blocks read like a ViT's, not the one before ({shown(best.stopped)})",
            hint="expected the ONNX file of a plain pre-norm ViT, such as DINOv2's",
        )
    try:
        return _assembled(graph, model, best)
    except NOT_ONE as error:
        raise InputError(f"its patches do not read like a ViT's ({shown(error)})") from error


@dataclasses.dataclass(frozen=True)
class _Chain:
    """The blocks before a norm: what it makes, what the first block reads, and why there is no block before that."""

    features: str
    embedding: str
    blocks: list[dict[str, Any]]
    stopped: str


def _blocks(graph: Graph, value: str) -> tuple[str, list[dict[str, Any]], str]:
    """What the first block reads, the blocks in order, found from the last one backwards, and why there are no more."""
    blocks: list[dict[str, Any]] = []
    while True:
        try:
            mlp, middle = _residual(graph, value, _mlp)
            attention, start = _residual(graph, middle, _attention)
        except NOT_ONE as error:
            return value, blocks[::-1], str(error)
        blocks.append({**attention, **mlp})
        value = start


def _residual(graph: Graph, value: str, read: Any) -> tuple[dict[str, Any], str]:
    """A sum of x and a branch that reads a norm of x: the branch's weights, and x."""
    problem: Exception = MismatchError(_NO_BRANCH)
    inputs = graph.makers[value].input if graph.is_op(value, "Add") else []
    for branch, stream in itertools.permutations(inputs, 2):
        with contextlib.suppress(*NOT_ONE):
            out = _scaled_linear(graph, branch)
            try:
                made, norm = read(graph, out)
            except NOT_ONE as error:
                problem = error
                continue
            if norm.source == stream:
                return made, stream
    raise problem


def _scaled_linear(graph: Graph, value: str) -> _Linear:
    """A product with a LayerScale after it, or none; folded."""
    if not graph.is_op(value, "Mul"):
        return _linear(graph, value)
    source, scale = graph.with_constant(graph.makers[value])
    scale = scale.reshape(-1).astype(np.float64)
    linear = _linear(graph, source)
    if scale.size not in (1, len(linear.weight)):
        raise MismatchError(f"{value}: a scale of {scale.size} values")
    return _Linear(linear.source, linear.weight * scale[:, None], linear.bias * scale)


def _linear(graph: Graph, value: str) -> _Linear:
    """MatMul and Add, or Gemm; float64, [out, in]."""
    bias: Any = None
    if graph.is_op(value, "Reshape") and graph.is_op(graph.makers[value].input[0], "Gemm"):
        value = graph.makers[value].input[0]
    if graph.is_op(value, "Gemm"):
        node = graph.makers[value]
        facts = attributes(node)
        weight, source = graph.constant(node.input[1]), node.input[0]
        source = graph.makers[source].input[0] if graph.is_op(source, "Reshape") else source
        bias = graph.constant(node.input[2]) if len(node.input) > 2 else None
        if facts.get("alpha", 1.0) != 1.0 or facts.get("beta", 1.0) != 1.0 or facts.get("transA", 0):
            raise MismatchError(f"{node.name}: a Gemm of another kind")
        weight = weight if weight is None or facts.get("transB", 0) else weight.T
    else:
        if graph.is_op(value, "Add"):
            value, bias = graph.with_constant(graph.makers[value])
        source, weight = graph.with_constant(graph.op(value, "MatMul"))
        weight = weight.T
    if weight is None or weight.ndim != 2 or (bias is not None and bias.size != len(weight)):
        raise MismatchError(f"{value}: not a product with a matrix and a bias")
    weight = weight.astype(np.float64)
    return _Linear(source, weight, np.zeros(len(weight)) if bias is None else bias.reshape(-1).astype(np.float64))


def _norm(graph: Graph, value: str) -> _Norm:
    """LayerNormalization, or what it was decomposed to."""
    if graph.is_op(value, "LayerNormalization"):
        node = graph.makers[value]
        weight, bias = (graph.constant(name) for name in node.input[1:3])
        if weight is None or bias is None:
            raise MismatchError(f"{node.name}: its weights are not constant")
        return _Norm(node.input[0], weight, bias, _short(attributes(node).get("epsilon", 1e-5)))
    scaled, bias = graph.with_constant(graph.op(value, "Add"))
    unit, weight = graph.with_constant(graph.op(scaled, "Mul"))
    centred, deviation = graph.op(unit, "Div").input
    source, mean = graph.op(centred, "Sub").input
    squares, epsilon = graph.with_constant(graph.op(graph.op(deviation, "Sqrt").input[0], "Add"))
    graph.op(squares, "ReduceMean")
    if graph.op(mean, "ReduceMean").input[0] != source or weight.ndim != 1 or epsilon.size != 1:
        raise MismatchError(f"{value}: not a LayerNorm")
    return _Norm(source, weight, bias, _short(epsilon.reshape(())))


def _short(value: Any) -> float:
    """A float32 as it was meant: 1e-6, not 9.99999997e-7."""
    return float(f"{float(value):.6g}")


def _mlp(graph: Graph, out: _Linear) -> tuple[dict[str, Any], _Norm]:
    activation, source = _activation(graph, out.source)
    into = _linear(graph, source)
    return {"mlp.c_fc": into, "mlp.c_proj": out, "ln_2": (norm := _norm(graph, into.source)), "act": activation}, norm


def _activation(graph: Graph, value: str) -> tuple[Activation, str]:
    """Which it is, and what it reads: ``Gelu``, or a product of x, a function of x and numbers."""
    if graph.is_op(value, "Gelu"):
        node = graph.makers[value]
        if attributes(node).get("approximate", b"none") != b"none":
            raise MismatchError(f"{node.name}: GELU by tanh")
        return "gelu", node.input[0]
    graph.op(value, "Mul")
    factor, parts = _factors(graph, value)
    for gate, source in (parts, parts[::-1]) if len(parts) == 2 else ():
        if graph.is_op(gate, "Sigmoid"):
            inner, slope = _affine(graph, graph.makers[gate].input[0])
            if inner == source and math.isclose(factor, 1) and math.isclose(slope, _QUICK_GELU, rel_tol=1e-4):
                return "quick_gelu", source
        elif graph.is_op(gate, "Add"):
            erf, one = graph.with_constant(graph.makers[gate])
            inner, slope = _affine(graph, graph.op(erf, "Erf").input[0])
            right = math.isclose(slope, math.sqrt(0.5), rel_tol=1e-4) and math.isclose(factor, 0.5)
            if inner == source and right and np.all(one == 1):
                return "gelu", source
    raise MismatchError(f"{value}: neither GELU nor QuickGELU")


def _factors(graph: Graph, value: str) -> tuple[float, list[str]]:
    """A product of products: its numbers multiplied, and the tensors."""
    factor, parts = 1.0, []
    stack = [value]
    while stack:
        name = stack.pop()
        if (array := graph.constant(name)) is not None:
            if array.size != 1:
                raise MismatchError(f"{name}: a number expected")
            factor *= float(array.reshape(()))
        elif graph.is_op(name, "Mul"):
            stack.extend(graph.makers[name].input)
        else:
            parts.append(name)
    return factor, parts


def _affine(graph: Graph, value: str) -> tuple[str, float]:
    """A tensor times or over a number: the tensor and the factor."""
    node = graph.makers.get(value)
    if node is None or node.op_type not in ("Mul", "Div"):
        return value, 1.0
    source, number = graph.with_constant(node)
    if number.size != 1 or (node.op_type == "Div" and node.input[0] != source):
        raise MismatchError(f"{node.name}: not a tensor times a number")
    factor = float(number.reshape(()))
    return source, factor if node.op_type == "Mul" else 1 / factor


def _attention(graph: Graph, out: _Linear) -> tuple[dict[str, Any], _Norm]:
    """Softmax(q k^T / 8) v of separate or packed products."""
    mix = graph.op(_through(graph, out.source)[0], "MatMul")
    shares = graph.op(_through(graph, mix.input[0])[0], "Softmax")
    logits, scale = _through(graph, shares.input[0])
    product = graph.op(logits, "MatMul")
    sources = []
    for name in product.input:
        source, factor = _through(graph, name)
        scale *= factor
        sources.append(source)
    sources.append(_through(graph, mix.input[1])[0])
    if not math.isclose(scale, HEAD_WIDTH**-0.5, rel_tol=1e-4):
        raise MismatchError(f"{product.name}: scaled by {scale:.4g}; Gamma's heads are {HEAD_WIDTH} wide")
    linears = [_linear(graph, source) for source in dict.fromkeys(sources)]
    if len({linear.source for linear in linears}) != 1:
        raise MismatchError(f"{product.name}: q, k and v of different tensors")
    packed = _Linear(
        linears[0].source,
        np.concatenate([linear.weight for linear in linears]),
        np.concatenate([linear.bias for linear in linears]),
    )
    if packed.weight.shape != (3 * packed.weight.shape[1], len(out.weight)):
        raise MismatchError(f"{product.name}: q, k and v are {packed.weight.shape}")
    return {"attn.in_proj": packed, "attn.out_proj": out, "ln_1": (norm := _norm(graph, packed.source))}, norm


def _through(graph: Graph, value: str) -> tuple[str, float]:
    """Back over nodes that only move values or multiply them by a number: where they come from, and the number."""
    factor = 1.0
    while (node := graph.makers.get(value)) is not None:
        if node.op_type in _SHAPE_ONLY:
            value = node.input[0]
        elif node.op_type in ("Mul", "Div"):
            value, number = _affine(graph, value)
            factor *= number
        else:
            break
    return value, factor


def _assembled(graph: Graph, model: ModelProto, found: _Chain) -> Vit:
    """The parts under OpenAI's names, once they agree on activation and epsilon."""
    image, patches = _patches(graph, model, found.embedding)
    blocks = found.blocks
    norms = {f"visual.transformer.resblocks.{i}.{k}": b[k] for i, b in enumerate(blocks) for k in ("ln_1", "ln_2")}
    norms["visual.ln_post"] = _norm(graph, found.features)
    activations = {block["act"] for block in blocks}
    epsilons = {norm.epsilon for norm in norms.values()}
    if len(activations) != 1 or len(epsilons) != 1:
        raise InputError(
            f"its blocks differ: activations {sorted(activations)}, LayerNorm epsilons {sorted(epsilons)}",
            hint="a Gamma's tower has one of each",
        )
    weights: dict[str, Any] = {"visual.conv1.weight": patches}
    for name, norm in norms.items():
        weights |= {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}
    for index, block in enumerate(blocks):
        for part, join in (("attn.in_proj", "_"), ("attn.out_proj", "."), ("mlp.c_fc", "."), ("mlp.c_proj", ".")):
            name = f"visual.transformer.resblocks.{index}.{part}{join}"
            weights |= {f"{name}weight": block[part].weight, f"{name}bias": block[part].bias}
    return Vit(
        image,
        found.embedding,
        found.features,
        {name: np.array(value, dtype=np.float32, order="C") for name, value in weights.items()},
        activations.pop(),
        epsilons.pop(),
    )


def _patches(graph: Graph, model: ModelProto, embedding: str) -> tuple[str, Any]:
    """The image input and the patch product's weights; its bias shows in the embedding of a black image."""
    convolutions = [node for node in graph.ancestors(embedding) if node.op_type == "Conv"]
    if len(convolutions) != 1:
        raise InputError(f"{len(convolutions)} Conv nodes before its first block, expected one that makes the patches")
    node = convolutions[0]
    facts, weight = attributes(node), graph.constant(node.input[1])
    image = _through(graph, node.input[0])
    side = 0 if weight is None or weight.ndim != 4 else weight.shape[-1]
    plain = not any(facts.get("pads", [0])) and facts.get("group", 1) == 1 and set(facts.get("dilations", [1])) == {1}
    if not plain or weight is None or weight.shape[1:] != (3, side, side) or facts.get("strides") != [side, side]:
        raise InputError(f"{shown(node.name)}: not a product of square patches that lie side by side")
    if image not in {(value.name, 1.0) for value in model.graph.input}:
        raise InputError(
            f"{shown(node.name)}: the patches are not cut from the graph's own input",
            hint="the graph must take normalised RGB; what comes before is in --mean and --std",
        )
    return image[0], weight
