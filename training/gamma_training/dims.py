"""A Gamma model's dimensions, read from its tensors' names and shapes; nothing is assumed but heads = width / 64."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from gamma_runtime.errors import InputError

__all__ = ["FULL_SIZE", "GammaDims", "TowerDims", "dims_of", "is_trained"]

HEAD_WIDTH = 64  # CLIP's: heads = width / 64, never stored in a checkpoint (model.md 1.1)
IMAGE = 224  # pixels: the contract's crops, and the only size at which the position table is used as it is (1.5)
VOCABULARY = 49408  # of CLIP's tokeniser, the only one there is here
LEVELS = 5  # bad to perfect
MAX_BLOCKS, MAX_EXPERTS = 128, 64  # far beyond any Gamma; bounds the work that a hostile list of names can ask for
_BLOCK = r"transformer\.resblocks\.([0-9]{1,6})\.(?:mlp\.experts\.expert_([^.]+)\.)?"
_TRAINED = re.compile(r"score_level$|adapter\.|clip_model\..*\.mlp\.(?:scale$|experts\.|gating\.)")

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
    image: int = IMAGE
    patch: int = 16
    embed: int = 512
    adapter: int = 256
    context: int = 77
    vocabulary: int = VOCABULARY
    levels: int = LEVELS

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


def is_trained(name: str) -> bool:
    """Whether the authors train this tensor (score levels, adapter, experts, gates, scales) or freeze it.

    Example:
        >>> is_trained("clip_model.visual.transformer.resblocks.6.mlp.useful_experts.c_fc.weight")
        False
    """
    return _TRAINED.match(name) is not None


def dims_of(shapes: Shapes) -> GammaDims:
    """Read the dimensions from a state dict's shapes, in the authors' names (``clip_model.…``).

    Raises:
        InputError: a tensor that decides a dimension is missing or has the wrong rank, the shapes contradict each
            other, or the model takes other images, words or levels than this toolkit has.
    """
    width, _, patch, _ = _shape(shapes, "clip_model.visual.conv1.weight", 4)
    tokens, _ = _shape(shapes, "clip_model.visual.positional_embedding", 2)
    context, text_width = _shape(shapes, "clip_model.positional_embedding", 2)
    vocabulary, _ = _shape(shapes, "clip_model.token_embedding.weight", 2)
    (levels,) = _shape(shapes, "score_level", 1)
    grid = math.isqrt(max(tokens - 1, 0))
    _expect("clip_model.visual.positional_embedding", "tokens", tokens, 1 + grid * grid, "a class token and a square")
    _expect("clip_model.visual.positional_embedding", "pixels a side", grid * patch, IMAGE, "the crops' size")
    _expect("clip_model.token_embedding.weight", "words", vocabulary, VOCABULARY, "CLIP's vocabulary")
    _expect("score_level", "levels", levels, LEVELS, "bad, poor, fair, good, perfect")
    return GammaDims(
        vision=_tower(shapes, "clip_model.visual.", width),
        text=_tower(shapes, "clip_model.", text_width),
        image=grid * patch,
        patch=patch,
        embed=_shape(shapes, "clip_model.visual.proj", 2)[1],
        adapter=_shape(shapes, "adapter.fc.0.weight", 2)[0],
        context=context,
        vocabulary=vocabulary,
        levels=levels,
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


def _expect(name: str, unit: str, found: int, expected: int, meaning: str) -> None:
    if found != expected:
        raise InputError(f"{name}: {found} {unit}, expected {expected} ({meaning})")


def _tower(shapes: Shapes, prefix: str, width: int) -> TowerDims:
    if width % HEAD_WIDTH or not width:
        raise InputError(
            f"{prefix}*: width {width} is not a multiple of {HEAD_WIDTH}, so the number of heads is unknown"
        )
    pattern = re.compile(re.escape(prefix) + _BLOCK)
    blocks: dict[int, set[str]] = {}  # number -> its experts' names
    for match in filter(None, map(pattern.match, shapes)):
        blocks.setdefault(int(match[1]), set()).update(filter(None, [match[2]]))
    layers = len(blocks)
    if not 1 <= layers <= MAX_BLOCKS or set(blocks) != set(range(layers)):
        raise InputError(
            f"{prefix}transformer: {layers} blocks, {sorted(blocks)[:20]}; expected 1 to {MAX_BLOCKS},"
            " numbered from 0 without gaps"
        )
    counts = [len(blocks[i]) for i in range(layers)]
    first = next((i for i, count in enumerate(counts) if count), layers)
    if len(set(counts[first:])) > 1 or counts[-1] > MAX_EXPERTS:
        raise InputError(
            f"{prefix}transformer: adaptive experts per block are {counts}; expected none, then one number up to"
            f" {MAX_EXPERTS} to the end"
        )
    shared = "mlp.c_fc.weight" if first > 0 else "mlp.useful_experts.c_fc.weight"
    hidden = _shape(shapes, f"{prefix}transformer.resblocks.0.{shared}", 2)[0]
    return TowerDims(width, hidden, layers, width // HEAD_WIDTH, first, counts[-1])
