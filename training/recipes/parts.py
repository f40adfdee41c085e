"""A recipe in parts: one training after another, each from what the one before left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_runtime.files import write_atomically
from gamma_runtime.steps import Steps

if TYPE_CHECKING:
    from gamma_training.train import TrainConfig

__all__ = ["train_parts", "write_parts"]


def write_parts(folder: Path, shared: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """Write each part's configuration, ``folder/NAME.yaml``, for a run in ``folder/NAME``; its own keys win."""
    made = []
    for name, part in parts.items():
        made.append(folder / f"{name}.yaml")
        write_atomically(made[-1], (json.dumps({**shared, **part, "out": name}, indent=1) + "\n").encode())  # is YAML
    return made


def train_parts(paths: Sequence[Path], steps: Steps) -> TrainConfig:
    """Train what is not finished yet, in turn; the configuration of the last part."""
    from gamma_training.train import read_config, train

    for path in paths:
        config = read_config(path)
        if not (config.out / "report.json").is_file():
            train(config, resume=True, steps=steps)
    return config
