"""A synthetic set on disk: PNG files, a table that `open_data` reads, and a contact sheet."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gamma_runtime.cli import require
from gamma_runtime.decode import Pixels
from gamma_runtime.errors import OutputError, UsageError
from gamma_runtime.files import locked, sweep_temporaries, write_atomically
from gamma_runtime.prefetch import prefetched
from gamma_runtime.steps import Steps
from gamma_training.data.contact_sheet import contact_sheet
from gamma_training.data.distortions import KINDS, STRENGTHS
from gamma_training.data.metric import VERSION
from gamma_training.data.samples import SPLITS, DataSpec
from gamma_training.data.synthetic import (
    DEFAULT_SCENE,
    Plan,
    clean_photos,
    label_photo,
    level_label,
    plans,
    working_side,
)

__all__ = ["COLUMNS", "SHEET", "TABLE", "MakeReport", "make_set"]

COLUMNS = ("path", "mos", "split", "scene", "content", "kind", "level", "metric")
TABLE, SHEET = "table.csv", "sheet.jpg"
_PHOTOS, _LABELS, _RECIPE = "photos", ".labels", "recipe.json"
_LOCK_TIMEOUT = 10.0  # seconds
_BYTES_PER_PIXEL = 1.4  # of PNG files, averaged over all distortions of the photos in free_photos.csv
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class MakeReport:
    """What a set holds: its table, and samples by split; photos by split; mean label by level."""

    table: Path
    samples: dict[str, int]
    photos: dict[str, int]
    labels: dict[str, list[float | None]]


def make_set(spec: DataSpec, out: Path, steps: Steps | None = None) -> MakeReport:
    """Write every sample of a folder of clean photos to ``out``; the table comes last.

    What an interrupted call wrote is kept and not made again.

    Args:
        spec: ``synthetic`` is the folder; kinds, labels, scene, short_side, limit and seed are used.
        out: the set's folder; made when it does not exist.
        steps: shows progress.

    Raises:
        UsageError: one folder lies in the other, or ``out`` holds a set made with other options.
        InputError: no photos, or one that cannot be used.
        OutputError: too little space, or ``out`` cannot be written.
    """
    folder = (spec.synthetic or Path()).resolve()
    if folder == out.resolve() or folder in out.resolve().parents or out.resolve() in folder.parents:
        raise UsageError(f"{out} and {folder} lie in each other", hint="choose a folder beside the photos'")
    scene = spec.scene or DEFAULT_SCENE
    side = spec.short_side or working_side(scene)
    made = plans(clean_photos(folder), spec.kinds or KINDS, spec.seed, spec.limit)
    try:
        for name in (_PHOTOS, _LABELS):
            (out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made ({error.strerror})", hint="check the permissions") from error
    with locked(out, _LOCK_TIMEOUT):
        sweep_temporaries(out / _PHOTOS)
        _claim(out, side, spec.seed)
        _check_space(made, out, side)
        labels = _write_photos(made, out, side, steps or Steps())
        write_atomically(out / SHEET, _encoded(contact_sheet(made, side), ".jpg"))
        write_atomically(out / TABLE, _table(made, labels, scene, spec).encode())
    return _report(made, labels, out)


def _claim(out: Path, side: int, seed: int) -> None:
    """Photos of two recipes must not be mixed up: their names would be the same."""
    strengths = {kind: list(values) for kind, values in STRENGTHS.items()}
    recipe = {"metric": VERSION, "seed": seed, "short_side": side, "strengths": strengths}
    file = out / _RECIPE
    try:
        found = json.loads(file.read_bytes()) if file.exists() else None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read ({error})", hint="choose an empty folder") from error
    if found is not None and found != recipe:
        raise UsageError(f"{out} holds a set made with another seed, size or version", hint="choose another folder")
    write_atomically(file, json.dumps(recipe, indent=1).encode())


def _file(plan: Plan) -> str:
    return f"{_PHOTOS}/{plan.content}-{plan.key.replace(':', '-')}.png"


def _check_space(made: Sequence[Plan], out: Path, side: int) -> None:
    missing = sum(not (out / _file(plan)).is_file() for plan in made)
    needed, free = int(missing * side * side * 1.5 * _BYTES_PER_PIXEL), shutil.disk_usage(out).free
    if needed > free:
        raise OutputError(
            f"{out}: {missing} photos take about {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free",
            hint="--limit N a split, fewer --kind, or train on the folder itself (synthetic: PHOTOS)",
        )


def _write_photos(made: Sequence[Plan], out: Path, side: int, steps: Steps) -> dict[tuple[str, str], float]:
    groups: dict[str, list[Plan]] = {}
    for plan in made:
        groups.setdefault(plan.content, []).append(plan)

    def keep(plan: Plan, pixels: Pixels) -> None:
        write_atomically(out / _file(plan), _encoded(pixels, ".png"))

    work = functools.partial(label_photo, short_side=side, cache=out / _LABELS, keep=keep)
    threads = min(_THREADS, os.cpu_count() or 1)
    labels: dict[tuple[str, str], float] = {}
    with steps.step(f"{len(made)} photos", len(made)) as tick:
        for group, found in prefetched(work, iter(groups.values()), threads, 2 * threads):
            labels |= {(group[0].content, key): value for key, value in found.items()}
            tick(len(group))
    if lost := [plan for plan in made if not (out / _file(plan)).is_file()]:
        raise OutputError(
            f"{out}: {len(lost)} photos that were made are gone, the first is {_file(lost[0])}",
            hint=f"remove {out / _LABELS}, then they are made again",
        )
    return labels


def _encoded(pixels: Pixels, suffix: str) -> bytes:
    done, data = require("cv2", "cpu").imencode(suffix, np.ascontiguousarray(pixels[:, :, ::-1]))
    if not done:
        raise OutputError(f"OpenCV cannot write {suffix} here")
    return bytes(data)


def _table(made: Sequence[Plan], labels: dict[tuple[str, str], float], scene: str, spec: DataSpec) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for plan in made:
        metric = labels[plan.content, plan.key]
        mos = metric if spec.labels == "metric" else level_label(plan.distortion)
        kind, level = (plan.distortion.kind, plan.distortion.level) if plan.distortion else ("clean", 0)
        table.writerow((_file(plan), f"{mos:.6g}", plan.split, scene, plan.content, kind, level, f"{metric:.6g}"))
    return text.getvalue()


def _report(made: Sequence[Plan], labels: dict[tuple[str, str], float], out: Path) -> MakeReport:
    samples: dict[str, int] = {split: sum(plan.split == split for plan in made) for split in SPLITS}
    photos: dict[str, int] = {split: len({plan.content for plan in made if plan.split == split}) for split in SPLITS}
    by_kind: dict[str, list[list[float]]] = {}
    for plan in made:
        if plan.distortion:
            levels = by_kind.setdefault(plan.distortion.kind, [[] for _ in range(5)])
            levels[plan.distortion.level - 1].append(labels[plan.content, plan.key])
    means = {
        kind: [round(float(np.mean(one)), 4) if one else None for one in levels] for kind, levels in by_kind.items()
    }
    return MakeReport(out / TABLE, samples, photos, means)
