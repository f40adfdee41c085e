"""How well the weights judge photos that they were not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.contract import CropPolicy
from gamma_runtime.crops import positions, reduced, working_size
from gamma_runtime.prefetch import prefetched
from gamma_training.data import Sample, read_pixels
from gamma_training.metrics import correlations

if TYPE_CHECKING:
    import torch

    from gamma_runtime.steps import Tick
    from gamma_training.model import Gamma
    from gamma_training.scenes import Scene
    from gamma_training.train.distributed import Group
    from gamma_training.train.photos import Photos

__all__ = ["encode", "score_photos", "summary"]

FIVE = CropPolicy(kind="five")


def encode(model: Gamma, scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """Text features (levels, embed) of each scene, encoded once, on the model's device."""
    import torch

    from gamma_training.tokens import tokenize

    device = model.score_level.device
    with torch.inference_mode():
        return {s.name: model.text_features(tokenize(s.prompts, model.dims.context).to(device)) for s in scenes}


def score_photos(
    model: Gamma, photos: Photos, samples: Sequence[Sample], group: Group, workers: int, tick: Tick
) -> NDArray[np.float64]:
    """Scores (P) of the samples: the mean of five crops at the working size; each process takes its share.

    Raises:
        InputError: a photo cannot be used.
    """
    import torch

    text = encode(model, list(photos.scenes.values()))

    def crops_of(sample: Sample) -> NDArray[np.uint8]:
        pixels = read_pixels(sample)
        size = working_size(pixels.shape[1], pixels.shape[0], photos.short_side(sample))
        pixels = reduced(pixels, size)
        return np.stack([pixels[y : y + 224, x : x + 224] for y, x in positions(FIVE, *size)])

    mine = []
    share = samples[group.rank :: group.size]
    with torch.inference_mode():
        for sample, crops in prefetched(crops_of, iter(share), workers, 2 * workers + 1):
            scores = model.score(torch.from_numpy(crops).to(group.device), text[sample.scene])
            mine.append(float(scores.double().mean()))
            tick(1)
    made = np.empty(len(samples))
    for rank, part in enumerate(group.gather(mine)):
        made[rank :: group.size] = part
    return made


def summary(samples: Sequence[Sample], scores: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
    """Correlations of each set, and their mean over the sets under ``mean``."""
    targets = np.array([sample.target for sample in samples])
    names = np.array([sample.dataset for sample in samples])
    made: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(names.tolist()):
        one = correlations(scores[names == name], targets[names == name])
        made[name] = {"srcc": one.srcc, "plcc": one.plcc, "rmse": one.rmse, "photos": one.count}
    mean = {key: float(np.mean([row[key] for row in made.values()])) for key in ("srcc", "plcc", "rmse")}
    return {**made, "mean": {**mean, "photos": len(samples)}}
