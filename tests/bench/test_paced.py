"""An open loop shows the queue behind a stall; a closed one would hide it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gamma_export.bench.paced import paced
from gamma_export.bench.stats import percentile
from tests.bench.clock import Clock


def scorer(clock: Clock, seconds: float, stall_at: int = -1, stall: float = 0.0) -> Callable[[], object]:
    """Takes ``seconds`` an image, and once ``stall`` seconds."""
    done = iter(range(10**6))
    return lambda: clock.sleep(stall if next(done) == stall_at else seconds)


def test_without_a_stall_latency_is_the_scoring() -> None:
    clock = Clock()
    found = paced(scorer(clock, 0.02), 10, 3, clock, clock.sleep)
    assert found.latencies == pytest.approx([20.0] * 30)
    assert (found.late, found.dropped) == (0, 0)
    assert clock.now == pytest.approx(2.92)  # the last one is due at 2.9 s: the rate was kept


def test_a_stall_is_seen_by_all_who_wait_behind_it() -> None:
    clock = Clock()
    found = paced(scorer(clock, 0.02, stall_at=10, stall=1.0), 10, 3, clock, clock.sleep)
    behind = [1000 - 80 * k for k in range(12)]  # each was due 100 ms later and took 20 ms
    assert found.latencies[10:22] == pytest.approx(behind)
    assert found.latencies[23:] == pytest.approx([20.0] * 7)
    assert (found.late, found.dropped) == (12, 0)
    closed = sorted(found.services)
    assert percentile(closed, 0.9) == pytest.approx(20.0)  # what a closed loop reports: one outlier
    assert percentile(sorted(found.latencies), 0.9) > 700.0


def test_who_cannot_keep_up_drops_and_the_waiting_counts() -> None:
    clock = Clock()
    found = paced(scorer(clock, 1.0), 10, 1, clock, clock.sleep)
    assert found.dropped == 8
    assert len(found.services) == 2
    assert found.latencies[:2] == pytest.approx([1000.0, 1900.0])
    assert found.latencies[2:] == pytest.approx([2000.0 - 100 * i for i in range(2, 10)])
    assert found.late == 2


def test_a_slow_rate_still_has_three_images() -> None:
    clock = Clock()
    assert len(paced(scorer(clock, 0.01), 1, 0.1, clock, clock.sleep).latencies) == 3
