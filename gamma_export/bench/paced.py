"""Images that arrive by the clock, whether or not the last one is done: an open loop.

A loop that sends the next image when the last score is there never sees a queue: while the scorer stalls it stops
asking (coordinated omission). Here every image has a time at which it is due, and its latency counts from then.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from gamma_export.bench.sampling import Clock

__all__ = ["Paced", "paced"]


@dataclasses.dataclass(frozen=True)
class Paced:
    """What became of the images of one rate.

    Attributes:
        latencies: milliseconds from when each was due until its score was there; of the ``dropped`` ones the time that
            they had waited when the measurement ended, which is less than they would have needed.
        services: milliseconds of scoring alone, of those that were scored; what a closed loop would report.
        late: scored, but later than one period after they were due.
        dropped: never scored before the end; they are the last of ``latencies``.
    """

    latencies: list[float]
    services: list[float]
    late: int
    dropped: int


def paced(
    work: Callable[[], object],
    rate: float,
    seconds: float,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Paced:
    """Let images be due at a constant rate; whoever is due waits in a queue for the scorer, first come, first served.

    Args:
        work: scores one image.
        rate: images a second.
        seconds: during which images become due, at least three of them; as long again is waited for the last.
        clock: seconds.
        sleep: waits for so many seconds.
    """
    period, count = 1 / rate, max(3, round(rate * seconds))
    start = clock()
    end = start + 2 * count * period
    latencies, services = list[float](), list[float]()
    for index in range(count):
        due = start + index * period
        if clock() >= end:
            waited = [(clock() - (start + i * period)) * 1e3 for i in range(index, count)]
            return Paced(latencies + waited, services, _late(latencies, period), count - index)
        while (ahead := due - clock()) > 0:
            sleep(ahead)
        begun = clock()
        work()
        done = clock()
        latencies.append((done - due) * 1e3)
        services.append((done - begun) * 1e3)
    return Paced(latencies, services, _late(latencies, period), 0)


def _late(latencies: list[float], period: float) -> int:
    return sum(latency > period * 1e3 for latency in latencies)
