"""Scenes: named sets of five prompts from bad to perfect, and the working size that their photos are reduced to.

Prompt strings and sizes: model.md 1.7 and 2 (the paper's six tasks share five scenes, plus the naive prompts).
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gamma_runtime.errors import InputError, UsageError
from gamma_training.yaml_file import read_yaml

if TYPE_CHECKING:
    from torch import Tensor

    from gamma_training.model import Gamma

__all__ = ["LEVELS", "SCENES", "Scene", "encode_scenes", "find_scenes", "load_scenes", "scenes_of"]

LEVELS = ("bad", "poor", "fair", "good", "perfect")
Kind = Literal["sdp", "plain", "user"]
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MIN_SHORT_SIDE, _MAX_SHORT_SIDE = 224, 4096
_SHOWN = 120  # characters of a wrong value


@dataclasses.dataclass(frozen=True)
class Scene:
    """Name, five prompts (bad, poor, fair, good, perfect), kind, and short side in pixels (None keeps the pixels)."""

    name: str
    prompts: tuple[str, ...]
    kind: Kind
    short_side: int | None


def _scene(name: str, template: str, short_side: int, kind: Kind = "sdp") -> Scene:
    return Scene(name, tuple(template.format(level) for level in LEVELS), kind, short_side)


SCENES = {
    scene.name: scene
    for scene in (
        _scene("natural-quality", "natural {}-quality image", 384),
        _scene("aigc-quality", "AI-generated {}-quality image", 384),
        _scene("underwater-quality", "underwater {}-quality image", 224),
        _scene("face-quality", "face {}-quality image", 512),
        _scene("natural-aesthetics", "natural {}-aesthetics image", 224),
        _scene("plain", "{} image", 384, "plain"),
    )
}


def scenes_of(kind: Literal["sdp", "plain"]) -> list[Scene]:
    """The built-in scenes of a checkpoint's own prompt kind; the first one is gamma-run's default."""
    return [scene for scene in SCENES.values() if scene.kind == kind]


def find_scenes(names: Sequence[str], user: Sequence[Scene] = ()) -> list[Scene]:
    """Scenes by name, each once, in the order asked for; commas separate too.

    Raises:
        UsageError: a name that is neither built in nor in ``user``, or no name at all in ``names``.
    """
    known = {**SCENES, **{scene.name: scene for scene in user}}
    wanted = list(dict.fromkeys(part for name in names for part in name.split(",") if part))
    if names and not wanted:
        raise UsageError("an empty scene name", hint=f"one of {', '.join(known)}")
    for name in wanted:
        if name not in known:
            raise UsageError(f"unknown scene {name!r}", hint=f"one of {', '.join(known)}, or --scene-file YAML")
    return [known[name] for name in wanted]


def encode_scenes(model: Gamma, scenes: Sequence[Scene]) -> Tensor:
    """L2-normalised text features [5 * K, embed] of the scenes' prompts, by the text tower in fp32, where the model is.

    They depend on weights and prompts only: once a scene is enough, however many photos follow.
    """
    import torch

    from gamma_training.tokens import tokenize

    device = model.score_level.device
    with torch.inference_mode():
        tokens = [tokenize(scene.prompts, model.dims.context).to(device) for scene in scenes]
        return torch.cat([model.text_features(some) for some in tokens])


def load_scenes(path: Path) -> list[Scene]:
    """Read user-defined scenes from YAML: one mapping, or a list of them, each with ``name``, five ``prompts`` from bad
    to perfect, and optionally ``short_side`` (pixels, default 384; ``null`` keeps the pixels).

    Raises:
        InputError: the file cannot be read, or a scene is not of that form.

    Example file:
        name: product-photos
        prompts: [bad product photo, poor product photo, fair product photo, good product photo, perfect product photo]
    """  # noqa: D205
    data = read_yaml(path)
    entries = data if isinstance(data, list) else [data]
    scenes = [_user_scene(path, entry) for entry in entries]
    if not scenes or len({scene.name for scene in scenes}) != len(scenes):
        raise InputError(f"{path}: needs at least one scene, and every name once")
    return scenes


def _show(value: Any) -> str:
    """A value's repr, cut; bounded in depth while it is made, as YAML aliases can make a small file's repr endless."""
    bounded = reprlib.Repr()
    bounded.maxlevel, bounded.maxstring = 3, _SHOWN
    return f"{bounded.repr(value):.{_SHOWN}}"


def _user_scene(path: Path, entry: Any) -> Scene:
    if not isinstance(entry, dict) or not {"name", "prompts"} <= set(entry) <= {"name", "prompts", "short_side"}:
        raise InputError(
            f"{path}: a scene is a mapping of name, prompts and (optionally) short_side; found {_show(entry)}"
        )
    name, prompts, short = entry["name"], entry["prompts"], entry.get("short_side", 384)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "joint":
        raise InputError(
            f"{path}: scene name {_show(name)} must be lower-case letters, digits, - and _, and not 'joint'"
        )
    if name in SCENES:
        raise InputError(f"{path}: scene {name!r} is built in", hint="choose another name")
    if (
        not isinstance(prompts, list)
        or len(prompts) != len(LEVELS)
        or not all(isinstance(p, str) and p.strip() and p.isprintable() for p in prompts)
        or len({" ".join(p.lower().split()) for p in prompts}) != len(LEVELS)  # the tokeniser sees no more than that
    ):
        raise InputError(
            f"{path}: scene {name!r} needs five different prompts, from bad to perfect; found {_show(prompts)}"
        )
    if short is not None and not (isinstance(short, int) and _MIN_SHORT_SIDE <= short <= _MAX_SHORT_SIDE):
        raise InputError(
            f"{path}: scene {name!r}: short_side {_show(short)} is not between {_MIN_SHORT_SIDE} and {_MAX_SHORT_SIDE}"
        )
    return Scene(name, tuple(prompts), "user", short)
