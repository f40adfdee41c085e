"""A folder of clean photos becomes a labelled set: every photo clean and in each distortion and level, on the fly.

Labels are computed once and kept in the user's cache folder, a small JSON file a photo, named by everything that they
depend on: the photo's content, its working size, the distortions' strengths and seed, and the metric's version.
Training reads them from there; pixels are distorted whenever they are needed (`read_pixels`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gamma_runtime.contract import CROP
from gamma_runtime.decode import Pixels
from gamma_runtime.errors import InputError, OutputError
from gamma_runtime.files import hash_file, write_atomically
from gamma_runtime.prefetch import prefetched
from gamma_runtime.steps import Steps
from gamma_training.data.distortions import KINDS, LEVEL_COUNT, STRENGTHS, Distortion, apply
from gamma_training.data.metric import VERSION, quality
from gamma_training.data.pixels import read_photo
from gamma_training.data.samples import Dataset, DataSpec, Sample, Split
from gamma_training.data.splits import place, split_of
from gamma_training.scenes import SCENES

__all__ = [
    "DEFAULT_SCENE",
    "Plan",
    "cache_folder",
    "clean_photos",
    "label_plans",
    "level_label",
    "open_folder",
    "plans",
]

DEFAULT_SCENE = "natural-quality"
_SHORT_SIDE = 384  # pixels; of scenes that have none
_CONTENT_DIGITS = 32
_MAX_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """One sample to be: a photo, and what is done to it; None leaves it clean."""

    path: Path
    content: str
    split: Split
    seed: int
    distortion: Distortion | None

    @property
    def key(self) -> str:
        """Its name within its photo."""
        return f"{self.distortion.kind}:{self.distortion.level}" if self.distortion else "clean"


def clean_photos(folder: Path) -> dict[str, Path]:
    """The photos of a folder and its subfolders by content (SHA-256, 32 digits); of copies only the first.

    Raises:
        InputError: no such folder, or no photos in it.
    """
    from gamma_runtime.commands.run import expand

    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder of photos")
    found: dict[str, Path] = {}
    for name, error in expand([str(folder)]):
        if error:
            raise error
        if not Path(name).is_file():  # a pipe would be waited for
            raise InputError(f"{name}: not a regular file, or a link to nothing")
        try:
            found.setdefault(hash_file(Path(name))[:_CONTENT_DIGITS], Path(name))
        except OSError as failure:
            raise InputError(f"{name}: cannot be read ({failure.strerror})") from failure
    return found


def plans(photos: dict[str, Path], kinds: Sequence[str], seed: int, limit: int | None = None) -> list[Plan]:
    """What a set of these photos holds: each clean and in all distortions; ``limit`` thins out every split."""
    made = []
    for content, path in photos.items():
        split = split_of(seed, content)
        made.append(Plan(path, content, split, seed, None))
        for kind in kinds:
            for level in range(1, LEVEL_COUNT + 1):
                distortion = Distortion.of_photo(kind, level, content=content, seed=seed)
                made.append(Plan(path, content, split, seed, distortion))
    return made if limit is None else _thinned(made, seed, limit)


def _thinned(made: list[Plan], seed: int, limit: int) -> list[Plan]:
    ordered = sorted(made, key=lambda plan: place(seed, f"{plan.content}:{plan.key}"))
    left = {"train": limit, "val": limit, "test": limit}
    chosen = set()
    for plan in ordered:
        if left[plan.split]:
            left[plan.split] -= 1
            chosen.add((plan.content, plan.key))
    return [plan for plan in made if (plan.content, plan.key) in chosen]


def level_label(distortion: Distortion | None) -> float:
    """1 for a clean photo, 0 for level 5, in even steps."""
    return 1 - distortion.level / LEVEL_COUNT if distortion else 1.0


def working_side(scene: str) -> int:
    """The short side in pixels that photos are reduced to before they are distorted: the scene's working size."""
    return (SCENES[scene].short_side if scene in SCENES else None) or _SHORT_SIDE


