"""The demo checkpoint: a small Gamma that sees distortions, made from free photos and nothing else.

    python training/recipes/fetch_photos.py build/photos
    python training/recipes/fetch_photos.py build/more --list training/recipes/more_photos.csv
    python training/recipes/demo.py build/photos --more build/more --work build/demo

Makes the synthetic set of `KINDS` and a table in which every scene weighs them in its own way (`WEIGHTS`); a base that
learned to tell kinds and levels apart (pretext.py); and from it a Gamma by the usual training. An interrupted run goes
on at the last finished part. With --go-on CHECKPOINT the base does only its last round, from that checkpoint's tower.
With --install the result becomes the packaged checkpoint.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from experts import hand_over, plain_tower
from parts import train_parts, write_parts

from gamma_runtime.cli import CommonOptions, log, option, out, run_command
from gamma_runtime.errors import EXIT_OK
from gamma_runtime.files import hash_file, write_atomically
from gamma_runtime.prefetch import prefetched
from gamma_runtime.steps import Steps

if TYPE_CHECKING:
    from crops import Crops, Labels
    from pretext import Pretext
    from torch import Tensor

    from gamma_training.dims import GammaDims
    from gamma_training.model import VisionTower

NATURAL = "natural-quality"
KINDS = (
    "gaussian-blur",
    "motion-blur",
    "gaussian-noise",
    "impulse-noise",
    "jpeg",
    "jpeg2000",
    "resampling",
    "banding",
    "underexposure",
    "low-contrast",
    "colour-cast",
    "haze",
)
# How much of a loss of quality counts in a scene; 1 where nothing is said, so natural-quality takes all as it is.
WEIGHTS: dict[str, dict[str, float]] = {
    NATURAL: {},
    "plain": {},
    "aigc-quality": {"banding": 1.6, "resampling": 1.6, "jpeg": 1.6, "jpeg2000": 1.6, "colour-cast": 0.4},
    "underwater-quality": {"haze": 1.6, "colour-cast": 1.6, "low-contrast": 1.6, "jpeg": 0.4, "jpeg2000": 0.4},
    "face-quality": {"gaussian-blur": 1.6, "motion-blur": 1.6, "resampling": 1.6, "haze": 0.4},
    "natural-aesthetics": {
        "underexposure": 1.6,
        "low-contrast": 1.6,
        "colour-cast": 1.6,
        "gaussian-noise": 0.4,
        "impulse-noise": 0.4,
    },
}
COLUMNS = "path,mos,split,scene"
CROPS = 40  # of a photo at each size, for each round of the base
# Steps and learning rate of each round; each has as many crops more, never seen before. What a single round of 12000
# steps knew of its own crops (SRCC 0.94) was ahead of what it knew of others (0.84).
ROUNDS = ((12000, 1e-3), (5000, 5e-4), (4000, 5e-4))
EXPERTS = 0.3  # share of a block's MLP that its adaptive experts take over at the start
UNLIKE = 0.2  # how much they differ at the start: noise on their first layers, as a share of the weights' RMS
CLEAN = 400  # of them that say what is usual
NATURAL_SHARE = 0.4  # of the training samples; the rest is shared by the other scenes
VAL_SAMPLES = 600

TAUGHT = 16000  # of the base's crops, that the Gamma is trained on
# First the head alone, on what the base says of these crops; then everything, slowly.
HEAD = {
    "freeze_blocks": 4,
    "epochs": 15,
    "lr": 5e-4,
    "lr_fresh": 5e-4,
    "validate_every": 15,
    "cache": {"crops": 1},
}
RECIPE = {"epochs": 1, "lr": 3e-5, "lr_fresh": 3e-4, "save_every": 100}
BOTH = {
    "trainable": "all",
    "batch": 32,
    "weight_decay": 0.05,
    "schedule": "cosine-steps",
    "warmup": 100,
    "clip": 1.0,
    "ema": 0.998,
    "validation": 0,  # of the crops: the set's own val photos choose
    "licence": "Apache-2.0",
    "label": "demo",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions(CommonOptions):
    """Flags of demo.py."""

    photos: Path = option(help="folder of fetch_photos.py", positional=True)
    more: Path | None = option(None, "further photos, which only teach")
    work: Path = option(Path("build/demo"), "folder of the run")
    go_on: Path | None = option(None, "a demo checkpoint: its tower does the base's last round only")
    short: int = option(1, "divide the base's steps by so much, to try something out")
    seed: int = option(20261125, "of everything that is drawn")
    threads: int | None = option(None, "CPU threads; PyTorch's own choice when left out")
    install: bool = option(False, "also make it the packaged checkpoint, in float16")


def target(scene: str, kind: str, metric: float) -> float:
    """The label of a sample in a scene, 0 to 1."""
    return min(1.0, max(0.0, 1 - WEIGHTS[scene].get(kind, 1.0) * (1 - metric)))


def _place(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


def scene_of(path: str) -> str:
    """The scene that a training sample is shown in, by a hash of its name."""
    share = _place(f"scene {path}")
    if share < NATURAL_SHARE:
        return NATURAL
    others = [name for name in WEIGHTS if name != NATURAL]
    return others[int((share - NATURAL_SHARE) / (1 - NATURAL_SHARE) * len(others))]


def packaged(photos: Path) -> set[str]:
    """Contents of the photos that the package shows and verifies with: they must not be trained on."""
    from gamma_export.photos import packaged_photos
    from gamma_training.data.synthetic import clean_photos

    listed = json.loads((packaged_photos()[0].parent / "photos.json").read_text(encoding="utf-8"))
    names = tuple(entry["original"] for entry in listed)
    return {content for content, path in clean_photos(photos).items() if path.name.endswith(names)}


def write_judges(source: Path, table: Path, shown: set[str]) -> None:
    """Some of the synthetic set's val photos, in natural-quality; its test photos are for benchmarks/accuracy.py.

    Args:
        source: the table of ``gamma-train make-data``.
        table: to write, beside it.
        shown: contents that choose nothing, as the package shows them.
    """
    with source.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "val" and row["content"] not in shown]
    lines = [COLUMNS]
    for row in sorted(rows, key=lambda row: _place(f"val {row['path']}"))[:VAL_SAMPLES]:
        lines.append(f"{row['path']},{target(NATURAL, row['kind'], float(row['metric'])):.6f},val,{NATURAL}")
    write_atomically(table, ("\n".join(lines) + "\n").encode())


def write_taught(folder: Path, views: Crops, labels: Labels, seed: int, steps: Steps) -> Path:
    """Some of the labelled crops as a set of their own, each in a scene; the path of its table.

    A photo's label on any crop of it is a noisy one: a crop of sky in a blurred photo has lost nothing.
    """
    import cv2

    table = folder / "table.csv"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = np.random.default_rng(seed).permutation(len(labels.kind))[:TAUGHT]

    def work(number: int) -> str:
        name, kind = f"{number:06}.png", int(labels.kind[number])
        data = cv2.imencode(".png", views(number, 0)[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
        (folder / name).write_bytes(data.tobytes())
        scene = scene_of(name)
        mos = target(scene, KINDS[kind - 1] if kind else "clean", float(labels.quality[number]))
        return f"{name},{mos:.6f},train,{scene}"

    lines = [COLUMNS]
    with steps.step(f"{len(chosen)} of the labelled crops as files", len(chosen)) as tick:
        for _, line in prefetched(work, iter(chosen.tolist()), 2, 64):
            lines.append(line)
            tick(1)
    write_atomically(table, ("\n".join(lines) + "\n").encode())
    return table


def small_dims() -> GammaDims:
    """The demo's architecture: four blocks of width 192, the last two with three experts."""
    from gamma_training.dims import FULL_SIZE
    from gamma_training.initialise import smaller

    dims = smaller(FULL_SIZE, width=192, layers=4, first_moae=2)
    return dataclasses.replace(dims, embed=128, context=16)


