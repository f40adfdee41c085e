"""Label tables as text, read strictly: every wrong line is named with its number."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from gamma_runtime.cli import printable
from gamma_runtime.decode import read_bytes
from gamma_runtime.errors import InputError
from gamma_training.data.samples import SPLITS, Split
from gamma_training.data.specs import near

__all__ = ["Row", "inside", "number_of", "read_table", "records", "text_of"]

_MAX_BYTES = 256 * 2**20  # a quarter of a gigabyte holds millions of rows
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One label: the photo's path in its plainest spelling, and what else the table says; ``content`` groups copies."""

    path: str
    mos: float
    split: Split | None = None
    scene: str | None = None
    content: str | None = None


def text_of(path: Path) -> str:
    """A table's text: UTF-8, a byte order mark left out.

    Raises:
        InputError: missing, not a regular file, too large, or not UTF-8.
    """
    try:
        return read_bytes(path, _MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})", hint="save the table as UTF-8") from error


def records(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column name of a comma-separated table with a header.

    Raises:
        InputError: not readable, a column is missing or there twice, or a line has another number of cells.
    """
    reader = csv.reader(io.StringIO(text_of(path), newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        _check_header(path, header, columns)
        for cells in reader:
            if not cells or not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise InputError(f"{path}:{reader.line_num}: {len(cells)} cells; the header has {len(header)}")
            yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not comma-separated values ({error})") from error


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    if not any(header):
        raise InputError(f"{path}: empty; expected a header with {', '.join(columns)}")
    if len(set(header)) != len(header):
        raise InputError(f"{path}: a column is there twice: {printable(', '.join(header)):.200}")
    for column in columns:
        if column in header:
            continue
        for separator, word in _SEPARATORS.items():
            if separator in header[0] and column in header[0].split(separator):
                raise InputError(f"{path}: the cells are separated by {word}", hint="save the table with commas")
        found = printable(", ".join(header))
        raise InputError(f"{path}: no column {column!r}; found {found:.200}", hint=near(column, header))


def number_of(text: str, where: str) -> float:
    """A finite number.

    Raises:
        InputError: anything else; NaN and infinity are no labels.
    """
    try:
        value = float(text)
    except (ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{printable(where)}: {printable(text[:40])!r} is not a number")
    return value


def inside(root: Path, text: str, where: str) -> Path:
    """A table's path within the photos' folder.

    Raises:
        InputError: empty, with a NUL, or leading out of ``root``: a table must not make us read what it likes.
    """
    if not text or "\0" in text:
        raise InputError(f"{where}: {printable(text[:200])!r} is not a path")
    base = os.path.abspath(root)
    path = os.path.normpath(os.path.join(base, text))
    if os.path.commonpath([base, path]) != base or path == base:
        raise InputError(
            f"{where}: {printable(text[:200])!r} leads out of {base}", hint="root: the folder that holds all photos"
        )
    return Path(path)


def read_table(path: Path, photo: str = "path", label: str = "mos") -> list[Row]:
    """A user's table: columns path and mos, and split, scene and content where there are such.

    Args:
        path: of the table.
        photo: what its column path is called.
        label: what its column mos is called.

    Raises:
        InputError: not such a table, no rows, a label that is not a number, or a photo that is there twice.
    """
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for line, cells in records(path, (photo, label)):
        where = f"{path}:{line}"
        name = _plain(cells[photo])
        if name in seen:
            raise InputError(f"{where}: {printable(name[:200])} is also on line {seen[name]}")
        seen[name] = line
        rows.append(
            Row(
                name,
                number_of(cells[label], f"{where}: {label}"),
                _split(cells.get("split", ""), where),
                cells.get("scene") or None,
                cells.get("content") or None,
            )
        )
    if not rows:
        raise InputError(f"{path}: no rows under the header")
    return rows


def _plain(text: str) -> str:
    """One spelling of a path: ``./a.png`` is ``a.png``. What is no path stays as it is; `inside` says so."""
    return text if not text or "\0" in text else os.path.normpath(text)


def _split(text: str, where: str) -> Split | None:
    for split in SPLITS:
        if text == split:
            return split
    if text:
        raise InputError(f"{where}: split {printable(text[:40])!r}", hint=f"one of {', '.join(SPLITS)}")
    return None
