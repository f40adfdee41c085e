"""A Gamma model's dimensions, read from its tensors' names and shapes; nothing is assumed but heads = width / 64."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from gamma_runtime.errors import InputError

__all__ = ["FULL_SIZE", "GammaDims", "TowerDims", "dims_of"]

HEAD_WIDTH = 64  # CLIP's: heads = width / 64, never stored in a checkpoint (model.md 1.1)
_BLOCK = r"transformer\.resblocks\.(\d+)\."

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class TowerDims:
    """One transformer. Blocks from ``first_moae`` on carry ``experts`` adaptive experts (``layers``: none does)."""

    width: int
    hidden: int
    layers: int
    heads: int
    first_moae: int
    experts: int


@dataclasses.dataclass(frozen=True)
class GammaDims:
    """Everything needed to build the module; sizes in elements, ``image`` and ``patch`` in pixels."""

    vision: TowerDims
    text: TowerDims
    image: int = 224
    patch: int = 16
    embed: int = 512
    adapter: int = 256
    context: int = 77
    vocabulary: int = 49408
    levels: int = 5

    @property
    def tokens(self) -> int:
        """Class token and patches: 197 for 224/16."""
        return 1 + (self.image // self.patch) ** 2

    def to_json(self) -> dict[str, Any]:
        """Nested dict of plain integers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GammaDims:
        """The inverse of `to_json`."""
        fields = dict(data)
        return cls(**{**fields, "vision": TowerDims(**fields["vision"]), "text": TowerDims(**fields["text"])})


FULL_SIZE = GammaDims(
    vision=TowerDims(width=768, hidden=3072, layers=12, heads=12, first_moae=6, experts=3),
    text=TowerDims(width=512, hidden=2048, layers=12, heads=8, first_moae=6, experts=3),
)


def dims_of(shapes: Shapes) -> GammaDims:
    """Read the dimensions from a state dict's shapes, in the authors' names (``clip_model.…``).

    Raises:
        InputError: a tensor that decides a dimension is missing or has the wrong rank, or the shapes contradict
            each other.
    """
    width, _, patch, _ = _shape(shapes, "clip_model.visual.conv1.weight", 4)
    tokens, _ = _shape(shapes, "clip_model.visual.positional_embedding", 2)
    context, text_width = _shape(shapes, "clip_model.positional_embedding", 2)
    vocabulary, _ = _shape(shapes, "clip_model.token_embedding.weight", 2)
    grid = math.isqrt(max(tokens - 1, 0))
    if grid == 0 or grid * grid != tokens - 1 or patch == 0:
        raise InputError(
            f"clip_model.visual.positional_embedding: {tokens} tokens are not a class token and a square grid"
        )
    return GammaDims(
        vision=_tower(shapes, "clip_model.visual.", width),
        text=_tower(shapes, "clip_model.", text_width),
        image=grid * patch,
        patch=patch,
        embed=_shape(shapes, "clip_model.visual.proj", 2)[1],
        adapter=_shape(shapes, "adapter.fc.0.weight", 2)[0],
        context=context,
        vocabulary=vocabulary,
        levels=_shape(shapes, "score_level", 1)[0],
    )


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    if name not in shapes:
        raise InputError(
            f"not a Gamma checkpoint: tensor {name} is missing",
            hint="gamma-export reads the authors' .pth, a base CLIP state dict, or our .safetensors",
        )
    if len(shapes[name]) != rank:
        raise InputError(f"{name}: shape {list(shapes[name])}, expected {rank} dimensions")
    return shapes[name]


def _tower(shapes: Shapes, prefix: str, width: int) -> TowerDims:
    if width % HEAD_WIDTH:
        raise InputError(
            f"{prefix}*: width {width} is not a multiple of {HEAD_WIDTH}, so the number of heads is unknown"
        )
    pattern = re.compile(re.escape(prefix) + _BLOCK)
    blocks = {int(m[1]) for name in shapes if (m := pattern.match(name))}
    layers = len(blocks)
    if blocks != set(range(layers)) or not layers:
        raise InputError(f"{prefix}transformer: blocks {sorted(blocks)[:20]} are not numbered from 0 without gaps")
    counts = [_experts(shapes, f"{prefix}transformer.resblocks.{i}.mlp.experts.expert_") for i in range(layers)]
    first = next((i for i, count in enumerate(counts) if count), layers)
    if len(set(counts[first:])) > 1:
        raise InputError(
            f"{prefix}transformer: adaptive experts per block are {counts}; expected none, then one number to the end"
        )
    shared = "mlp.c_fc.weight" if first > 0 else "mlp.useful_experts.c_fc.weight"
    hidden = _shape(shapes, f"{prefix}transformer.resblocks.0.{shared}", 2)[0]
    return TowerDims(width, hidden, layers, width // HEAD_WIDTH, first, counts[-1])


def _experts(shapes: Shapes, prefix: str) -> int:
    found = {name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)}
    return len(found)
