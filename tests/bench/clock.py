"""A clock that only goes on when somebody works or sleeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def calls(clock: Clock, milliseconds: Iterator[float]) -> Callable[[], Mapping[str, float]]:
    """A call that takes what the series says."""

    def work() -> Mapping[str, float]:
        taken = next(milliseconds)
        clock.sleep(taken / 1e3)
        return {"call": taken, "part": taken / 2}

    return work
