"""When to begin and when to stop measuring: warm-up until the medians stand still, samples until the median is known.

The clock is an argument, so that tests decide what time it is.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from gamma_export.bench.stats import half_width

__all__ = ["Clock", "Plan", "Sampled", "WarmUp", "sample", "stable", "warm_up"]

Clock = Callable[[], float]
Work = Callable[[], Mapping[str, float]]
_WINDOWS = 3  # in a row that must agree
_WINDOW_SECONDS = 0.2
_WINDOW_CALLS = (3, 50)
_LEAST_SHARE = 0.2  # of the time is used, so that a quiet moment is not taken for the whole
_CHECK_EVERY = 10  # samples between two looks at the interval, at first


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long and how well to measure one row.

    Attributes:
        seconds: limit of a warm-up, and again of the sampling.
        within: the 95 % interval of the median must be within ± this share of it.
        agree: by how much (a share) the medians of successive warm-up windows may differ.
        least: samples that are taken whatever the clock says.
        most: samples after which nothing more is taken.
    """

    seconds: float = 10.0
    within: float = 0.02
    agree: float = 0.05
    least: int = 10
    most: int = 100_000


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """What happened before the first sample: how many calls and seconds, and whether they became stable."""

    calls: int
    seconds: float
    stable: bool


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Values of every name in milliseconds, in the order of time; ``half_width`` is the leading one's, a share."""

    values: dict[str, list[float]]
    warm_up: WarmUp
    half_width: float | None


def stable(medians: Sequence[float], agree: float) -> bool:
    """Whether the last three windows' medians lie within a share of the least of them.

    Example:
        >>> stable([9.0, 4.02, 4.0, 4.05], 0.05)
        True
    """
    last = medians[-_WINDOWS:]
    return len(last) == _WINDOWS and max(last) - min(last) <= agree * min(last)


def warm_up(work: Work, lead: str, plan: Plan, clock: Clock = time.perf_counter) -> WarmUp:
    """Call until the medians of successive windows agree, or the time is over (at least four windows are tried).

    Args:
        work: one call; gives its milliseconds by name.
        lead: the name that is looked at.
        plan: the limits.
        clock: seconds.
    """
    start, calls, medians = clock(), 0, list[float]()
    first = work()[lead]  # is slower than what follows and must not decide how many calls a window has
    second = work()[lead]
    size = _window(min(first, second) / 1e3)
    calls += 2
    while not stable(medians, plan.agree):
        if clock() - start > plan.seconds and len(medians) > _WINDOWS:
            return WarmUp(calls, round(clock() - start, 3), False)
        medians.append(statistics.median(work()[lead] for _ in range(size)))
        calls += size
    return WarmUp(calls, round(clock() - start, 3), True)


def _window(seconds: float) -> int:
    """Calls of a window, when one takes so long."""
    least, most = _WINDOW_CALLS
    return most if seconds <= 0 else min(most, max(least, round(_WINDOW_SECONDS / seconds)))


def sample(work: Work, lead: str, plan: Plan, clock: Clock = time.perf_counter) -> Sampled:
    """Warm up, then call until the leading value's median is known well enough, or the time or the samples are over.

    The interval is looked at ever more rarely, so that looking neither costs much nor stops by luck.
    """
    warm, start = warm_up(work, lead, plan, clock), clock()
    values: dict[str, list[float]] = {}
    for count in _checks(plan):
        while len(values.get(lead, ())) < count:
            for name, value in work().items():
                values.setdefault(name, []).append(value)
            if clock() - start > plan.seconds and len(values[lead]) >= plan.least:
                return Sampled(values, warm, half_width(values[lead]))
        width = half_width(values[lead])
        long_enough = count >= 3 * plan.least and clock() - start >= _LEAST_SHARE * plan.seconds
        if width is not None and width <= plan.within and long_enough:
            break
    return Sampled(values, warm, half_width(values[lead]))


def _checks(plan: Plan) -> Iterator[int]:
    """Numbers of samples at which the interval is looked at; the last is the most."""
    count = max(_CHECK_EVERY, plan.least)
    while count < plan.most:
        yield count
        count = count * 3 // 2
    yield plan.most
