"""What `gamma-verify --layers` found: one graph on one backend, stage by stage, and the verdict in a sentence."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from gamma_export.layers.drift import MARGIN, StageDrift

__all__ = ["LayerReport", "layer_table"]


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One graph against its checkpoint.

    Attributes:
        graph: its name; with ``scenes``, ``precision``, ``residual`` (of the stream) and ``attention`` as exported.
        backend: with ``backend_version``, what ran it.
        crops: photo crops compared.
        stages: in the graph's order.
        score_max_abs: largest |score difference| of the published graph to PyTorch; ``gate_max`` is what is allowed.
        taps_max_abs: largest |score difference| between the published graph and its tapped copy. Extra outputs keep a
            library from fusing nodes, so the copy may round differently.
    """

    graph: str
    scenes: tuple[str, ...]
    precision: str
    residual: str
    attention: str
    backend: str
    backend_version: str
    crops: int
    stages: tuple[StageDrift, ...]
    score_max_abs: float
    gate_max: float
    taps_max_abs: float

    @property
    def out_of_line(self) -> tuple[StageDrift, ...]:
        """Stages whose own error rounding does not explain; the first one is where to look."""
        return tuple(stage for stage in self.stages if stage.out_of_line)

    @property
    def passed(self) -> bool:
        """Every stage is in line, and the scores are within the gate."""
        return not self.out_of_line and self.score_max_abs <= self.gate_max and self.taps_max_abs <= self.gate_max

    @property
    def verdict(self) -> str:
        """The finding in a sentence."""
        if first := next(iter(self.out_of_line), None):
            if not first.finite:
                return f"{first.stage} overflows: its tensor has infinite or NaN values (first stage out of line)"
            return (
                f"{first.stage} is the first stage out of line: {first.own:.1e} off on its own inputs,"
                f" {first.ratio:.3g} times what {self.precision} rounding does there"
            )
        if self.taps_max_abs > self.gate_max:
            return (
                f"no stage is out of line, but the published graph scores {self.taps_max_abs:.1e} off its tapped copy:"
                f" {self.backend} compiles the two differently"
            )
        if self.score_max_abs > self.gate_max:
            worst = max(self.stages, key=lambda stage: stage.own)
            return (
                f"no stage is out of line: {self.precision} rounding alone adds up to {self.score_max_abs:.1e} in"
                f" score; most of it from {worst.stage}"
            )
        return "no stage is out of line"

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready: what is not finite is null."""
        data = {
            **dataclasses.asdict(self),
            "passed": self.passed,
            "verdict": self.verdict,
            "first_out_of_line": next((stage.stage for stage in self.out_of_line), None),
            "margin": MARGIN,
            "stages": [
                {
                    **dataclasses.asdict(stage),
                    "ratio": stage.ratio,
                    "fp16_headroom": stage.fp16_headroom,
                    "out_of_line": stage.out_of_line,
                }
                for stage in self.stages
            ],
        }
        for row in (data, *data["stages"]):
            row.update({k: None for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)})
        return data


def layer_table(report: LayerReport) -> str:
    """The stages for people, and the verdict below."""
    from gamma_runtime.tables import text_table

    titles = (
        *("stage", "max |diff|", "mean |diff|", "rel. L2", "min cos"),
        *("own error", "floor", "floors", "peak", "inside", "fp16 room", ""),
    )
    lines = [
        (
            stage.stage,
            f"{stage.max_abs:.1e}",
            f"{stage.mean_abs:.1e}",
            f"{stage.relative:.1e}",
            f"{stage.cosine:.7f}",
            f"{stage.own:.1e}",
            f"{stage.floor:.1e}",
            f"{stage.ratio:.2f}" if stage.ratio < 100 else f"{stage.ratio:.0f}",
            f"{stage.peak:.3g}",
            f"{stage.peak_inside:.3g}" if stage.peak_inside else "",
            f"{stage.fp16_headroom:.0f}x",
            "OUT OF LINE" if stage.out_of_line else "",
        )
        for stage in report.stages
    ]
    state = "pass" if report.score_max_abs <= report.gate_max else "FAIL"
    return "\n".join(
        [
            f"{report.graph}, {report.precision}, {report.attention} attention, on {report.backend}"
            f" {report.backend_version}: {report.crops} crops of {len(report.scenes)} scenes",
            text_table(titles, lines, right=titles[1:-1]),
            "accumulated: max |diff|, mean |diff|, rel. L2, min cos; own error: on the graph's own inputs, relative,"
            f" worst token; out of line above {MARGIN:g} floors",
            f"score: {report.score_max_abs:.1e} off PyTorch, {state} <= {report.gate_max:g}",
            f"verdict: {report.verdict}",
        ]
    )
