"""The baseline of the study: ridge regression on what the base's ViT says of a photo, nothing of it trained.

Same photos, splits, working size and crops (five of each photo, averaged) as the checkpoint that it stands beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.prefetch import prefetched
from gamma_runtime.steps import Steps

if TYPE_CHECKING:
    from gamma_training.data import Sample
    from gamma_training.model import Gamma
    from gamma_training.train.photos import Photos

__all__ = ["fit_ridge", "frozen_features", "ridge_baseline"]

Floats = NDArray[np.float64]
_END = 1 - 1e-9  # the last position there is
_FIVE = ((0.5, 0.5), (0.0, 0.0), (0.0, _END), (_END, 0.0), (_END, _END))  # down, right
_PENALTIES = tuple(10.0**power for power in range(-1, 6))
_FOLDS = 5


def frozen_features(model: Gamma, photos: Photos, samples: Sequence[Sample], steps: Steps) -> Floats:
    """Class token and mean patch token behind the last LayerNorm, averaged over five crops: [photos, 2 * width]."""
    import torch

    from gamma_training.train.views import View, cut

    visual = model.clip_model.visual
    views = [View(down, right, False) for down, right in _FIVE]

    def crops_of(index: int) -> NDArray[np.uint8]:
        return cut(samples[index], views, photos.short_side(samples[index]))

    made = []
    with torch.inference_mode(), steps.step(f"frozen features of {len(samples)} photos", len(samples)) as tick:
        for _, crops in prefetched(crops_of, iter(range(len(samples))), 1, 4):
            tokens = visual.ln_post(visual.tokens(model.normalise(torch.from_numpy(crops))))
            both = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1).mean(0)
            made.append(both.numpy().astype(np.float64))
            tick(1)
    return np.stack(made)


def fit_ridge(features: Floats, targets: Floats, seed: int = 0) -> tuple[Floats, float, float]:
    """Weights [D], constant and penalty; the penalty is the one with the best SRCC over five folds of these photos."""
    from gamma_training.metrics import correlations

    fold = np.random.default_rng(seed).permutation(len(targets)) % _FOLDS
    found = np.empty((len(_PENALTIES), len(targets)))
    for number in range(_FOLDS):
        inside = fold != number
        for row, penalty in enumerate(_PENALTIES):
            weights, constant = _solve(features[inside], targets[inside], penalty)
            found[row, ~inside] = features[~inside] @ weights + constant
    best = max(range(len(_PENALTIES)), key=lambda row: correlations(found[row], targets).srcc)
    weights, constant = _solve(features, targets, _PENALTIES[best])
    return weights, constant, _PENALTIES[best]


def _solve(features: Floats, targets: Floats, penalty: float) -> tuple[Floats, float]:
    """Ridge regression on standardised features."""
    centre, spread = features.mean(0), features.std(0) + 1e-12
    x = (features - centre) / spread
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (targets - targets.mean())) / spread
    return weights, float(targets.mean() - centre @ weights)


def ridge_baseline(base: Path, photos: Photos, name: str, steps: Steps) -> dict[str, Any]:
    """Fit on a set's training photos (those kept for validation too), and judge its test photos.

    Args:
        base: checkpoint whose vision tower says something; its experts add nothing yet.
        photos: of the run.
        name: of the set.
        steps: progress.

    Returns:
        SRCC, PLCC and RMSE with 95 % intervals, the penalty, and the number of photos on both sides.
    """
    from gamma_training.checkpoint import build_model, read_checkpoint
    from gamma_training.metrics import bootstrap, correlations

    model = build_model(read_checkpoint(base)).eval()
    train, test = ([s for s in part if s.dataset == name] for part in (photos.train + photos.val, photos.test))
    known = np.array([sample.target for sample in train])
    weights, constant, penalty = fit_ridge(frozen_features(model, photos, train, steps), known)
    scores = frozen_features(model, photos, test, steps) @ weights + constant
    targets = np.array([sample.target for sample in test])
    one, ends = correlations(scores, targets), bootstrap(scores, targets)
    rows = {key: {"value": getattr(one, key), "interval": list(ends[key])} for key in ("srcc", "plcc", "rmse")}
    return {**rows, "penalty": penalty, "fitted_on": len(train), "judged_on": len(test)}
