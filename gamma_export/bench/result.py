"""What a measurement leaves behind: rows with their samples, contenders, the machine, the verdict; and its JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gamma_export.bench.sampling import WarmUp
from gamma_export.bench.stats import Summary, drift, summarise, thinned
from gamma_runtime.errors import InputError

__all__ = ["SCHEMA", "Result", "Row", "make_row", "moved", "read_result", "row_from"]

SCHEMA = 1
_DIGITS = 4  # of a sample; a tenth of a microsecond where the unit is ms
_MAX_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measured quantity of one contender.

    Attributes:
        backend: the contender.
        metric: what was measured; docs/bench.md says what each word means.
        unit: ``ms`` (less is better) or ``images/s`` (more is better).
        batch: images of a call; None where it does not apply, as ``rate`` (images a second) and ``streams`` (threads).
        summary: of all samples.
        half_width: half of the 95 % interval of the median as a share of it; None where it was not aimed at.
        warm_up: None where nothing was warmed up, as for a cold start.
        drift: by how much the second half's median was above the first's, a share; None where it was not.
        samples: in the order of time, rounded.
        thinned: ``samples`` are an even selection of ``summary.n``.
        extra: numbers that only this metric has.
    """

    backend: str
    metric: str
    unit: str
    summary: Summary
    samples: tuple[float, ...]
    batch: int | None = None
    rate: float | None = None
    streams: int | None = None
    half_width: float | None = None
    warm_up: WarmUp | None = None
    drift: float | None = None
    thinned: bool = False
    extra: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The metric with its parameters, as tables show it."""
        given = (("batch", self.batch), ("rate", self.rate), ("streams", self.streams))
        return " ".join([self.metric, *(f"{name}={value:g}" for name, value in given if value is not None)])


def make_row(samples: Sequence[float], **fields: Any) -> Row:
    """A row of all samples: summarised, then thinned and rounded; the other fields as `Row` has them.

    Raises:
        ValueError: no samples.
    """
    kept = tuple(round(value, _DIGITS) for value in thinned(samples))
    return Row(summary=summarise(samples), samples=kept, thinned=len(kept) < len(samples), **fields)


def moved(samples: Sequence[float]) -> float | None:
    """The drift as a row records it."""
    found = drift(samples)
    return None if found is None else round(found, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One run of gamma-bench; ``doubts`` say why it is not valid, ``notes`` what else is worth knowing.

    ``work`` is there with ``--profile``: of each contender the calls' work, the peak, the roofs and the profile.
    """

    machine: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]
    bundle: dict[str, Any]
    scene: str
    photos: dict[str, Any]
    settings: dict[str, Any]
    contenders: tuple[dict[str, Any], ...]
    rows: tuple[Row, ...]
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    work: tuple[dict[str, Any], ...] = ()
    schema_version: int = SCHEMA

    @property
    def valid(self) -> bool:
        """Whether nothing speaks against the numbers."""
        return not self.doubts

    @property
    def verdict(self) -> str:
        """The line that every report ends with."""
        return "valid" if self.valid else f"not valid because {'; '.join(self.doubts)}"

    def to_json(self) -> str:
        """One JSON document that `read_result` reads."""
        plain = {"tool": "gamma-bench", "schema_version": self.schema_version, "verdict": self.verdict}
        return json.dumps({**plain, "valid": self.valid, **dataclasses.asdict(self)}, allow_nan=False)


def row_from(plain: Mapping[str, Any]) -> Row:
    """A row from its JSON.

    Raises:
        TypeError: a field too many or too few.
    """
    fields = dict(plain)
    warm = fields.get("warm_up")
    fields["summary"] = Summary(**fields["summary"])
    fields["warm_up"] = None if warm is None else WarmUp(**warm)
    fields["samples"] = tuple(float(value) for value in fields["samples"])
    return Row(**fields)


def read_result(path: Path) -> Result:
    """Read a result.json.

    Raises:
        InputError: missing, no result of gamma-bench, or of a newer schema.

    Example:
        >>> read_result(Path("before/result.json")).valid
        True
    """
    hint = "the result.json that gamma-bench --out FOLDER writes"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes; the limit is {_MAX_BYTES}", hint=hint)
        plain = json.loads(path.read_text(encoding="utf-8"))
        version = plain.pop("schema_version")
        if plain.pop("tool") != "gamma-bench" or not isinstance(version, int):
            raise InputError(f"{path}: not a result of gamma-bench", hint=hint)
        if version > SCHEMA:
            raise InputError(f"{path}: schema {version}; this version reads {SCHEMA}", hint="update gamma-edge")
        for derived in ("verdict", "valid"):
            plain.pop(derived)
        rows = tuple(row_from(row) for row in plain.pop("rows"))
        lists: dict[str, Any] = {name: tuple(plain.pop(name)) for name in ("contenders", "doubts", "notes")}
        lists["work"] = tuple(plain.pop("work", ()))
        return Result(rows=rows, schema_version=version, **lists, **plain)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read as a result of gamma-bench ({error})", hint=hint) from error
