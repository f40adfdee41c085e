"""How well scores follow people's opinions: plain correlations, as in the paper, and bootstrap intervals.

No logistic curve is fitted before Pearson's (model.md section 2). A resample is a vector of how often each photo was
drawn; every statistic is computed from that, so one code gives the values and, for many resamples at once, their
spread. Tests compare it with scipy on the resampled lists.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "METRICS",
    "PAIRED",
    "Correlations",
    "Floats",
    "bootstrap",
    "correlations",
    "interval",
    "paired_bootstrap",
    "resampled",
]

Floats: TypeAlias = NDArray[np.float64]

METRICS = ("srcc", "plcc", "krcc", "rmse")
PAIRED: dict[Literal["srcc", "plcc"], str] = {"srcc": "spearman", "plcc": "pearson"}  # methods of _Statistics
_LEAST = 3  # photos; two always correlate perfectly
_AT_ONCE = 1_000_000  # photos times draws: some ten arrays of 8 MB
_TAILS = (2.5, 97.5)


@dataclasses.dataclass(frozen=True)
class Correlations:
    """Spearman's, Pearson's and Kendall's (tau-b) correlation, and the root mean square error in target units.

    A statistic that does not exist is NaN, and ``reason`` then says why.
    """

    srcc: float
    plcc: float
    krcc: float
    rmse: float
    count: int
    reason: str | None = None


def correlations(predictions: ArrayLike, targets: ArrayLike) -> Correlations:
    """Compare scores [P] with targets [P]; higher is better in both.

    Fewer than three photos, equal values only, or a value that is not finite give NaN with the reason.

    Raises:
        ValueError: not two lists of one length.

    Example:
        >>> correlations([0.2, 0.5, 0.9], [0.1, 0.6, 0.7]).srcc
        1.0
    """
    found, wanted = _pair(predictions, targets)
    count = len(found)
    if not count or _not_finite(found, wanted):
        return Correlations(math.nan, math.nan, math.nan, math.nan, count, _why(found, wanted))
    values = _Statistics(found, wanted)(np.ones((1, count)))
    return Correlations(**{name: float(values[name][0]) for name in METRICS}, count=count, reason=_why(found, wanted))


def bootstrap(
    predictions: ArrayLike,
    targets: ArrayLike,
    draws: int = 1000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of every statistic of `correlations`: photos are drawn anew, with replacement.

    Draws in which a statistic does not exist are left out; where it exists in none, both ends are NaN. The memory is
    bounded whatever the number of photos and draws.

    Args:
        predictions: scores [P].
        targets: [P].
        draws: resamples.
        seed: of the draws; the same seed gives the same intervals.
        groups: of photos that are drawn together, a name for each [P]: the copies of one photo are no independent
            photos, and intervals that take them for such are too narrow. Each photo is its own when None.

    Raises:
        ValueError: not lists of one length.
    """
    drawn = resampled(predictions, targets, draws, seed, groups)
    return {name: interval(values) for name, values in drawn.items()}


def resampled(
    predictions: ArrayLike,
    targets: ArrayLike,
    draws: int = 1000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, Floats]:
    """What `bootstrap` takes its intervals from: every statistic of every draw, each [draws]; NaN where it has none.

    Raises:
        ValueError: not lists of one length.
    """
    found, wanted = _pair(predictions, targets)
    if not len(found) or _not_finite(found, wanted):
        return {name: np.full(draws, math.nan) for name in METRICS}
    statistics = _Statistics(found, wanted)
    parts = [statistics(weights) for weights in _resamples(_members(groups, len(found)), draws, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    targets: ArrayLike,
    draws: int = 1000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
    metric: Literal["srcc", "plcc"] = "srcc",
) -> tuple[float, float]:
    """95 % interval of a correlation of ``first`` minus that of ``second``, both on the same drawn photos.

    Much narrower than two separate intervals: what the choice of photos does to both cancels out.

    Raises:
        ValueError: the lists are not of one length.
    """
    (one, wanted), (other, _) = _pair(first, targets), _pair(second, targets)
    if not len(one) or _not_finite(one, wanted, other):
        return math.nan, math.nan
    left, right = (getattr(_Statistics(some, wanted), PAIRED[metric]) for some in (one, other))
    weights = _resamples(_members(groups, len(one)), draws, seed)
    return interval(np.concatenate([left(some) - right(some) for some in weights]))


def interval(values: Floats) -> tuple[float, float]:
    """The middle 95 % of what is known of ``values`` [D]; NaN twice where nothing is."""
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.percentile(known, _TAILS)
    return float(low), float(high)


def _pair(predictions: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats]:
    found, wanted = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    if found.ndim != 1 or found.shape != wanted.shape:
        raise ValueError(f"predictions {found.shape} and targets {wanted.shape} are not two lists of one length")
    return found, wanted


def _not_finite(*values: Floats) -> bool:
    return not all(np.isfinite(one).all() for one in values)


def _why(found: Floats, wanted: Floats) -> str | None:
    """Why the correlations do not exist; None when they do."""
    for name, values in (("predictions", found), ("targets", wanted)):
        if bad := int((~np.isfinite(values)).sum()):
            return f"{bad} of {len(values)} {name} are not finite"
    if len(found) < _LEAST:
        return f"{len(found)} photos; a correlation needs {_LEAST}"
    for name, values in (("predictions", found), ("targets", wanted)):
        if np.ptp(values) == 0:
            return f"all {len(values)} {name} are equal"
    return None


def _members(groups: Sequence[Hashable] | None, count: int) -> NDArray[np.intp]:
    """The number of each photo's group [P]."""
    if groups is None:
        return np.arange(count)
    if len(groups) != count:
        raise ValueError(f"{len(groups)} groups for {count} photos")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.intp)


