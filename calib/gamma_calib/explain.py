"""What the int8 graphs of a bundle do to its tensors: ranges, what they clip, and the channels that stand out.

Ranges and codes are the bundle's own; peaks, clipping and channels come from the record of its calibration.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gamma_calib.qdq import Recipe
from gamma_calib.record import Histogram, Record, read_record
from gamma_runtime.cli import require
from gamma_runtime.errors import InputError, IntegrityError

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

    from gamma_runtime.bundle import Bundle
    from gamma_runtime.manifest import Quantisation

__all__ = [
    "OUTLIER",
    "Activation",
    "Channels",
    "Explanation",
    "Group",
    "Measured",
    "Weight",
    "clipped_share",
    "explain",
    "massive_channels",
    "outliers",
    "quantile",
    "record_of",
]

OUTLIER = 6.0  # times the median channel's peak: above it a channel counts as an outlier
_USED = 0.99  # of the values; the rest of the range waits for the last hundredth of them
_TOP = 3
_STREAM = ("/attn/add", "/mlp/add", "/moae/add")
_SECOND_EXPERTS = ("moae/shared_out", "moae/adaptive_out")  # what they take in has their own name

State = Literal["int8", "partly", "kept", "never"]
Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Channels:
    """How unequal a tensor's channels are, by the largest |value| of each.

    Attributes:
        count: of the channels.
        median: the median channel's peak.
        ratio: the largest peak over the median; None where that is 0.
        above: channels whose peak is more than `OUTLIER` times the median.
        top: the three largest, each with its peak.
    """

    count: int
    median: float
    ratio: float | None
    above: int
    top: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the calibration saw of a tensor, and what its range makes of that.

    Attributes:
        peak: the largest |value|.
        clipped: share of the values beyond the range; None of a tensor without one.
        used: share of the range that 99 % of the values need, at most 1; None of a tensor without one.
        channels: of its last axis.
    """

    peak: float
    clipped: float | None
    used: float | None
    channels: Channels


@dataclasses.dataclass(frozen=True)
class Group:
    """A product that takes a tensor in; ``alone`` is the mean |shift| of the scores with only it in 8 bits."""

    name: str
    int8: bool
    alone: float | None


@dataclasses.dataclass(frozen=True)
class Activation:
    """A tensor in front of a product.

    Attributes:
        tensor: its name.
        state: ``int8``; ``partly`` where only some of the groups are; ``kept`` in floating point by the search for a
            recipe; ``never`` 8 bits, whatever the recipe.
        groups: what takes it in.
        range: the largest |value| that is represented, or would be.
        scale: the step between two codes.
        measured: None without a record of it.
    """

    tensor: str
    state: State
    groups: tuple[Group, ...]
    range: float
    scale: float
    measured: Measured | None


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight in 8 bits.

    Attributes:
        tensor: its name.
        groups: of the product that it belongs to.
        shape: ``(inputs, outputs)``.
        zeros: share of the codes that are 0.
        least_scale: the smallest step of an output channel; ``largest_scale`` is the other end.
        scale_ratio: of the two.
    """

    tensor: str
    groups: tuple[str, ...]
    shape: tuple[int, int]
    zeros: float
    least_scale: float
    largest_scale: float
    scale_ratio: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """All facts, JSON-ready by `dataclasses.asdict`.

    Attributes:
        method: how ranges followed from histograms.
        images: photos of the calibration.
        int8_share: of the multiply-adds.
        activations: in the graph's order.
        stream: the residual stream by tensor, never 8 bits.
        massive: channels that are outliers of the stream in more than half of the blocks.
        weights: those in 8 bits.
        missing: what could not be said, and how to get it.
    """

    method: str
    images: int
    int8_share: float
    activations: tuple[Activation, ...]
    stream: Mapping[str, Measured]
    massive: tuple[int, ...]
    weights: tuple[Weight, ...]
    missing: tuple[str, ...]

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks, e.g. ``blocks.0``."""
        names = (activation.tensor.partition("/")[0] for activation in self.activations)
        return [name for name in dict.fromkeys(names) if name.startswith("blocks.")]


def record_of(bundle: Bundle, path: Path | None = None) -> Record | None:
    """The record of a bundle's calibration.

    Args:
        bundle: with int8.
        path: of the record; None is where gamma-export leaves it, and none may be there.

    Raises:
        InputError: no int8 in the bundle, or no file at a path that was given. IntegrityError: a file that is no
            record, or that of another calibration.
    """
    quantisation, usual = _quantisation(bundle), bundle.folder.with_suffix(".calib") / "record"
    if path is None and not os.path.lexists(usual):
        return None
    path = path or usual
    record = read_record(path)
    others = []
    if record.key.contract != bundle.manifest.contract_sha256:
        others.append("another contract")
    if quantisation.images_sha256 not in (None, record.key.images):
        others.append("other photos")
    # The graph that was measured need not be in the bundle, but its ranges are.
    measured = record.ranges.get(quantisation.method, {})
    if any(quantisation.ranges.get(name, high) != high for name, (_, high) in measured.items()):
        others.append("other ranges")
    if others:
        raise IntegrityError(
            f"{path}: the record of another calibration ({' and '.join(others)}) than this bundle's",
            hint="--record FILE, or export the bundle again",
        )
    return record


