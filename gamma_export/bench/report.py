"""What people read: a table on the terminal and a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gamma_export.bench.result import Result, Row
from gamma_export.bench.work import PROFILE, ROOF, peak_words, profile_lines, roof_lines

__all__ = [
    "CONDITIONS",
    "TITLES",
    "WATCHED",
    "cells",
    "conditions",
    "described",
    "markdown",
    "text",
    "value",
    "watched",
]

TITLES = ("backend", "what", "unit", "p50", "p90", "p99", "max", "mean", "sd", "n", "±median")
CONDITIONS = ("what", "before", "after")
WATCHED = ("contender", "other programs", "MHz while it ran: least, median, most", "hottest, °C")


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table; ± is the 95 % interval of the median where it was aimed at."""
    one = row.summary
    numbers = (one.p50, one.p90, one.p99, one.max, one.mean, one.sd)
    width = "" if row.half_width is None else f"{row.half_width:.1%}"
    return (row.backend, row.name, row.unit, *(f"{number:.4g}" for number in numbers), str(one.n), width)


def text(result: Result) -> str:
    """The table, what belongs to it, and the verdict."""
    from gamma_runtime.tables import text_table

    lines = [text_table(TITLES, [cells(row) for row in result.rows], right=TITLES[3:]), *described(result)]
    if result.work:
        lines.append(text_table(ROOF, roof_lines(result), right=(*ROOF[1:7], ROOF[8])))
        lines.append(text_table(PROFILE, profile_lines(result), right=PROFILE[2:]))
        lines += peak_words(result)
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join([*lines, f"verdict: {result.verdict}"])


def described(result: Result) -> list[str]:
    """A sentence for each contender: version, threads, memory, how far its scores are from the first one's."""
    said = []
    for one in result.contenders:
        gpu = "" if one["gpu_mib"] is None else f", {one['gpu_mib']:.0f} MiB of GPU memory"
        memory = "unknown" if one["peak_host_mib"] is None else f"{one['peak_host_mib']:.0f} MiB"
        said.append(
            f"{one['backend']} {one['version']}: {one['threads']} threads, {one['crops']} crops, peak memory {memory}"
            f"{gpu}, energy {_energy(result, one)}, "
            f"scores within {one['score_difference']:.1e} of {result.contenders[0]['backend']}'s"
        )
    return said


def _energy(result: Result, contender: Mapping[str, Any]) -> str:
    """Per image at saturation, for each batch; or that it cannot be read."""
    rows = [row for row in result.rows if (row.backend, row.metric) == (contender["backend"], "throughput")]
    said = [
        f"{row.extra['joules_per_image']:.3g} J an image at batch {row.batch} ({row.extra['watts']:.3g} W)"
        for row in rows
        if "joules_per_image" in row.extra
    ]
    return f"{', '.join(said)} by {contender['power_from']}" if said else "not readable here"


def markdown(result: Result) -> str:
    """A page that says what was measured, on what, how, and whether it holds."""
    bundle, machine, photos = result.bundle, result.machine, result.photos
    lines = [
        f"# gamma-bench: {bundle['name']}",
        "",
        *_verdict(result),
        "",
        f"Scene {result.scene}, {bundle['precision']}, {photos['count']} photos, bundle {bundle['sha256'][:12]}, "
        f"{machine['cpu']}, {machine['cores']} processors, {machine['date']}.",
        "",
        *_table(TITLES, [cells(row) for row in result.rows]),
        "",
        *(f"- {line}" for line in (*described(result), *_thinned(result), *result.notes)),
        "",
        *_work(result),
        "## Machine",
        "",
        *_table(CONDITIONS, conditions(result)),
        "",
        *_table(WATCHED, watched(result)),
        "",
        *_table(("fact", "value"), [(name, value(found)) for name, found in machine.items()]),
        "",
        "## Settings",
        "",
        *_table(("flag", "value"), [(name, value(found, "default")) for name, found in result.settings.items()]),
    ]
    return "\n".join(lines) + "\n"


def _verdict(result: Result) -> list[str]:
    return ["**valid**"] if result.valid else ["**not valid because**", "", *(f"- {doubt}" for doubt in result.doubts)]


def _work(result: Result) -> list[str]:
    """The tables of ``--profile``; nothing without it."""
    if not result.work:
        return []
    roof, parts = _table(ROOF, roof_lines(result)), _table(PROFILE, profile_lines(result))
    said = [f"- {line}" for line in peak_words(result)]
    return ["## Work and roof", "", *roof, "", *said, "", "## Time by part", "", *parts, ""]


def _thinned(result: Result) -> list[str]:
    """Rows whose samples in result.json are a selection; the table's numbers are of all."""
    return [
        f"{row.backend} {row.name}: {len(row.samples)} of {row.summary.n} samples are kept in result.json"
        for row in result.rows
        if row.thinned
    ]


def conditions(result: Result) -> list[tuple[str, str, str]]:
    """What could slow the machine down, before and after; rows under `CONDITIONS`."""
    return [(name, value(found), value(result.after[name])) for name, found in result.before.items()]


def watched(result: Result) -> list[tuple[str, str, str, str]]:
    """What was seen while each contender ran; rows under `WATCHED`."""
    made = []
    for one in result.contenders:
        share = one["share_of_other_programs"]
        said = "not readable here" if share is None else f"{share:.1%}"
        made.append((one["backend"], said, value(one["mhz"]), value(one["celsius_max"])))
    return made


def value(found: object, absent: str = "not readable here") -> str:
    """Words for a value of the JSON: None and an empty mapping are absent, an empty list holds none."""
    if isinstance(found, dict):
        return ", ".join(f"{name} {value(item)}" for name, item in found.items()) or absent
    if isinstance(found, list | tuple):
        return ", ".join(value(item) for item in found) or "none"
    return absent if found is None else str(found)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    made = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    return made + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
