"""A small writer of ONNX graphs: named nodes, weights in one external file, casts that say why they exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gamma_calib.external import DTYPES

if TYPE_CHECKING:
    import onnx
    from onnx import NodeProto, TensorProto

    from gamma_calib.external import WeightsFile

__all__ = ["DTYPES", "IR_VERSION", "GraphWriter"]

# onnx writes newer IR versions by default; ONNX Runtime 1.23, the newest for Python 3.10 (JetPack 6), stops at 11.
IR_VERSION = 10


class GraphWriter:
    """Collects nodes and weights of one graph.

    Tensors are named after the node that makes them; ``dtype`` records the type of those that casts care about.
    """

    def __init__(self, name: str, weights: WeightsFile, opset: int) -> None:
        self.name = name
        self.weights = weights
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.dtype: dict[str, str] = {}

    def node(
        self,
        op: str,
        name: str,
        inputs: Sequence[str],
        *,
        dtype: str,
        outputs: int = 1,
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """Add a node; returns its output's name (the first one's: the others are ``name:1``, ``name:2`` ...)."""
        from onnx import helper

        made = [name] + [f"{name}:{i}" for i in range(1, outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), made, name=name, **dict(attributes or {})))
        self.dtype.update(dict.fromkeys(made, dtype))
        return name

    def cast(self, value: str, dtype: str, why: str) -> str:
        """The value in another type; a no-op if it has it. ``why`` goes into the node's name, for the lint."""
        if self.dtype[value] == dtype:
            return value
        return self.node("Cast", f"{value}/cast_{why}", [value], dtype=dtype, attributes={"to": DTYPES[dtype]})

    def weight(self, name: str) -> str:
        """A weight of the shared external file."""
        if name not in self.initializers:
            self.initializers[name] = self.weights.reference(name)
            self.dtype[name] = self.weights.dtype(name)
        return name

    def constant(self, name: str, value: np.ndarray, dtype: str) -> str:
        """A small constant stored in the graph itself: shapes, axes, scalars, and a scene's 512x5 text matrix."""
        from onnx import helper

        if name not in self.initializers:
            cast = value.astype(helper.tensor_dtype_to_np_dtype(DTYPES[dtype]))
            self.initializers[name] = helper.make_tensor(name, DTYPES[dtype], cast.shape, cast.tobytes(), raw=True)
            self.dtype[name] = dtype
        return name

    def reshape(self, value: str, name: str, shape: Sequence[int]) -> str:
        """Reshape to constant dimensions, of which one may be -1."""
        key = "shape." + "x".join(str(d) for d in shape)
        return self.node(
            "Reshape", name, [value, self.constant(key, np.array(shape), "int64")], dtype=self.dtype[value]
        )

    def transpose(self, value: str, name: str, order: Sequence[int]) -> str:
        """Permute the dimensions."""
        return self.node("Transpose", name, [value], dtype=self.dtype[value], attributes={"perm": list(order)})

    def model(
        self,
        inputs: Mapping[str, tuple[str, Sequence[int | str]]],
        outputs: Mapping[str, tuple[str, Sequence[int | str]]],
    ) -> onnx.ModelProto:
        """The finished model, IR version and opset pinned."""
        from onnx import helper

        from gamma_runtime import __version__

        def values(table: Mapping[str, tuple[str, Sequence[int | str]]]) -> list[Any]:
            return [helper.make_tensor_value_info(n, DTYPES[dtype], list(shape)) for n, (dtype, shape) in table.items()]

        graph = helper.make_graph(
            self.nodes, self.name, values(inputs), values(outputs), initializer=list(self.initializers.values())
        )
        return helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", self.opset)],
            producer_name="gamma-edge",
            producer_version=__version__,
        )