def explain(bundle: Bundle, record: Record | None) -> Explanation:
    """The facts of a bundle.

    Args:
        bundle: with int8; its graph for CPUs and the weights of that are read.
        record: `record_of` it; without one there are no peaks, no clipping and no channels.

    Raises:
        InputError: no int8 in the bundle. IntegrityError: a file changed, or a graph that is not what the manifest
            says. EnvironmentFault: onnx is missing.

    Example:
        >>> bundle = open_bundle("photo.gamma")
        >>> explain(bundle, record_of(bundle)).massive
        (61, 184)
    """
    quantisation = _quantisation(bundle)
    graph = _Graph(bundle, quantisation)
    recipe = Recipe(frozenset(graph.int8), quantisation.ranges)
    peaks = record.channels if record else {}
    stream = {name: measured for name in peaks if name.endswith(_STREAM) and (measured := _measure(record, name))}
    return Explanation(
        method=quantisation.method,
        images=quantisation.images,
        int8_share=quantisation.int8_share,
        activations=tuple(_activations(graph, quantisation, recipe, record)),
        stream=stream,
        massive=massive_channels({name: peaks[name] for name in stream}),
        weights=tuple(graph.weights()),
        missing=tuple(_missing(record, quantisation, stream)),
    )


def outliers(peaks: Floats) -> list[int]:
    """Channels whose peak is more than `OUTLIER` times the median one's, the largest first.

    ``peaks``: the largest |value| of every channel, ``[width]``.
    """
    above = np.flatnonzero(peaks > OUTLIER * np.median(peaks))
    return [int(channel) for channel in above[np.argsort(-peaks[above], kind="stable")]]


def massive_channels(stream: Mapping[str, Floats]) -> tuple[int, ...]:
    """Outliers of the residual stream in more than half of the blocks: what one block writes, all others carry on.

    ``stream``: channels' peaks ``[width]`` by tensor, of the same width; a block's two tensors count once.
    """
    blocks: dict[str, set[int]] = {}
    for name, peaks in stream.items():
        blocks.setdefault(name.partition("/")[0], set()).update(outliers(peaks))
    counted = Counter(channel for found in blocks.values() for channel in found)
    return tuple(sorted(channel for channel, count in counted.items() if 2 * count > len(blocks)))


def clipped_share(histogram: Histogram, peak: float, end: float) -> float:
    """Share of the values whose size is beyond ``end``; inside a bin they are taken to lie evenly.

    ``peak`` is the largest |value|; the last bin that is not empty ends there.
    """
    if end >= peak:
        return 0.0
    edges, until = _bins(histogram, peak)
    return float(1 - np.interp(end, edges, until) / until[-1])


def quantile(histogram: Histogram, peak: float, share: float) -> float:
    """The size that such a share of the values does not exceed; ``peak`` as for `clipped_share`."""
    edges, until = _bins(histogram, peak)
    place = int(np.searchsorted(until, share * until[-1])) or 1  # the bin's upper end
    part = (share * until[-1] - until[place - 1]) / (until[place] - until[place - 1])
    return float(edges[place - 1] + part * (edges[place] - edges[place - 1]))