def cache_folder() -> Path:
    """Where computed labels are kept.

    Raises:
        OutputError: this user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gamma-edge" / "labels"
    except RuntimeError as error:  # a user without an entry in passwd, as containers have
        raise OutputError(f"no home folder to keep labels in ({error})", hint="set XDG_CACHE_HOME") from error


def open_folder(spec: DataSpec, folder: Path, steps: Steps | None = None, cache: Path | None = None) -> Dataset:
    """All samples of a folder of clean photos; the first time their labels are computed (about 0.05 s each).

    Args:
        spec: kinds, labels, scene, short_side, limit and seed are used.
        folder: of the clean photos.
        steps: shows progress.
        cache: `cache_folder` when None.

    Raises:
        InputError: no photos, or one that cannot be used. OutputError: the labels cannot be kept.
    """
    scene = spec.scene or DEFAULT_SCENE
    short_side = spec.short_side or working_side(scene)
    made = plans(clean_photos(folder), spec.kinds or KINDS, spec.seed, spec.limit)
    name = spec.name or folder.resolve().name
    if spec.labels == "level":
        labels = [level_label(plan.distortion) for plan in made]
    else:
        labels = list(label_plans(made, short_side, steps or Steps(), cache or cache_folder(), name))
    samples = (
        Sample(plan.path, mos, mos, scene, plan.split, name, plan.content, short_side, plan.distortion)
        for plan, mos in zip(made, labels, strict=True)
    )
    return Dataset(name, tuple(samples), 0.0, 1.0, False)


def label_plans(made: Sequence[Plan], short_side: int, steps: Steps, cache: Path, name: str) -> Iterator[float]:
    """`quality` of each plan, in order; what the cache lacks is computed, a photo at a time, and kept.

    Raises:
        InputError: a photo that cannot be used. OutputError: the cache cannot be written.
    """
    by_photo: dict[str, list[Plan]] = {}
    for plan in made:
        by_photo.setdefault(plan.content, []).append(plan)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{cache}: cannot be made ({error.strerror})", hint="set XDG_CACHE_HOME") from error
    labels: dict[tuple[str, str], float] = {}
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    work = functools.partial(label_photo, short_side=short_side, cache=cache)
    with steps.step(f"labels of {name}", len(made)) as tick:
        for group, found in prefetched(work, iter(by_photo.values()), threads, 2 * threads):
            labels |= {(group[0].content, key): value for key, value in found.items()}
            tick(len(group))
    return (labels[plan.content, plan.key] for plan in made)


def label_photo(
    group: Sequence[Plan], short_side: int, cache: Path, keep: Callable[[Plan, Pixels], None] | None = None
) -> dict[str, float]:
    """Labels of one photo's plans by their keys, from the cache as far as it has them.

    Args:
        group: plans of one photo.
        short_side: that it is reduced to, pixels.
        cache: folder of the cache files.
        keep: is given the pixels of what is computed, before its label is kept.

    Raises:
        InputError: the photo cannot be used. OutputError: the cache cannot be written.
    """
    file = cache / f"{group[0].content}-{_recipe(short_side, group[0].seed)}.json"
    known = _read_cache(file)
    wanted = [plan for plan in group if plan.key not in known]
    if wanted:
        clean = read_photo(group[0].path, short_side)
        if min(clean.shape[:2]) < CROP:
            raise InputError(
                f"{group[0].path}: {clean.shape[1]}x{clean.shape[0]} leaves no room for a crop of {CROP} pixels",
                hint="take it out of the folder",
            )
        for plan in wanted:
            pixels = apply(clean, plan.distortion) if plan.distortion else clean
            if keep:
                keep(plan, pixels)
            known[plan.key] = round(quality(clean, pixels), 6)
        write_atomically(file, json.dumps(known).encode())
    return known


def _recipe(short_side: int, seed: int) -> str:
    """Digest of what the labels of a photo depend on besides its content."""
    text = json.dumps([VERSION, short_side, seed, dict(STRENGTHS)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read_cache(file: Path) -> dict[str, float]:
    """What a cache file holds; nothing where it is missing or damaged, so that it is computed again."""
    try:
        known = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict) or not all(type(value) is float and 0 <= value <= 1 for value in known.values()):
        return {}
    return known
