"""Scores become numbers: a row for each set, scene and distortion, the mean over the sets, and two sources compared.

Photos of different sets are never correlated with each other: their opinions are on different scales. A scene, or all
sets together, is the mean over its sets, as the paper reports it. Intervals draw photos together that were made from
one photo.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np

from gamma_training.evaluate import PhotoScore
from gamma_training.metrics import METRICS, PAIRED, Floats, correlations, interval, paired_bootstrap, resampled

__all__ = ["Comparison", "DistortionRow", "Evaluation", "Row", "compare", "evaluation_of"]

Photos = Sequence[PhotoScore]
MEAN = "mean over sets"


@dataclasses.dataclass(frozen=True)
class Row:
    """The statistics of `gamma_training.metrics` with 95 % intervals; NaN and ``reason`` where there is none."""

    name: str
    kind: Literal["set", "scene", "mean", "distortion"]
    photos: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for NaN."""
        plain = {name: _known(value) for name, value in self.values.items()}
        ends = {name: [_known(end) for end in self.intervals[name]] for name in self.intervals}
        return {"name": self.name, "photos": self.photos, **plain, "interval": ends, "reason": self.reason}


@dataclasses.dataclass(frozen=True)
class DistortionRow:
    """One kind of distortion: correlation within it, and whether scores fall from level to level.

    ``monotone`` of ``contents`` photos (those that have every level) have scores that fall strictly from the lightest
    level to the strongest; ``means`` are the mean scores of these photos by level.
    """

    row: Row
    levels: tuple[int, ...]
    contents: int
    monotone: int
    means: tuple[float, ...]

    @property
    def mean_falls(self) -> bool:
        """Whether the mean score falls strictly from level to level."""
        return len(self.means) > 1 and all(a > b for a, b in itertools.pairwise(self.means))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        own = {"levels": list(self.levels), "contents": self.contents, "monotone": self.monotone}
        return {**self.row.to_json(), **own, "means": list(self.means), "mean_falls": self.mean_falls}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All rows of one source."""

    sets: tuple[Row, ...]
    scenes: tuple[Row, ...]
    mean: Row
    distortions: tuple[DistortionRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "sets": [row.to_json() for row in self.sets],
            "scenes": [row.to_json() for row in self.scenes],
            "mean": self.mean.to_json(),
            "distortions": [row.to_json() for row in self.distortions],
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two sources on the same photos of one set: score differences, and correlations of the first minus the second's.

    ``difference`` is Spearman's.
    """

    name: str
    photos: int
    max_abs: float
    mean_abs: float
    srcc: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    plcc: tuple[float, float]
    plcc_difference: float
    plcc_interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for NaN."""
        plain = dataclasses.asdict(self)
        pairs = ("srcc", "interval", "plcc", "plcc_interval")
        plain |= {name: [_known(value) for value in plain[name]] for name in pairs}
        return plain | {name: _known(plain[name]) for name in ("difference", "plcc_difference")}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclasses.dataclass(frozen=True)
class _Cell:
    """One set, or the part of it in a scene, with its resamples."""

    row: Row
    drawn: dict[str, Floats]


def evaluation_of(photos: Photos, draws: int = 1000, seed: int = 0) -> Evaluation:
    """All rows of some scored photos, at least one.

    Args:
        photos: of any number of sets.
        draws: resamples for the intervals.
        seed: of the draws.
    """
    cells: dict[tuple[str, str | None], _Cell] = {}

    def cell(name: str, scene: str | None) -> _Cell:
        chosen = [p for p in photos if p.sample.dataset == name and scene in (None, p.sample.scene)]
        if scene is not None and all(p.sample.scene == scene for p in photos if p.sample.dataset == name):
            scene = None  # the whole set: not drawn a second time
        if (name, scene) not in cells:
            cells[name, scene] = _cell(name, "set", chosen, draws, seed + len(cells))
        return cells[name, scene]

    names = list(dict.fromkeys(photo.sample.dataset for photo in photos))
    sets = [cell(name, None) for name in names]
    scenes = []
    for scene in dict.fromkeys(photo.sample.scene for photo in photos):
        inside = dict.fromkeys(photo.sample.dataset for photo in photos if photo.sample.scene == scene)
        scenes.append(_mean_of(scene, "scene", [cell(name, scene) for name in inside]))
    distorted = [(p, by) for p in photos if (by := p.sample.distorted_by) is not None]
    kinds = dict.fromkeys((photo.sample.dataset, by.kind) for photo, by in distorted)
    several = len({dataset for dataset, _ in kinds}) > 1
    return Evaluation(
        tuple(one.row for one in sets),
        tuple(scenes),
        _mean_of(MEAN, "mean", sets),
        tuple(
            _distortion(
                f"{dataset}: {kind}" if several else kind,
                [(p, by.level) for p, by in distorted if (p.sample.dataset, by.kind) == (dataset, kind)],
                draws,
                seed,
            )
            for dataset, kind in kinds
        ),
    )


def _contents(photos: Photos) -> list[Hashable]:
    return [(photo.sample.dataset, photo.sample.content) for photo in photos]


def _cell(name: str, kind: Literal["set", "distortion"], photos: Photos, draws: int, seed: int) -> _Cell:
    scores, targets = [p.score for p in photos], [p.sample.target for p in photos]
    found = correlations(scores, targets)
    drawn = resampled(scores, targets, draws, seed, _contents(photos))
    values = {metric: float(getattr(found, metric)) for metric in METRICS}
    intervals = {metric: interval(drawn[metric]) for metric in METRICS}
    return _Cell(Row(name, kind, len(photos), values, intervals, found.reason), drawn)


def _mean_of(name: str, kind: Literal["scene", "mean"], cells: Sequence[_Cell]) -> Row:
    """The mean over sets, each drawn on its own; a statistic that one of them lacks is the mean of the others."""
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for metric in METRICS:
        known = [cell for cell in cells if not math.isnan(cell.row.values[metric])]
        values[metric] = float(np.mean([cell.row.values[metric] for cell in known])) if known else math.nan
        drawn = np.mean([cell.drawn[metric] for cell in known], axis=0) if known else np.array([])
        intervals[metric] = interval(drawn)
    missing = [f"{c.row.name}: {c.row.reason}" for c in cells if c.row.reason]
    reason = f"of {len(cells) - len(missing)} of {len(cells)} sets ({'; '.join(missing)})" if missing else None
    return Row(name, kind, sum(c.row.photos for c in cells), values, intervals, reason)


def _distortion(name: str, of_kind: Sequence[tuple[PhotoScore, int]], draws: int, seed: int) -> DistortionRow:
    """The row of one set's photos of one kind, each with its level."""
    chosen = [photo for photo, _ in of_kind]
    by_content: dict[Hashable, dict[int, float]] = {}
    for (photo, level), content in zip(of_kind, _contents(chosen), strict=True):
        by_content.setdefault(content, {})[level] = photo.score
    levels = tuple(sorted({level for scores in by_content.values() for level in scores}))
    whole = [[scores[level] for level in levels] for scores in by_content.values() if len(scores) == len(levels)]
    monotone = sum(all(a > b for a, b in itertools.pairwise(scores)) for scores in whole) if len(levels) > 1 else 0
    means = tuple(float(value) for value in np.mean(whole, axis=0)) if whole else ()
    row = _cell(name, "distortion", chosen, draws, seed).row
    return DistortionRow(row, levels, len(whole), monotone, means)