def _bins(histogram: Histogram, peak: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The bins' edges, none above the peak, and how many values lie below each."""
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    return np.minimum(edges, peak), np.concatenate([[0], np.cumsum(histogram.counts)])


def _quantisation(bundle: Bundle) -> Quantisation:
    if (found := bundle.manifest.quantisation) is None or found.kind != "int8":
        raise InputError(f"{bundle.folder}: no int8 in it", hint="gamma-export --precision int8 --calib PHOTOS")
    return found


def _measure(record: Record | None, tensor: str, end: float | None = None) -> Measured | None:
    """None where the record does not have the tensor."""
    if record is None or tensor not in record.histograms or tensor not in record.channels:
        return None
    histogram, peaks = record.histograms[tensor], record.channels[tensor]
    if not histogram.counts.any():
        return None
    peak, median = float(peaks.max()), float(np.median(peaks))
    largest = np.argsort(-peaks, kind="stable")[:_TOP]
    channels = Channels(
        count=len(peaks),
        median=median,
        ratio=peak / median if median else None,
        above=len(outliers(peaks)),
        top=tuple((int(channel), float(peaks[channel])) for channel in largest),
    )
    if end is None:
        return Measured(peak, None, None, channels)
    used = min(1.0, quantile(histogram, peak, _USED) / end)
    return Measured(peak, clipped_share(histogram, peak, end), used, channels)


def _activations(
    graph: _Graph, quantisation: Quantisation, recipe: Recipe, record: Record | None
) -> Iterator[Activation]:
    readers = graph.readers()
    for tensor, end in quantisation.ranges.items():
        if not end > 0:
            raise IntegrityError(f"the manifest's range of {tensor} is {end:g}", hint="export the bundle again")
        names = readers.get(tensor, [])
        groups = tuple(Group(name, name in recipe.groups, quantisation.sensitivity.get(name)) for name in names)
        in_int8 = {group.int8 for group in groups}
        of_recipe = any(group.name in (*quantisation.groups, *quantisation.kept) for group in groups)
        state: State = "partly" if len(in_int8) > 1 else "int8" if True in in_int8 else "kept" if of_recipe else "never"
        yield Activation(tensor, state, groups, end, recipe.scale(tensor), _measure(record, tensor, end))


def _missing(record: Record | None, quantisation: Quantisation, stream: Mapping[str, Any]) -> Iterator[str]:
    again = "gamma-export --precision int8 --calib PHOTOS leaves it in a folder beside the bundle"
    if record is None:
        yield f"no calibration record: without peaks, clipping and channels; {again}, --record FILE reads another"
        return
    if not record.complete:
        yield f"the calibration record was interrupted: {record.done} of {record.total} photos are in it"
    if not stream:
        yield f"the calibration record has no residual stream; {again}"
    if lacking := [name for name in quantisation.ranges if name not in record.histograms]:
        yield f"the calibration record lacks {', '.join(lacking[:3])}{' …' if len(lacking) > 3 else ''}; {again}"


class _Graph:
    """The int8 graph for CPUs, read for who takes in what, and for its codes."""

    def __init__(self, bundle: Bundle, quantisation: Quantisation) -> None:
        onnx = require("onnx", "export")
        found = [g for g in bundle.manifest.graphs if g.precision == "int8" and g.target != "tensorrt"]
        if not found:
            raise IntegrityError(f"{bundle.folder}: a recipe for int8, but no int8 graph for CPUs")
        self.path = bundle.graph_file(max(found, key=lambda graph: len(graph.scenes)))
        graph = onnx.load(self.path, load_external_data=False).graph
        self.products: dict[str, NodeProto] = {node.name: node for node in graph.node if node.op_type == "MatMul"}
        self.stored: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.groups = {name: self._product(name) for name in (*quantisation.groups, *quantisation.kept)}
        self.int8 = [group for group in quantisation.groups if group not in quantisation.int4]

    def _product(self, group: str) -> NodeProto:
        """The group's own product, or the one of all experts that it is a part of."""
        stem, _, part = group.rpartition("/")
        node = self.products.get(group) or self.products.get(f"{stem}/{part.rpartition('_')[2]}")
        if node is None:
            raise IntegrityError(f"{self.path}: no product {group}, the manifest says there is one")
        return node

    def readers(self) -> dict[str, list[str]]:
        """Groups by what they take in; beside those of the recipe the products that never are 8 bits."""
        found: dict[str, list[str]] = {}
        for group, node in self.groups.items():
            tensor = group if group.endswith(_SECOND_EXPERTS) else node.input[0].removesuffix("/dequantised")
            found.setdefault(tensor, []).append(group)
        for name, node in self.products.items():
            if node.input[0] not in found and not name.startswith("blocks."):
                found[node.input[0]] = [name]
        return found

    def weights(self) -> Iterator[Weight]:
        """Those of the groups in 8 bits, one for each product."""
        products: dict[str, list[str]] = {}
        for group in self.int8:
            products.setdefault(self.groups[group].name, []).append(group)
        for product, groups in products.items():
            name = self.products[product].input[1].removesuffix("/dequantised")
            codes, scale = self._value(name, np.int8), self._value(f"{name}.scale_fp32", np.float32)
            least, largest = float(scale.min()), float(scale.max())
            if not least > 0:
                raise IntegrityError(f"{self.path}: {name} has a scale of {least:g}")
            rows, columns = codes.shape
            zeros = 1 - np.count_nonzero(codes) / codes.size
            yield Weight(name, tuple(groups), (rows, columns), zeros, least, largest, largest / least)

    def _value(self, name: str, dtype: type[np.generic]) -> NDArray[Any]:
        from onnx import numpy_helper

        if name not in self.stored:
            raise IntegrityError(f"{self.path}: no stored {name}, the manifest says that product is in 8 bits")
        value = np.asarray(numpy_helper.to_array(self.stored[name], str(self.path.parent)))
        if value.dtype != dtype:
            raise IntegrityError(f"{self.path}: {name} is {value.dtype}, not {np.dtype(dtype)}")
        return value