def base_of(visual: VisionTower, dims: GammaDims, seed: int) -> tuple[dict[str, Tensor], GammaDims, list[str]]:
    """A Gamma that knows what the tower knows, and the words of the built-in scenes; state, dimensions, fresh tensors.

    Adaptive experts take over a share of the MLP that they are copies of, and differ a little.
    """
    import torch

    from gamma_training.dims import dims_of
    from gamma_training.initialise import Additions, fresh_text, gamma_from_clip
    from gamma_training.scenes import SCENES
    from gamma_training.tokens import compact_tokens

    first, text = dims.vision.first_moae, dims.text
    clip = {f"visual.{name}": value.detach().clone() for name, value in visual.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    clip["visual.proj"] = torch.randn((dims.vision.width, dims.embed), generator=generator) * dims.vision.width**-0.5
    drawn = fresh_text(text.width, text.layers, dims.context, dims.embed, seed)
    additions = Additions(first, text.first_moae, dims.vision.experts, seed, rounded=False)
    state = gamma_from_clip(Path("pretext"), {**clip, **drawn}, additions)
    hand_over(state, EXPERTS, UNLIKE, generator)
    learned = {f"clip_model.{name}" for name in clip} - {"clip_model.visual.proj"}
    fresh = [name for name in state if name not in learned and not (".visual." in name and "experts." in name)]
    prompts = [prompt for scene in SCENES.values() for prompt in scene.prompts]
    whole = dims_of({name: tuple(tensor.shape) for name, tensor in state.items()})
    return *compact_tokens(state, whole, prompts), fresh


def learned_from(options: DemoOptions, seed: int) -> dict[str, Path]:
    """Photos that teach, by content: those of the train split that the package does not show, and all further ones."""
    from gamma_training.data.splits import split_of
    from gamma_training.data.synthetic import clean_photos

    listed, shown = clean_photos(options.photos), packaged(options.photos)
    found = {name: place for name, place in listed.items() if name not in shown and split_of(seed, name) == "train"}
    further = clean_photos(options.more) if options.more else {}
    return found | {name: place for name, place in further.items() if name not in listed}


def write_base(
    path: Path, learned: dict[str, Path], start: Path | None, rounds: dict[int, Pretext], steps: Steps
) -> tuple[Crops, Labels]:
    """Draw a tower, or take that of a checkpoint, let it learn kinds and levels, and write the base of the run.

    Args:
        path: of the base; the crops that it learned from, gigabytes, stay beside it.
        learned: clean photos by content.
        start: the checkpoint; None draws a tower.
        rounds: by number; see `ROUNDS`.
        steps: progress.

    Returns:
        All crops, and what is known of them.
    """
    from crops import Crops, draw_crops
    from pretext import detail_start, pretrain

    from gamma_training.checkpoint import read_checkpoint, write_safetensors
    from gamma_training.initialise import scratch_state
    from gamma_training.model import Gamma

    seed, dims = next(iter(rounds.values())).seed, small_dims()
    plain = dataclasses.replace(dims, vision=dataclasses.replace(dims.vision, first_moae=dims.vision.layers))
    model = Gamma(plain)
    model.load_state_dict(scratch_state(plain, seed))
    visual = model.clip_model.visual
    if start:
        visual.load_state_dict(plain_tower(read_checkpoint(start).state))
    views, labels = Crops(), None
    for number, how in rounds.items():
        drawn, known = draw_crops(learned, KINDS, CROPS, how.seed, path.parent / f"crops-{number}", steps)
        if not (start or labels):
            clean = np.flatnonzero(known.kind == 0)[:CLEAN]
            detail_start(visual, plain, np.stack([drawn(int(index), 0) for index in clean]))
        views, labels = views + drawn, labels + known if labels else known
        pretrain(visual, plain, views, labels, how, path.with_name(f"pretext-{number}.pt"), steps)
    state, made, fresh = base_of(visual, dims, seed)
    write_safetensors(path, state, prompts="sdp", label="untrained experts and head", dims=made, fresh=fresh)
    return views, labels


def demo(options: DemoOptions) -> int:
    """Train the demo checkpoint."""
    import torch
    from pretext import Pretext

    from gamma_training.data import DataSpec
    from gamma_training.data.make import TABLE, make_set
    from gamma_training.train.loop import BEST

    steps = Steps(options.quiet)
    options.work.mkdir(parents=True, exist_ok=True)
    data = options.work / "set"
    spec = DataSpec(synthetic=options.photos, kinds=KINDS)
    if not (data / TABLE).is_file():
        make_set(spec, data, steps)
    base, taught = options.work / "base.safetensors", options.work / "taught"
    write_judges(data / TABLE, data / "judges.csv", packaged(options.photos))
    if options.threads:
        torch.set_num_threads(options.threads)
    if not (base.is_file() and (taught / "table.csv").is_file()):
        rounds = {
            number: Pretext(steps=count // options.short, lr=rate, seed=options.seed + number)
            for number, (count, rate) in enumerate(ROUNDS)
            if not options.go_on or number == len(ROUNDS) - 1
        }
        views, labels = write_base(base, learned_from(options, spec.seed), options.go_on, rounds, steps)
        write_taught(taught, views, labels, options.seed, steps)
    train_parts(write_configs(options, base), steps)
    best = options.work / "run" / BEST
    if options.install:
        install(best)
    facts = {"checkpoint": str(best), "bytes": best.stat().st_size, "sha256": hash_file(best)}
    out(json.dumps(facts) if options.json else "\n".join(f"{key}: {value}" for key, value in facts.items()))
    log(f"report: {best.parent / 'report.md'}")
    return EXIT_OK


def write_configs(options: DemoOptions, base: Path) -> list[Path]:
    """The configurations of both parts: the head's, and the run's."""
    shared = BOTH | {"seed": options.seed % 1000} | ({"threads": options.threads} if options.threads else {})
    shared["data"] = [
        {"table": "taught/table.csv", "name": "crops", "range": [0, 1]},
        {"table": "set/judges.csv", "name": "synthetic", "range": [0, 1]},
    ]
    run = RECIPE | {"base": "head/best.safetensors"}
    return write_parts(options.work, shared, {"head": HEAD | {"base": base.name}, "run": run})


def install(best: Path) -> None:
    """Write the checkpoint in float16 where the package has it."""
    from gamma_export.demo import PACKAGED
    from gamma_training.checkpoint import read_checkpoint, write_safetensors

    read = read_checkpoint(best)
    write_safetensors(
        PACKAGED,
        read.state,
        prompts=read.prompts,
        label=read.label,
        licence=read.licence,
        dims=read.dims,
        dtype="float16",
    )


if __name__ == "__main__":
    sys.exit(run_command("demo.py", demo, DemoOptions))
