"""A scorer at its limit: as many images as it takes, from one caller or from several threads."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gamma_runtime.scorer import Scorer

__all__ = ["Saturated", "saturated", "speeds", "streamed"]

_GROUPS = 20  # speeds that a measurement is divided into, at most
_LEAST_CALLS = 4  # of each stream
_AHEAD = 8  # images that are taken before their results, at most, beside the batch


def speeds(stamps: Sequence[float], chunk: int) -> list[float]:
    """Images a second of up to twenty stretches of equally many results.

    Args:
        stamps: seconds at which results came, in order; those of a chunk come together.
        chunk: results that belong together.

    Raises:
        ValueError: less than two chunks.

    Example:
        >>> speeds([0.0, 0.5, 1.0], 1)
        [2.0, 2.0]
    """
    ends = list(stamps[chunk - 1 :: chunk])
    if len(ends) < 2 or ends[-1] <= ends[0]:
        raise ValueError(f"{len(stamps)} results are too few for a speed")
    step = max(1, (len(ends) - 1) // _GROUPS)
    marks = ends[::step]
    return [step * chunk / max(late - early, 1e-9) for early, late in itertools.pairwise(marks)]


@dataclasses.dataclass(frozen=True)
class Saturated:
    """A scorer at its limit.

    Attributes:
        speeds: images a second, of up to twenty stretches.
        begin: seconds of `time.perf_counter` at which the first stretch began.
        end: at which the last result of a whole batch came.
        images: scored between the two.
    """

    speeds: list[float]
    begin: float
    end: float
    images: int


def saturated(scorer: Scorer, images: Sequence[bytes], batch: int, seconds: float) -> Saturated:
    """Images a second of `Scorer.score_many`, the next images being prepared meanwhile; beginning and end left out.

    Raises:
        GammaError: as `Scorer.score_many`.
    """
    end = time.perf_counter() + seconds
    least = 6 * batch + _AHEAD
    over = threading.Event()

    def endless() -> Iterator[bytes]:
        for count, image in enumerate(itertools.cycle(images)):
            if count >= least and time.perf_counter() >= end:
                over.set()
                return
            yield image

    stamps: list[float] = []
    for _ in scorer.score_many(endless(), batch=batch):
        if not over.is_set() or len(stamps) < 4 * batch:  # afterwards nothing is prepared beside the graph any more
            stamps.append(time.perf_counter())
    kept = stamps[batch:]
    ends = kept[batch - 1 :: batch]
    return Saturated(speeds(kept, batch), ends[0], ends[-1], (len(ends) - 1) * batch)


def streamed(scorer: Scorer, images: Sequence[bytes], streams: int, seconds: float) -> tuple[list[float], list[float]]:
    """Several threads score one image after the other with one scorer.

    Returns:
        Milliseconds of each call, and the seconds at which it ended, both in the order of ending.

    Raises:
        GammaError: as `Scorer.score`.
    """
    together = threading.Barrier(streams)

    def one(index: int) -> list[tuple[float, float]]:
        mine = itertools.cycle([*images[index % len(images) :], *images[: index % len(images)]])
        together.wait()
        end, found = time.perf_counter() + seconds, list[tuple[float, float]]()
        while len(found) < _LEAST_CALLS or time.perf_counter() < end:
            start = time.perf_counter()
            scorer.score(next(mine))
            done = time.perf_counter()
            found.append((done, (done - start) * 1e3))
        return found

    with concurrent.futures.ThreadPoolExecutor(streams, "gamma-bench") as pool:
        calls = sorted(call for found in pool.map(one, range(streams)) for call in found)
    return [ms for _, ms in calls], [done for done, _ in calls]
