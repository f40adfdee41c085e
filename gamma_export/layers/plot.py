"""The report as a picture: drift by stage over its floor, and how near the activations come to float16's limit."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_export.layers.drift import FP16_MAX, LEAST_FLOOR, MARGIN
from gamma_runtime.errors import OutputError

if TYPE_CHECKING:
    from gamma_export.layers.report import LayerReport

__all__ = ["check_plot", "plot_layers"]

_BLUE, _GREY, _RED, _ORANGE = "#1f5fa8", "#8a8a8a", "#c62828", "#d98200"


def check_plot(path: Path) -> None:
    """Refuse before the work, not after it.

    Raises:
        EnvironmentFault: matplotlib is missing. OutputError: not a .png, or no such folder.
    """
    from gamma_runtime.cli import require

    require("matplotlib", "plot")
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path}: --plot writes PNG", hint="a name that ends with .png")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: no such folder")


def plot_layers(report: LayerReport, path: Path) -> None:
    """Write a PNG of two panels; a file of that name is replaced.

    Raises:
        EnvironmentFault: matplotlib is missing. OutputError: the file cannot be written.
    """
    from gamma_runtime.cli import require
    from gamma_runtime.files import temporary_beside

    require("matplotlib", "plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(9.0, 0.17 * len(report.stages) + 3), 8.0), layout="constrained")
    canvas = FigureCanvasAgg(figure)  # no display, and no global state
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _drift(upper, report)
    _peaks(lower, report)
    first = next(iter(report.out_of_line), None)
    figure.suptitle(report.verdict, fontsize=11, color=_RED if first else "black", wrap=True)
    try:
        with temporary_beside(path) as temporary:
            canvas.print_figure(temporary, format="png", dpi=130)
            temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def _drift(axes: Any, report: LayerReport) -> None:
    stages = report.stages
    places = range(len(stages))
    floors = [stage.floor for stage in stages]
    top = 10 * max([1.0, *(s.own for s in stages if s.own < float("inf"))])
    axes.fill_between(places, floors, [MARGIN * f for f in floors], step="mid", color=_GREY, alpha=0.25, linewidth=0)
    axes.step(places, floors, where="mid", color=_GREY, linewidth=1, label=f"floor, and {MARGIN:g} times it")
    accumulated = [max(min(s.relative, top), LEAST_FLOOR / 10) if s.finite else top for s in stages]
    axes.plot(places, accumulated, color=_ORANGE, linewidth=1.2, label="accumulated drift, relative L2")
    for bad, colour, label in ((False, _BLUE, "own error, in line"), (True, _RED, "own error, OUT OF LINE")):
        chosen = [i for i in places if stages[i].out_of_line is bad]
        if chosen:
            heights = [max(min(stages[i].own, top), LEAST_FLOOR / 10) for i in chosen]
            axes.plot(chosen, heights, "o", markersize=7 if bad else 4, color=colour, label=label, zorder=3)
    axes.set_yscale("log")
    axes.set_ylabel("relative difference to PyTorch")
    axes.set_title(
        f"{report.graph}, {report.precision}, {report.attention} attention, {report.backend} {report.backend_version},"
        f" {report.crops} crops",
        fontsize=10,
    )
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    _separate_blocks(axes, report)


def _peaks(axes: Any, report: LayerReport) -> None:
    places = range(len(report.stages))
    axes.plot(places, [s.peak for s in report.stages], color=_BLUE, linewidth=1.2, label="stage's tensor")
    inside = [(i, s.peak_inside) for i, s in enumerate(report.stages) if s.peak_inside]
    axes.plot(*zip(*inside, strict=True), ".", color=_ORANGE, markersize=6, label="inside its products")
    axes.axhline(FP16_MAX, color=_RED, linestyle="--", linewidth=1, label="float16 ends at 65504")
    axes.set_yscale("log")
    axes.set_ylabel("largest |activation|")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    bad = {stage.stage for stage in report.out_of_line}
    axes.set_xticks(list(places), [s.stage for s in report.stages], rotation=90, fontsize=7)
    for label in axes.get_xticklabels():
        if label.get_text() in bad:
            label.set_color(_RED)
            label.set_fontweight("bold")
    axes.set_xlim(-0.7, len(report.stages) - 0.3)
    _separate_blocks(axes, report)


def _separate_blocks(axes: Any, report: LayerReport) -> None:
    names = [stage.stage.split(" ")[0] for stage in report.stages]
    for i, (before, name) in enumerate(itertools.pairwise(names)):
        if before != name and (before.startswith("blocks") or name.startswith("blocks")):
            axes.axvline(i + 0.5, color="black", alpha=0.12, linewidth=0.7)
