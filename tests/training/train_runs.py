"""A tiny run for the trainer's tests: photos labelled by their brightness, and a base that has learned nothing."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gamma_training.checkpoint import write_authors
from tests.training import tiny

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch": 4,
    "lr": 1e-3,
    "validation": 0.0,
    "threads": 1,
    "workers": 1,
    "device": "cpu",
}


def photos(folder: Path, count: int = 15, test: int = 2) -> Path:
    """Photos of 232x240 pixels and their table; the last ones are the test split, three before them the val split."""
    generator = np.random.default_rng(5)
    rows = []
    for number in range(count):
        level = (number * 5 % count) / (count - 1)
        noise = generator.integers(0, 40, (240, 232, 3))
        cv2.imwrite(str(folder / f"{number}.png"), (noise + 200 * level).astype(np.uint8))
        split = "test" if number >= count - test else "val" if number >= count - test - 3 else "train"
        scene = "natural-quality" if number % 3 else "face-quality"
        rows.append({"path": f"{number}.png", "mos": f"{level:.4f}", "split": split, "scene": scene})
    table = folder / "mos.csv"
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def base(folder: Path) -> Path:
    """Two blocks in both towers, the second with experts; random weights."""
    path = folder / "base.pth"
    tower = tiny.tower(64, 2, 1)
    write_authors(path, tiny.state(tiny.dims(tower, tower)))
    return path


def ready(folder: Path) -> Path:
    """The folder, with `photos` and `base` in it."""
    photos(folder)
    base(folder)
    return folder


def config(folder: Path, name: str = "run", **settings: Any) -> Path:
    """A configuration in ``folder``, which holds `photos` and `base`."""
    data = [{"table": "mos.csv", "range": [0, 1], "scene": "natural-quality"}]
    content = {"out": name, "base": "base.pth", "data": data} | SETTINGS | settings
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def train_in_child(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """gamma-train in a process of its own."""
    words = [sys.executable, "-c", "from gamma_training.commands.train import main; main()", *map(str, arguments)]
    return subprocess.run(words, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=300)
