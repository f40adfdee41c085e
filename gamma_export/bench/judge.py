"""Why numbers cannot be trusted, in sentences; no sentence means that they can."""

from __future__ import annotations

from gamma_export.bench.bystanders import MAX_FOREIGN
from gamma_export.bench.result import Row

__all__ = ["MAX_DRIFT", "MAX_SPREAD", "doubts_of_load", "doubts_of_row", "remarks_of_row"]

MAX_DRIFT = 0.05  # by which the second half's median may differ from the first's
MAX_SPREAD = 0.15  # half of the middle half's width of a throughput row's stretches, over their median


def doubts_of_row(row: Row, within: float) -> list[str]:
    """What speaks against one row.

    Args:
        row: to be judged.
        within: half width of the median's interval that was aimed at, a share.
    """
    where = f"{row.backend} {row.name}"
    doubts = []
    if row.half_width is not None and row.half_width > within:
        doubts.append(
            f"{where}: the median is known within ±{row.half_width:.1%} after {row.summary.n} samples; "
            f"wanted ±{within:.1%} (give it more --seconds)"
        )
    aimed_at = row.half_width is not None
    if aimed_at and row.warm_up is not None and not row.warm_up.stable:
        doubts.append(f"{where}: never became stable in {row.warm_up.seconds:.1f} s and {row.warm_up.calls} calls")
    if row.drift is not None and abs(row.drift) > MAX_DRIFT:
        way = "higher" if row.drift > 0 else "lower"
        doubts.append(f"{where}: drifted, the second half's median is {abs(row.drift):.1%} {way} than the first's")
    if row.unit == "images/s" and row.summary.n > 1 and _spread(row) > MAX_SPREAD:
        doubts.append(f"{where}: the speeds differ by {_spread(row):.0%}; the limit is {MAX_SPREAD:.0%}")
    return doubts


def _spread(row: Row) -> float:
    """Half of the middle half's width, as a share of the median: single stretches may be off."""
    ordered = sorted(row.samples)
    quarter = len(ordered) // 4
    return (ordered[len(ordered) - 1 - quarter] - ordered[quarter]) / 2 / row.summary.p50


def remarks_of_row(row: Row) -> list[str]:
    """What a reader should know of a row that is right all the same."""
    if row.metric != "paced" or not row.extra.get("dropped"):
        return []
    total = int(row.extra["scored"] + row.extra["dropped"])
    return [
        f"{row.backend} {row.name}: cannot keep up, {int(row.extra['dropped'])} of {total} images were never scored; "
        "their latencies are what they had waited at the end"
    ]


def doubts_of_load(backend: str, share: float | None) -> list[str]:
    """Whether other programs took too much of the processor (share 0 to 1) while a contender ran."""
    if share is None or share <= MAX_FOREIGN:
        return []
    return [f"{backend}: other programs took {share:.0%} of the processor; the limit is {MAX_FOREIGN:.0%}"]
