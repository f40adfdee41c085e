"""An evaluation for people and machines: tables for the terminal and for Markdown, a row a photo as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from gamma_runtime.cli import printable
from gamma_runtime.tables import text_table
from gamma_training.data.samples import Sample
from gamma_training.evaluate import PhotoScore, Skipped
from gamma_training.evaluate_rows import Comparison, DistortionRow, Evaluation, Row
from gamma_training.metrics import METRICS

__all__ = ["Table", "markdown", "scores_csv", "signed", "tables", "text"]

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, titles of the columns, rows
_COLUMNS = ("path", "dataset", "scene", "distortion", "level", "mos", "target", "score", "crop_std", "error", "skipped")


def tables(found: Evaluation, compared: Sequence[Comparison] = ()) -> list[Table]:
    """What there is to show: sets and their mean, scenes where they say more, distortions, a comparison."""
    titles = ("photos", *(name.upper() for name in METRICS))
    made: list[Table] = [("sets", ("set", *titles), [_row(row) for row in (*found.sets, *_mean(found))])]
    if len(found.scenes) > 1:
        made.append(("scenes", ("scene", *titles), [_row(row) for row in found.scenes]))
    columns: tuple[str, ...]
    if found.distortions:
        columns = ("distortion", "photos", "SRCC", "PLCC", "monotone photos", "mean score, level by level")
        made.append(("distortions", columns, [_distortion(row) for row in found.distortions]))
    if compared:
        columns = (
            "set",
            "photos",
            "max |diff|",
            "mean |diff|",
            "SRCC",
            "against",
            "difference of SRCC",
            "difference of PLCC",
        )
        made.append(("comparison", columns, [_compared(row) for row in compared]))
    return made


def _mean(found: Evaluation) -> tuple[Row, ...]:
    return (found.mean,) if len(found.sets) > 1 else ()


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _with_interval(value: float, ends: tuple[float, float]) -> str:
    return _number(value) if math.isnan(value) else f"{value:.4f} ({ends[0]:.3f} to {ends[1]:.3f})"


def _row(row: Row) -> tuple[str, ...]:
    return row.name, str(row.photos), *(_with_interval(row.values[name], row.intervals[name]) for name in METRICS)


def _distortion(row: DistortionRow) -> tuple[str, ...]:
    values, monotone = row.row.values, f"{row.monotone} of {row.contents}"
    srcc = _with_interval(values["srcc"], row.row.intervals["srcc"])
    means = " ".join(f"{mean:.3f}" for mean in row.means) + (" falls" if row.mean_falls else " DOES NOT FALL")
    return row.row.name, str(row.row.photos), srcc, _number(values["plcc"]), monotone, means if row.means else "-"


def _compared(row: Comparison) -> tuple[str, ...]:
    correlations = (_number(value) for value in row.srcc)
    gaps = signed(row.difference, row.interval), signed(row.plcc_difference, row.plcc_interval)
    return row.name, str(row.photos), f"{row.max_abs:.1e}", f"{row.mean_abs:.1e}", *correlations, *gaps


def signed(gap: float, ends: tuple[float, float]) -> str:
    """A difference of correlations with its interval."""
    number = "-" if math.isnan(gap) else f"{gap:+.5f}"
    return number + ("" if math.isnan(ends[0]) else f" ({ends[0]:+.5f} to {ends[1]:+.5f})")


def _notes(found: Evaluation) -> list[str]:
    """What the tables' dashes mean."""
    rows = (*found.sets, *_mean(found), *(row.row for row in found.distortions))
    return [f"{row.name}: {row.reason}" for row in rows if row.reason]


def text(found: Evaluation, compared: Sequence[Comparison], notes: Sequence[str]) -> str:
    """For a terminal."""
    parts = [text_table(columns, rows, right=("photos",)) for _, columns, rows in tables(found, compared)]
    said = "\n".join(printable(note) for note in (*_notes(found), *notes))
    return "\n\n".join([*parts, *([said] if said else [])])


def markdown(found: Evaluation, compared: Sequence[Comparison], notes: Sequence[str]) -> str:
    """The same as Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(printable(cell).replace("|", r"\|") for cell in cells) + " |"

    parts = [
        "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
        for _, columns, rows in tables(found, compared)
    ]
    said = [f"- {printable(note)}" for note in (*_notes(found), *notes)]
    return "\n\n".join([*parts, *(["\n".join(said)] if said else [])]) + "\n"


def scores_csv(photos: Sequence[PhotoScore], skipped: Sequence[Skipped]) -> str:
    """A row for each photo; ``error`` is score minus target, and a photo that was left out has the reason instead."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for photo in photos:
        writer.writerow([*_facts(photo.sample), repr(photo.score), f"{photo.crop_std:.6f}", f"{photo.error:.6f}", ""])
    for left in skipped:
        writer.writerow([*_facts(left.sample), "", "", "", printable(left.reason)])
    return buffer.getvalue()


def _facts(sample: Sample) -> list[str]:
    kind, level = ("", "") if (by := sample.distorted_by) is None else (by.kind, str(by.level))
    where = [printable(str(sample.path)), printable(sample.dataset), sample.scene]
    return [*where, kind, level, repr(sample.mos), f"{sample.target:.6f}"]
