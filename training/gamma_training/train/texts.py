"""The prompts of a run's scenes, as a step needs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from gamma_training.dims import GammaDims
    from gamma_training.scenes import Scene

__all__ = ["texts_of", "tokenize_scenes"]


def tokenize_scenes(scenes: Iterable[Scene], dims: GammaDims) -> dict[str, Tensor]:
    """Token ids (levels, L) of each scene, by name.

    Raises:
        InputError: a prompt is longer than the model's context, or has a word that a compact model never learned.
    """
    from gamma_training.tokens import rows_of, tokenize

    made = {scene.name: tokenize(scene.prompts, dims.context) for scene in scenes}
    if dims.kept_tokens is not None:
        for tokens in made.values():
            rows_of(tokens, dims.kept_tokens)  # now, not after hours of caching
    return made


def texts_of(prompts: Mapping[str, Tensor], scenes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Each photo's column (B), and the prompts of the scenes that occur (K * levels, L), cut to the longest."""
    import torch
    from torch.nn.functional import pad

    names = [name for name in prompts if name in scenes]
    tokens = [prompts[name] for name in names]
    length = max(one.shape[1] for one in tokens)
    rows = torch.cat([pad(one, (0, length - one.shape[1])) for one in tokens])
    return torch.tensor([names.index(scene) for scene in scenes]), rows
