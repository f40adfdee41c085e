"""Child process: one way of training makes a few steps at batch 8, and prints their seconds.

Only steps are timed (forward, backward, optimiser); loading, the crops and the first step are not. Under torchrun each
process takes its share of the batch, and as many steps are then timed without exchanging gradients.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gamma_runtime.cli import option, out, run_command

if TYPE_CHECKING:
    from gamma_training.train.distributed import Group

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
    from gamma_training.train.distributed import process_group
    from gamma_training.train.objective import Objective, to_tokens

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = build_model(read_checkpoint(options.checkpoint))
    blocks = model.dims.vision.first_moae
    weights = [value.requires_grad_() for name, value in model.named_parameters() if is_trained(name)]
    fused = options.way != "authors"  # as the trainer does it
    optimizer = torch.optim.AdamW(weights, lr=2e-5, weight_decay=0.0, fused=fused)
    crops = torch.randint(0, 256, (options.batch, 224, 224, 3), generator=torch.manual_seed(0)).byte()
    prompts = SCENES[SCENE].prompts
    with process_group("cpu") as group:
        crops, targets = (one[group.rank :: group.size] for one in (crops, torch.linspace(0, 1, options.batch)))
        objective: torch.nn.Module = Objective(model, blocks)
        if group.size > 1:
            objective = torch.nn.parallel.DistributedDataParallel(objective)
        columns = torch.zeros(len(crops), dtype=torch.int64)

        def authors() -> torch.Tensor:
            tokens = tokenize(prompts, model.dims.context, full_length=True).repeat(len(crops), 1)
            text = model.text_features(tokens).view(len(crops), len(prompts), -1)  # five prompts for each photo
            features = model.image_features(crops)
            return torch.cat([model.head(features[i : i + 1], text[i])[:, 0] for i in range(len(crops))])

        short = tokenize(prompts, model.dims.context)
        inputs = to_tokens(model, crops, blocks) if options.way == "cached" else crops

        def ours() -> torch.Tensor:
            scores: torch.Tensor = objective(inputs, columns, short)
            return scores

        forward: Callable[[], torch.Tensor] = authors if options.way == "authors" else ours

        def step() -> float:
            loss = torch.mean((forward() - targets) ** 2)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        seconds, losses = _timed(step, options.steps, group)
        result = {"seconds": seconds, "losses": losses, "threads": torch.get_num_threads()}
        if group.size > 1:
            with objective.no_sync():  # type: ignore[operator]
                result |= {"processes": group.size, "seconds_without_exchange": _timed(step, options.steps, group)[0]}
        if group.leads:
            out(json.dumps(result))
    return 0


def _timed(step: Callable[[], float], count: int, group: Group) -> tuple[list[float], list[float]]:
    """Seconds of the steps after a first one, and the losses of all, over the processes' photos."""
    seconds, losses = [], []
    for _ in range(count + 1):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
        losses.append(group.mean(loss))
    return seconds[1:], losses


if __name__ == "__main__":
    sys.exit(run_command("train_contender", contend, ContenderOptions))
