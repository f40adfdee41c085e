"""Sources as they stand in a YAML file become `DataSpec`, with strict keys and values."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

from gamma_runtime.errors import InputError
from gamma_training.data.distortions import KINDS
from gamma_training.data.samples import DataSpec, Labels
from gamma_training.yaml_file import read_yaml

__all__ = ["check_spec", "near", "show", "spec_from_mapping", "specs_of", "specs_of_file"]

_SOURCES = ("set", "table", "synthetic")
_EXAMPLE = "data: [{set: koniq10k, root: …}, {table: mine.csv, range: [0, 100]}, {synthetic: photos}]"
_MIN_SHORT_SIDE, _MAX_SHORT_SIDE = 224, 4096  # pixels


def near(name: str, known: Iterable[str]) -> str:
    """A hint: what the name may have been meant to be, or all there is."""
    known = list(known)
    if meant := difflib.get_close_matches(name, known, 3, 0.5):
        return f"did you mean {' or '.join(meant)}?"
    return f"one of {', '.join(known)}"


def spec_from_mapping(mapping: Any, folder: Path = Path(), where: str = "data") -> DataSpec:
    """Read one entry of `data:`.

    Args:
        mapping: keys of `DataSpec`, values as YAML gives them.
        folder: that relative paths are relative to (of the YAML file).
        where: how messages call the place.

    Raises:
        InputError: not a mapping, an unknown key, or a value that does not fit.

    Example:
        >>> spec_from_mapping({"set": "koniq10k", "root": "sets/koniq10k"}, Path("/data"))
    """
    if not isinstance(mapping, dict):
        raise InputError(
            f"{where}: found {show(mapping)} where a mapping was expected",
            hint="for example {set: koniq10k, root: …}, {table: mine.csv, range: [0, 100]} or {synthetic: photos}",
        )
    fields = [field.name for field in dataclasses.fields(DataSpec)]
    for key in mapping:
        if key not in fields:
            raise InputError(f"{where}: unknown key {show(key)}", hint=near(str(key), fields))
    values = {key: _value(key, value, folder, where) for key, value in mapping.items() if value is not None}
    spec = DataSpec(**values)
    check_spec(spec, where)
    return spec


def specs_of(entries: Any, folder: Path = Path(), where: str = "data") -> list[DataSpec]:
    """Read the list `data:`; a mapping by itself is a list of one.

    Args:
        entries: as YAML gives them.
        folder: that relative paths are relative to.
        where: how messages call the place.

    Raises:
        InputError: not a list, an empty one, or an entry that does not fit.
    """
    entries = [entries] if isinstance(entries, dict) else entries
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{where}: {show(entries)} is not a list of sources", hint=_EXAMPLE)
    return [spec_from_mapping(entry, folder, f"{where}[{place}]") for place, entry in enumerate(entries)]


def specs_of_file(path: Path) -> list[DataSpec]:
    """The sources that a YAML file names under ``data:``; its other keys (a training configuration's) stay unread.

    Relative paths in it are relative to its folder.

    Raises:
        InputError: the file cannot be read, or its ``data:`` does not fit.

    Example:
        >>> [spec.set for spec in specs_of_file(Path("paper.yaml"))]
        ['koniq10k', 'kadid10k']
    """
    loaded = read_yaml(path)
    if not isinstance(loaded, dict) or loaded.get("data") is None:
        raise InputError(f"{path}: no list `data:` in it", hint=_EXAMPLE)
    return specs_of(loaded["data"], path.parent, f"{path}: data")


def check_spec(spec: DataSpec, where: str = "data") -> None:
    """Refuse a spec whose parts do not fit together.

    Raises:
        InputError: not exactly one source, or options that the source does not have.
    """
    given = [name for name in _SOURCES if getattr(spec, name) is not None]
    if len(given) != 1:
        raise InputError(f"{where}: {' and '.join(given) or 'no source'}", hint=f"exactly one of {', '.join(_SOURCES)}")
    if spec.table is not None and spec.range is None:
        raise InputError(
            f"{where}: table {spec.table} has no range", hint="range: [lowest, highest possible label], e.g. [1, 5]"
        )
    if spec.range is not None and not (all(map(math.isfinite, spec.range)) and spec.range[0] < spec.range[1]):
        raise InputError(f"{where}: range {list(spec.range)} is not [lowest, highest]")
    if spec.set is not None and spec.root is None:
        raise InputError(
            f"{where}: set {spec.set} has no root", hint="root: the folder that its archive was unpacked in"
        )
    if spec.set is not None and (spec.range is not None or spec.lower_better):
        raise InputError(f"{where}: set {spec.set} has its own range and direction", hint="leave both out")
    if spec.synthetic is not None and (spec.range is not None or spec.lower_better):
        raise InputError(
            f"{where}: synthetic labels are 0 to 1, higher is better", hint="leave range and direction out"
        )
    if spec.table is None and (spec.path_column, spec.mos_column) != (DataSpec.path_column, DataSpec.mos_column):
        raise InputError(f"{where}: path_column and mos_column are for tables")
    if spec.synthetic is None and (spec.kinds is not None or spec.labels != "metric"):
        raise InputError(f"{where}: kinds and labels are for synthetic sources")


def show(value: Any) -> str:
    """A value's repr, cut, and bounded while it is made: YAML aliases make a small file's repr endless."""
    bounded = reprlib.Repr()
    bounded.maxlevel, bounded.maxstring = 3, 80
    return f"{bounded.repr(value):.120}"


def _value(key: str, value: Any, folder: Path, where: str) -> Any:
    convert, wanted = _CONVERTERS[key]
    try:
        made = convert(value)
    except (TypeError, ValueError):
        made = None
    if made is None:
        raise InputError(f"{where}: {key}: {show(value)} is not {wanted}")
    return folder / made.expanduser() if isinstance(made, Path) else made


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() and value.isprintable() else None


def _path(value: Any) -> Path | None:
    text = str(value) if isinstance(value, Path) else _text(value)
    return None if text is None else Path(text)


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _whole(low: int, high: int) -> Callable[[Any], int | None]:
    return lambda value: value if type(value) is int and low <= value <= high else None


def _range(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2 or any(isinstance(one, bool) for one in value):
        return None
    if not all(isinstance(one, int | float) for one in value):
        return None
    return float(value[0]), float(value[1])


def _kinds(value: Any) -> tuple[str, ...] | None:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or any(name not in KINDS for name in names):
        return None
    return tuple(dict.fromkeys(names))


_CONVERTERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "set": (_text, "the name of a set"),
    "table": (_path, "a path"),
    "path_column": (_text, "the name of a column"),
    "mos_column": (_text, "the name of a column"),
    "synthetic": (_path, "a path"),
    "name": (_text, "a name"),
    "root": (_path, "a path"),
    "range": (_range, "a list of two numbers"),
    "lower_better": (_flag, "true or false"),
    "scene": (_text, "the name of a scene"),
    "short_side": (_whole(_MIN_SHORT_SIDE, _MAX_SHORT_SIDE), f"a number from {_MIN_SHORT_SIDE} to {_MAX_SHORT_SIDE}"),
    "kinds": (_kinds, f"a list of distortions ({', '.join(KINDS)})"),
    "labels": (lambda value: value if value in get_args(Labels) else None, "metric or level"),
    "skip_missing": (_flag, "true or false"),
    "limit": (_whole(1, 10**9), "a number of 1 or more"),
    "seed": (_whole(0, 2**63), "a number of 0 or more"),
}
