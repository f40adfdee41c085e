"""An ONNX graph to look back through: which node makes a tensor, and which tensors are constant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["NOT_ONE", "Graph", "MismatchError", "attributes"]


class MismatchError(Exception):
    """The graph does not go on like a ViT here."""


# Beside the first: a node with other inputs than it should have, or a damaged tensor.
NOT_ONE = (MismatchError, IndexError, ValueError, TypeError)


class Graph:
    """The nodes of a graph by what they make."""

    def __init__(self, model: ModelProto) -> None:
        from onnx import numpy_helper

        self.makers: dict[str, NodeProto] = {name: node for node in model.graph.node for name in node.output}
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self._tensors[node.output[0]] = attribute.t
        self._to_array = numpy_helper.to_array

    def constant(self, value: str) -> Any:
        """The array of a constant, or None."""
        while (node := self.makers.get(value)) is not None and node.op_type == "Identity":
            value = node.input[0]
        tensor = self._tensors.get(value)
        return None if tensor is None else self._to_array(tensor)

    def op(self, value: str, *kinds: str) -> NodeProto:
        """The node that makes a tensor.

        Raises:
            MismatchError: it is of none of these kinds.
        """
        node = self.makers.get(value)
        if node is None or node.op_type not in kinds:
            raise MismatchError(f"{value} is not made by {' or '.join(kinds)}")
        return node

    def is_op(self, value: str, *kinds: str) -> bool:
        """Whether a node of one of these kinds makes the tensor."""
        node = self.makers.get(value)
        return node is not None and node.op_type in kinds

    def with_constant(self, node: NodeProto) -> tuple[str, Any]:
        """The other input and the constant of a node with two inputs, in either order.

        Raises:
            MismatchError: not exactly one is constant.
        """
        for source, constant in (tuple(node.input), tuple(node.input)[::-1]):
            if (array := self.constant(constant)) is not None and self.constant(source) is None:
                return source, array
        raise MismatchError(f"{node.name}: one constant input expected")

    def ancestors(self, value: str) -> Iterator[NodeProto]:
        """Every node that a tensor depends on, once."""
        stack, seen = [value], set()
        while stack:
            node = self.makers.get(stack.pop())
            if node is not None and id(node) not in seen:
                seen.add(id(node))
                yield node
                stack.extend(node.input)


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
