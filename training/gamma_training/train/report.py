"""The report of a run: report.json for machines, report.md and curve.png for people."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gamma_runtime.files import write_atomically

if TYPE_CHECKING:
    from gamma_training.model import Gamma
    from gamma_training.train.config import TrainConfig
    from gamma_training.train.experts import BlockFacts
    from gamma_training.train.photos import Photos
    from gamma_training.train.state import Progress

__all__ = ["TrainReport", "plain_values", "write_report"]

_PHOTOS = 16  # that the experts are looked at with


@dataclasses.dataclass(frozen=True)
class TrainReport:
    """What came of a run: ``best`` was chosen on the validation photos and then judged once on the test photos."""

    best: Path
    epochs: int
    steps: int
    seconds: float
    trained: int
    frozen: int
    validation: dict[str, Any] | None
    test: dict[str, Any] | None


def write_report(config: TrainConfig, report: TrainReport, progress: Progress, model: Gamma, photos: Photos) -> None:
    """Write the three files into the run's folder; without matplotlib there is no picture.

    Raises:
        OutputError: one cannot be written.
    """
    facts = _facts(model, photos)
    content = {
        **dataclasses.asdict(report),
        "config": config.to_json(),
        "photos": {part: len(getattr(photos, part)) for part in ("train", "val", "test")},
        "experts": [dataclasses.asdict(fact) for fact in facts],
        "history": progress.history,
        "losses": [round(loss, 7) for loss in progress.losses],
    }
    write_atomically(config.out / "report.json", (json.dumps(plain_values(content), indent=1) + "\n").encode())
    write_atomically(config.out / "report.md", _text(report, facts).encode())
    _curve(config.out / "curve.png", progress)


def plain_values(value: Any) -> Any:
    """What JSON has: paths as text, and null for a correlation that there is none of (NaN is no JSON)."""
    if isinstance(value, dict):
        return {key: plain_values(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _facts(model: Gamma, photos: Photos) -> list[BlockFacts]:
    from gamma_training.train.experts import expert_facts
    from gamma_training.train.views import View, cut

    chosen = (photos.test or photos.val or photos.train)[:: max(1, len(photos.test or photos.val) // _PHOTOS)][:_PHOTOS]
    centre = [View(0.5, 0.5, False)]
    return expert_facts(model, np.concatenate([cut(sample, centre, photos.short_side(sample)) for sample in chosen]))


def _text(report: TrainReport, facts: list[BlockFacts]) -> str:
    lines = [
        "# Training report\n",
        f"{report.epochs} epochs, {report.steps} steps, {report.seconds:.0f} s; {report.trained} tensors trained,"
        f" {report.frozen} frozen.\n",
    ]
    for name, rows in (("Validation (the best epoch was chosen on it)", report.validation), ("Test", report.test)):
        if rows:
            lines += [f"## {name}\n", *_correlations(rows), ""]
    lines += ["## Experts of the vision tower\n", "| block | scale | gate entropy | expert difference | share |"]
    lines += ["|---|---|---|---|---|"]
    lines += [
        f"| {f.block} | {f.scale:+.4f} | {f.gate_entropy:.3f} | {f.expert_difference:.3f} | {f.share:.4f} |"
        for f in facts
    ]
    return "\n".join(lines) + "\n"


def _correlations(rows: dict[str, Any]) -> list[str]:
    made = ["| set | photos | SRCC | PLCC | RMSE |", "|---|---|---|---|---|"]
    return made + [
        f"| {name} | {row['photos']} | {_srcc(row)} | {row['plcc']:.4f} | {row['rmse']:.4f} |"
        for name, row in rows.items()
    ]


def _srcc(row: dict[str, Any]) -> str:
    low, high = row.get("srcc_interval", (None, None))
    return f"{row['srcc']:.4f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")


def _curve(path: Path, progress: Progress) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    losses = np.array(progress.losses)
    width = max(1, len(losses) // 200)
    smooth = np.convolve(losses, np.full(width, 1 / width), "valid")
    axes.plot(np.arange(len(smooth)) + width, smooth, color="tab:blue")
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    judged = [(row["epoch"], row["validation"]["mean"]["srcc"]) for row in progress.history if "validation" in row]
    if judged:
        right = axes.twinx()
        each = len(losses) / max(1, progress.epoch)
        right.plot([epoch * each for epoch, _ in judged], [srcc for _, srcc in judged], "o-", color="tab:orange")
        right.set(ylabel="validation SRCC")
    with path.open("wb") as stream:
        figure.savefig(stream, format="png", dpi=100)
