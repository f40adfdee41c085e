"""Where the time of a call goes: nodes as a runtime timed them, grouped by the model's parts.

Read are ONNX Runtime's profiling file, OpenVINO's counters, and TensorRT's ``--exportProfile`` beside what its engine
inspector says in either schema. A node that others were fused into is divided as `gamma_export.bench.parts` says; what
carries no name of ours is ``other``, and how much that is stands beside every profile.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gamma_export.bench import strict_json
from gamma_export.bench.parts import OTHER, PARTS, Parts
from gamma_runtime.errors import InputError

__all__ = [
    "Inspected",
    "NodeTime",
    "Profile",
    "group",
    "openvino_times",
    "parse_inspector",
    "parse_onnxruntime",
    "parse_tensorrt",
    "unattributed",
]

_ORT_SUFFIX = "_kernel_time"
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]*)\]")


@dataclasses.dataclass(frozen=True)
class NodeTime:
    """One node of the compiled graph.

    Attributes:
        name: as the runtime calls it.
        kind: its operator or kernel; "" where that is not said.
        milliseconds: of one call, the mean.
        origins: nodes of the ONNX graph that it computes, as far as they are known.
    """

    name: str
    kind: str
    milliseconds: float
    origins: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Profile:
    """The mean call.

    Attributes:
        source: ``onnxruntime``, ``openvino`` or ``tensorrt``.
        calls: that the mean is of.
        nodes: in the runtime's order.
        parts: milliseconds by part, every part of `PARTS`.
        call_milliseconds: of the whole call, timed with the profiler on; None where it is not known. More than the sum
            of the nodes by what the runtime itself takes.
    """

    source: str
    calls: int
    nodes: tuple[NodeTime, ...]
    parts: Mapping[str, float]
    call_milliseconds: float | None = None

    @property
    def milliseconds(self) -> float:
        """The sum of the nodes."""
        return sum(self.parts.values())

    @property
    def shares(self) -> dict[str, float]:
        """Each part's share of that sum; ``other`` is what could not be attributed."""
        total = self.milliseconds
        return {part: spent / total if total else 0.0 for part, spent in self.parts.items()}


def group(
    source: str, calls: int, nodes: Iterable[NodeTime], parts: Parts, call_milliseconds: float | None = None
) -> Profile:
    """Nodes to a profile.

    Raises:
        InputError: no node took any time.
    """
    found = tuple(nodes)
    spent = dict.fromkeys(PARTS, 0.0)
    for node in found:
        for part, share in parts.of_all(node.origins).items():
            spent[part] += node.milliseconds * float(share)
    if not sum(spent.values()) > 0:
        raise InputError(f"{source}: the profile has no node that took time")
    return Profile(source, calls, found, spent, call_milliseconds)


def parse_onnxruntime(content: str, parts: Parts, skip: int = 1) -> Profile:
    """ONNX Runtime's profiling file: of one session, its calls one after the other.

    Args:
        content: the JSON that ``end_profiling`` names.
        parts: of the graph.
        skip: calls at the start to leave out: the first one allocates.

    Raises:
        InputError: no such file, or no call is left.
    """
    what = "ONNX Runtime's profile"
    events = strict_json.rows(strict_json.load(content, what), what)
    calls = sorted(_span(event, what) for event in events if event.get("name") == "model_run")[skip:]
    if not calls:
        raise InputError(f"{what}: no calls behind the first {skip}")
    starts = [start for start, _ in calls]
    spent: dict[tuple[str, str], float] = {}
    for event in events:
        name = event.get("name")
        if event.get("cat") != "Node" or not isinstance(name, str) or not name.endswith(_ORT_SUFFIX):
            continue
        start, duration = _span(event, what)
        index = bisect.bisect_right(starts, start) - 1
        if index < 0 or start > starts[index] + calls[index][1]:
            continue
        arguments = event.get("args")
        kind = arguments.get("op_name", "") if isinstance(arguments, dict) else ""
        key = name.removesuffix(_ORT_SUFFIX), str(kind)
        spent[key] = spent.get(key, 0.0) + duration
    count = len(calls)
    nodes = [NodeTime(name, kind, time / count / 1e3, (name,)) for (name, kind), time in spent.items()]
    return group("onnxruntime", count, nodes, parts, sum(duration for _, duration in calls) / count / 1e3)


