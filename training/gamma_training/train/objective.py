"""From crops, or cached activations, to the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gamma_training.model import Gamma

__all__ = ["Objective", "loss_of", "to_crops", "to_tokens"]

_MARGIN = 0.02  # in score units: pairs that are right by so much cost nothing
_CLEAR = 0.05  # pairs whose opinions are closer than this say nothing about an order


def to_tokens(model: Gamma, crops: Tensor, blocks: int) -> Tensor:
    """uint8 crops (B, H, W, 3) -> tokens after the first ``blocks`` blocks (B, L, D), without gradient."""
    visual = model.clip_model.visual
    with torch.no_grad():
        out: Tensor = visual.transformer(visual.embed(model.normalise(crops)), stop=blocks)
    return out


def to_crops(value: Tensor) -> bool:
    """Whether these are crops, still to be embedded, rather than tokens."""
    return value.dtype == torch.uint8


class Objective(nn.Module):
    """The model as DistributedDataParallel wants it: everything that is trained is used inside one forward."""

    def __init__(self, model: Gamma, blocks: int) -> None:
        super().__init__()
        self.model = model
        self.blocks = blocks

    def forward(self, inputs: Tensor, columns: Tensor, tokens: Tensor) -> Tensor:
        """Scores (B).

        Args:
            inputs: uint8 crops (B, H, W, 3), or tokens (B, L, D) after the frozen blocks.
            columns: int64 (B), which of the K scenes each one belongs to.
            tokens: prompts (K * levels, L), encoded once a step, not once a photo.
        """
        model, visual = self.model, self.model.clip_model.visual
        if to_crops(inputs):
            # Nothing before block `blocks` is trained where it is above 0; from 0 on the embedding is.
            x = to_tokens(model, inputs, self.blocks) if self.blocks else visual.embed(model.normalise(inputs))
        else:
            x = inputs
        x = visual.transformer(x, first=self.blocks)[:, 0]
        features = model.adapter(visual.ln_post(x) @ visual.proj)
        text = model.clip_model.encode_text(tokens)
        with torch.autocast(inputs.device.type, enabled=False):  # logits of a hundred: the head stays fp32
            text = text.float()
            text = text / text.norm(dim=-1, keepdim=True)
            scores = model.head(features.float(), text)
        return scores.gather(1, columns[:, None])[:, 0]


def loss_of(scores: Tensor, targets: Tensor, sets: Sequence[str], rank_weight: float) -> Tensor:
    """Mean squared error, plus ``rank_weight`` times a hinge on the order of clear pairs of the same set."""
    loss = torch.mean((scores - targets) ** 2)
    if not rank_weight:
        return loss
    names = {name: number for number, name in enumerate(dict.fromkeys(sets))}
    of = torch.tensor([names[name] for name in sets], device=scores.device)
    gaps = targets[:, None] - targets[None, :]
    pairs = (gaps > _CLEAR) & (of[:, None] == of[None, :])
    hinge = torch.relu(_MARGIN - (scores[:, None] - scores[None, :]))
    count = pairs.sum().clamp(min=1)
    return loss + rank_weight * (hinge * pairs).sum() / count
