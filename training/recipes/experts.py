"""A vision tower trains several times as fast without its adaptive experts: take them away, and give them back."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["hand_over", "plain_tower", "with_experts", "without_experts"]

_ADDED = re.compile(r"\.visual\..*\.mlp\.(gating\.|scale$)")
_ADAPTIVE = re.compile(rf"{_ADDED.pattern}|\.visual\..*\.mlp\.experts\.")
_EXPERT = re.compile(r"(\.visual\..*\.mlp\.)(?:useful_experts|experts\.expert_[0-9]+)\.")


def without_experts(source: Path, target: Path) -> None:
    """Write a copy of a checkpoint with an MLP in place of every shared expert of the vision tower, and no other."""
    from gamma_training.checkpoint import read_checkpoint, write_safetensors

    read = read_checkpoint(source)
    state = {_EXPERT.sub(r"\1", name): value for name, value in read.state.items() if not _ADAPTIVE.search(name)}
    tower = dataclasses.replace(read.dims.vision, first_moae=read.dims.vision.layers, experts=0)
    write_safetensors(
        target,
        state,
        dims=dataclasses.replace(read.dims, vision=tower),
        prompts=read.prompts,
        label="no experts",
        licence=read.licence,
        fresh=read.fresh & set(state),
    )


def with_experts(source: Path, first: Path, target: Path, *, share: float, unlike: float, seed: int) -> None:
    """Write a copy that has experts again.

    Args:
        source: what `without_experts` made, trained since.
        first: the checkpoint that it was made of; its gates are taken.
        target: a .safetensors file.
        share: see `hand_over`.
        unlike: likewise.
        seed: of the noise.
    """
    import torch

    from gamma_training.checkpoint import read_checkpoint, write_safetensors

    trained, before = read_checkpoint(source), read_checkpoint(first)
    found = {name: trained.state.get(_EXPERT.sub(r"\1", name), value) for name, value in before.state.items()}
    state = {name: value.clone() for name, value in found.items()}  # experts of a block are no longer one tensor
    vision = {name: value for name, value in state.items() if ".visual." in name}
    hand_over(vision, share, unlike, torch.Generator().manual_seed(seed))
    write_safetensors(
        target,
        {**state, **vision},
        dims=before.dims,
        prompts=trained.prompts,
        label="untrained experts",
        licence=trained.licence,
        fresh=trained.fresh | {name for name in state if _ADDED.search(name)},
    )


def plain_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower of a trained Gamma with MLPs instead of experts, as a start: near to what it computed.

    Each block's shared expert takes back what `hand_over` took; what the adaptive ones learned since is lost.
    """
    tower = {name.partition(".visual.")[2]: value.float() for name, value in state.items() if ".visual." in name}
    for name in [name for name in tower if name.endswith(".mlp.scale")]:
        shared = f"{name.removesuffix('scale')}useful_experts.c_proj"
        for part in ("weight", "bias"):
            tower[f"{shared}.{part}"] = tower[f"{shared}.{part}"] / (1 - tower[name])
    named = {f".visual.{name}": value for name, value in tower.items()}
    kept = {_EXPERT.sub(r"\1", name): value for name, value in named.items() if not _ADAPTIVE.search(name)}
    return {name.removeprefix(".visual."): value for name, value in kept.items()}


def hand_over(state: dict[str, Tensor], share: float, unlike: float, generator: torch.Generator) -> None:
    """Give a share of each shared expert to its copies, in place: gates sum to 1, so blocks compute nearly the same.

    From scale 0, and as mere copies, the adaptive experts' gradients are 0 or the same, and a short training leaves
    them where they began.

    Args:
        state: a Gamma's tensors, or some of them.
        share: of the MLP that they are copies of.
        unlike: noise on their first layers, as a share of the weights' RMS, which makes them differ.
        generator: of the noise.
    """
    import torch

    for name in [name for name in state if ".experts." in name and name.endswith("c_fc.weight")]:
        noise = torch.randn(state[name].shape, generator=generator)
        state[name] = state[name] + unlike * state[name].square().mean().sqrt() * noise
    for name in [name for name in state if name.endswith(".scale")]:
        shared = f"{name.removesuffix('scale')}useful_experts.c_proj"
        for part in ("weight", "bias"):
            state[f"{shared}.{part}"] = state[f"{shared}.{part}"] * (1 - share)
        state[name] = torch.full_like(state[name], share)
