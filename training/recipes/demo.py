"""The demo checkpoint: a small Gamma that shall learn to see distortions, from free photos, trained from scratch.

A first run learned nothing in an epoch (400 steps, validation SRCC 0.01): this recipe is where the work goes on, not a
result.

    python training/recipes/fetch_photos.py build/photos
    python training/recipes/demo.py build/photos --work build/demo

Makes the synthetic set, a table in which every scene weighs the distortions in its own way (`WEIGHTS`), a base with no
pretrained weights, and trains. An interrupted run goes on. With --install the result becomes the packaged checkpoint.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import sys
from pathlib import Path

from gamma_runtime.cli import CommonOptions, log, option, out, run_command
from gamma_runtime.errors import EXIT_OK
from gamma_runtime.files import hash_file, write_atomically
from gamma_runtime.steps import Steps

NATURAL = "natural-quality"
# How much of a loss of quality counts in a scene; 1 where nothing is said, so natural-quality takes all as it is.
WEIGHTS: dict[str, dict[str, float]] = {
    NATURAL: {},
    "plain": {},
    "aigc-quality": {"banding": 1.6, "pixelation": 1.6, "jpeg": 1.6, "jpeg2000": 1.6, "desaturation": 0.4},
    "underwater-quality": {"haze": 1.6, "colour-cast": 1.6, "low-contrast": 1.6, "jpeg": 0.4, "jpeg2000": 0.4},
    "face-quality": {"gaussian-blur": 1.6, "lens-blur": 1.6, "motion-blur": 1.6, "resampling": 1.6, "haze": 0.4},
    "natural-aesthetics": {
        "underexposure": 1.6,
        "overexposure": 1.6,
        "colour-cast": 1.6,
        "desaturation": 1.6,
        "gaussian-noise": 0.4,
        "chroma-noise": 0.4,
    },
}
NATURAL_SHARE = 0.4  # of the training samples; the rest is shared by the other scenes
VAL_SAMPLES = 600

RECIPE = {
    "trainable": "all",
    "epochs": 4,
    "batch": 32,
    "lr": 7e-4,
    "weight_decay": 0.05,
    "schedule": "cosine-steps",
    "warmup": 150,
    "clip": 1.0,
    "ema": 0.998,
    "cache": {"crops": 2},
    "save_every": 100,
    "licence": "Apache-2.0",
    "label": "demo",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions(CommonOptions):
    """Flags of demo.py."""

    photos: Path = option(help="folder of fetch_photos.py", positional=True)
    work: Path = option(Path("build/demo"), "folder of the run")
    epochs: int = option(RECIPE["epochs"], "passes over the training samples")
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


def write_table(source: Path, table: Path, shown: set[str]) -> None:
    """The synthetic set's table with a scene a sample and its target there; val and test are in natural-quality.

    Args:
        source: the table of ``gamma-train make-data``.
        table: to write.
        shown: contents that belong to the test split, whatever the source says.
    """
    with source.open(newline="", encoding="utf-8") as stream:
        rows = [row | ({"split": "test"} if row["content"] in shown else {}) for row in csv.DictReader(stream)]
    val = sorted((row["path"] for row in rows if row["split"] == "val"), key=lambda path: _place(f"val {path}"))
    kept = set(val[:VAL_SAMPLES])
    lines = ["path,mos,split,scene,content"]
    for row in rows:
        if row["split"] == "val" and row["path"] not in kept:
            continue
        scene = scene_of(row["path"]) if row["split"] == "train" else NATURAL
        mos = target(scene, row["kind"], float(row["metric"]))
        lines.append(f"{row['path']},{mos:.6f},{row['split']},{scene},{row['content']}")
    write_atomically(table, ("\n".join(lines) + "\n").encode())


def write_base(path: Path, seed: int) -> None:
    """A small Gamma with weights to start from, and the tokens of the built-in scenes only."""
    from gamma_training.checkpoint import write_safetensors
    from gamma_training.dims import FULL_SIZE
    from gamma_training.initialise import scratch_state, smaller
    from gamma_training.scenes import SCENES
    from gamma_training.tokens import compact_tokens

    dims = smaller(FULL_SIZE, width=128, layers=4, first_moae=2)
    dims = dataclasses.replace(dims, embed=128, adapter=64, context=16)
    prompts = [prompt for scene in SCENES.values() for prompt in scene.prompts]
    state, dims = compact_tokens(scratch_state(dims, seed), dims, prompts)
    write_safetensors(path, state, prompts="sdp", label="nothing learned yet", dims=dims, fresh=list(state))


def demo(options: DemoOptions) -> int:
    """Train the demo checkpoint."""
    from gamma_training.data import DataSpec
    from gamma_training.data.make import TABLE, make_set
    from gamma_training.train import read_config, train
    from gamma_training.train.loop import BEST

    steps = Steps(options.quiet)
    options.work.mkdir(parents=True, exist_ok=True)
    data = options.work / "set"
    if not (data / TABLE).is_file():
        make_set(DataSpec(synthetic=options.photos), data, steps)
    table, base, config = data / "scenes.csv", options.work / "base.safetensors", options.work / "demo.yaml"
    write_table(data / TABLE, table, packaged(options.photos))
    write_base(base, options.seed)
    content = {**RECIPE, "out": "run", "base": base.name, "epochs": options.epochs, "seed": 123}
    content |= {"data": [{"table": "set/scenes.csv", "name": "synthetic", "range": [0, 1]}]}
    if options.threads:
        content["threads"] = options.threads
    write_atomically(config, (json.dumps(content, indent=1) + "\n").encode())
    train(read_config(config), resume=True, steps=steps)
    best = options.work / "run" / BEST
    if options.install:
        install(best)
    facts = {"checkpoint": str(best), "bytes": best.stat().st_size, "sha256": hash_file(best)}
    out(json.dumps(facts) if options.json else "\n".join(f"{key}: {value}" for key, value in facts.items()))
    log(f"report: {best.parent / 'report.md'}")
    return EXIT_OK


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
