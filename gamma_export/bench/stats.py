"""What is said about a list of measured values: percentiles, an interval of the median, drift, thinning, a ratio."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MAX_KEPT",
    "Summary",
    "drift",
    "half_width",
    "median_interval",
    "median_ratio",
    "percentile",
    "summarise",
    "thinned",
]

MAX_KEPT = 2000  # samples of a row in a result file
_Z = 1.959963984540054  # of the normal distribution, 95 %
_LEAST = 6  # of fewer samples no pair encloses the median with 95 % (two of 2**6 orders miss it: 3 %)
_RESAMPLES, _BLOCK = 2000, 200
_SEED = 20261128


@dataclasses.dataclass(frozen=True)
class Summary:
    """Of ``n`` samples, in their unit; ``sd`` is the sample standard deviation (0 for one sample)."""

    n: int
    p50: float
    p90: float
    p99: float
    min: float
    max: float
    mean: float
    sd: float


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of the sorted samples lie, linear between neighbours.

    Raises:
        ValueError: no samples.

    Example:
        >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5)
        2.5
    """
    if not ordered:
        raise ValueError("a percentile of no samples")
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarise(samples: Sequence[float]) -> Summary:
    """All that a row of the report says.

    Raises:
        ValueError: no samples.
    """
    ordered = sorted(samples)
    p50, p90, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99))
    deviation = statistics.stdev(ordered) if len(ordered) > 1 else 0.0
    return Summary(len(ordered), p50, p90, p99, ordered[0], ordered[-1], statistics.fmean(ordered), deviation)


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """Two of the samples between which the true median lies with at least 95 %, whatever the distribution.

    By the binomial distribution of how many samples lie below the median: exact up to 60 samples, then its normal
    approximation rounded outwards. None for fewer than six samples. It assumes independent samples.
    """
    count = len(samples)
    if count < _LEAST:
        return None
    ordered = sorted(samples)
    below = _exact_rank(count) if count <= 60 else math.floor((count - _Z * math.sqrt(count)) / 2)
    return ordered[below - 1], ordered[count - below]


def _exact_rank(count: int) -> int:
    """The largest r (from 1) for which the r-th lowest and r-th highest of ``count`` enclose the median with 95 %."""
    missed, rank = 0.0, 0
    while True:
        missed += math.comb(count, rank) / 2**count  # P(fewer than rank + 1 samples below the median)
        if missed > 0.025:
            return rank
        rank += 1


def half_width(samples: Sequence[float]) -> float | None:
    """Half of the median's interval as a share of the median; None where there is no interval."""
    interval = median_interval(samples)
    middle = statistics.median(samples) if samples else 0.0
    return None if interval is None or middle <= 0 else (interval[1] - interval[0]) / 2 / middle


def drift(samples: Sequence[float]) -> float | None:
    """By how much the second half's median is above the first's, as a share; None where the two could be the same.

    Samples are in the order of time. They could be the same where the intervals of the halves' medians overlap.
    """
    middle = len(samples) // 2
    first, second = samples[:middle], samples[len(samples) - middle :]
    one, two = median_interval(first), median_interval(second)
    if one is None or two is None or (one[0] <= two[1] and two[0] <= one[1]):
        return None
    return statistics.median(second) / statistics.median(first) - 1


def thinned(samples: Sequence[float], most: int = MAX_KEPT) -> list[float]:
    """At most ``most`` samples, evenly spread over the measurement, first and last included, in their order."""
    if len(samples) <= most:
        return list(samples)
    return [samples[round(index * (len(samples) - 1) / (most - 1))] for index in range(most)]


def median_ratio(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Median of ``second`` over median of ``first``, with its 95 % bootstrap interval (percentiles, fixed seed).

    Raises:
        ValueError: no samples, or a median that is not positive.
    """
    if not first or not second or statistics.median(first) <= 0:
        raise ValueError("a ratio needs samples, and a positive median to divide by")
    generator = np.random.default_rng(_SEED)
    drawn = [_medians(np.asarray(samples, np.float64), generator) for samples in (first, second)]
    low, high = np.percentile(drawn[1] / drawn[0], [2.5, 97.5])
    return statistics.median(second) / statistics.median(first), float(low), float(high)


def _medians(samples: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Medians of as many samples drawn with replacement, ``[_RESAMPLES]``; in blocks, so that little is in memory."""
    size = len(samples)
    blocks = (generator.integers(0, size, (_BLOCK, size)) for _ in range(_RESAMPLES // _BLOCK))
    return np.concatenate([np.median(samples[block], axis=1) for block in blocks])