def _resamples(members: NDArray[np.intp], draws: int, seed: int) -> Iterator[Floats]:
    """How often each photo was drawn, [D, P] for some draws at a time."""
    numbers = np.random.default_rng(seed)
    count = int(members.max()) + 1
    most = max(1, _AT_ONCE // len(members))
    for start in range(0, draws, most):
        rows = min(most, draws - start)
        drawn = numbers.integers(0, count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield times[:, members].astype(np.float64)


class _Groups:
    """Which photos have equal values: gives a resample's ties and its ranks."""

    def __init__(self, values: Floats | NDArray[np.intp]) -> None:
        self.of = np.unique(values, return_inverse=True)[1].reshape(-1)  # group of each photo, by rising value
        self._order = np.argsort(self.of, kind="stable")
        self._starts = np.flatnonzero(np.diff(self.of[self._order], prepend=-1))

    def counts(self, weights: Floats) -> Floats:
        """Photos drawn of each group, [D, G]."""
        counted: Floats = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        return counted

    def ranks(self, weights: Floats) -> Floats:
        """Each photo's rank in the resample, [D, P]; equal values share the mean of theirs."""
        counts = self.counts(weights)
        ranks: Floats = (np.cumsum(counts, axis=1) - (counts - 1) / 2)[:, self.of]
        return ranks

    def exists(self, weights: Floats) -> NDArray[np.bool_]:
        """Whether a resample has at least two different values, [D]."""
        several: NDArray[np.bool_] = (self.counts(weights) > 0).sum(axis=1) > 1
        return several


class _Statistics:
    """All statistics of two lists, for resamples [D, P] at once: each [D]."""

    def __init__(self, found: Floats, wanted: Floats) -> None:
        self._found, self._wanted = found, wanted
        self._x, self._y = _Groups(found), _Groups(wanted)
        self._both = _Groups(self._x.of * len(wanted) + self._y.of)
        self._by_x = np.lexsort((self._y.of, self._x.of))

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        squares = np.square(self._found - self._wanted)
        return {
            "srcc": self.spearman(weights),
            "plcc": self.pearson(weights),
            "krcc": self._where(weights, lambda: self._kendall(weights)),
            "rmse": np.sqrt((weights * squares).sum(axis=1) / weights.sum(axis=1)),
        }

    def spearman(self, weights: Floats) -> Floats:
        """Pearson's of the ranks."""
        return self._where(weights, lambda: _pearson(self._x.ranks(weights), self._y.ranks(weights), weights))

    def pearson(self, weights: Floats) -> Floats:
        """Of the values themselves."""
        return self._where(weights, lambda: _pearson(self._found[None], self._wanted[None], weights))

    def _where(self, weights: Floats, compute: Callable[[], Floats]) -> Floats:
        """NaN where the resample has one value only."""
        exists = self._x.exists(weights) & self._y.exists(weights) & (len(self._found) >= _LEAST)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(exists, compute(), np.nan)

    def _kendall(self, weights: Floats) -> Floats:
        """tau-b: (concordant - discordant pairs) / the geometric mean of the pairs untied in each list."""
        pairs = _tied_pairs(weights.sum(axis=1, keepdims=True))
        tied_x, tied_y, tied = (_tied_pairs(group.counts(weights)) for group in (self._x, self._y, self._both))
        discordant = _inversions(self._y.of[self._by_x], weights[:, self._by_x])
        surplus = pairs - tied_x - tied_y + tied - 2 * discordant
        tau: Floats = surplus / np.sqrt((pairs - tied_x) * (pairs - tied_y))
        return tau


def _pearson(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Of [D or 1, P] each, the photos counted ``weights`` [D, P] times."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    spread = np.sqrt((weights * x * x).sum(axis=1)) * np.sqrt((weights * y * y).sum(axis=1))
    within: Floats = np.clip((weights * x * y).sum(axis=1) / spread, -1.0, 1.0)
    return within


def _tied_pairs(counts: Floats) -> Floats:
    pairs: Floats = (counts * (counts - 1) / 2).sum(axis=1)
    return pairs


def _inversions(values: NDArray[np.intp], weights: Floats) -> Floats:
    """Pairs in which the earlier photo has the larger value, each counted as often as its two photos were drawn: [D].

    Bit by bit from the highest: within blocks that agree in all higher bits, in the photos' order, every 0 is inverted
    with the 1s before it. n log n steps, and the orders are the same for all resamples.
    """
    count = len(values)
    ranks = np.empty(count, np.intp)
    ranks[np.argsort(values, kind="stable")] = np.arange(count)  # equal values in their order: not inverted
    total = np.zeros(len(weights))
    for bit in reversed(range(max(count - 1, 1).bit_length())):
        order = np.argsort(ranks >> (bit + 1), kind="stable")
        ones = (ranks[order] >> bit) & 1
        drawn = weights[:, order]
        before = np.cumsum(drawn * ones, axis=1) - drawn * ones
        block = np.arange(count) >> (bit + 1) << (bit + 1)  # ranks are 0 … count-1: a block's first place
        total += (drawn * (1 - ones) * (before - before[:, block])).sum(axis=1)
    return total
