"""Photos that would end a run hours later are found before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gamma_runtime.cli import printable
from gamma_runtime.contract import CROP, Limits
from gamma_runtime.crops import working_size
from gamma_runtime.decode import name_of, read_bytes
from gamma_runtime.errors import InputError
from gamma_runtime.prefetch import prefetched
from gamma_runtime.sniff import sniff

if TYPE_CHECKING:
    from gamma_runtime.steps import Steps
    from gamma_training.train.distributed import Group
    from gamma_training.train.photos import Photos

__all__ = ["refuse_unusable"]

_NAMED = 5  # photos in a message
_Rules = set[tuple[int | None, int | None]]  # short sides in pixels: of the set, of the scene


def refuse_unusable(photos: Photos, group: Group, workers: int, steps: Steps) -> None:
    """Read every file of all splits, without decoding it; each process takes its share.

    Damage inside the compressed data is not seen here: that takes decoding (``gamma-train check-data --decode``).

    Raises:
        InputError: some are not whole, of another format, over the limits, or too small for a crop after their rules.
    """
    rules: dict[Path, _Rules] = {}
    for sample in (*photos.train, *photos.val, *photos.test):
        rules.setdefault(sample.path, set()).add((sample.short_side, photos.short_side(sample)))
    mine = list(rules)[group.rank :: group.size]
    faults: list[str] = []
    with steps.step(f"headers of {len(rules)} photos", len(mine)) as tick:
        for _, fault in prefetched(lambda path: _fault(path, rules[path]), iter(mine), workers, 4 * workers):
            faults += [fault] if fault else []
            tick(1)
    if found := [fault for part in group.gather(faults) for fault in part]:
        more = "; …" if len(found) > _NAMED else ""
        raise InputError(
            f"data: {len(found)} of {len(rules)} photos cannot be used: {'; '.join(found[:_NAMED])}{more}",
            hint="leave them out of the tables, or get them anew; gamma-train check-data lists them",
        )


def _fault(path: Path, rules: _Rules) -> str | None:
    limits = Limits()
    try:
        header = sniff(read_bytes(path, limits.max_bytes), limits, name_of(path))
    except InputError as error:
        return error.message
    for own, scene in rules:
        width, height = working_size(*working_size(header.width, header.height, own), scene)
        if min(width, height) < CROP:
            return f"{printable(str(path))}: {width}x{height} leaves no room for a crop of {CROP} pixels"
    return None
