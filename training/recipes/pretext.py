"""A base for the demo checkpoint, from nothing: a small ViT that tells kinds and levels of distortion apart.

From scratch, opinion-like labels alone teach a ViT nothing in an hour of two cores. Two things do:

* a start from which the strength of fine detail can be read at once (`detail_start`): the patch embedding is a DCT,
  whitened on clean photos, beside a constant that outweighs it, so that LayerNorm does not divide the strength away;
* richer questions: which kind, which level, asked of the class token and of every patch; how much is left of the crop,
  asked of the class token; what is left right here of the metric's parts, asked of every patch.

A step sees a random quarter of each crop's patches: four times as many steps in the same time, and never twice the
same input. The heads that answer are thrown away; the tower becomes a base as a CLIP's would (`gamma_from_clip`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from pathlib import Path

    from crops import Crops, Labels

    from gamma_runtime.steps import Steps
    from gamma_training.dims import GammaDims
    from gamma_training.model import VisionTower

__all__ = ["Pretext", "detail_start", "pretrain"]

CONSTANTS = 16  # of the width: +-4 whatever the patch, so that LayerNorm's divisor hardly depends on it
CONSTANT = 4.0
LUMA_SHARE = 0.6  # of the filters; both chroma axes share the rest
# Filters that see the middle of a patch only, all frequencies of half its side: fine detail needs them all, and has no
# use for the whole patch. Luma, each chroma; the others see the whole patch, half of them at the lowest frequencies.
WINDOWED = 64, 20
# Standard deviation of the faintest answers that are brought to 1: fine chroma has hardly any on clean photos, and
# larger weights would turn their own rounding to fp16 into an answer to the patch's mean.
FAINTEST = 0.01
AXES = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))  # Y, Cb, Cr of R, G, B (ITU-R BT.601)
WEIGHT_LEVEL, WEIGHT_QUALITY, WEIGHT_PARTS = 5.0, 10.0, 30.0  # bring the questions' losses to one size


@dataclasses.dataclass(frozen=True)
class Pretext:
    """How long, how fast: ``keep`` patches of each of ``batch`` crops a step."""

    steps: int = 6000
    batch: int = 64
    keep: int = 49
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    seed: int = 0
    save_every: int = 500


class Questions(nn.Module):
    """The answers, read from a token: kind, level, and how much is left, in one number or in several."""

    def __init__(self, width: int, kinds: int, left: int, weight: float) -> None:
        super().__init__()
        self.kind, self.level, self.left = (nn.Linear(width, count) for count in (kinds, kinds, left))
        self.weight = weight

    def loss(self, tokens: Tensor, kind: Tensor, level: Tensor, left: Tensor) -> Tensor:
        """Of tokens [N, D] against labels [N] and [N, left]; the level is asked of the kind that it is."""
        levels = self.level(tokens).gather(1, kind[:, None])[:, 0]
        return (
            F.cross_entropy(self.kind(tokens), kind)
            + WEIGHT_LEVEL * F.mse_loss(levels, level)
            + self.weight * F.mse_loss(torch.sigmoid(self.left(tokens)), left)
        )


def _dct(side: int) -> NDArray[np.float64]:
    index = np.arange(side)
    basis: NDArray[np.float64] = np.cos(np.pi * (index[None] + 0.5) * index[:, None] / side) * math.sqrt(2 / side)
    return basis


def _spread_frequencies(side: int, count: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """``count`` of the DCT's frequency pairs: half of them the lowest, and a random choice of the rest."""
    pairs = sorted(((u, v) for u in range(side) for v in range(side)), key=lambda pair: (sum(pair), pair))
    lowest = len(pairs) if count >= len(pairs) else count // 2
    rest = pairs[lowest:]
    return pairs[:lowest] + [rest[index] for index in sorted(random.permutation(len(rest))[: count - lowest])]


def _planes(side: int, count: int, windowed: int, random: np.random.Generator) -> list[NDArray[np.float64]]:
    """``count`` filters [side, side] of one colour axis."""
    half, quarter = side // 2, side // 4
    windowed = min(windowed, count, half * half)
    small, large = _dct(half), _dct(side)
    middle = [np.outer(small[u], small[v]) for u, v in _spread_frequencies(half, windowed, random)]
    rest = [np.outer(large[u], large[v]) for u, v in _spread_frequencies(side, count - windowed, random)]
    return [np.pad(plane, quarter) for plane in middle] + rest


