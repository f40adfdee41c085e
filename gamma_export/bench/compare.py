"""Two results side by side: faster, slower, or no difference that the samples can show."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

from gamma_export.bench.result import Result, Row
from gamma_export.bench.stats import median_ratio
from gamma_runtime.errors import UsageError

__all__ = ["MARGIN", "Comparison", "compare", "differences", "lines", "queued", "remarks", "word"]

MARGIN = 0.02  # two processes of one program differ by as much; smaller differences are no news
_LEAST = 3  # samples of each side
_Key: TypeAlias = "tuple[str, str, int | None, float | None, int | None]"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One row of both: ``ratio`` of B's median to A's with its 95 % interval, and the word for B."""

    backend: str
    name: str
    unit: str
    first: float
    second: float
    ratio: float
    low: float
    high: float
    word: str


def differences(first: Result, second: Result) -> list[str]:
    """What the two did not have in common and should have had, in sentences; empty where they may be compared."""
    pairs = (
        ("models", first.bundle["checkpoint_sha256"], second.bundle["checkpoint_sha256"]),
        ("scenes", first.scene, second.scene),
        ("photos", first.photos["sha256"], second.photos["sha256"]),
        *((f"machines ({name})", first.machine.get(name), second.machine.get(name)) for name in ("cpu", "cores")),
        ("machines (model)", first.machine.get("model"), second.machine.get("model")),
        ("machines (GPUs)", first.machine.get("gpus"), second.machine.get("gpus")),
    )
    return [f"different {what}: {a} and {b}" for what, a, b in pairs if a != b]


def remarks(first: Result, second: Result) -> list[str]:
    """What differs, may differ, and should be read with the ratios, in sentences."""
    pairs = [
        ("precision", first.bundle["precision"], second.bundle["precision"]),
        ("bundle", first.bundle["sha256"][:12], second.bundle["sha256"][:12]),
    ]
    theirs = {one["backend"]: one for one in second.contenders}
    for one in first.contenders:
        other = theirs.get(one["backend"], {})
        pairs += [
            (f"{one['backend']} {what}", one[what], other[what])
            for what in ("version", "threads", "crops")
            if what in other
        ]
    behind = [
        f"{row.backend} {row.name}: {name} cannot keep up, so its latencies are not compared"
        for name, one in (("A", first), ("B", second))
        for row in one.rows
        if queued(row)
    ]
    return [f"another {what}: {a} in A, {b} in B" for what, a, b in pairs if a != b] + behind


def compare(first: Result, second: Result, anyway: bool = False) -> list[Comparison]:
    """Compare every row that both have, in the order of the first.

    Rows belong together by backend, metric and parameters. Where each result has one contender, their names do not
    matter: two backends can be compared like that.

    Args:
        first: A, what is divided by.
        second: B.
        anyway: also where the two are of different models, scenes, photos or machines.

    Raises:
        UsageError: they are, or they have no row in common.
    """
    found = differences(first, second)
    if found and not anyway:
        raise UsageError(
            f"these two cannot be compared: {'; '.join(found)}", hint="--anyway compares them all the same"
        )
    single = len(first.contenders) == len(second.contenders) == 1
    theirs = {_key(row, single): row for row in second.rows}
    pairs = [(row, theirs[key]) for row in first.rows if (key := _key(row, single)) in theirs]
    fitting = [
        (a, b)
        for a, b in pairs
        if min(len(a.samples), len(b.samples)) >= _LEAST and a.summary.p50 > 0 and not queued(a) and not queued(b)
    ]
    if not fitting:
        raise UsageError("these two have no row in common with three samples each", hint="measure the same metrics")
    return [_compared(a, b) for a, b in fitting]


def queued(row: Row) -> bool:
    """Whether a paced row is of a queue that grew: how long one waits there depends on how long one measured."""
    return row.metric == "paced" and (row.extra["dropped"] > 0 or row.extra["late"] > row.summary.n / 2)


def _key(row: Row, single: bool) -> _Key:
    return ("" if single else row.backend, row.metric, row.batch, row.rate, row.streams)


def _compared(first: Row, second: Row) -> Comparison:
    ratio, low, high = median_ratio(first.samples, second.samples)
    backend = first.backend if first.backend == second.backend else f"{first.backend} → {second.backend}"
    medians = (first.summary.p50, second.summary.p50)
    return Comparison(backend, first.name, first.unit, *medians, ratio, low, high, word(ratio, low, high, first.unit))


def word(ratio: float, low: float, high: float, unit: str) -> str:
    """``faster``, ``slower`` or ``no difference``, for B.

    There is a difference where the interval leaves out 1 and the ratio is further from it than the margin.
    """
    if low <= 1 <= high or abs(ratio - 1) <= MARGIN:
        return "no difference"
    return "faster" if (ratio > 1) == (unit == "images/s") else "slower"


def lines(rows: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """The cells of a table."""
    return [
        (
            row.backend,
            row.name,
            row.unit,
            f"{row.first:.4g}",
            f"{row.second:.4g}",
            f"{row.ratio:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            row.word,
        )
        for row in rows
    ]
