"""Child process: one contender of eager_vs_graph scores one photo's crops a few times, and prints times and scores.

Only the call from uint8 crops to the score is timed; loading, compiling and the warm-up calls are not. Two of those:
on a virtual machine the first pages a process touches are slow to come, and the second call of a process was still
measured up to a fifth slower than the third.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cli import option, out, run_command
from gamma_runtime.errors import UsageError

SCENE = "natural-quality"
POLICY = "random10:seed0"
WARM_UP_CALLS = 2

Call = Callable[[], NDArray[np.float32]]  # crop scores [C]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContenderOptions:
    """Who scores what."""

    name: Literal["prepare", "eager", "onnxruntime", "openvino"] = option(help="the contender, or prepare")
    crops: Path = option(help="the crops, uint8 [C, 224, 224, 3]; prepare writes them")
    checkpoint: Path | None = option(None, "for eager")
    bundle: Path | None = option(None, "with the fp32 graph, for the others")
    calls: int = option(3, "timed calls after the warm-up")
    threads: int | None = option(None, "CPU threads; the library's own choice when left out")


def prepare(target: Path) -> None:
    """Cut the crops of a real photo of 512x384 pixels, as the runtime cuts them."""
    import cv2

    from gamma_export.photos import packaged_photos
    from gamma_runtime.contract import Contract, CropPolicy, Limits
    from gamma_runtime.crops import prepare as cut
    from gamma_runtime.decode import decode

    photo = next(path for path in packaged_photos() if path.stem.endswith("mountains"))  # 560x420: the same shape
    pixels = np.asarray(cv2.resize(decode(photo, Limits()).pixels, (512, 384), interpolation=cv2.INTER_AREA))
    contract = Contract({SCENE: 384}, crop=CropPolicy.parse(POLICY))
    np.save(target, cut(pixels.astype(np.uint8), contract, SCENE).crops)


def eager(checkpoint: Path, crops: NDArray[np.uint8], threads: int | None) -> tuple[Call, dict[str, Any]]:
    """The authors' way: five prompts of 77 tokens through the text tower on each call, the experts one by one."""
    import torch

    from gamma_training.checkpoint import build_model, read_checkpoint
    from gamma_training.scenes import SCENES
    from gamma_training.tokens import tokenize

    if threads is not None:
        torch.set_num_threads(threads)
    model = build_model(read_checkpoint(checkpoint))
    tokens = tokenize(SCENES[SCENE].prompts, model.dims.context, full_length=True)
    tensor = torch.from_numpy(crops)

    def call() -> NDArray[np.float32]:
        with torch.inference_mode():
            scores: NDArray[np.float32] = model.score(tensor, model.text_features(tokens))[:, 0].numpy()
            return scores

    return call, {"version": torch.__version__, "threads": torch.get_num_threads()}


def graph(name: str, bundle: Path, crops: NDArray[np.uint8], threads: int | None) -> tuple[Call, dict[str, Any]]:
    """The deployed graph on one of the runtime's backends."""
    from gamma_runtime.backends import create
    from gamma_runtime.bundle import open_bundle

    opened = open_bundle(bundle)
    entry = opened.graph(SCENE, "fp32")
    opened.file(entry.weights)
    backend = create(name, opened.file(entry.onnx), threads=threads)
    return lambda: backend.infer(crops[None]).crop_scores[0], {"version": backend.version, "threads": threads}


def contend(options: ContenderOptions) -> int:
    """Score the crops, and print times in milliseconds and scores as JSON."""
    if options.name == "prepare":
        prepare(options.crops)
        return 0
    crops = np.load(options.crops)
    needed = options.checkpoint if options.name == "eager" else options.bundle
    if needed is None:
        raise UsageError(f"{options.name} needs --checkpoint" if options.name == "eager" else "--bundle is needed")
    if options.name == "eager":
        call, facts = eager(needed, crops, options.threads)
    else:
        call, facts = graph(options.name, needed, crops, options.threads)
    for _ in range(WARM_UP_CALLS):
        scores = call()
    times = []
    for _ in range(options.calls):
        start = time.perf_counter()
        scores = call()
        times.append((time.perf_counter() - start) * 1e3)
    out(json.dumps({**facts, "ms": times, "score": float(scores.mean()), "crop_scores": scores.tolist()}))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("contender", contend, ContenderOptions))
