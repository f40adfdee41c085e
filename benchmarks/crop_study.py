"""Which crops? Every policy against the dense mean, against people's opinions, and against what it costs.

    python benchmarks/crop_study.py SOURCE --photos FOLDER --mos FOLDER/mos.csv

SOURCE is a checkpoint or a bundle. For each crop policy: the RMS distance of its score to the mean over all positions
at stride 16 (at the scene's working size), its rank correlation with the opinion scores at the working sizes native,
512, 384 and 224, and the multiplications it takes; beside them the authors' ten random crops, once a seed. Writes
results/crop_study-NAME.json and .png. Photos and opinions are only read: the result holds their number and a hash.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, WORK, machine_facts
from judge import Judge, macs_per_crop, open_judge
from numpy.typing import NDArray

from gamma_runtime.cli import log, option, out, run_command
from gamma_runtime.contract import CROP, CropPolicy, Limits
from gamma_runtime.crops import positions, reduced, working_size
from gamma_runtime.decode import decode
from gamma_runtime.errors import EXIT_OK, InputError, UsageError

POLICIES = ("centre", "five", "grid2x2", "grid2x3", "grid3x3", "cover")
AUTHORS = "random10"  # their protocol: ten uniform positions, here once for each seed
DENSE = "dense"
NOTHING = "random weights: says nothing about which policy is better"
MIN_PHOTOS = 16  # rank correlation of fewer says little
Means = dict[str, dict[str, float]]  # working size -> policy -> score of one photo


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this benchmark."""

    source: Path = option(help="checkpoint (.pth, .safetensors) or bundle (NAME.gamma)", positional=True)
    photos: Path = option(help="folder that the paths of the table are relative to")
    mos: Path = option(help="table of opinion scores: CSV with a header")
    path_column: str = option("path", "column of the photos' paths")
    mos_column: str = option("mos", "column of the opinion scores; higher is better")
    only: str | None = option(None, "rows of the table to take, as COLUMN=VALUE, such as split=test")
    limit: int | None = option(None, "at most so many photos, spread evenly over the table")
    scene: str | None = option(None, "scene; the source's first one when left out")
    sizes: str = option("native,512,384,224", "working sizes for the correlation: short sides in pixels, or native")
    stride: int = option(16, "distance in pixels of the dense mean's positions")
    seeds: int = option(10, "draws of the authors' ten random crops")
    backend: str = option("auto", "for a bundle: auto, onnxruntime or openvino")
    device: str = option("cpu", "for a checkpoint: cpu or cuda")
    batch: int = option(32, "for a checkpoint: crops scored together")
    threads: int | None = option(None, "CPU threads; the library's own choice when left out")
    name: str | None = option(None, "of the result files, crop_study-NAME; the source's own when left out")
    tiny: bool = option(False, "to test the script itself: the result goes to the work folder")
    work: Path = option(WORK, "folder for the result of --tiny")

    def __post_init__(self) -> None:
        if min(self.seeds, self.stride, self.batch, 1 if self.limit is None else self.limit) < 1:
            raise UsageError("--seeds, --stride, --batch and --limit are at least 1")
        for size in self.sizes.split(","):
            short_side(size)
        if self.only is not None and "=" not in self.only:
            raise UsageError(f"--only {self.only!r} is not COLUMN=VALUE")


def short_side(size: str) -> int | None:
    """Pixels of a working size's short side; None for ``native``.

    Raises:
        UsageError: something else.
    """
    if size == "native":
        return None
    if not size.isdecimal() or int(size) < CROP:
        raise UsageError(f"working size {size!r} is neither native nor {CROP} pixels or more")
    return int(size)


