"""What is wrong with a source of labelled photos, before hours of training meet it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gamma_runtime.contract import CROP, Limits
from gamma_runtime.decode import decode, name_of, read_bytes
from gamma_runtime.errors import GammaError, InputError
from gamma_runtime.prefetch import prefetched
from gamma_runtime.sniff import FORMATS, sniff
from gamma_runtime.steps import Steps
from gamma_training.data.opening import missing_photos, open_labels
from gamma_training.data.registry import SETS
from gamma_training.data.samples import SPLITS, Dataset, DataSpec, Sample

__all__ = ["Finding", "SourceReport", "check"]

_NAMED = 10  # examples of a finding
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Finding:
    """How often something was found, and the first ten."""

    count: int = 0
    first: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Sequence[str]) -> Finding:
        """Count what was found."""
        return cls(len(found), tuple(found[:_NAMED]))


@dataclasses.dataclass(frozen=True)
class SourceReport:
    """One source. Training refuses what is missing, unreadable or small, and takes the rest.

    Attributes:
        name: of the source.
        samples: of each split.
        contents: different photos, all splits together.
        complete: how many labelled photos the whole set has, where that is known.
        labels: lowest and highest there are, and the range they are scaled from.
        error: why its labels could not be read; all else is empty then.
        missing: photos that are not there.
        unreadable: photos that are damaged, of another format, or over the limits.
        small: photos with a side under 224 pixels.
        outside: labels outside the range.
        copies: photos with the same bytes as another.
        straddling: copies that lie in two splits.
        may_miss: whether missing photos are left out (``skip_missing``) instead of refused.
    """

    name: str
    samples: dict[str, int] = dataclasses.field(default_factory=dict)
    contents: int = 0
    complete: int | None = None
    labels: dict[str, float] = dataclasses.field(default_factory=dict)
    error: str | None = None
    missing: Finding = Finding()
    unreadable: Finding = Finding()
    small: Finding = Finding()
    outside: Finding = Finding()
    copies: Finding = Finding()
    straddling: Finding = Finding()
    may_miss: bool = False

    @property
    def usable(self) -> bool:
        """Whether training and evaluation will take it as it is."""
        bad = (self.unreadable, self.small) if self.may_miss else (self.missing, self.unreadable, self.small)
        some = sum(self.samples.values()) > self.missing.count
        return self.error is None and some and not any(finding.count for finding in bad)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self) | {"usable": self.usable}


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What one photo's bytes say."""

    digest: str = ""
    size: tuple[int, int] = (0, 0)
    error: str | None = None


def check(spec: DataSpec, *, read: bool = True, decode_all: bool = False, steps: Steps | None = None) -> SourceReport:
    """Look at labels and photos of a source; nothing that it finds is raised.

    Args:
        spec: the source.
        read: read every photo and check that the file is whole and large enough; False only looks whether it is there.
        decode_all: decode every photo too, which finds damage inside the compressed data.
        steps: shows progress.

    Example:
        >>> check(DataSpec(set="koniq10k", root=Path("koniq10k"))).missing.count
        0
    """
    try:
        dataset = open_labels(dataclasses.replace(spec, labels="level") if _is_folder(spec) else spec)
    except GammaError as error:
        return SourceReport(spec.name or str(spec.set or spec.table or spec.synthetic), error=str(error))
    absent = missing_photos(dataset.samples)
    complete = SETS[spec.set].count if spec.set is not None else None
    report = dataclasses.replace(_of_labels(dataset, absent), complete=complete, may_miss=spec.skip_missing)
    if not (read or decode_all):
        return report
    gone = set(absent)
    paths = [path for path in dict.fromkeys(sample.path for sample in dataset.samples) if path not in gone]
    seen: dict[Path, _Seen] = {}
    with (steps or Steps()).step(f"photos of {dataset.name}", len(paths)) as tick:
        threads = min(_THREADS, os.cpu_count() or 1)
        for path, found in prefetched(lambda path: _look(path, decode_all), iter(paths), threads, 4 * threads):
            seen[path] = found
            tick(1)
    return _with_photos(report, dataset.samples, seen)


def _is_folder(spec: DataSpec) -> bool:
    """A folder of clean photos: its metric labels cannot be wrong, and would take minutes to compute."""
    return spec.synthetic is not None and spec.synthetic.is_dir()


def _look(path: Path, decode_all: bool) -> _Seen:
    limits = Limits()
    try:
        data = read_bytes(path, limits.max_bytes)
        header = sniff(data, limits, name_of(path), FORMATS)
        if decode_all:
            decode(data, limits)
    except InputError as error:
        return _Seen(error=error.message)
    return _Seen(hashlib.sha256(data).hexdigest(), (header.width, header.height))


def _of_labels(dataset: Dataset, absent: Iterable[Path]) -> SourceReport:
    samples = dataset.samples
    outside = [f"{s.path}: {s.mos:g}" for s in samples if not dataset.low <= s.mos <= dataset.high]
    ranged = {"low": dataset.low, "high": dataset.high}
    if samples:
        ranged |= {"lowest": min(s.mos for s in samples), "highest": max(s.mos for s in samples)}
    return SourceReport(
        dataset.name,
        {split: len(dataset.split(split)) for split in SPLITS},
        len({sample.content for sample in samples}),
        labels=ranged,
        missing=Finding.of([str(path) for path in absent]),
        outside=Finding.of(outside),
    )


def _straddling(samples: Sequence[Sample], digests: dict[Path, str]) -> list[str]:
    """Photos of two splits with the same bytes."""
    splits: dict[str, dict[str, str]] = {}
    for sample in samples:
        if digest := digests.get(sample.path):
            splits.setdefault(digest, {}).setdefault(sample.split, str(sample.path))
    return [", ".join(f"{path} ({split})" for split, path in by.items()) for by in splits.values() if len(by) > 1]


def _with_photos(report: SourceReport, samples: Sequence[Sample], seen: dict[Path, _Seen]) -> SourceReport:
    whole = {path: photo for path, photo in seen.items() if photo.error is None}
    first: dict[str, Path] = {}
    copies = [
        f"{path} = {one}" for path, photo in whole.items() if (one := first.setdefault(photo.digest, path)) != path
    ]
    small = [f"{path}: {photo.size[0]}x{photo.size[1]}" for path, photo in whole.items() if min(photo.size) < CROP]
    return dataclasses.replace(
        report,
        unreadable=Finding.of([photo.error for photo in seen.values() if photo.error]),
        small=Finding.of(small),
        copies=Finding.of(copies),
        straddling=Finding.of(_straddling(samples, {path: photo.digest for path, photo in whole.items()})),
    )