def _span(event: dict[str, Any], what: str) -> tuple[float, float]:
    """Start and duration of an event, in microseconds."""
    return strict_json.number(event, "ts", what, least=0), strict_json.number(event, "dur", what, least=0)


def openvino_times(
    early: Mapping[str, tuple[str, float]],
    late: Mapping[str, tuple[str, float]],
    counts: tuple[int, int],
    origins: Mapping[str, Sequence[str]],
) -> list[NodeTime]:
    """Nodes from OpenVINO's counters, read twice.

    The CPU plug-in's counters are means over all calls since the model was compiled, the slow first one included. What
    the calls between two readings took follows from both.

    Args:
        early: kernel and microseconds by node, after the first of the two numbers of calls.
        late: the same after the second.
        counts: calls before each reading.
        origins: the nodes of the ONNX graph in each, by node.

    Raises:
        InputError: counts that do not rise, or a time below 0.
    """
    first, last = counts
    if not 0 <= first < last:
        raise InputError(f"OpenVINO's counters: {first} calls, then {last}")
    nodes = []
    for name, (kind, mean) in late.items():
        before = early.get(name, (kind, 0.0))[1]
        if min(mean, before) < 0:
            raise InputError(f"OpenVINO's counters: {name} took {min(mean, before)} microseconds")
        between = max(0.0, (last * mean - first * before) / (last - first))  # rounding of the means can be below 0
        nodes.append(NodeTime(name, kind, between / 1e3, tuple(origins.get(name, ())) or (name,)))
    return nodes


@dataclasses.dataclass(frozen=True)
class Inspected:
    """What the engine inspector says.

    Attributes:
        schema: 10 or 11, by how it lists the engine's inputs and outputs.
        origins: nodes of the ONNX graph by layer; empty where a layer has none, as in an engine without details.
        kinds: layer types by layer.
    """

    schema: int
    origins: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, str]


def parse_inspector(content: str, parts: Parts) -> Inspected:
    """``--exportLayerInfo`` or ``get_engine_information(JSON)``, of TensorRT 10 or 11.

    Raises:
        InputError: no JSON object with layers.
    """
    what = "the engine inspector's answer"
    data = strict_json.load(content, what)
    if not isinstance(data, dict) or not isinstance(data.get("Layers"), list):
        raise InputError(f"{what}: no list of layers in it")
    origins: dict[str, tuple[str, ...]] = {}
    kinds: dict[str, str] = {}
    for layer in data["Layers"]:
        if isinstance(layer, str):  # built without details: names only
            origins[layer] = parts.origins(layer)
        elif isinstance(layer, dict):
            name = strict_json.text(layer, "Name", what)
            named = _ONNX_LAYER.findall(str(layer.get("Metadata", "")))
            origins[name] = tuple(dict.fromkeys(named)) or parts.origins(name)
            kinds[name] = str(layer.get("LayerType", ""))
        else:
            raise InputError(f"{what}: a layer is {str(layer)[:40]!r}")
    return Inspected(11 if "I/O Tensors" in data else 10, origins, kinds)


def parse_tensorrt(content: str, parts: Parts, inspected: Inspected | None = None) -> Profile:
    """What trtexec's ``--exportProfile`` wrote: the mean of each layer.

    Args:
        content: the JSON file.
        parts: of the graph.
        inspected: of the same engine; without it, only layers whose own names carry nodes of the graph are attributed.

    Raises:
        InputError: no such file.
    """
    what = "trtexec --exportProfile"
    rows = strict_json.rows(strict_json.load(content, what), what)
    if not rows or "count" not in rows[0]:
        raise InputError(f"{what}: the first entry is not the number of calls")
    count = strict_json.number(rows[0], "count", what, least=1)
    if count != int(count):
        raise InputError(f"{what}: {count} calls")
    nodes = []
    for row in rows[1:]:
        name = strict_json.text(row, "name", what)
        known = inspected.origins.get(name, ()) if inspected else ()
        kind = inspected.kinds.get(name, "") if inspected else ""
        spent = strict_json.number(row, "averageMs", what, least=0)
        nodes.append(NodeTime(name, kind, spent, known or parts.origins(name)))
    return group("tensorrt", int(count), nodes, parts)


def unattributed(profile: Profile, parts: Parts) -> list[NodeTime]:
    """The nodes behind ``other``, the longest first."""
    left = [node for node in profile.nodes if OTHER in parts.of_all(node.origins) and node.milliseconds > 0]
    return sorted(left, key=lambda node: -node.milliseconds)
