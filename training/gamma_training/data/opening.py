"""One door to every source of labelled photos."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from gamma_runtime.cli import printable
from gamma_runtime.errors import InputError
from gamma_runtime.steps import Steps
from gamma_training.data.samples import SPLITS, Dataset, DataSpec, Sample
from gamma_training.data.specs import check_spec
from gamma_training.data.splits import place
from gamma_training.data.synthetic import open_folder
from gamma_training.data.tables import open_made, open_table

__all__ = ["missing_photos", "open_data", "open_labels"]

_NAMED = 10  # missing photos in a message


def open_data(spec: DataSpec, steps: Steps | None = None) -> Dataset:
    """All samples of a source, every photo of which is there.

    Args:
        spec: the source; see `DataSpec`.
        steps: shows progress where labels have to be computed first (synthetic folders); silent when None.

    Raises:
        InputError: the source cannot be used, or photos are missing (and ``skip_missing`` is not set).
        OutputError: computed labels cannot be kept.

    Example:
        >>> data = open_data(DataSpec(set="koniq10k", root=Path("koniq10k")))
        >>> len(data.split("test"))
        2015
    """
    dataset = open_labels(spec, steps)
    missing = set(missing_photos(dataset.samples))
    if missing and not spec.skip_missing:
        shown = ", ".join(printable(os.fspath(path)) for path in sorted(missing)[:_NAMED])
        raise InputError(
            f"{dataset.name}: {len(missing)} photos are missing: {shown}{', …' if len(missing) > _NAMED else ''}",
            hint="gamma-train check-data lists them; skip_missing: true leaves them out",
        )
    kept = [sample for sample in dataset.samples if sample.path not in missing]
    if not kept:
        raise InputError(f"{dataset.name}: none of its {len(missing)} photos is there")
    return dataclasses.replace(dataset, samples=_limited(kept, spec))


def open_labels(spec: DataSpec, steps: Steps | None = None) -> Dataset:
    """Like `open_data`, without a look at the photos and without ``limit`` (of a synthetic folder it holds anyway).

    Raises:
        InputError: the source cannot be used.
    """
    check_spec(spec)
    if spec.table is not None:
        return open_table(spec, spec.table)
    if spec.synthetic is None:
        from gamma_training.data.registry import open_set

        return open_set(spec)
    if spec.synthetic.is_dir():
        return open_folder(spec, spec.synthetic, steps)
    return open_made(spec, spec.synthetic)


def missing_photos(samples: Iterable[Sample]) -> list[Path]:
    """The paths at which there is no file, each once; a folder is listed once, not asked for each photo."""
    wanted = dict.fromkeys(sample.path for sample in samples)
    there: dict[Path, set[str]] = {}
    for folder in {path.parent for path in wanted}:
        try:
            with os.scandir(folder) as entries:
                there[folder] = {entry.name for entry in entries if entry.is_file()}
        except OSError:
            there[folder] = set()
    return [path for path in wanted if path.name not in there[path.parent]]


def _limited(samples: Sequence[Sample], spec: DataSpec) -> tuple[Sample, ...]:
    """At most ``limit`` of each split, in the table's order."""
    if spec.limit is None:
        return tuple(samples)
    chosen: set[int] = set()
    for split in SPLITS:
        inside = [number for number, sample in enumerate(samples) if sample.split == split]
        inside.sort(key=lambda number: place(spec.seed, _name(samples[number])))
        chosen.update(inside[: spec.limit])
    return tuple(sample for number, sample in enumerate(samples) if number in chosen)


def _name(sample: Sample) -> str:
    """What a sample is called on every machine, wherever its folder lies."""
    return f"{sample.content}:{sample.path.name}:{sample.distortion}"
