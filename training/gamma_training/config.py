"""The JSON beside our safetensors: what a checkpoint's tensors do not say about it. Every value of it is checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gamma_runtime.errors import InputError
from gamma_training.dims import UNSEEN, GammaDims, unseen_values
from gamma_training.intake import check_file, shown

__all__ = ["FORMAT", "LINE", "SHA256", "check_config_dims", "checked_config", "is_line", "read_config"]

FORMAT = "gamma-edge checkpoint"
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_MAX_CONFIG = 2**20  # bytes
_MAX_TEXT = 300  # characters of a label or licence
LINE = f"one line of up to {_MAX_TEXT} characters"
_LISTED = 10


def read_config(path: Path) -> dict[str, Any]:
    """The config beside ``NAME.safetensors``.

    Raises:
        InputError: there is none, or a value of it is wrong.
    """
    config = path.with_suffix(".json")
    check_file(config, _MAX_CONFIG)
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{config}: the config beside the weights cannot be read ({shown(error)})", hint="fetch both files again"
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != 1:
        raise InputError(f"{config}: not a '{FORMAT}' config of version 1", hint="convert the model's .pth instead")
    if data.get("prompts") is None:
        raise InputError(f"{config}: prompts is missing, expected 'sdp' or 'plain'", hint="add it")
    return checked_config(config, data)


def checked_config(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Values that are used later have their types; None is as good as absent.

    Raises:
        InputError: one has not.
    """
    digest = data.get("weights_sha256")
    faults = {
        "prompts": data.get("prompts") not in (None, "sdp", "plain") and "'sdp' or 'plain'",
        "label": not is_line(data.get("label")) and LINE,
        "licence": not is_line(data.get("licence")) and LINE,
        "weights_sha256": not (digest is None or (isinstance(digest, str) and SHA256.fullmatch(digest)))
        and "64 hexadecimal digits",
        "dims": not isinstance(data.get("dims") or {}, dict) and "an object",
        "fresh": not _is_names(data.get("fresh") or []) and "a list of different names",
    }
    for key, expected in faults.items():
        if expected:
            raise InputError(f"{path}: {key} is {shown(repr(data[key]))}, expected {expected}", hint="correct it there")
    try:
        unseen_values(data.get("dims") or {})
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint="correct it there") from error
    return data


def is_line(value: Any) -> bool:
    """Whether a label or licence is None, or one printable line that is not too long."""
    return value is None or (isinstance(value, str) and value.isprintable() and len(value) <= _MAX_TEXT)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value) and len(set(value)) == len(value)


def check_config_dims(dims: GammaDims, config: Mapping[str, Any]) -> None:
    """The config's dimensions, where it has any, are the model's own.

    Raises:
        InputError: they differ.
    """
    if not config.get("dims"):
        return
    found, said = _flat(dims.to_json()), _flat(config["dims"])
    said = {name: found[name] for name in UNSEEN} | said  # left out, it is what was taken: CLIP's
    if odd := [key for key in {**found, **said} if found.get(key) != said.get(key)]:
        listed = ", ".join(f"{shown(key)}={found.get(key)} (config: {shown(said.get(key))})" for key in odd[:_LISTED])
        raise InputError(f"looks like {listed}", hint="config and weights belong to different models")


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """One level of nesting, dotted: {"vision": {"width": 64}} -> {"vision.width": 64}."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value})
    return flat
