"""What every exported graph must be, checked on the file's own bytes; onnx.checker knows nothing of these rules."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_calib.external import DTYPES
from gamma_export.graph import IR_VERSION
from gamma_runtime.contract import CROP
from gamma_runtime.errors import InputError

if TYPE_CHECKING:
    import onnx

    from gamma_export.vision import GraphOptions
    from gamma_training.dims import GammaDims

__all__ = ["check_graph", "lint"]

# Nothing decomposes a LayerNorm (Pow, Sqrt), depends on data or shapes (NonZero, Shape, If, Loop), or resizes.
OPS = frozenset(
    [
        "Add",
        "Attention",
        "Cast",
        "Concat",
        "Div",
        "Erf",
        "Gather",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "Pad",
        "ReduceL2",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Sub",
        "Transpose",
    ]
)
ATTENTION_PRODUCTS = ("scores", "mix")
_GATES = {"quick_gelu": "Sigmoid", "gelu": "Erf"}  # the operator at the heart of each activation


def check_graph(path: Path, dims: GammaDims, options: GraphOptions) -> None:
    """onnx.checker's full check with shape inference, then `lint`.

    Raises:
        InputError: the graph breaks a rule; all broken rules are listed.
    """
    import onnx

    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    if faults := list(lint(inferred, dims, options)):
        raise InputError(f"{path.name}: " + "; ".join(faults))


def lint(model: onnx.ModelProto, dims: GammaDims, options: GraphOptions) -> Iterator[str]:
    """One sentence for each broken rule.

    Args:
        model: with shapes and types inferred; weights need not be loaded.
        dims: what the graph was built from.
        options: what was asked for.
    """
    yield from _versions(model, options)
    yield from _ops(model)
    types = _types(model)
    yield from _norms(model, types, dims)
    yield from _activations(model, dims)
    yield from _products(model, types, dims, options)
    yield from _casts(model, types, dims, options)
    yield from _weights(model, dims)
    yield from _shapes(model, options)
    yield from _cuts(model, options)


def _versions(model: onnx.ModelProto, options: GraphOptions) -> Iterator[str]:
    if model.ir_version != IR_VERSION:
        yield f"ir_version {model.ir_version}, expected {IR_VERSION}"
    opsets = [(o.domain, o.version) for o in model.opset_import]
    if opsets != [("", options.opset)]:
        yield f"opsets {opsets}, expected only the standard one at {options.opset}"


def _ops(model: onnx.ModelProto) -> Iterator[str]:
    for node in model.graph.node:
        if node.op_type not in OPS or node.domain:
            yield f"{node.name}: operator {node.domain or ''}{node.op_type} is not allowed"
    names = [node.name for node in model.graph.node]
    if len(set(names)) != len(names) or "" in names:
        yield "node names are not unique"


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    found = {i.name: i.data_type for i in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        found[value.name] = value.type.tensor_type.elem_type
    return found


def _norms(model: onnx.ModelProto, types: dict[str, int], dims: GammaDims) -> Iterator[str]:
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    expected = 2 * dims.vision.layers + 1 + dims.ln_pre
    if len(norms) != expected:
        yield f"{len(norms)} LayerNormalization nodes, expected {expected}"
    for node in norms:
        if any(types.get(name) != DTYPES["fp32"] for name in (*node.input, *node.output)):
            yield f"{node.name}: LayerNormalization is not in fp32"
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        if not math.isclose(epsilon, dims.vision.epsilon, rel_tol=1e-6):
            yield f"{node.name}: epsilon {epsilon:.3g}, expected {dims.vision.epsilon:.3g}"


def _activations(model: onnx.ModelProto, dims: GammaDims) -> Iterator[str]:
    """One in every block, and all of the checkpoint's own kind."""
    found = Counter(node.op_type for node in model.graph.node if node.op_type in _GATES.values())
    if found != Counter({_GATES[dims.vision.activation]: dims.vision.layers}):
        yield f"activations by {dict(found)}, expected {dims.vision.layers} of {_GATES[dims.vision.activation]}"


def _products(model: onnx.ModelProto, types: dict[str, int], dims: GammaDims, options: GraphOptions) -> Iterator[str]:
    """Asked fp16 means that the products are fp16: all but the head's, which are fp32."""
    moae = dims.vision.layers - dims.vision.first_moae
    attention = 0 if options.attention == "op" else len(ATTENTION_PRODUCTS)
    body = 1 + dims.vision.layers * (4 + attention) + 2 * moae  # patch; qkv, out, in, out; gate and output bias
    head = 4  # projection, two adapter layers, logits
    counted: Counter[bool] = Counter()
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Attention"):
            continue
        in_head = node.name.startswith("head/")
        counted[in_head] += node.op_type == "MatMul"
        wanted = "fp32" if in_head else options.precision
        if {types.get(name) for name in (*node.input, *node.output)} != {DTYPES[wanted]}:
            yield f"{node.name}: product is not in {wanted}"
    if counted != Counter({False: body, True: head}):
        yield f"{counted[False]} products and {counted[True]} in the head, expected {body} and {head}"


