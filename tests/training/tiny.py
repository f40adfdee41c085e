"""Small Gammas and CLIPs made in code. The vocabulary keeps its size (the tokeniser's), so a file has about 13 MB."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import torch
from torch import Tensor

from gamma_training.checkpoint import write_authors
from gamma_training.dims import FULL_SIZE, GammaDims, TowerDims
from gamma_training.initialise import random_state
from gamma_training.model import expected_shapes


def tower(width: int = 64, layers: int = 1, first_moae: int = 0, experts: int = 2) -> TowerDims:
    return TowerDims(
        width=width,
        hidden=2 * width,
        layers=layers,
        heads=width // 64,
        first_moae=first_moae,
        experts=0 if first_moae >= layers else experts,
    )


def dims(vision: TowerDims | None = None, text: TowerDims | None = None, patch: int = 32) -> GammaDims:
    return dataclasses.replace(
        FULL_SIZE, vision=vision or tower(), text=text or tower(), patch=patch, embed=64, adapter=32, context=16
    )


TINY = dims()


@functools.cache
def _state(model_dims: GammaDims) -> dict[str, Tensor]:
    return random_state(model_dims, seed=7)


def state(model_dims: GammaDims = TINY) -> dict[str, Tensor]:
    """Random weights in a dict of the caller's own; the tensors are shared, so replace them, do not change them."""
    return dict(_state(model_dims))


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Same names and, bit for bit, the same float32 values."""
    return set(left) == set(right) and all(
        left[n].dtype == right[n].dtype == torch.float32
        and left[n].shape == right[n].shape
        and torch.equal(left[n].view(-1).view(torch.int32), right[n].reshape(-1).view(torch.int32))
        for n in left
    )


def save(path: Path, content: object) -> Path:
    with path.open("wb") as stream:
        torch.save(content, stream)
    return path


def authors_file(folder: Path) -> Path:
    """A whole tiny checkpoint in the authors' layout."""
    path = folder / "tiny.pth"
    write_authors(path, state())
    return path


def clip_state(layers: int = 8, width: int = 64) -> dict[str, Tensor]:
    """A base CLIP in OpenAI's names: a Gamma without MoAE, adapter, score levels and prefix."""
    plain = dims(tower(width, layers, layers), tower(width, layers, layers))
    prefix = "clip_model."
    made = {n.removeprefix(prefix): t for n, t in state(plain).items() if n.startswith(prefix)}
    assert list(made) == [n.removeprefix(prefix) for n in expected_shapes(plain) if n.startswith(prefix)]
    return made
