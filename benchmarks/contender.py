"""Child process: one contender of against scores one photo's crops a few times, and prints times and scores.

Only the call from uint8 crops to the score is timed; loading, compiling and the warm-up calls are not. Two of those:
on a virtual machine the first pages a process touches are slow to come, and the second call of a process was still
measured up to a fifth slower than the third. What is not installed is not an error: the reason is printed instead.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpu_contender
import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cli import option, out, run_command
from gamma_runtime.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    import torch

    from gamma_training.model import Gamma

SCENE = "natural-quality"
WARM_UP_CALLS = 2
CALIBRATION_PHOTOS = 8

Call = Callable[[], NDArray[np.float32]]  # crop scores [C]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContenderOptions:
    """Who scores what."""

    name: str = option(help="the contender's library or way, or prepare")
    crops: Path = option(help="the crops, uint8 [C, 224, 224, 3]; prepare writes them")
    policy: str = option("random10:seed0", "for prepare: which crops")
    checkpoint: Path | None = option(None, "for PyTorch")
    bundle: Path | None = option(None, "for the others")
    precision: str = option("fp32", "of the bundle's graph")
    calls: int = option(3, "timed calls after the warm-up")
    threads: int | None = option(None, "CPU threads; the library's own choice when left out")


def prepare(target: Path, policy: str) -> None:
    """Cut the crops of a real photo of 512x384 pixels, as the runtime cuts them; photos to calibrate int8 with.

    Half of the packaged photos go to ``calibrate`` beside the crops and the others to ``verify``, the scored one too.
    """
    import cv2

    from gamma_export.photos import packaged_photos
    from gamma_runtime.contract import Contract, CropPolicy, Limits
    from gamma_runtime.crops import prepare as cut
    from gamma_runtime.decode import decode

    photo = next(path for path in packaged_photos() if path.stem.endswith("mountains"))  # 560x420: the same shape
    pixels = np.asarray(cv2.resize(decode(photo, Limits()).pixels, (512, 384), interpolation=cv2.INTER_AREA))
    contract = Contract({SCENE: 384}, crop=CropPolicy.parse(policy))
    np.save(target, cut(pixels.astype(np.uint8), contract, SCENE).crops)
    others = [path for path in packaged_photos() if path != photo]
    parts = {"calibrate": others[:CALIBRATION_PHOTOS], "verify": [photo, *others[CALIBRATION_PHOTOS:]]}
    for name, photos in parts.items():
        folder = target.parent / name
        folder.mkdir(exist_ok=True)
        for path in photos:
            shutil.copy(path, folder)


def model_of(checkpoint: Path, threads: int | None) -> tuple[Gamma, torch.Tensor, dict[str, Any]]:
    """The model in PyTorch, the five prompts of 77 tokens, and facts for the result."""
    import torch

    from gamma_training.checkpoint import build_model, read_checkpoint
    from gamma_training.scenes import SCENES
    from gamma_training.tokens import tokenize

    if threads is not None:
        torch.set_num_threads(threads)
    model = build_model(read_checkpoint(checkpoint))
    tokens = tokenize(SCENES[SCENE].prompts, model.dims.context, full_length=True)
    return model, tokens, {"version": torch.__version__, "threads": torch.get_num_threads()}


def eager(
    checkpoint: Path, crops: NDArray[np.uint8], threads: int | None, *, text_once: bool
) -> tuple[Call, dict[str, Any]]:
    """The experts one by one; the text tower on each call, which is the authors' way, or once before."""
    import torch

    model, tokens, facts = model_of(checkpoint, threads)
    tensor = torch.from_numpy(crops)
    with torch.inference_mode():
        text = model.text_features(tokens)

    def call() -> NDArray[np.float32]:
        with torch.inference_mode():
            found = model.score(tensor, text if text_once else model.text_features(tokens))
            scores: NDArray[np.float32] = found[:, 0].numpy()
            return scores

    return call, facts


