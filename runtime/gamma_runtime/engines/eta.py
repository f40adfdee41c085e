"""How long a build still takes, from what TensorRT reports and from earlier builds of the same graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gamma_runtime.manifest import EngineEntry

__all__ = ["earlier_seconds", "remaining", "remaining_text"]

_LEAST_FRACTION = 0.05  # below it, elapsed / fraction says nothing
_LEAST_SECONDS = 3.0
_SETTLE = 10.0  # seconds in which a shown estimate moves most of the way to a new one


def earlier_seconds(
    engines: Sequence[EngineEntry], graph: str, precision: str, flavour: str, options: dict[str, object]
) -> float | None:
    """What the newest build of this graph took; None when there was none, or none with these options.

    Args:
        engines: of engines.json.
        graph: the graph's name.
        precision: of the graph.
        flavour: ``tensorrt`` or ``tensorrt-rtx``.
        options: those that change how long a build takes; all must be equal.
    """
    same = [
        entry
        for entry in engines
        if (entry.graph, entry.precision, entry.flavour) == (graph, precision, flavour)
        and all(entry.options.get(name) == value for name, value in options.items())
    ]
    return max(same, key=lambda entry: entry.created).seconds if same else None


def remaining(
    elapsed: float,
    fraction: float | None,
    earlier: float | None,
    shown: tuple[float, float] | None = None,
) -> float | None:
    """Seconds that are probably left; never negative, None while nothing is known.

    The pace so far counts as much as the share that is done, an earlier build for the rest.

    Args:
        elapsed: seconds since the start.
        fraction: TensorRT's progress, 0 to 1; None where it reports none.
        earlier: seconds of an earlier build of the same graph.
        shown: when (elapsed seconds) and what was last shown; the new value only drifts away from it.

    Example:
        >>> remaining(60.0, 0.5, None)
        60.0
        >>> remaining(10.0, None, 40.0)
        30.0
    """
    done = min(max(fraction or 0.0, 0.0), 1.0)
    pace = elapsed * (1 - done) / done if done >= _LEAST_FRACTION and elapsed >= _LEAST_SECONDS else None
    if earlier is None:
        guess = pace
    elif pace is None:
        guess = max(earlier - elapsed, 0.0)
    else:
        guess = (1 - done) * earlier * (1 - done) + done * pace
    if guess is None or shown is None:
        return guess
    passed = max(elapsed - shown[0], 0.0)
    expected = max(shown[1] - passed, 0.0)
    return max(expected + (guess - expected) * min(1.0, passed / _SETTLE), 0.0)


def remaining_text(seconds: float | None) -> str:
    """``about 3 min left``; rounded so that it does not pretend.

    Example:
        >>> remaining_text(171.0)
        'about 3 min left'
    """
    if seconds is None:
        return "no estimate yet"
    if seconds < 10:
        return "a few seconds left"
    if seconds < 90:
        return f"about {round(seconds / 10) * 10} s left"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"
