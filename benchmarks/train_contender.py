"""Child process: one way of training makes a few steps at batch 8, and prints their seconds.

Only steps are timed (forward, backward, optimiser); loading, the crops and the first step are not.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from gamma_runtime.cli import option, out, run_command

SCENE = "natural-quality"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContenderOptions:
    """Who trains what."""

    way: Literal["authors", "once", "cached"] = option(help="authors: text per photo at 77 tokens; once; cached")
    checkpoint: Path = option(help="to train")
    batch: int = option(8, "photos of a step")
    steps: int = option(3, "timed steps after a first one")
    threads: int | None = option(None, "CPU threads; the library's own choice when left out")


def contend(options: ContenderOptions) -> int:
    """Make the steps, and print seconds and losses as JSON."""
    import torch

    from gamma_training.checkpoint import build_model, read_checkpoint
    from gamma_training.dims import is_trained
    from gamma_training.scenes import SCENES
    from gamma_training.tokens import tokenize
    from gamma_training.train.objective import Objective, to_tokens

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = build_model(read_checkpoint(options.checkpoint))
    blocks = model.dims.vision.first_moae
    weights = [value.requires_grad_() for name, value in model.named_parameters() if is_trained(name)]
    optimizer = torch.optim.Adam(weights, lr=2e-5)
    crops = torch.randint(0, 256, (options.batch, 224, 224, 3), generator=torch.manual_seed(0)).byte()
    targets = torch.linspace(0, 1, options.batch)
    objective, prompts = Objective(model, blocks), SCENES[SCENE].prompts
    columns = torch.zeros(options.batch, dtype=torch.int64)

    def authors() -> torch.Tensor:
        tokens = tokenize(prompts, model.dims.context, full_length=True).repeat(options.batch, 1)
        text = model.text_features(tokens).view(options.batch, len(prompts), -1)  # five prompts for each photo
        features = model.image_features(crops)
        return torch.cat([model.head(features[i : i + 1], text[i])[:, 0] for i in range(options.batch)])

    short = tokenize(prompts, model.dims.context)
    inputs = to_tokens(model, crops, blocks) if options.way == "cached" else crops

    def ours() -> torch.Tensor:
        scores: torch.Tensor = objective(inputs, columns, short)
        return scores

    forward: Callable[[], torch.Tensor] = authors if options.way == "authors" else ours
    seconds, losses = [], []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        loss = torch.mean((forward() - targets) ** 2)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    out(json.dumps({"seconds": seconds[1:], "losses": losses, "threads": torch.get_num_threads()}))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("train_contender", contend, ContenderOptions))
