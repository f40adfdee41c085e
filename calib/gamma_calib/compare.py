"""A graph's scores, and two lists of scores compared, in score units: what every gate of this project looks at."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.errors import InputError

if TYPE_CHECKING:
    from gamma_runtime.backends.base import Backend
    from gamma_runtime.steps import Steps

__all__ = ["MIN_SRCC", "Difference", "Gate", "Scores", "compare", "graph_scores"]

Scores: TypeAlias = NDArray[np.float64]
MIN_SRCC = 0.99
SRCC_FROM = 16  # values; rank correlation of fewer says little
_MEAN_TOLERANCE = 1e-5  # float32 mean of up to 64 crops


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two lists of scores compared; None where the statistic does not exist."""

    max_abs: float
    p99_abs: float
    mean_abs: float
    score_std: float
    srcc: float | None
    order_flips: float | None


@dataclasses.dataclass(frozen=True)
class Gate:
    """The allowed difference: its maximum, for 8 bits its mean too, and the least rank correlation."""

    max_abs: float
    mean_abs: float | None = None
    srcc: float = MIN_SRCC

    def passed(self, difference: Difference) -> bool:
        """Whether all of it holds; no rank correlation is no objection."""
        return (
            difference.max_abs <= self.max_abs
            and (self.mean_abs is None or difference.mean_abs <= self.mean_abs)
            and (difference.srcc is None or difference.srcc >= self.srcc)
        )


def compare(wanted: Scores, found: Scores) -> Difference:
    """Differences [P] against [P], in score units; SRCC from 16 values on; order flips are the share of pairs."""
    from scipy.stats import spearmanr

    gap = np.abs(wanted - found)
    upper = np.triu_indices(len(wanted), k=1)
    orders = [np.sign(v[:, None] - v[None, :])[upper] for v in (wanted, found)]
    flips = float(np.mean(orders[0] * orders[1] < 0)) if len(upper[0]) else None
    ranked = len(wanted) >= SRCC_FROM and np.ptp(wanted) > 0 and np.ptp(found) > 0
    srcc = float(spearmanr(wanted, found).statistic) if ranked else None
    p99 = float(np.percentile(gap, 99))
    return Difference(float(gap.max()), p99, float(gap.mean()), float(wanted.std()), srcc, flips)


def graph_scores(backend: Backend, batch: int, inputs: NDArray[np.uint8], steps: Steps, label: str) -> Scores:
    """Crop scores [P, K] of single crops [P, 224, 224, 3], packed into the graph's [N, C], or of frames [F, H, W, 3].

    Raises:
        InputError: ``score`` is not the mean of ``crop_scores``.
    """
    io = backend.io
    per_run, each = (batch, io.crops) if io.frame else (batch * io.crops, 1)  # inputs a call; crops an input
    made = []
    with steps.step(label, len(inputs) * each) as tick:
        for start in range(0, len(inputs), per_run):
            part = inputs[start : start + per_run]
            filled = np.concatenate([part, np.repeat(part[-1:], per_run - len(part), axis=0)])
            outputs = backend.infer(filled.reshape(batch, *io.image_shape))
            if np.abs(outputs.score - outputs.crop_scores.mean(axis=1)).max() > _MEAN_TOLERANCE:
                raise InputError(f"{backend.graph}: score is not the mean of crop_scores")
            made.append(outputs.crop_scores.reshape(per_run * each, -1)[: len(part) * each])
            tick(len(part) * each)
    return np.concatenate(made).astype(np.float64)
