"""A user's own CSV, or one that `gamma-train make-data` wrote, becomes samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from gamma_runtime.cli import printable
from gamma_runtime.errors import InputError, UsageError
from gamma_training.data.distortions import Distortion
from gamma_training.data.rows import Row, inside, number_of, read_table, records
from gamma_training.data.samples import Dataset, DataSpec, Sample, Split
from gamma_training.data.splits import split_of
from gamma_training.data.synthetic import DEFAULT_SCENE, level_label

__all__ = ["open_made", "open_table", "samples_of"]


def open_table(spec: DataSpec, table: Path) -> Dataset:
    """The samples of a table with columns path and mos; see `DataSpec`.

    Raises:
        InputError: the table cannot be used, or a label lies outside the range.
    """
    low, high = spec.range or (0.0, 1.0)
    return _dataset(spec, table, read_table(table, spec.path_column, spec.mos_column), low, high)


def open_made(spec: DataSpec, table: Path) -> Dataset:
    """The samples of a table that ``gamma-train make-data`` wrote, labelled as the spec says.

    Raises:
        InputError: the table cannot be used.
    """
    rows = read_table(table)
    made = [_made(table, line, cells, spec) for line, cells in records(table, ("kind", "level", "metric"))]
    relabelled = [Row(r.path, label, r.split, r.scene, r.content) for r, (label, _) in zip(rows, made, strict=True)]
    dataset = _dataset(spec, table, relabelled, 0.0, 1.0)
    samples = zip(dataset.samples, made, strict=True)
    return dataclasses.replace(
        dataset, samples=tuple(dataclasses.replace(sample, baked=baked) for sample, (_, baked) in samples)
    )


def _made(table: Path, line: int, cells: dict[str, str], spec: DataSpec) -> tuple[float, Distortion | None]:
    """A row's label, and its distortion."""
    where = f"{table}:{line}"
    level = number_of(cells["level"], f"{where}: level")
    if level != int(level):
        raise InputError(f"{where}: level {level:g} is not a whole number")
    try:
        baked = Distortion(cells["kind"], int(level)) if level else None
    except UsageError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from error
    return number_of(cells["metric"], f"{where}: metric") if spec.labels == "metric" else level_label(baked), baked


def _dataset(spec: DataSpec, table: Path, rows: Sequence[Row], low: float, high: float) -> Dataset:
    name = spec.name or table.stem
    odd = [row for row in rows if not low <= row.mos <= high]
    if odd:
        raise InputError(
            f"{table}: {len(odd)} of {len(rows)} labels lie outside {low:g} to {high:g}, the first is {odd[0].mos:g} "
            f"of {printable(odd[0].path[:200])}",
            hint="range: [lowest, highest possible label]",
        )
    given = {row.split for row in rows}
    if None in given and len(given) > 1:
        raise InputError(f"{table}: some rows have a split and some have none", hint="fill the column, or leave it out")
    splits = {_content(row): row.split or split_of(spec.seed, _content(row)) for row in rows}
    _refuse_straddling(table, rows, splits)
    root = spec.root or table.parent
    return Dataset(name, samples_of(spec, name, root, rows, splits, low, high), low, high, spec.lower_better)


def _content(row: Row) -> str:
    return row.content or row.path


def _refuse_straddling(table: Path, rows: Sequence[Row], splits: dict[str, Split]) -> None:
    for row in rows:
        if row.split and row.split != splits[_content(row)]:
            content = printable(_content(row)[:200])
            raise InputError(
                f"{table}: content {content} is in split {row.split} and in split {splits[_content(row)]}",
                hint="copies of one photo belong into one split, else the test is of memory",
            )


def samples_of(
    spec: DataSpec, name: str, root: Path, rows: Sequence[Row], splits: dict[str, Split], low: float, high: float
) -> tuple[Sample, ...]:
    """Samples in the table's order, with targets from 0 (worst) to 1 (best).

    Raises:
        InputError: a path that leads out of ``root``.
    """
    made = []
    for row in rows:
        target = (row.mos - low) / (high - low)
        made.append(
            Sample(
                inside(root, row.path, name),
                row.mos,
                1 - target if spec.lower_better else target,
                row.scene or spec.scene or DEFAULT_SCENE,
                splits[_content(row)],
                name,
                _content(row),
                spec.short_side,
            )
        )
    return tuple(made)
