"""Runs an exported graph node by node in PyTorch, with each node's own arithmetic: the yardstick for GPUs.

CPU runtimes emulate fp16 and bf16: they widen to fp32 and keep what they fused unrounded. Here the result of every
node is rounded to the node's own type, on whatever device torch has. Inside one node torch does what its kernels do: a
half-precision product or softmax accumulates in fp32 and rounds once. Nothing is fused and nothing is widened unless
the graph says so. Exactly the operators of `gamma_export.lint.OPS` are known, and those of graphs with 8 bits; anything
else is refused. A product of dequantised values is computed in their floating type, as the graph says; what an integer
kernel computes in its stead differs by rounding only.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from numpy.typing import NDArray
from torch import Tensor

from gamma_runtime.errors import InputError

__all__ = ["EIGHT_BITS", "HANDLERS", "Interpreter", "exact_products"]

TYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    onnx.TensorProto.INT4: torch.int8,  # unpacked
}
EIGHT_BITS = frozenset(["DequantizeLinear", "Max", "QuantizeLinear"])
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
Observer = Callable[[str, Tensor], None]


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Switch off what CUDA may do behind a product's back: TF32, and half-precision accumulation and reduction."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    switches = [
        (matmul, "allow_tf32"),
        (cudnn, "allow_tf32"),
        (matmul, "allow_fp16_reduced_precision_reduction"),
        (matmul, "allow_bf16_reduced_precision_reduction"),
        (matmul, "allow_fp16_accumulation"),
    ]
    before = [getattr(home, name) for home, name in switches]
    for home, name in switches:
        setattr(home, name, False)
    try:
        yield
    finally:
        for (home, name), value in zip(switches, before, strict=True):
            setattr(home, name, value)


def _attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """The operator's definition spelled out, every step in q's type: [B, h, T, d] each."""
    root = math.sqrt(scale)
    shares = torch.softmax((q * root) @ (k * root).transpose(-1, -2), dim=-1)
    return shares @ v


def _cast(x: Tensor, *, to: int) -> Tensor:
    return x.to(TYPES[to])


def _quantize(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Saturating, to the nearest code, ties to even; the zero point is 0 and says which codes."""
    steps = x.float() / scale.float()
    least = -128.0 if zero.dtype == torch.int8 else -_LARGEST[zero.dtype]
    steps = (steps.round() if zero.dtype == torch.int8 else steps).clamp(least, _LARGEST[zero.dtype])
    return steps.to(zero.dtype)


def _dequantize(
    codes: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0
) -> Tensor:
    """In the scale's type; a scale for each column, or one for all, or one for each block of rows of a column."""
    if block_size and axis == 0 and scale.ndim == 2:
        scale = scale.repeat_interleave(block_size, dim=0)
    elif axis != 1 or scale.ndim > 1:
        raise InputError(f"DequantizeLinear over axis {axis}, scale of {scale.ndim} dimensions")
    return codes.to(scale.dtype) * scale


def _gather(x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    picked = x.index_select(axis, indices.flatten().to(x.device))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, axis: int, epsilon: float, stash_type: int) -> Tensor:
    if axis not in (-1, x.ndim - 1):
        raise InputError(f"LayerNormalization over axis {axis}: only the last is known")
    normal = F.layer_norm(x.to(TYPES[stash_type]), (x.shape[-1],), eps=epsilon)
    return normal.to(x.dtype) * weight + bias


def _pad(x: Tensor, pads: Tensor, value: Tensor | None = None) -> Tensor:
    rank = x.ndim
    pairs = [int(pads[side * rank + axis]) for axis in reversed(range(rank)) for side in (0, 1)]
    return F.pad(x, pairs, value=0.0 if value is None else float(value))


def _reduce_l2(x: Tensor, axes: Tensor, *, keepdims: int) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, dim=axes.tolist(), keepdim=bool(keepdims))
    return length


def _reduce_mean(x: Tensor, axes: Tensor, *, keepdims: int) -> Tensor:
    return x.mean(dim=axes.tolist(), keepdim=bool(keepdims))


def _reduce_sum(x: Tensor, axes: Tensor, *, keepdims: int) -> Tensor:
    return x.sum(dim=axes.tolist(), keepdim=bool(keepdims))


def _reshape(x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())])


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor) -> Tensor:
    for axis, start, end in zip(axes.tolist(), starts.tolist(), ends.tolist(), strict=True):
        x = x.narrow(axis, start, end - start)
    return x


def _softmax(x: Tensor, *, axis: int) -> Tensor:
    return torch.softmax(x, dim=axis)


def _split(x: Tensor, sizes: Tensor, *, axis: int) -> tuple[Tensor, ...]:
    return tuple(torch.split(x, sizes.tolist(), dim=axis))


def _transpose(x: Tensor, *, perm: Sequence[int]) -> Tensor:
    return x.permute(*perm)


