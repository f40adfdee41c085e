"""What one build will need, before it starts: its graph, predicted memory, time, and timing cache."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from gamma_runtime.cuda_probe import probe
from gamma_runtime.engines.eta import earlier_seconds
from gamma_runtime.engines.memory import MIB, Free, Need, check_memory, free_memory, predict, workspace
from gamma_runtime.engines.options import EngineOptions
from gamma_runtime.engines.timing import TimingCache

if TYPE_CHECKING:
    from gamma_runtime.manifest import Engines, GraphEntry

__all__ = ["BuildPlan", "plan_one"]


@dataclasses.dataclass(frozen=True)
class BuildPlan:
    """A build that could start now.

    ``weights`` is in bytes; ``workspace_mib`` None leaves TensorRT's own; ``earlier_seconds`` is what the same build
    took before, and ``too_large`` the sentence that refuses it, or None.
    """

    graph: GraphEntry
    weights: int
    need: Need
    free: Free
    workspace_mib: int | None
    earlier_seconds: float | None
    timing_cache: TimingCache
    too_large: str | None

    def to_json(self) -> dict[str, Any]:
        """For ``--dry-run --json``; memory in MiB."""
        free = {"host": self.free.host, "gpu": self.free.gpu}
        return {
            "graph": self.graph.name,
            "precision": self.graph.precision,
            "weights_bytes": self.weights,
            "needed_mib": {"host": self.need.host // MIB, "gpu": self.need.gpu // MIB, "rule": self.need.rule},
            "free_mib": {name: None if size is None else size // MIB for name, size in free.items()},
            "unified_memory": self.free.unified,
            "workspace_mib": self.workspace_mib,
            "earlier_seconds": self.earlier_seconds,
            "timing_cache": {"name": self.timing_cache.name, "state": self.timing_cache.state},
            "warnings": [text for text in (self.timing_cache.warning, self.too_large) if text],
            "fits": self.too_large is None,
        }


def plan_one(
    graph: GraphEntry, weights: int, options: EngineOptions, earlier: Engines, cache: TimingCache
) -> BuildPlan:
    """Predict one build from the sizes of its files and the builds before it."""
    settings: dict[str, object] = {"optimization_level": options.optimization_level, "low_memory": options.low_memory}
    same = [
        entry.peak_rss
        for entry in earlier.engines
        if (entry.graph, entry.precision, entry.flavour) == (graph.name, graph.precision, options.flavour)
        and entry.options.get("low_memory") == options.low_memory
        and entry.peak_rss
    ]
    need = predict(options.flavour, weights, max(same) if same else None)
    free = free_memory(None if options.flavour == "tensorrt-rtx" else probe())
    return BuildPlan(
        graph=graph,
        weights=weights,
        need=need,
        free=free,
        workspace_mib=options.workspace_mib or workspace(free, need, options.low_memory),
        earlier_seconds=earlier_seconds(earlier.engines, graph.name, graph.precision, options.flavour, settings),
        timing_cache=cache,
        too_large=check_memory(f"{graph.name} {graph.precision}", options.flavour, need, free),
    )