def compare(first: Photos, second: Photos, draws: int = 1000, seed: int = 0) -> list[Comparison]:
    """Two lists of scores of the same photos in the same order: a row a set.

    Args:
        first: of the source.
        second: of what it is compared with.
        draws: resamples for the intervals; both sources are drawn together.
        seed: of the draws.
    """
    rows = []
    for name in dict.fromkeys(photo.sample.dataset for photo in first):
        pairs = [(a, b) for a, b in zip(first, second, strict=True) if a.sample.dataset == name]
        one, other = (np.array([pair[side].score for pair in pairs]) for side in (0, 1))
        targets = [a.sample.target for a, _ in pairs]
        gap = np.abs(one - other)
        found = [correlations(scores, targets) for scores in (one, other)]
        srcc, plcc = (found[0].srcc, found[1].srcc), (found[0].plcc, found[1].plcc)
        contents = _contents([a for a, _ in pairs])
        spreads = [paired_bootstrap(one, other, targets, draws, seed, contents, metric) for metric in PAIRED]
        rows.append(
            Comparison(
                name=name,
                photos=len(pairs),
                max_abs=float(gap.max()),
                mean_abs=float(gap.mean()),
                srcc=srcc,
                difference=srcc[0] - srcc[1],
                interval=spreads[0],
                plcc=plcc,
                plcc_difference=plcc[0] - plcc[1],
                plcc_interval=spreads[1],
            )
        )
    return rows
