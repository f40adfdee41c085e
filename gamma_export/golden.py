"""Golden images: what the self-test on the device compares with, long after torch is out of reach."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from gamma_runtime.contract import Contract
    from gamma_runtime.manifest import FileEntry, Golden
    from gamma_training.model import Gamma

__all__ = ["make_golden"]

Pixels: TypeAlias = NDArray[np.uint8]


def make_golden(
    stage: Path, model: Gamma, text: Tensor, contract: Contract, scenes: Sequence[str], threads: int | None
) -> tuple[list[FileEntry], list[Golden]]:
    """Copy the packaged golden images into the bundle, with the crops and scores that they must give.

    A graph that takes frames needs images of that size: the same pictures, mirrored at their edges, as PNG.

    Args:
        stage: the bundle under construction.
        model: the PyTorch module; its fp32 scores are the truth.
        text: features [5 * K, embed] of the K scenes in order.
        contract: decides the crops.
        scenes: names of the K scenes.
        threads: CPU threads of PyTorch.
    """
    from gamma_export.photos import packaged_golden
    from gamma_export.publish import add_file
    from gamma_runtime.crops import prepare_scenes
    from gamma_runtime.manifest import Golden

    files, golden = [], []
    images = packaged_golden()
    licences = {e["file"]: e["licence"] for e in json.loads((images[0].parent / "golden.json").read_text())}
    for index, image in enumerate(images):
        content, suffix = _encoded(image, contract)
        prepared = prepare_scenes(content, contract, scenes)
        scores = _by_scene(model, text, {s: p.crops for s, p in prepared.items()}, threads)
        entry = add_file(stage, f"golden-{index + 1:02d}", suffix, content)
        files.append(entry)
        golden.append(
            Golden(
                file=entry.name,
                licence=licences[image.name],
                crops_sha256={s: p.sha256() for s, p in prepared.items()},
                scores=scores,
            )
        )
    return files, golden


def _encoded(image: Path, contract: Contract) -> tuple[bytes, str]:
    """A golden image's file content and suffix, as the bundle gets it."""
    frame = contract.crop.frame
    if frame is None:
        return image.read_bytes(), image.suffix
    import cv2

    from gamma_runtime.crops import mirrored
    from gamma_runtime.decode import decode

    pixels = mirrored(decode(image, contract.limits).pixels, *frame)
    return cv2.imencode(".png", np.ascontiguousarray(pixels[:, :, ::-1]))[1].tobytes(), ".png"


def _by_scene(model: Gamma, text: Tensor, crops: dict[str, Pixels], threads: int | None) -> dict[str, float]:
    """Mean score over each scene's crops [C, 224, 224, 3]; equal crops (scenes share working sizes) are scored once."""
    from gamma_export.parity import torch_scores

    rows: dict[bytes, int] = {}  # np.unique(axis=0) would take seconds to sort rows of 150528 bytes
    where = {scene: [rows.setdefault(crop.tobytes(), len(rows)) for crop in crops[scene]] for scene in crops}
    shape = next(iter(crops.values())).shape[1:]
    distinct = np.stack([np.frombuffer(crop, np.uint8) for crop in rows]).reshape(-1, *shape)
    scores = torch_scores(model, text, distinct, threads, lambda _: None)  # [D, K]
    return {scene: float(scores[where[scene], k].mean()) for k, scene in enumerate(crops)}
