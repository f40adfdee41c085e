"""A Gamma model's dimensions, read from its tensors' names and shapes; nothing is assumed but heads = width / 64.

What shapes cannot say (activation, epsilon, ln_pre, mean and std, whose rows the token table holds) is CLIP's unless
our own config says otherwise.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from gamma_runtime.errors import InputError

__all__ = [
    "FULL_SIZE",
    "MEAN",
    "STD",
    "UNSEEN",
    "Activation",
    "GammaDims",
    "TowerDims",
    "dims_of",
    "is_trained",
    "unseen_values",
]

Activation = Literal["quick_gelu", "gelu"]  # x * sigmoid(1.702 x), or x * Phi(x) by erf

HEAD_WIDTH = 64  # CLIP's: heads = width / 64, never stored in a checkpoint (model.md 1.1)
IMAGE = 224  # pixels: the contract's crops, and the only size at which the position table is used as it is (1.5)
VOCABULARY = 49408  # of CLIP's tokeniser, the only one there is here
START, STOP = 49406, 49407  # ids of a prompt's ends; the model finds STOP as the largest of a prompt
LEVELS = 5  # bad to perfect
LAYER_NORM_EPSILON = 1e-5  # CLIP's
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of RGB in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)
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
    activation: Activation = "quick_gelu"
    epsilon: float = LAYER_NORM_EPSILON


@dataclasses.dataclass(frozen=True)
class GammaDims:
    """Everything needed to build the module; sizes in elements, ``image`` and ``patch`` in pixels.

    ``mean`` and ``std`` are of RGB in [0, 1]. ``kept_tokens`` are the ids, of CLIP's vocabulary, of the token table's
    rows when it holds only those in use.
    """

    vision: TowerDims
    text: TowerDims
    image: int = IMAGE
    patch: int = 16
    embed: int = 512
    adapter: int = 256
    context: int = 77
    vocabulary: int = VOCABULARY
    levels: int = LEVELS
    ln_pre: bool = True
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    kept_tokens: tuple[int, ...] | None = None

    @property
    def tokens(self) -> int:
        """Class token and patches: 197 for 224/16."""
        return 1 + (self.image // self.patch) ** 2

    def to_json(self) -> dict[str, Any]:
        """Nested dict of what JSON has."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GammaDims:
        """The inverse of `to_json`; what an older file does not say is CLIP's."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
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


def dims_of(shapes: Shapes, said: Mapping[str, Any] | None = None) -> GammaDims:
    """Read the dimensions from a state dict's shapes, in the authors' names (``clip_model.…``).

    Args:
        shapes: name -> shape.
        said: `GammaDims.to_json` of our own config, for what shapes cannot say; without it that is CLIP's.

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
    unseen = unseen_values(said or {})
    kept = unseen["kept_tokens"]
    words, whose = (VOCABULARY, "CLIP's vocabulary") if kept is None else (len(kept), "the config's kept_tokens")
    _expect("clip_model.visual.positional_embedding", "tokens", tokens, 1 + grid * grid, "a class token and a square")
    _expect("clip_model.visual.positional_embedding", "pixels a side", grid * patch, IMAGE, "the crops' size")
    _expect("clip_model.token_embedding.weight", "words", vocabulary, words, whose)
    _expect("score_level", "levels", levels, LEVELS, "bad, poor, fair, good, perfect")
    return GammaDims(
        vision=dataclasses.replace(_tower(shapes, "clip_model.visual.", width), **unseen["vision"]),
        text=dataclasses.replace(_tower(shapes, "clip_model.", text_width), **unseen["text"]),
        image=grid * patch,
        patch=patch,
        embed=_shape(shapes, "clip_model.visual.proj", 2)[1],
        adapter=_shape(shapes, "adapter.fc.0.weight", 2)[0],
        context=context,
        vocabulary=vocabulary,
        levels=levels,
        **{name: unseen[name] for name in _OWN},
    )


def _number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _three(value: Any, least: float, most: float) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(_number(v, least, most) for v in value)


def _is_kept(value: Any) -> bool:
    """Rising ids that end with those of a prompt's ends, so that the last row is the end's."""
    if not isinstance(value, list | tuple) or not all(type(v) is int for v in value):
        return False
    rising = all(a < b for a, b in itertools.pairwise(value))
    return len(value) > 2 and rising and value[0] >= 0 and list(value[-2:]) == [START, STOP]


_OF_TOWER: dict[str, tuple[Callable[[Any], bool], str]] = {
    "activation": (lambda v: v in get_args(Activation), "quick_gelu or gelu"),
    "epsilon": (lambda v: _number(v, 1e-12, 1e-2), "a number from 1e-12 to 0.01"),
}
_OWN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "ln_pre": (lambda v: isinstance(v, bool), "true or false"),
    "mean": (lambda v: _three(v, 0, 1), "three numbers from 0 to 1"),
    "std": (lambda v: _three(v, 0.01, 1), "three numbers from 0.01 to 1"),
    "kept_tokens": (lambda v: v is None or _is_kept(v), f"rising token ids that end with {START}, {STOP}"),
}


UNSEEN = (*(f"{tower}.{name}" for tower in ("vision", "text") for name in _OF_TOWER), *_OWN)


def unseen_values(said: Mapping[str, Any]) -> dict[str, Any]:
    """The values that shapes cannot say, from `GammaDims.to_json` or CLIP's; the two towers' nested as there.

    Raises:
        InputError: one is not of its kind or outside its range.
    """
    made: dict[str, Any] = {}
    for tower in ("vision", "text"):
        of_tower = said.get(tower)  # anything else than a mapping is refused where the whole config is compared
        made[tower] = _checked(TowerDims, _OF_TOWER, of_tower if isinstance(of_tower, Mapping) else {}, f"{tower}.")
    return made | _checked(GammaDims, _OWN, said, "")


def _checked(
    owner: type[Any], rules: Mapping[str, tuple[Callable[[Any], bool], str]], said: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    made = {}
    for name, (fits, expected) in rules.items():
        value = said.get(name, getattr(owner, name))
        if not fits(value):
            raise InputError(f"dims: {prefix}{name} is {reprlib.repr(value)}, expected {expected}")
        made[name] = tuple(value) if isinstance(value, list) else value
    return made


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
