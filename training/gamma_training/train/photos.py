"""The photos of a run: read from the configuration's sets, split, and given as crops or cached activations."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.errors import InputError
from gamma_runtime.prefetch import prefetched
from gamma_training.data import Sample, open_data
from gamma_training.scenes import SCENES, Scene, load_scenes
from gamma_training.train.views import cut, kept_rows, turn_of, view_of

if TYPE_CHECKING:
    from gamma_runtime.steps import Steps
    from gamma_training.train.cache import Cache
    from gamma_training.train.config import TrainConfig

__all__ = ["Photos", "batches", "open_photos"]


@dataclasses.dataclass(frozen=True)
class Photos:
    """All samples of a run by split, and the scenes that they belong to."""

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    scenes: dict[str, Scene]
    native: bool

    def short_side(self, sample: Sample) -> int | None:
        """The set's own resize rule was applied already; else the scene's working size, unless native."""
        return None if self.native or sample.short_side is not None else self.scenes[sample.scene].short_side

    @property
    def digest(self) -> str:
        """SHA-256 over what is learned from and chosen by: photos, targets, splits, and the scenes with their prompts.

        Test photos are not among them: one that turns out to be damaged may be left out of a run that goes on.
        """
        chosen = (*self.train, *self.val)
        rows = [[str(s.path), s.target, s.scene, s.split, s.dataset, repr(s.distortion), s.short_side] for s in chosen]
        used = [self.scenes[name] for name in sorted({s.scene for s in chosen})]
        scenes = [[scene.name, scene.prompts, scene.short_side] for scene in used]
        return hashlib.sha256(json.dumps([rows, scenes]).encode()).hexdigest()


def open_photos(config: TrainConfig, prompts: str, steps: Steps) -> Photos:
    """Read every set of the configuration; one without a val split gives some of its training photos.

    Raises:
        InputError: a set cannot be read, two have one name, a photo is both learned from and judged, an unknown
            scene, or no photo to train on.
    """
    user = load_scenes(config.scene_file) if config.scene_file else []
    known = {**SCENES, **{scene.name: scene for scene in user}}
    samples: list[Sample] = []
    names: set[str] = set()
    for spec in config.data:
        found = open_data(spec, steps)
        if found.name in names:
            raise InputError(f"data: two entries are called {found.name}", hint="give one of them another name:")
        names.add(found.name)
        samples += _with_val(found.samples, config)
    _refuse_straddling(samples)
    if prompts == "plain":
        samples = [dataclasses.replace(sample, scene="plain") for sample in samples]
    if odd := sorted({sample.scene for sample in samples} - set(known)):
        raise InputError(f"data: unknown scene {odd[0]!r}", hint=f"one of {', '.join(known)}, or scene_file: YAML")
    train = [sample for sample in samples if sample.split == "train"]
    val = [sample for sample in samples if sample.split == "val"]
    if len(train) < config.batch:
        raise InputError(f"data: {len(train)} photos to train on, fewer than a batch of {config.batch}")
    test = [sample for sample in samples if sample.split == "test"]
    used = {sample.scene for sample in samples}
    scenes = {name: known[name] for name in known if name in used}
    return Photos(tuple(train), tuple(val), tuple(test), scenes, config.native)


def _refuse_straddling(samples: Sequence[Sample]) -> None:
    """Within a set `open_data` has seen to it; here the same file may have come in by two sets, or by a link."""
    files = [
        (os.path.realpath(one.path), one)
        for one in {(sample.path, sample.split): sample for sample in samples}.values()
    ]
    learned = {real: one for real, one in files if one.split == "train"}
    for real, one in files:
        if one.split != "train" and (other := learned.get(real)):
            raise InputError(
                f"data: {one.path} is in split {one.split} of {one.dataset} and in split train of {other.dataset}",
                hint="it would be judged from memory: give it one split in both, or leave it out of one",
            )


def _with_val(samples: Sequence[Sample], config: TrainConfig) -> list[Sample]:
    """Some training photos of a set become its val split, where it has none; never test photos."""
    if any(sample.split == "val" for sample in samples):
        return list(samples)
    return [
        dataclasses.replace(sample, split="val")
        if sample.split == "train" and _share(sample.content, config.seed) < config.validation
        else sample
        for sample in samples
    ]


def _share(content: str, seed: int) -> float:
    """A photo's place between 0 and 1, decided by what is on it: all its copies lie on one side."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{content}".encode()).digest()[:7], "big") / 2**56


def batches(
    photos: Photos, cache: Cache | None, steps: Sequence[NDArray[np.int64]], config: TrainConfig, epoch: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """Indices of each step with what the model eats of them: crops, or one cached view of each.

    A step is int64 [B, 2]: photos, and how often the epoch showed each one before.

    Raises:
        InputError: a photo cannot be used.
    """
    seed, workers = config.seed, config.workers

    def one(shown: tuple[int, int]) -> NDArray[Any]:
        index, repeat = shown
        if cache is None:
            sample = photos.train[index]
            crop: NDArray[Any] = cut(sample, [view_of(seed, epoch, index, repeat)], photos.short_side(sample))[0]
            return crop
        view = cache(index, turn_of(seed, epoch, index, cache.crops, repeat))
        share = config.keep_tokens
        return view if share == 1 else view[kept_rows(seed, epoch, index, len(view), share, repeat)]

    flat = ((index, repeat) for step in steps for index, repeat in step.tolist())
    ahead = max([4 * workers + 8, *(2 * len(step) for step in steps[:1])])
    made = prefetched(one, flat, workers if cache is None else min(workers, 1), ahead)
    try:
        for step in steps:
            yield step[:, 0], np.stack([next(made)[1] for _ in step])
    finally:
        made.close()
