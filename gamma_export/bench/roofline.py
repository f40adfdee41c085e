"""The work of a graph, counted from its ONNX file, and how close to the machine's limits a measured time comes.

Multiply-adds are those of the matrix products, as `gamma_calib.products` counts them. Bytes are those of every node's
weights, inputs and outputs, as if each were computed alone; what a runtime keeps in its caches or fuses it does not
move, so the bound on a whole call takes only what has to move: all weights once, the image in, the scores out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_export.bench.parts import PARTS, Parts, parts_of
from gamma_runtime.errors import InputError, UsageError

if TYPE_CHECKING:
    import onnx

    from gamma_export.bench.peak import Peak

__all__ = ["Attained", "NodeWork", "PartWork", "Tally", "Work", "attained", "count_file", "count_work", "part_attained"]

_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")  # the same bytes under other dimensions
# Bits of ONNX's element types, by number: the four of fp8 are 17 to 20, the two of int4 21 and 22.
_BITS = {1: 32, 2: 8, 3: 8, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4}


@dataclasses.dataclass(frozen=True)
class NodeWork:
    """One node of one call: multiply-adds, and the bytes of its weights, inputs and outputs."""

    name: str
    op: str
    macs: int
    weights: int
    inputs: int
    outputs: int

    @property
    def bytes(self) -> int:
        """All that it moves when it is computed alone."""
        return self.weights + self.inputs + self.outputs


@dataclasses.dataclass(frozen=True)
class PartWork:
    """A part's multiply-adds and bytes in one call."""

    macs: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Tally:
    """The sums of a `Work`, which a result file keeps."""

    batch: int
    crops: int
    macs: int
    least_bytes: int
    most_bytes: int
    parts: Mapping[str, PartWork]


@dataclasses.dataclass(frozen=True)
class Work:
    """One call.

    Attributes:
        batch: images of it.
        crops: of each image.
        nodes: in the graph's order; nodes that only prepare weights are left out, what they read counts where it is
            used.
        parts: sums by part, every part of `PARTS`.
        weights: bytes of all weights, each once.
        ends: bytes of the graph's inputs and outputs.
    """

    batch: int
    crops: int
    nodes: tuple[NodeWork, ...]
    parts: Mapping[str, PartWork]
    weights: int
    ends: int

    @property
    def macs(self) -> int:
        """Multiply-adds of the call."""
        return sum(node.macs for node in self.nodes)

    @property
    def least_bytes(self) -> int:
        """What any way of computing it moves."""
        return self.weights + self.ends

    @property
    def most_bytes(self) -> int:
        """What it moves when every node is computed alone."""
        return sum(node.bytes for node in self.nodes)

    def tally(self) -> Tally:
        """Without the nodes."""
        parts = dict(self.parts)
        return Tally(self.batch, self.crops, self.macs, self.least_bytes, self.most_bytes, parts)


