"""What crop_study scores crops with: a checkpoint in PyTorch or a bundle's graph; and what a crop costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.errors import UsageError
from gamma_training.dims import GammaDims

Crops = NDArray[np.uint8]  # [P, 224, 224, 3]
Scores = NDArray[np.float64]  # [P]


@dataclasses.dataclass(frozen=True)
class Judge:
    """One model in one scene; ``facts`` go into the result, ``short_side`` is the scene's working size (pixels)."""

    facts: dict[str, Any]
    label: str | None
    dims: GammaDims
    short_side: int | None
    score: Callable[[Crops], Scores]


def macs_per_crop(dims: GammaDims) -> int:
    """Multiplications of one crop in the deployed graph's products: what a benchmark of it would have to pay for.

    A test counts the same number in an exported graph, product by product.
    """
    tower, tokens = dims.vision, dims.tokens
    width, hidden, blocks = tower.width, tower.hidden, 1 + tower.experts
    attention = tokens * width * 4 * width + 2 * tokens * tokens * width
    dense = 2 * tokens * width * hidden
    moae = blocks * dense + tokens * width * tower.experts + tokens * blocks * width  # experts, gate, output biases
    patches = tokens * dims.patch**2 * 3 * width  # the class token's row of zeros too
    head = width * dims.embed + 2 * dims.embed * dims.adapter + dims.embed * dims.levels
    experts = tower.layers - tower.first_moae
    return patches + tower.layers * attention + tower.first_moae * dense + experts * moae + head


def open_judge(source: Path, scene: str | None, backend: str, device: str, batch: int, threads: int | None) -> Judge:
    """A bundle (a folder), or a checkpoint (a file).

    Raises:
        GammaError: it cannot be used.
    """
    if source.is_dir():
        if device != "cpu":
            raise UsageError("--device is for checkpoints; a bundle runs on its backend")
        return _of_bundle(source, scene, backend, threads)
    return _of_checkpoint(source, scene, device, batch, threads)


def _of_checkpoint(path: Path, scene: str | None, device: str, batch: int, threads: int | None) -> Judge:
    import torch

    from gamma_export.fold import encode_scenes
    from gamma_training.checkpoint import build_model, read_checkpoint
    from gamma_training.scenes import find_scenes, scenes_of

    if threads is not None:
        torch.set_num_threads(threads)
    read = read_checkpoint(path)
    [chosen] = find_scenes([scene]) if scene else scenes_of(read.prompts)[:1]
    model = build_model(read)
    text = encode_scenes(model, [chosen]).to(device)
    model.to(device)

    def score(crops: Crops) -> Scores:
        with torch.inference_mode():
            parts = [torch.from_numpy(crops[start : start + batch]) for start in range(0, len(crops), batch)]
            found = [model.score(part.to(device), text)[:, 0].cpu().numpy() for part in parts]
        return np.concatenate(found).astype(np.float64)

    facts = {"file": path.name, "sha256": read.sha256, "scene": chosen.name, "run_by": f"PyTorch on {device}"}
    return Judge(facts, read.label, read.dims, chosen.short_side, score)


def _of_bundle(folder: Path, scene: str | None, backend: str, threads: int | None) -> Judge:
    from gamma_export.parity import graph_scores
    from gamma_runtime import backends
    from gamma_runtime.bundle import open_bundle
    from gamma_runtime.steps import Steps

    bundle = open_bundle(folder)
    name = scene or bundle.manifest.default_scene
    entry, contract = bundle.graph(name), bundle.contract()
    if contract.crop.frame:
        raise UsageError(f"{folder}: its graph takes frames and cuts the crops itself", hint="take another bundle")
    runner = backends.create(backends.choose(backend, entry.precision), bundle.graph_file(entry), threads=threads)
    column = entry.scenes.index(name)

    def score(crops: Crops) -> Scores:
        return graph_scores(runner, entry.batch[2], crops, Steps(), "")[:, column]

    info = bundle.manifest.checkpoint
    facts = {"file": folder.name, "sha256": bundle.sha256, "scene": name, "run_by": f"{runner.name} {entry.precision}"}
    return Judge(facts, info.label, GammaDims.from_json(info.dims), contract.short_sides[name], score)
