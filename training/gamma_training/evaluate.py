"""Scores of labelled photos, by a checkpoint or a bundle, cut and reduced as the contract says.

A bundle is evaluated under its own contract, as a device obeys it. A checkpoint has none: its photos are reduced by
their set's own rule, else to their scene's working size, and cut by the policy that is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.contract import SMALL, Contract, CropPolicy
from gamma_runtime.crops import prepare
from gamma_runtime.errors import GammaError, InputError, UsageError, without_frames
from gamma_runtime.prefetch import chunked, prefetched
from gamma_runtime.steps import Steps
from gamma_runtime.threads import BUDGET, OPENCV
from gamma_runtime.threads import decode_threads as decode_threads_of

if TYPE_CHECKING:
    from gamma_training.data.samples import Sample
    from gamma_training.judges import Judge

__all__ = ["PhotoScore", "Protocol", "Scored", "Skipped", "contracts_for", "score_samples"]

Crops: TypeAlias = NDArray[np.uint8]
_Prepared: TypeAlias = "tuple[Crops, ...] | GammaError"  # one set of crops a judge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How photos are scored.

    Attributes:
        crops: a crop policy such as ``five`` or the authors' ``random10:seed0``; the contract's own when None.
        native: no reduction to the scene's working size; a set's own resize rule holds.
        small: photos with a side under 224 pixels: refuse, resize or pad; the contract's own rule when None.
        batch: photos scored together; scores do not depend on it beyond rounding.
        decode_threads: threads that prepare the next photos, 0 for none; one a processor, at most 4, when None.
        skip_bad: leave photos out that cannot be read, and list them, instead of stopping at the first.
    """

    crops: str | None = None
    native: bool = False
    small: str | None = None
    batch: int = 8
    decode_threads: int | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"a batch of {self.batch}; at least 1 is needed")
        if self.small is not None and self.small not in SMALL:
            raise UsageError(f"small is one of {', '.join(SMALL)}, not {self.small!r}")
        if self.crops is not None and CropPolicy.parse(self.crops).frame:
            raise UsageError(f"crop policy {self.crops!r}: photos are not frames of one size")