def read_table(options: Options) -> list[tuple[Path, float]]:
    """Photos with their opinion scores.

    Raises:
        InputError: the table cannot be read, lacks a column, or no row is left.
    """
    column, _, value = (options.only or "").partition("=")
    found = []
    try:
        with options.mos.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if not column or row[column] == value:
                    found.append((options.photos / row[options.path_column], float(row[options.mos_column])))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{options.mos}: {type(error).__name__}: {error}", hint="--path-column, --mos-column"
        ) from error
    if not found:
        raise InputError(f"{options.mos}: no photo in it", hint="--only COLUMN=VALUE")
    count = min(len(found), options.limit or len(found))
    return [found[index * len(found) // count] for index in range(count)]


def dense(width: int, height: int, stride: int) -> list[tuple[int, int]]:
    """All positions at a stride, the rest of the room shared by both edges."""
    down, right = height - CROP, width - CROP
    tops = range(down % stride // 2, down + 1, stride)
    return [(top, left) for top in tops for left in range(right % stride // 2, right + 1, stride)]


def study_photo(pixels: NDArray[np.uint8], judge: Judge, options: Options) -> tuple[Means, dict[str, int]]:
    """Scores of one photo by working size and policy, and the number of crops by policy at the scene's working size.

    A position that several policies share is scored once, and sizes that come to the same pixels are one.
    """
    height, width = pixels.shape[:2]
    policies = [*POLICIES, *(f"{AUTHORS}:seed{seed}" for seed in range(options.seeds))]
    main = working_size(width, height, judge.short_side)
    wanted = {size: working_size(width, height, short_side(size)) for size in options.sizes.split(",")}
    by_size: dict[tuple[int, int], dict[str, float]] = {}
    counts: dict[str, int] = {}
    for size in dict.fromkeys([main, *wanted.values()]):
        places = {policy: positions(CropPolicy.parse(policy), *size) for policy in policies}
        if size == main:
            places[DENSE] = dense(*size, options.stride)
            counts = {policy: len(cut) for policy, cut in places.items()}
        distinct = list(dict.fromkeys(place for cut in places.values() for place in cut))
        working = reduced(pixels, size)
        crops = np.stack([working[y : y + CROP, x : x + CROP] for y, x in distinct])
        score = dict(zip(distinct, judge.score(crops).tolist(), strict=True))
        by_size[size] = {policy: float(np.mean([score[place] for place in cut])) for policy, cut in places.items()}
    return {"scene": by_size[main]} | {size: by_size[where] for size, where in wanted.items()}, counts


def study(judge: Judge, options: Options) -> dict[str, Any]:
    """Score all photos, and compare."""
    table = read_table(options)
    means: list[Means] = []
    counts: list[dict[str, int]] = []
    opinions: list[float] = []
    skipped: list[str] = []
    for path, opinion in _watched(table):
        try:
            pixels = decode(path, Limits()).pixels
            if min(pixels.shape[:2]) < CROP:
                raise InputError(f"{path}: a side under {CROP} pixels")
        except InputError as error:
            skipped.append(error.message)
            log(f"left out: {error.message}")
            continue
        made, crops = study_photo(pixels, judge, options)
        means.append(made)
        counts.append(crops)
        opinions.append(opinion)
    if not means:
        raise InputError(f"{options.mos}: none of {len(table)} photos can be scored", hint="--photos FOLDER")
    rows = {policy: _row(policy, means, counts, opinions, judge, options) for policy in counts[0]}
    return {
        "photos": len(means),
        "left_out": len(skipped),
        "table_sha256": hashlib.sha256(options.mos.read_bytes()).hexdigest(),
        "policies": {name: row for name, row in rows.items() if not name.startswith(AUTHORS)},
        "authors": _authors([row for name, row in rows.items() if name.startswith(AUTHORS)]),
        "dense_std_over_photos": float(np.std([m["scene"][DENSE] for m in means])),
    }


def _watched(table: list[tuple[Path, float]]) -> Iterator[tuple[Path, float]]:
    from gamma_runtime.steps import Steps

    with Steps(quiet=False).step(f"{len(table)} photos", len(table)) as tick:
        for row in table:
            yield row
            tick(1)


def _row(
    policy: str,
    means: list[Means],
    counts: list[dict[str, int]],
    opinions: list[float],
    judge: Judge,
    options: Options,
) -> dict[str, Any]:
    gap = [m["scene"][policy] - m["scene"][DENSE] for m in means]
    crops = float(np.mean([count[policy] for count in counts]))
    sizes = [size for size in options.sizes.split(",") if all(policy in m[size] for m in means)]
    return {
        "crops": crops,
        "gmac": crops * macs_per_crop(judge.dims) / 1e9,
        "rms_to_dense": float(np.sqrt(np.mean(np.square(gap)))),
        "srcc": {size: correlation([m[size][policy] for m in means], opinions) for size in sizes},
        "srcc_at_the_scenes_size": correlation([m["scene"][policy] for m in means], opinions),
    }


def correlation(scores: list[float], opinions: list[float]) -> float | None:
    """Spearman's; None for fewer than 16 photos, or where all are equal."""
    from scipy.stats import spearmanr

    if len(scores) < MIN_PHOTOS or np.ptp(scores) == 0 or np.ptp(opinions) == 0:
        return None
    return float(spearmanr(scores, opinions).statistic)


def _authors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The draws of the random policy as one row: mean, and the spread that a change of seed makes."""

    def spread(values: list[float | None]) -> dict[str, float] | None:
        known = [value for value in values if value is not None]
        if not known:
            return None
        return {"mean": float(np.mean(known)), "least": min(known), "most": max(known), "std": float(np.std(known))}

    return {
        "policy": AUTHORS,
        "seeds": len(rows),
        "crops": rows[0]["crops"],
        "gmac": rows[0]["gmac"],
        "rms_to_dense": spread([row["rms_to_dense"] for row in rows]),
        "srcc": {size: spread([row["srcc"][size] for row in rows]) for size in rows[0]["srcc"]},
        "srcc_at_the_scenes_size": spread([row["srcc_at_the_scenes_size"] for row in rows]),
    }


def uncertainty(photos: int) -> float:
    """Standard error of a rank correlation near zero (Fieller); differences below it mean nothing."""
    return 1.03 / math.sqrt(photos - 3) if photos > 3 else math.inf


def report(options: Options) -> int:
    """Compare crop policies by distance to the dense mean, by opinion scores and by cost."""
    from crop_figure import draw, text

    from gamma_export.untrained import LABEL

    judge = open_judge(options.source, options.scene, options.backend, options.device, options.batch, options.threads)
    result = {
        "benchmark": "crop policies against the dense mean and opinion scores",
        "tiny": options.tiny,
        "warning": NOTHING if judge.label == LABEL else judge.label,
        "machine": machine_facts(),
        "source": judge.facts,
        "working_short_side": judge.short_side,
        "stride": options.stride,
        "gmac_per_crop": macs_per_crop(judge.dims) / 1e9,
        **study(judge, options),
    }
    stderr = uncertainty(result["photos"])
    result["srcc_standard_error"] = stderr if math.isfinite(stderr) else None
    name = options.name or options.source.stem
    target = options.work / f"tiny-crop_study-{name}.json" if options.tiny else RESULTS / f"crop_study-{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    draw(result, target.with_suffix(".png"))
    log(f"written: {target} and .png")
    out(text(result))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command("crop_study", report, Options))
