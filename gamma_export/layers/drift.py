"""The numbers of one stage, and the rule that says whether they are out of line."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FP16_MAX", "LEAST_FLOOR", "MARGIN", "StageDrift", "StageMeter"]

FP16_MAX = 65504.0
MARGIN = 4.0
"""Times its floor that a stage's own error may reach. Intact graphs stay below 2.5 times, nearly all
below 1.6: libraries order sums of float32 numbers each in its own way."""
LEAST_FLOOR = 2.0**-22
"""Two float32 steps, relative: stages without rounding of their own would have a floor of nearly nothing."""
_QUIET_TOKEN = 0.1  # of the tokens' typical length: shorter ones are measured against this


@dataclasses.dataclass(frozen=True)
class StageDrift:
    """One stage of a graph against PyTorch.

    Attributes:
        stage: such as ``blocks.7 moae``; ``tap`` is the graph's tensor.
        max_abs: largest |difference| to PyTorch's own pass, with all that earlier stages did: accumulated drift.
        mean_abs: mean |difference|, accumulated.
        relative: accumulated drift, L2 relative to PyTorch's tensor.
        cosine: of the token (or row) that turned furthest away from PyTorch's.
        own: the stage's own error: on the graph's own inputs, relative, of the worst token.
        floor: what rounding to the graph's precision does at least to that stage on these inputs, likewise measured.
        peak: largest |activation| of PyTorch's tensor.
        peak_inside: largest |result| inside the stage's products; 0 where there are none.
        finite: no NaN and no infinity in the graph's tensor.
    """

    stage: str
    tap: str
    max_abs: float
    mean_abs: float
    relative: float
    cosine: float
    own: float
    floor: float
    peak: float
    peak_inside: float
    finite: bool

    @property
    def ratio(self) -> float:
        """Own error in floors."""
        return self.own / self.floor

    @property
    def out_of_line(self) -> bool:
        """The stage does something else than PyTorch's does, beyond what rounding explains."""
        return self.ratio > MARGIN

    @property
    def fp16_headroom(self) -> float:
        """How many times larger the activations could be before float16 overflows."""
        return FP16_MAX / max(self.peak, self.peak_inside, 1e-30)


class StageMeter:
    """Collects one stage over several calls of the graph."""

    def __init__(self) -> None:
        self._max = self._sum = self._squares = self._wanted = self._own = self._floor = 0.0
        self._count = 0
        self._cosine, self._peak, self._inside, self._finite = 1.0, 0.0, 0.0, True

    def accumulated(self, found: Tensor, wanted: Tensor) -> None:
        """The graph's tensor against PyTorch's own pass, both shaped [..., D]."""
        import torch

        self._finite &= bool(torch.isfinite(found).all())
        self._peak = max(self._peak, float(wanted.abs().max()))
        gap = (found - wanted).double()
        self._max = max(self._max, float(gap.abs().max()))
        self._sum += float(gap.abs().sum())
        self._count += gap.numel()
        self._squares += float(gap.square().sum())
        self._wanted += float(wanted.double().square().sum())
        rows, others = (t.double().flatten(0, -2) for t in (found, wanted))
        lengths = rows.norm(dim=-1) * others.norm(dim=-1)
        seen = lengths > 0
        cosines = (rows * others).sum(-1)[seen] / lengths[seen]
        if cosines.numel():
            self._cosine = min(self._cosine, float(cosines.min()))

    def own(self, found: Tensor, exact: Tensor, rounded: Tensor, inside: float, adds_to: Tensor | None) -> None:
        """The graph's tensor against the same stage in PyTorch on the graph's inputs, float64 [..., D].

        Args:
            found: by the graph.
            exact: by PyTorch in float64.
            rounded: by PyTorch in the graph's precision.
            inside: the largest result inside the products.
            adds_to: what the stage adds its result to, if so.
        """
        made = (exact if adds_to is None else exact - adds_to).flatten(0, -2).norm(dim=-1)
        scale = made.clamp(min=max(_QUIET_TOKEN * float(made.square().mean().sqrt()), 1e-30))

        def worst(tensor: Tensor) -> float:
            gap = float(((tensor - exact).flatten(0, -2).norm(dim=-1) / scale).max())
            return gap if math.isfinite(gap) else math.inf

        self._own = max(self._own, worst(found))
        self._floor = max(self._floor, worst(rounded))
        self._inside = max(self._inside, inside)

    def result(self, stage: str, tap: str) -> StageDrift:
        """All calls together."""
        floor = self._floor if math.isfinite(self._floor) else LEAST_FLOOR  # fp16 cannot hold it: the graph neither
        return StageDrift(
            stage=stage,
            tap=tap,
            max_abs=self._max,
            mean_abs=self._sum / max(self._count, 1),
            relative=math.sqrt(self._squares / max(self._wanted, 1e-300)),
            cosine=self._cosine,
            own=self._own,
            floor=max(floor, LEAST_FLOOR),
            peak=self._peak,
            peak_inside=self._inside,
            finite=self._finite,
        )