@dataclasses.dataclass(frozen=True)
class PhotoScore:
    """One photo's score: the mean over its crops, and their population standard deviation."""

    sample: Sample
    score: float
    crop_std: float
    crops: int

    @property
    def error(self) -> float:
        """Score minus target."""
        return self.score - self.sample.target


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A photo that was left out, and why."""

    sample: Sample
    reason: str


@dataclasses.dataclass(frozen=True)
class Scored:
    """What `score_samples` gives: a list of scores for each judge, all of the same photos in the same order."""

    by_judge: tuple[tuple[PhotoScore, ...], ...]
    skipped: tuple[Skipped, ...]


def contracts_for(judges: Sequence[Judge], how: Protocol) -> list[Contract]:
    """The contract that each judge's photos go through; a checkpoint beside a bundle takes the bundle's."""
    lent = next((judge.contract for judge in judges if judge.fixed), None)
    made = []
    for judge in judges:
        contract = judge.contract if judge.fixed or lent is None else lent
        if how.crops is not None:
            contract = dataclasses.replace(contract, crop=CropPolicy.parse(how.crops))
        if how.small is not None:
            contract = dataclasses.replace(contract, small=how.small)
        if how.native:
            contract = dataclasses.replace(contract, short_sides=dict.fromkeys(contract.short_sides))
        made.append(contract)
    return made


def score_samples(
    judges: Sequence[Judge], samples: Sequence[Sample], how: Protocol, steps: Steps | None = None
) -> Scored:
    """Score photos with every judge; each is decoded once, by threads, while the ones before it are scored.

    Args:
        judges: one or more, opened for the samples' scenes (`Judge.scene_for`).
        samples: in any order of sets and scenes.
        how: crops, sizes and batches.
        steps: progress; silent when None.

    Raises:
        InputError: a photo cannot be used (with ``skip_bad``: none can), or a score is not finite.
        UsageError: a judge does not have a scene.
    """
    if not samples:
        raise InputError("no photos to score", hint="another --split, or check the data")
    view = _View(judges, contracts_for(judges, how), how, any(judge.fixed for judge in judges))
    found: list[list[PhotoScore]] = [[] for _ in judges]
    skipped: list[Skipped] = []
    threads = decode_threads_of(how.decode_threads)
    text = f"{len(samples)} photos, {' and '.join(str(judge.facts['run_by']) for judge in judges)}"
    with (steps or Steps()).step(text, len(samples)) as tick, _one_opencv_thread():
        ready = prefetched(view.prepare, iter(samples), threads, max(how.batch, threads))
        with contextlib.closing(ready):
            for chunk in chunked(ready, how.batch):
                good = _sorted_out(chunk, how.skip_bad, skipped)
                for index, judge in enumerate(judges):
                    found[index] += _score_chunk(judge, [(sample, crops[index]) for sample, crops in good])
                tick(len(chunk))
    if not found[0]:
        raise InputError(f"none of {len(samples)} photos can be scored; the first: {skipped[0].reason}")
    return Scored(tuple(map(tuple, found)), tuple(skipped))


@dataclasses.dataclass(frozen=True)
class _View:
    """How one photo looks to each judge."""

    judges: Sequence[Judge]
    contracts: Sequence[Contract]
    how: Protocol
    fixed: bool

    def prepare(self, sample: Sample) -> _Prepared:
        """Crops for each judge, or what is wrong with the photo; judges with one contract share them."""
        from gamma_training.data import read_pixels

        made: dict[str, Crops] = {}
        rules = [self._rules(sample, *pair) for pair in zip(self.judges, self.contracts, strict=True)]
        try:
            with BUDGET.hold(1):
                pixels = read_pixels(sample)
                for contract in rules:
                    key = contract.sha256()
                    if key not in made:
                        made[key] = prepare(pixels, contract, "photo").crops
        except InputError as error:
            return _named(sample, error)
        return tuple(made[contract.sha256()] for contract in rules)

    def _rules(self, sample: Sample, judge: Judge, contract: Contract) -> Contract:
        """The contract with the one working size that this photo has; the set's own rule was applied already."""
        sides = contract.short_sides
        known = [one.scene_for(sample.scene) for one in (judge, *self.judges)]  # or the one that lent the contract
        side = next(sides[scene] for scene in known if scene in sides)
        if not self.fixed and sample.short_side is not None:
            side = None
        return dataclasses.replace(contract, short_sides={"photo": side})


def _named(sample: Sample, error: InputError) -> InputError:
    """The same error with the photo's name in it; without tracebacks, which would hold the pixels."""
    said = error.message if str(sample.path) in error.message else f"{sample.path}: {error.message}"
    return without_frames(type(error)(said, hint=error.hint))


def _sorted_out(
    chunk: list[tuple[Sample, _Prepared]], skip_bad: bool, skipped: list[Skipped]
) -> list[tuple[Sample, tuple[Crops, ...]]]:
    """The photos of a chunk that can be scored.

    Raises:
        InputError: one cannot, and none may be skipped.
    """
    good = []
    for sample, prepared in chunk:
        if isinstance(prepared, tuple):
            good.append((sample, prepared))
        elif skip_bad:
            skipped.append(Skipped(sample, prepared.message))
        else:
            raise InputError(prepared.message, hint=prepared.hint or "--skip-bad leaves such photos out")
    return good


def _score_chunk(judge: Judge, photos: Sequence[tuple[Sample, Crops]]) -> list[PhotoScore]:
    """Scores of some photos in their order; those of one scene go through the model together."""
    made: dict[int, PhotoScore] = {}
    scene_of = [judge.scene_for(sample.scene) for sample, _ in photos]
    for scene in dict.fromkeys(scene_of):
        places = [place for place, name in enumerate(scene_of) if name == scene]
        crops = [photos[place][1] for place in places]
        try:
            scores = judge.score(np.concatenate(crops), scene)
        except InputError as error:
            first, last = (photos[places[end]][0].path for end in (0, -1))
            raise type(error)(f"{error.message} (photos {first} to {last})", hint=error.hint) from error
        ends = list(itertools.accumulate(len(some) for some in crops))
        for place, part in zip(places, np.split(scores, ends[:-1]), strict=True):
            made[place] = PhotoScore(photos[place][0], float(part.mean()), float(part.std()), len(part))
    return [made[place] for place in range(len(photos))]


@contextlib.contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Photos are spread over threads, not stripes of one photo."""
    OPENCV.hold()
    try:
        yield
    finally:
        OPENCV.release()
