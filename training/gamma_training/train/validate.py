"""How well the weights judge photos that they were not trained on; scored as gamma-eval scores a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.errors import InputError
from gamma_training.evaluate import Protocol, score_samples
from gamma_training.judges import JudgeOptions, TorchJudge
from gamma_training.metrics import bootstrap, correlations

if TYPE_CHECKING:
    from gamma_runtime.steps import Steps
    from gamma_training.data import Sample
    from gamma_training.model import Gamma
    from gamma_training.train.config import TrainConfig
    from gamma_training.train.distributed import Group
    from gamma_training.train.photos import Photos

__all__ = ["doubt_of", "merit", "score_photos", "summary"]

_CORRELATED = 3  # photos that have a rank correlation at least
_CROPS = "five"
_CROPS_AT_ONCE = 40


def merit(judged: dict[str, dict[str, Any]]) -> tuple[bool, float]:
    """What the best epoch has most of: mean SRCC; where no set has one, less error, and any SRCC is above none."""
    srcc, rmse = float(judged["mean"]["srcc"]), float(judged["mean"]["rmse"])
    return (True, srcc) if math.isfinite(srcc) else (False, -rmse)


def doubt_of(config: TrainConfig, photos: Photos) -> str | None:
    """What the validation photos are too few for, in a sentence; None where every set has enough.

    Raises:
        InputError: ``patience`` without a validation photo would wait for ever.
    """
    if not photos.val:
        if config.patience is not None:
            raise InputError(
                f"patience: {config.patience}, and there is no validation photo to judge an epoch by",
                hint="a larger validation (the share of the training photos), a split column, or no patience",
            )
        return "no validation photos: the last epoch is kept as the best one"
    counts = {sample.dataset: 0 for sample in (*photos.train, *photos.val)}
    for sample in photos.val:
        counts[sample.dataset] += 1
    few = [f"{name} has {count}" for name, count in counts.items() if count < _CORRELATED]
    if not few:
        return None
    how = "by the other sets" if len(few) < len(counts) else "by the error (RMSE)"
    return f"fewer than {_CORRELATED} validation photos have no SRCC: {', '.join(few)}; the best epoch is chosen {how}"


def score_photos(
    model: Gamma, photos: Photos, samples: Sequence[Sample], group: Group, workers: int, steps: Steps
) -> NDArray[np.float64]:
    """Scores (P) of the samples: the mean of five crops at the working size; each process takes its share.

    Raises:
        InputError: a photo cannot be used.
    """
    import torch

    options = JudgeOptions(device=str(group.device), batch=_CROPS_AT_ONCE, threads=torch.get_num_threads())
    judge = TorchJudge(model, list(photos.scenes.values()), options)
    how = Protocol(crops=_CROPS, native=photos.native, decode_threads=workers)
    mine = samples[group.rank :: group.size]
    found = [photo.score for photo in score_samples([judge], mine, how, steps).by_judge[0]] if mine else []
    scores = np.empty(len(samples))
    for rank, part in enumerate(group.gather(found)):
        scores[rank :: group.size] = part
    return scores


def summary(
    samples: Sequence[Sample], scores: NDArray[np.float64], intervals: bool = False
) -> dict[str, dict[str, Any]]:
    """Correlations of each set (with the 95 % interval of SRCC if asked for); their mean over the sets as ``mean``."""
    targets = np.array([sample.target for sample in samples])
    names = np.array([sample.dataset for sample in samples])
    made: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(names.tolist()):
        one = correlations(scores[names == name], targets[names == name])
        made[name] = {"srcc": one.srcc, "plcc": one.plcc, "rmse": one.rmse, "photos": one.count}
        if intervals:
            groups = [sample.content for sample in samples if sample.dataset == name]
            ends = bootstrap(scores[names == name], targets[names == name], groups=groups)
            made[name]["srcc_interval"] = list(ends["srcc"])
    mean = {key: _mean([row[key] for row in made.values()]) for key in ("srcc", "plcc", "rmse")}
    return {**made, "mean": {**mean, "photos": len(samples)}}


def _mean(values: list[float]) -> float:
    """Over the sets that have one: three photos, or equal scores, have no correlation."""
    there = [value for value in values if math.isfinite(value)]
    return float(np.mean(there)) if there else math.nan
