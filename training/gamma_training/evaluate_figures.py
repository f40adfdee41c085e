"""An evaluation as pictures: scores over targets, and the photos that a model gets most wrong."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

from gamma_training.evaluate import PhotoScore
from gamma_training.evaluate_rows import Evaluation

__all__ = ["scatter_png", "worst_png"]

_COLUMNS = 4
_WORST = 12
_MANY = 1000  # photos whose points would hide each other
_THUMBNAIL = 320  # pixels of the long side
_BLUE, _GREY = "#1f5fa8", "#8a8a8a"


def scatter_png(photos: Sequence[PhotoScore], found: Evaluation, title: str) -> bytes:
    """Score over target, a panel a set; the line is where both are equal.

    Raises:
        EnvironmentFault: matplotlib is missing.
    """
    figure, panels = _grid(len(found.sets), 3.2, title)
    for axes, row in zip(panels, found.sets, strict=True):
        chosen = [photo for photo in photos if photo.sample.dataset == row.name]
        targets, scores = [photo.sample.target for photo in chosen], [photo.score for photo in chosen]
        ends = [min(*targets, *scores), max(*targets, *scores)]
        axes.plot(ends, ends, color=_GREY, linewidth=0.8)
        size = 5 if len(chosen) < _MANY else 2
        axes.plot(targets, scores, "o", color=_BLUE, markersize=size, alpha=0.6, markeredgewidth=0)
        said = "SRCC -" if math.isnan(row.values["srcc"]) else f"SRCC {row.values['srcc']:.4f}"
        axes.set_title(_shown(f"{row.name}: {row.photos} photos, {said}"), fontsize=9)
        axes.set_xlabel("target", fontsize=8)
        axes.set_ylabel("score", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    return _png(figure)


def worst_png(photos: Sequence[PhotoScore], title: str) -> bytes:
    """The photos with the largest |score - target|, worst first, as they were scored.

    Raises:
        EnvironmentFault: matplotlib is missing. InputError: a photo changed since it was scored.
    """
    worst = sorted(photos, key=lambda photo: -abs(photo.error))[:_WORST]
    figure, panels = _grid(len(worst), 2.9, title)
    for axes, photo in zip(panels, worst, strict=True):
        axes.imshow(_thumbnail(photo))
        sample = photo.sample
        by = sample.distorted_by
        made = f", {by.kind} {by.level}" if by is not None else ""
        axes.set_title(
            _shown(f"{sample.path.name[-32:]}{made}\nscore {photo.score:.3f}, target {sample.target:.3f}"), fontsize=8
        )
        axes.axis("off")
    return _png(figure)


def _thumbnail(photo: PhotoScore) -> Any:
    from gamma_runtime.crops import reduced
    from gamma_training.data import read_pixels

    pixels = read_pixels(photo.sample)
    height, width = pixels.shape[:2]
    factor = min(1.0, _THUMBNAIL / max(height, width))
    return reduced(pixels, (max(1, round(width * factor)), max(1, round(height * factor))))


def _shown(text: str) -> str:
    """A name is no formula (matplotlib reads $), and writes no control characters."""
    from gamma_runtime.cli import printable

    return "\n".join(printable(line) for line in text.split("\n")).replace("$", r"\$")


def _grid(count: int, height: float, title: str) -> tuple[Any, list[Any]]:
    """A figure with so many panels, four a row."""
    from gamma_runtime.cli import require

    require("matplotlib", "plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(3.4 * columns, 5.0), height * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no global state
    figure.suptitle(_shown(title), fontsize=9, wrap=True)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks: shown as boxes
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