def compiled(
    checkpoint: Path, crops: NDArray[np.uint8], threads: int | None, cache: Path
) -> tuple[Call, dict[str, Any]]:
    """torch.compile of the model without its text tower, in one piece; what it compiled is kept in ``cache``.

    Raises:
        EnvironmentFault: nothing can be compiled here, most often because there is no C++ compiler.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.absolute()))
    import torch

    model, tokens, facts = model_of(checkpoint, threads)
    with torch.no_grad():
        text = model.text_features(tokens)
    # No gradients by the weights, not by the mode: with the mode off, a block asks for its scale's value, and that
    # would break the graph in two at every block with experts.
    model.requires_grad_(False)
    score = torch.compile(model.score, fullgraph=True, dynamic=False)
    tensor = torch.from_numpy(crops)

    def call() -> NDArray[np.float32]:
        scores: NDArray[np.float32] = score(tensor, text)[:, 0].numpy()
        return scores

    try:
        call()
    except Exception as error:  # of the compiler that it found, or of its own many stages
        text_of = " ".join(str(error).split())[:200]
        raise EnvironmentFault(f"torch.compile: {type(error).__name__}: {text_of}") from error
    return call, facts


def graph(
    name: str, bundle: Path, precision: str, crops: NDArray[np.uint8], threads: int | None
) -> tuple[Call, dict[str, Any]]:
    """The deployed graph on one of the runtime's backends, or the engine that gamma-build makes of it."""
    from gamma_runtime.bundle import open_bundle
    from gamma_runtime.engines.use import EngineUse
    from gamma_runtime.graphs import open_graphs

    use = EngineUse(rebuild_ok=True)
    (opened,) = open_graphs(open_bundle(bundle), [SCENE], precision, name, threads, use)
    column, backend = opened.column(SCENE), opened.backend
    # A graph of several scenes, as a given bundle may have, gives [N, C, K].
    facts = {"version": backend.version, "threads": backend.threads}
    return lambda: backend.infer(crops[None]).crop_scores.reshape(1, len(crops), -1)[0, :, column], facts


def find(options: ContenderOptions, crops: NDArray[np.uint8]) -> tuple[Call, dict[str, Any]]:
    """The call to time, and facts about who does it.

    Raises:
        UsageError: no such contender, or no file for it. EnvironmentFault: what it needs is not there.
    """
    name, work = options.name, options.crops.parent
    in_torch = name in ("eager", "eager-no-text", "torch-compile", "cuda-autocast")
    source = options.checkpoint if in_torch else options.bundle
    if source is None:
        raise UsageError(f"{name} needs --{'checkpoint' if in_torch else 'bundle'}")
    if name in ("eager", "eager-no-text"):
        return eager(source, crops, options.threads, text_once=name != "eager")
    if name == "torch-compile":
        return compiled(source, crops, options.threads, work / "inductor")
    if name == "cuda-autocast":
        return gpu_contender.autocast(*model_of(source, options.threads), crops)
    if name in gpu_contender.PROVIDERS:
        return gpu_contender.provider(name, source, SCENE, options.precision, crops, work)
    return graph(name, source, options.precision, crops, options.threads)


def timed(options: ContenderOptions, crops: NDArray[np.uint8]) -> dict[str, Any]:
    """Seconds of each call, and what the last one said."""
    if options.name == "trtexec":
        if options.bundle is None:
            raise UsageError("trtexec needs --bundle")
        work = options.crops.parent
        return gpu_contender.trtexec(options.bundle, SCENE, options.precision, crops, work)
    call, facts = find(options, crops)
    for _ in range(WARM_UP_CALLS):
        scores = call()
    seconds = []
    for _ in range(options.calls):
        start = time.perf_counter()
        scores = call()
        seconds.append(time.perf_counter() - start)
    return {**facts, "seconds": seconds, "score": float(scores.mean()), "crop_scores": scores.tolist()}


def contend(options: ContenderOptions) -> int:
    """Score the crops, and print times in seconds and scores as JSON, or why this contender cannot run here."""
    if options.name == "prepare":
        prepare(options.crops, options.policy)
        return 0
    try:
        found = timed(options, np.load(options.crops))
    except EnvironmentFault as error:
        found = {"skipped": str(error).partition("\nhint: ")[0]}
    out(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("contender", contend, ContenderOptions))