def _casts(model: onnx.ModelProto, types: dict[str, int], dims: GammaDims, options: GraphOptions) -> Iterator[str]:
    """Every Cast has a reason in its name and goes between the types that the reason stands for."""
    half, residual = options.precision, options.residual if options.precision != "fp32" else "fp32"
    reasons = {
        "pixels": ("uint8", half),
        "norm": (None, "fp32"),
        "ln_1": (residual, "fp32"),
        "ln_2": (residual, "fp32"),
        "softmax": (half, "fp32"),
        "product": ("fp32", half),
        "residual": (None, residual),
    }
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type != "Cast":
            continue
        reason = node.name.rsplit("/cast_", 1)[-1]
        seen[reason] += 1
        if reason not in reasons:
            yield f"{node.name}: a Cast without a reason"
            continue
        source, target = (types.get(name) for name in (node.input[0], node.output[0]))
        wanted_source, wanted = reasons[reason]
        if target != DTYPES[wanted] or (wanted_source and source != DTYPES[wanted_source]) or source == target:
            yield f"{node.name}: casts {source} to {target}"
    if half == "fp32" and seen != Counter({"pixels": 1}):
        yield f"casts in an fp32 graph: {dict(seen)}"
    if half != "fp32" and (expected := _cast_count(dims, options)) != sum(seen.values()):
        yield f"{sum(seen.values())} casts, expected {expected}: {dict(seen)}"


def _cast_count(dims: GammaDims, options: GraphOptions) -> int:
    layers, moae = dims.vision.layers, dims.vision.layers - dims.vision.first_moae
    count = 2 + 2 * layers + 2 * moae  # pixels, patch to norm; norms to products; gate softmax there and back
    count += 0 if options.attention == "op" else 2 * layers  # attention softmax there and back
    if options.residual == "fp32":
        return count + 2 * layers  # products to the residual stream
    return count + 1 + 2 * layers + 1  # the tokens to it, it to every norm


def _weights(model: onnx.ModelProto, dims: GammaDims) -> Iterator[str]:
    """Every weight is used, lies in one file beside the graph, and every expert is there."""
    used = {name for node in model.graph.node for name in node.input}
    locations = set()
    for tensor in model.graph.initializer:
        if tensor.name not in used:
            yield f"{tensor.name}: weight is not used"
        fields = {entry.key: entry.value for entry in tensor.external_data}
        if fields:
            locations.add(fields.get("location", ""))
    if len(locations) != 1 or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", next(iter(locations), "")):
        yield f"external data in {sorted(locations)}, expected one file beside the graph"
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    tower = dims.vision
    wide = tower.hidden * (1 + tower.experts)
    for index in range(tower.first_moae, tower.layers):
        found = shapes.get(f"blocks.{index}.moae.in.weight"), shapes.get(f"blocks.{index}.moae.out.weight")
        if found != ((tower.width, wide), (wide, tower.width)):
            yield f"block {index}: expert products {found}, expected 1 shared and {tower.experts} adaptive experts"


def _shapes(model: onnx.ModelProto, options: GraphOptions) -> Iterator[str]:
    """Only N may be dynamic, and only when a range was asked for."""
    dynamic = options.batch[0] != options.batch[2]
    for value in (*model.graph.input, *model.graph.output):
        dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        first_ok = dims[0] == "N" if dynamic else dims[0] == options.batch[0]
        if not first_ok or any(not isinstance(d, int) or d < 1 for d in dims[1:]):
            yield f"{value.name}: shape {dims} does not fit batch {options.batch}"
    if not dynamic:
        for value in model.graph.value_info:
            if any(not d.HasField("dim_value") for d in value.type.tensor_type.shape.dim):
                yield f"{value.name}: not a static shape"


def _cuts(model: onnx.ModelProto, options: GraphOptions) -> Iterator[str]:
    """The first node is the input's Cast; crops are cut where the contract says, and only out of frames."""
    from onnx import numpy_helper

    readers = [node.op_type for node in model.graph.node if set(node.input) & {i.name for i in model.graph.input}]
    if readers != ["Cast"] or model.graph.node[0].op_type != "Cast":
        yield f"the input goes to {readers}; TensorRT wants one Cast in front"
    constants = {t.name: t for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type == "Slice":
            start, end, axes = (numpy_helper.to_array(constants[name]).tolist() for name in node.input[1:])
            found.append((start, end, axes))
    wanted = [([y, x], [y + CROP, x + CROP], [1, 2]) for y, x in options.places]
    if found != wanted:
        yield f"crops are cut at {found}, expected {wanted}"
    concats = [len(node.input) for node in model.graph.node if node.op_type == "Concat"]
    if concats != ([len(wanted)] if len(wanted) > 1 else []):
        yield f"Concat of {concats}, expected one of {len(wanted)} crops"