def detail_start(visual: VisionTower, dims: GammaDims, clean: NDArray[np.uint8], seed: int = 1) -> None:
    """Set patch embedding, position table and class embedding; in place.

    Args:
        visual: the tower.
        dims: its dimensions.
        clean: uint8 crops [P, H, W, 3] of undistorted photos; each filter answers to them with standard deviation 1,
            or below where there is next to nothing to answer to.
        seed: of the choice of frequencies.
    """
    side, width = dims.patch, dims.vision.width
    luma = int((width - CONSTANTS) * LUMA_SHARE)
    blue = (width - CONSTANTS - luma) // 2
    counts = (luma, blue, width - CONSTANTS - luma - blue)
    random = np.random.default_rng(seed)
    filters = np.array(
        [
            np.array(axis)[:, None, None] * plane
            for axis, count, windowed in zip(AXES, counts, (WINDOWED[0], *WINDOWED[1:] * 2), strict=True)
            for plane in _planes(side, count, windowed, random)
        ],
        dtype=np.float32,
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (dims.mean, dims.std))
    pixels = (torch.from_numpy(clean).permute(0, 3, 1, 2).float() / 255 - mean) / std
    weights = torch.from_numpy(filters) * std  # on pixels as they were before normalisation
    weights /= F.conv2d(pixels, weights, stride=side).std((0, 2, 3)).clamp_min(FAINTEST)[:, None, None, None]
    signs = torch.tensor([CONSTANT, -CONSTANT]).repeat(CONSTANTS // 2)
    with torch.no_grad():
        visual.conv1.weight.zero_()
        visual.conv1.weight[: len(weights)] = weights
        visual.positional_embedding.zero_()
        visual.positional_embedding[:, -CONSTANTS:] = signs
        visual.class_embedding.zero_()


def some_tokens(
    visual: VisionTower, dims: GammaDims, crops: Tensor, keep: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Tokens of the class and ``keep`` random patches of each crop.

    Args:
        visual: the tower.
        dims: its dimensions.
        crops: uint8 [B, H, W, 3].
        keep: how many patches.
        random: which ones.

    Returns:
        Tokens [B, 1 + keep, D], and the patches' numbers [B, keep].
    """
    side, grid = dims.patch, dims.image // dims.patch
    patches = crops.view(len(crops), grid, side, grid, side, 3).transpose(2, 3).reshape(len(crops), grid * grid, -1)
    chosen = torch.rand((len(crops), grid * grid), generator=random).argsort(1)[:, :keep]
    rows = torch.arange(len(crops))[:, None]
    mean, std = torch.tensor(dims.mean), torch.tensor(dims.std)
    pixels = (patches[rows, chosen].float().view(len(crops), keep, -1, 3) / 255 - mean) / std
    weights = visual.conv1.weight.permute(0, 2, 3, 1).flatten(1)
    places = visual.positional_embedding
    embedded = pixels.flatten(2) @ weights.T + places[1:][chosen]
    classes = (visual.class_embedding + places[0]).expand(len(crops), 1, -1)
    tokens: Tensor = visual.ln_post(visual.transformer(visual.ln_pre(torch.cat([classes, embedded], dim=1))))
    return tokens, chosen


def pretrain(
    visual: VisionTower, dims: GammaDims, views: Crops, labels: Labels, how: Pretext, state: Path, steps: Steps
) -> list[float]:
    """Train the tower in place.

    Args:
        visual: as drawn, with `detail_start`.
        dims: its dimensions.
        views: ``views(sample, view)`` gives a uint8 crop [H, W, 3]; ``views.crops`` says how many a sample has.
        labels: of the samples.
        how: see `Pretext`.
        state: file to go on from; replaced every ``how.save_every`` steps, and at the end.
        steps: progress.

    Returns:
        The loss of each step.
    """
    kinds = int(labels.kind.max()) + 1
    width = dims.vision.width
    parts = nn.ModuleDict({"tower": visual, "class": Questions(width, kinds, 1, WEIGHT_QUALITY)})
    parts["patch"] = Questions(width, kinds, labels.parts.shape[2], WEIGHT_PARTS)
    optimizer = _optimizer(parts, how)
    losses: list[float] = []
    if state.is_file():
        kept = torch.load(state, weights_only=True)
        parts.load_state_dict(kept["parts"])
        optimizer.load_state_dict(kept["optimizer"])
        losses = kept["losses"]
    parts.train()
    local = torch.from_numpy(labels.parts)
    truths = [torch.from_numpy(value) for value in (labels.kind, labels.level, labels.quality[:, None])]
    with steps.step(f"kinds and levels, from step {len(losses)} to {how.steps}", how.steps - len(losses)) as tick:
        for step in range(len(losses), how.steps):
            factor = min(1.0, (step + 1) / how.warmup) * 0.5 * (1 + math.cos(math.pi * step / how.steps))
            for group in optimizer.param_groups:
                group["lr"] = how.lr * factor
            chosen, crops, draw = _drawn(views, len(labels.kind), how, step)
            tokens, patches = some_tokens(visual, dims, crops, how.keep, draw)
            truth = [value[chosen] for value in truths]
            each = [value[:, None].expand(-1, how.keep).reshape(-1) for value in truth[:2]]
            here = local[chosen[:, None], patches].flatten(0, 1).float()
            loss = parts["class"].loss(tokens[:, 0], *truth)
            loss = loss + parts["patch"].loss(tokens[:, 1:].flatten(0, 1), *each, here)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            tick(1)
            if len(losses) % how.save_every == 0 or len(losses) == how.steps:
                kept = {"parts": parts.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}
                temporary = state.with_suffix(".new")
                torch.save(kept, temporary)
                temporary.replace(state)
    return losses


def _optimizer(parts: nn.ModuleDict, how: Pretext) -> torch.optim.Optimizer:
    """AdamW that decays matrices only."""
    weights = list(parts.named_parameters())
    decayed = [value for name, value in weights if value.ndim > 1 and "positional" not in name]
    others = [value for name, value in weights if value.ndim <= 1 or "positional" in name]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=how.lr, weight_decay=how.weight_decay, betas=(0.9, 0.98), fused=True)


def _drawn(views: Crops, count: int, how: Pretext, step: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """Samples of a step, their crops (every second one mirrored), and what draws their patches: by the step alone."""
    random = np.random.default_rng([how.seed, step])
    chosen = random.integers(count, size=how.batch)
    crops = [views(int(index), int(random.integers(views.crops))) for index in chosen]
    crops = [crop[:, ::-1] if random.random() < 0.5 else crop for crop in crops]
    draw = torch.Generator().manual_seed(int(random.integers(2**31)))
    return torch.from_numpy(chosen), torch.from_numpy(np.stack(crops)), draw