# Positional parameters are a node's inputs, keyword-only ones its attributes: all of them, and no others. Lambdas,
# because torch's own functions have no signature to check a node against.
HANDLERS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Add": lambda a, b: a + b,
    "Attention": _attention,
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
    "Concat": lambda *parts, axis: torch.cat(parts, dim=axis),
    "Div": lambda a, b: a / b,
    "Erf": lambda x: torch.erf(x),
    "Gather": _gather,
    "LayerNormalization": _layer_norm,
    "MatMul": lambda a, b: a @ b,
    "Max": lambda a, b: torch.maximum(a, b),
    "Mul": lambda a, b: a * b,
    "Pad": _pad,
    "ReduceL2": _reduce_l2,
    "ReduceMean": _reduce_mean,
    "ReduceSum": _reduce_sum,
    "Relu": lambda x: torch.relu(x),
    "Reshape": _reshape,
    "Sigmoid": lambda x: torch.sigmoid(x),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sub": lambda a, b: a - b,
    "Transpose": _transpose,
}


class Interpreter:
    """One graph file on one torch device.

    Example:
        >>> Interpreter(Path("joint-fp16.onnx"), "cuda").run(crops)["crop_scores"]
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        """Load the graph and its external data, and refuse what is not known before anything runs.

        Raises:
            InputError: an operator, attribute, number of inputs or tensor type that is not known.
        """
        self.device = torch.device(device)
        # Types are inferred (and those of every node's inputs compared) before the weights are in memory.
        plain = onnx.load(path, load_external_data=False)
        graph = onnx.shape_inference.infer_shapes(plain, check_type=True, strict_mode=True).graph
        values = (*graph.input, *graph.output, *graph.value_info)
        self._types = {value.name: TYPES[value.type.tensor_type.elem_type] for value in values}
        self._nodes = [(node, _attributes(node)) for node in graph.node]
        self._uses = Counter(name for node in graph.node for name in node.input)
        self._input = graph.input[0].name
        self._outputs = [value.name for value in graph.output]
        self._weights = {tensor.name: self._weight(tensor) for tensor in onnx.load(path).graph.initializer}

    def _weight(self, tensor: onnx.TensorProto) -> Tensor:
        """Shapes, axes and indices stay on the CPU: they are arguments, not data."""
        if tensor.data_type not in TYPES or not tensor.raw_data:
            raise InputError(f"{tensor.name}: a weight of type {tensor.data_type} that is not raw bytes")
        flat = torch.frombuffer(bytearray(tensor.raw_data), dtype=TYPES[tensor.data_type])
        if tensor.data_type == onnx.TensorProto.INT4:  # two in a byte, the first one low; the shifts keep the sign
            flat = torch.stack([flat << 4 >> 4, flat >> 4], dim=1).reshape(-1)[: math.prod(tensor.dims)]
        value = flat.reshape(tuple(tensor.dims))
        return value if value.dtype == torch.int64 else value.to(self.device)

    def run(self, crops: NDArray[np.uint8], observe: Observer | None = None) -> dict[str, NDArray[np.float32]]:
        """Score uint8 crops [N, C, 224, 224, 3], or frames [N, H, W, 3].

        Args:
            crops: as the graph takes them.
            observe: called with the name and value of every node's output.

        Returns:
            ``score`` and ``crop_scores``, float32.

        Raises:
            InputError: a node's result has another type than the graph declares.
        """
        values: dict[str, Tensor] = {**self._weights, self._input: torch.from_numpy(crops).to(self.device)}
        left = Counter(self._uses)
        left.update(self._outputs)  # never freed
        with torch.inference_mode(), exact_products():
            for node, attributes in self._nodes:
                made = HANDLERS[node.op_type](*(values[name] for name in node.input), **attributes)
                for name, value in zip(node.output, made if isinstance(made, tuple) else (made,), strict=True):
                    if value.dtype != self._types[name]:
                        raise InputError(f"{name}: came out as {value.dtype}, the graph says {self._types[name]}")
                    values[name] = value
                    if observe is not None:
                        observe(name, value)
                left.subtract(node.input)
                for name in node.input:
                    if left[name] == 0:
                        values.pop(name, None)  # a full-size graph's values do not all fit at once
            return {name: values[name].cpu().numpy() for name in self._outputs}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes, checked against its handler.

    Raises:
        InputError: unknown operator or attribute, an attribute left to its default, or a wrong number of inputs.
    """
    handler = HANDLERS.get(node.op_type)
    if handler is None or node.domain:
        raise InputError(f"{node.name}: operator {node.domain}{node.op_type} is not known")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    try:
        inspect.signature(handler).bind(*node.input, **attributes)
    except TypeError as error:
        raise InputError(
            f"{node.name}: {node.op_type} with {len(node.input)} inputs and {attributes} ({error})"
        ) from error
    if "" in node.input:
        raise InputError(f"{node.name}: {node.op_type} with an input left out is not known")
    return attributes
