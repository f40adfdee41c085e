"""What is trained, at which learning rate, and from what."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gamma_runtime.errors import InputError, UsageError
from gamma_training.dims import is_trained

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gamma_training.model import Gamma
    from gamma_training.train.config import TrainConfig
    from gamma_training.train.distributed import Group

__all__ = ["Average", "blocks_of", "make_optimizer", "mark_trained", "rate", "scaler_for"]

_ADDED = re.compile(r"\.mlp\.(gating\.|scale$)")
_BLOCK = "clip_model.visual.transformer.resblocks."


def blocks_of(config: TrainConfig, model: Gamma, fresh: frozenset[str]) -> int:
    """How many first blocks of the vision tower are frozen together with the embedding.

    Raises:
        InputError: more than there are, or fresh tensors among them.
    """
    tower = model.dims.vision
    default = tower.first_moae if config.trainable == "paper" else 0
    blocks = default if config.freeze_blocks is None else config.freeze_blocks
    if blocks > tower.layers:
        raise InputError(f"freeze_blocks: {blocks}, and the vision tower has {tower.layers}")
    if config.trainable == "paper":
        blocks = max(blocks, default)
    if config.keep_tokens != 1 and not 0 < blocks < tower.layers:
        raise InputError(
            f"keep_tokens: {config.keep_tokens:g}, and {'no' if not blocks else 'every'} block is frozen",
            hint="it drops tokens of cached activations between the frozen blocks and the others",
        )
    # A base's experts add nothing at first: scale is 0. Frozen so they may stay until a later run trains them.
    if lost := sorted(name for name in fresh if _before(name, blocks) and not _ADDED.search(name)):
        raise InputError(f"freeze_blocks: {blocks} would freeze {lost[0]}, which starts from scratch")
    return blocks


def _before(name: str, blocks: int) -> bool:
    """Whether a tensor is used before the vision tower's block ``blocks``."""
    visual = "clip_model.visual."
    if not blocks or not name.startswith(visual):
        return False
    if name.startswith(_BLOCK):
        return int(name.removeprefix(_BLOCK).split(".")[0]) < blocks
    return not name.startswith((f"{visual}ln_post", f"{visual}proj"))


def mark_trained(
    config: TrainConfig, model: Gamma, blocks: int, fresh: frozenset[str]
) -> dict[str, torch.nn.Parameter]:
    """Ask for gradients of what is trained, and return it by name, in the model's order."""
    chosen = {}
    for name, value in model.named_parameters():
        wanted = config.trainable == "all" or is_trained(name) or name in fresh
        value.requires_grad_(wanted and not _before(name, blocks))
        if value.requires_grad:
            chosen[name] = value
    return chosen


def make_optimizer(
    config: TrainConfig, weights: dict[str, torch.nn.Parameter], fresh: frozenset[str]
) -> torch.optim.Optimizer:
    """Adam with PyTorch's betas and epsilon, which are the authors'; decoupled weight decay where it is asked for.

    Only matrices decay: a norm, a bias, a scale or a score level has no reason to be small.
    One kernel does a tensor's whole step, on CPUs and on CUDA.
    """
    import torch

    groups = []
    for matrices in (True, False):
        for drawn, base in ((False, config.lr), (True, _fresh_rate(config))):
            part = [w for name, w in weights.items() if (name in fresh) is drawn and (w.dim() > 1) is matrices]
            decay = config.weight_decay if matrices else 0.0
            groups += [{"params": part, "base": base, "weight_decay": decay}] if part else []
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _fresh_rate(config: TrainConfig) -> float:
    return config.lr if config.lr_fresh is None else config.lr_fresh


def rate(config: TrainConfig, epoch: int, step: int, steps: int) -> float:
    """The factor on the learning rates at a step of an epoch: warm-up times schedule, between 0 and 1."""
    done = epoch * steps + step
    warm = min(1.0, (done + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "constant":
        return warm
    share = epoch / config.epochs if config.schedule == "cosine" else done / (config.epochs * steps)
    return warm * 0.5 * (1 + math.cos(math.pi * share))


def scaler_for(config: TrainConfig, group: Group) -> torch.amp.GradScaler:
    """Scales the loss where fp16 gradients would vanish; does nothing otherwise.

    Raises:
        UsageError: fp16 on a CPU, or bf16 on a GPU that has none.
    """
    import torch

    kind = group.device.type
    if config.amp == "fp16" and kind != "cuda":
        raise UsageError("amp: fp16 needs a GPU", hint="amp: bf16, or off")
    if config.amp == "bf16" and kind == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError("amp: bf16, and this GPU has none", hint="amp: fp16")
    return torch.amp.GradScaler(kind, enabled=config.amp == "fp16")


class Average:
    """Exponential moving averages of the trained weights."""

    def __init__(self, weights: dict[str, torch.nn.Parameter], decay: float) -> None:
        self._weights = weights
        self._decay = decay
        self.values: dict[str, Tensor] = {name: value.detach().clone() for name, value in weights.items()}

    def update(self, step: int) -> None:
        """After a step (counted from 1); the first ones weigh more, or the start would linger."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, value in self._weights.items():
            self.values[name].lerp_(value.detach(), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages in the model's place inside the block."""
        import torch

        kept = {name: value.detach().clone() for name, value in self._weights.items()}
        try:
            self._put(self.values)
            yield
        finally:
            with torch.no_grad():
                self._put(kept)

    def _put(self, values: dict[str, Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, value in self._weights.items():
                value.copy_(values[name])
