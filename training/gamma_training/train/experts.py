"""What the adaptive experts do: scale, gates, how far they differ, and their share of the block's output."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from gamma_training.model import Block, Gamma, Moae

__all__ = ["BlockFacts", "expert_facts"]


@dataclasses.dataclass(frozen=True)
class BlockFacts:
    """One block of the vision tower over all tokens of some crops.

    Attributes:
        block: number.
        scale: the learned factor of the adaptive branch.
        gates: mean gate of each expert.
        gate_entropy: mean entropy of a token's gates as a share of the largest possible (1: no preference).
        expert_difference: RMS distance of the experts' outputs to their mean, over the mean's RMS.
        share: RMS of the scaled adaptive branch over the RMS of the block's output.
    """

    block: int
    scale: float
    gates: tuple[float, ...]
    gate_entropy: float
    expert_difference: float
    share: float


def expert_facts(model: Gamma, crops: NDArray[np.uint8]) -> list[BlockFacts]:
    """Measure every MoAE block of the vision tower on uint8 crops [P, 224, 224, 3]."""
    import torch

    visual = model.clip_model.visual
    moaes: dict[int, Moae] = {
        index: cast("Moae", cast("Block", block).mlp)
        for index, block in enumerate(visual.transformer.resblocks)
        if index >= model.dims.vision.first_moae
    }
    seen: dict[int, Tensor] = {}
    hooks = [
        moae.register_forward_pre_hook(lambda _, inputs, index=index: seen.update({index: inputs[0]}))
        for index, moae in moaes.items()
    ]
    try:
        with torch.inference_mode():
            visual(model.normalise(torch.from_numpy(crops).to(model.score_level.device)))
            return [_facts(index, moaes[index], x) for index, x in seen.items()]
    finally:
        for hook in hooks:
            hook.remove()


def _facts(index: int, moae: Moae, x: Tensor) -> BlockFacts:
    import torch

    gates = moae.gating(x)
    outputs = torch.stack([expert(x) for expert in moae.experts.values()])  # [E, B, L, D]
    adaptive = moae.scale * (gates.movedim(-1, 0)[..., None] * outputs).sum(0)
    mean = outputs.mean(0)
    entropy = -(gates * gates.clamp_min(1e-12).log()).sum(-1).mean() / math.log(max(len(outputs), 2))
    return BlockFacts(
        block=index,
        scale=moae.scale.item(),
        gates=tuple(gates.mean((0, 1)).tolist()),
        gate_entropy=float(entropy),
        expert_difference=float(_rms(outputs - mean) / _rms(mean)),
        share=float(_rms(adaptive) / _rms(moae.useful_experts(x) + adaptive)),
    )


def _rms(value: Tensor) -> Tensor:
    return value.square().mean().sqrt()
