"""A result as gamma-run writes it: a JSON object, CSV cells, a row of a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gamma_runtime.cli import printable

if TYPE_CHECKING:
    from gamma_runtime.scorer import Panel, Result

__all__ = ["COLUMNS", "csv_cell", "csv_line", "label_line", "records_of", "row"]

COLUMNS = ("path", "scene", "score", "crop_std", "working_size", "flags", "crop_scores", "error")


def records_of(result: Result, scenes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One record an image and scene; a failed one has the same keys."""
    for score in result.scores:
        yield score.to_dict()
    if result.error is not None:
        for scene in scenes:
            empty = dict.fromkeys(("score", "range", "scale", "crop_std", "working_size", "backend", "bundle"))
            yield {
                "path": result.path,
                "scene": scene,
                **empty,
                "crop_scores": [],
                "flags": [],
                "error": result.error.message,
            }


def csv_cell(value: Any) -> str:
    """A value as text; a list with blanks."""
    if value is None:
        return ""
    return " ".join(str(part) for part in value) if isinstance(value, list) else str(value)


def csv_line(cells: Sequence[str]) -> str:
    """One line, quoted where it must be, without its end."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(printable(cell) for cell in cells)
    return buffer.getvalue()


def row(record: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a table: path, scene, score, crop std, flags or error."""
    good = record["error"] is None
    note = " ".join(record["flags"]) if good else printable(record["error"])
    numbers = (f"{record['score']:.4f}", f"{record['crop_std']:.4f}") if good else ("FAILED", "")
    return printable(record["path"] or "-"), record["scene"], *numbers, note


def label_line(panel: Panel) -> str | None:
    """What the checkpoint's label says about its scores."""
    label = panel.bundle.manifest.checkpoint.label
    if not label:
        return None
    return f"checkpoint: {label}" + ("; its scores say nothing about images" if "untrained" in label else "")
