"""What crop_study scores crops with: a checkpoint or a bundle in one scene; and what a crop costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gamma_training import judges
from gamma_training.dims import GammaDims

Crops = NDArray[np.uint8]  # [P, 224, 224, 3]
Scores = NDArray[np.float64]  # [P]


@dataclasses.dataclass(frozen=True)
class Judge:
    """One model in one scene; ``facts`` go into the result, ``short_side`` is the scene's working size (pixels)."""

    facts: dict[str, Any]
    label: str | None
    dims: GammaDims
    short_side: int | None
    score: Callable[[Crops], Scores]


def macs_per_crop(dims: GammaDims) -> int:
    """Multiplications of one crop in the deployed graph's products: what a benchmark of it would have to pay for.

    A test counts the same number in an exported graph, product by product.
    """
    tower, tokens = dims.vision, dims.tokens
    width, hidden, blocks = tower.width, tower.hidden, 1 + tower.experts
    attention = tokens * width * 4 * width + 2 * tokens * tokens * width
    dense = 2 * tokens * width * hidden
    moae = blocks * dense + tokens * width * tower.experts + tokens * blocks * width  # experts, gate, output biases
    patches = tokens * dims.patch**2 * 3 * width  # the class token's row of zeros too
    head = width * dims.embed + 2 * dims.embed * dims.adapter + dims.embed * dims.levels
    experts = tower.layers - tower.first_moae
    return patches + tower.layers * attention + tower.first_moae * dense + experts * moae + head


def open_judge(source: Path, scene: str | None, backend: str, device: str, batch: int, threads: int | None) -> Judge:
    """A bundle (a folder), or a checkpoint (a file); its first scene for None.

    Raises:
        GammaError: it cannot be used.
    """
    options = judges.JudgeOptions(backend=backend, device=device, batch=batch, threads=threads)
    opened = judges.open_judge(source, [scene] if scene else (), options)
    chosen = scene or opened.scenes[0]
    facts = opened.facts | {"scene": chosen}
    side = opened.contract.short_sides[chosen]
    return Judge(facts, opened.label, opened.dims, side, lambda crops: opened.score(crops, chosen))