def count_file(graph: Path, batch: int = 1) -> Work:
    """The work of a graph's file, its weights unread.

    Raises:
        InputError: no ONNX file of ours. UsageError: as `count_work`.
    """
    import onnx

    try:
        model = onnx.load(str(graph), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no common base with OSError
        raise InputError(f"{graph}: no ONNX graph ({' '.join(str(error).split())[:200]})") from error
    return count_work(model, batch)


def count_work(model: onnx.ModelProto, batch: int = 1) -> Work:
    """The work of one call with a batch of images.

    Raises:
        UsageError: a batch that the graph does not take. InputError: no graph of ours.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    ends = [value.name for value in model.graph.output]
    if "tokens.constant" not in known or len(model.graph.input) != 1 or "crop_scores" not in ends:
        raise InputError(f"graph {model.graph.name}: not made by gamma-export")
    parts = parts_of(model)
    sizes, crops = _sizes(model, batch)
    stored = {tensor.name: _bytes(tensor.dims, tensor.data_type) for tensor in model.graph.initializer}
    nodes = tuple(_nodes(model, parts, sizes, stored, crops * batch))
    moved = sum(sizes[value.name] for value in (*model.graph.input, *model.graph.output))
    return Work(batch, crops, nodes, _by_part(nodes, parts), sum(stored.values()), moved)


def _bytes(dims: Iterator[int] | tuple[int, ...], kind: int) -> int:
    bits = _BITS.get(kind)
    if bits is None:
        raise InputError(f"element type {kind} of ONNX is of unknown size")
    return math.ceil(math.prod(dims) * bits / 8)


def _sizes(model: onnx.ModelProto, batch: int) -> tuple[dict[str, int], int]:
    """Bytes of every tensor that nodes make, by ONNX's shape inference, and the crops of an image."""
    import onnx

    own = onnx.ModelProto()
    own.CopyFrom(model)
    (source,) = own.graph.input
    first = source.type.tensor_type.shape.dim[0]
    if batch < 1 or (first.HasField("dim_value") and first.dim_value != batch):
        raise UsageError(f"a batch of {batch}; the graph takes {first.dim_value or 'one or more'}")
    for value in (source, *own.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    try:
        inferred = onnx.shape_inference.infer_shapes(own, strict_mode=True, data_prop=True).graph
    except Exception as error:  # onnx's InferenceError, and protobuf's own
        raise InputError(f"graph {model.graph.name}: {' '.join(str(error).split())[:200]}") from error
    sizes = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        tensor = value.type.tensor_type
        if not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            raise InputError(f"graph {model.graph.name}: the shape of {value.name} is not known")
        sizes[value.name] = _bytes(tuple(dim.dim_value for dim in tensor.shape.dim), tensor.elem_type)
    if unknown := {name for node in own.graph.node for name in node.output if name} - set(sizes):
        raise InputError(f"graph {model.graph.name}: the shape of {min(unknown)} is not known")
    scores = {value.name: value.type.tensor_type.shape.dim for value in inferred.output}
    return sizes, int(scores["crop_scores"][1].dim_value)


def _nodes(
    model: onnx.ModelProto, parts: Parts, sizes: Mapping[str, int], stored: Mapping[str, int], crops: int
) -> Iterator[NodeWork]:
    behind = {name: {name} for name in stored}  # the weights that a constant tensor is made from
    for node in model.graph.node:
        names = [name for name in node.input if name]
        if names and all(name in behind for name in names):
            behind |= dict.fromkeys(node.output, set().union(*(behind[name] for name in names)))
            continue
        if node.op_type in _VIEWS:
            yield NodeWork(node.name, node.op_type, 0, 0, 0, 0)
            continue
        used = set().union(*(behind[name] for name in names if name in behind))
        yield NodeWork(
            name=node.name,
            op=node.op_type,
            macs=parts.macs.get(node.name, 0) * crops,
            weights=sum(stored[name] for name in used),
            inputs=sum(sizes[name] for name in dict.fromkeys(names) if name not in behind),
            outputs=sum(sizes[name] for name in node.output if name),
        )


def _by_part(nodes: tuple[NodeWork, ...], parts: Parts) -> dict[str, PartWork]:
    macs, moved = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0.0)
    for node in nodes:
        for part, share in parts.of_all([node.name]).items():
            macs[part] += int(node.macs * share)  # exact: a merged product is a multiple of its experts
            moved[part] += float(node.bytes * share)
    return {part: PartWork(macs[part], round(moved[part])) for part in PARTS}


@dataclasses.dataclass(frozen=True)
class Attained:
    """A measured time against the roof.

    Attributes:
        gmacs: 1e9 multiply-adds a second.
        intensity: multiply-adds for each byte that has to move.
        bound: ``compute`` or ``memory``, whichever takes longer at its peak.
        roof_seconds: the time at that peak.
        share: roof over measured time. Above 1 is possible where products are in 8 or 16 bits: the peak is float32's.
    """

    gmacs: float
    intensity: float
    bound: str
    roof_seconds: float
    share: float


def attained(work: Work | Tally, peak: Peak, seconds: float) -> Attained:
    """How close to the roof one call of ``seconds`` comes.

    Raises:
        UsageError: a time that is not positive.
    """
    if not 0 < seconds < math.inf:
        raise UsageError(f"a call of {seconds} s")
    compute, memory = work.macs / (peak.gmacs * 1e9), work.least_bytes / (peak.gbytes * 1e9)
    roof = max(compute, memory)
    bound = "compute" if compute >= memory else "memory"
    return Attained(work.macs / seconds / 1e9, work.macs / work.least_bytes, bound, roof, roof / seconds)


def part_attained(work: Work | Tally, peak: Peak, milliseconds: Mapping[str, float]) -> dict[str, float]:
    """Share of the peak multiply-adds that each part with products attains, of its own time in a profile.

    Args:
        work: of the call.
        peak: of the machine.
        milliseconds: of the call, by part; parts without time are left out.
    """
    return {
        part: found.macs / (spent / 1e3) / (peak.gmacs * 1e9)
        for part, found in work.parts.items()
        if found.macs and (spent := milliseconds.get(part, 0.0)) > 0
    }
