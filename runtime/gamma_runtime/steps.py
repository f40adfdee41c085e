"""Progress of long work on stderr: one line a step with its seconds, and what is left of a long one."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from gamma_runtime.cli import log

__all__ = ["Steps", "Tick"]

_LINE_EVERY = 30.0  # seconds
Tick = Callable[[int], None]  # called with the number of items just done


class Steps:
    """Prints what is being done, and how long it will still take: a bar on a terminal, else a line now and then.

    Example:
        >>> steps = Steps(quiet=False)
        >>> with steps.step("scoring", total=48) as tick:
        ...     tick(8)
    """

    def __init__(self, quiet: bool = True) -> None:
        self._quiet = quiet
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since this object was made."""
        return time.monotonic() - self._start

    def say(self, text: str) -> None:
        """One line of what came of it."""
        if not self._quiet:
            log(f"{self.seconds:6.1f} s  {text}")

    @contextlib.contextmanager
    def step(self, text: str, total: int | None = None) -> Iterator[Tick]:
        """Time a block; the caller ticks when it knows how many items there are."""
        start = time.monotonic()
        shown = _nothing() if self._quiet else _bar(text, total) if sys.stderr.isatty() else _lines(total, start)
        with shown as tick:
            yield tick
        if not self._quiet:
            log(f"{self.seconds:6.1f} s  {text} ({time.monotonic() - start:.1f} s)")


@contextlib.contextmanager
def _nothing() -> Iterator[Tick]:
    yield lambda _: None


@contextlib.contextmanager
def _lines(total: int | None, start: float) -> Iterator[Tick]:
    """For logs: every half minute how much is done, at what pace, and what is left."""
    from gamma_runtime.engines.eta import remaining_text

    said, done = start, 0

    def tick(count: int) -> None:
        nonlocal said, done
        done += count
        now = time.monotonic()
        if now - said < _LINE_EVERY or done == total:
            return
        said, pace = now, done / (now - start)
        left = "" if total is None else f" of {total}, {remaining_text((total - done) / pace)}"
        log(f"        {done}{left}; {pace:.3g} a second")

    yield tick


@contextlib.contextmanager
def _bar(text: str, total: int | None) -> Iterator[Tick]:
    """A bar with a total, a pulse without one."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(text, total=total)
        yield lambda done: bars.advance(task, done)
