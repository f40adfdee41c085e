"""The two pictures of ``--profile``: calls under the machine's roof, and where their time goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gamma_export.bench.page_plots import COLOURS, Picture, logarithmic, new_axes, plain, png, stacked
from gamma_export.bench.result import Result

__all__ = ["work_pictures"]

_MARKERS = "os^Dv"


def work_pictures(result: Result) -> Iterator[Picture]:
    """As far as the result has them."""
    roofs = [work for work in result.work if work["roofs"]]
    if roofs:
        said = "; ".join(
            f"{work['backend']} batch {roof['batch']}: {roof['gmacs']:.4g} GMAC/s, {roof['share']:.1%} of the roof, "
            f"bound by {roof['bound']}"
            for work in roofs
            for roof in work["roofs"]
        )
        shows = f"Multiply-adds a second over multiply-adds for each byte that has to move, under the peaks. {said}."
        yield Picture("Roofline", shows, _draw_roof(roofs))
    profiled = [work for work in result.work if work["profile"]]
    if profiled:
        names = [work["backend"] for work in profiled]
        parts = [part for part in profiled[0]["profile"]["parts"] if _longest(profiled, part) > 0]
        heights = {part: [float(work["profile"]["parts"].get(part, 0.0)) for work in profiled] for part in parts}
        said = "; ".join(
            f"{name}: " + ", ".join(f"{part} {values[index]:.4g} ms" for part, values in heights.items())
            for index, name in enumerate(names)
        )
        shows = f"Milliseconds of a call by the model's parts, as each runtime's own profiler says. {said}."
        yield Picture("Time by part", shows, stacked(heights, names, "milliseconds, profiled"))


def _longest(profiled: list[dict[str, Any]], part: str) -> float:
    return max(float(work["profile"]["parts"].get(part, 0.0)) for work in profiled)


def _draw_roof(works: list[dict[str, Any]]) -> bytes:
    """Both axes logarithmic; the roof of each contender's own peak, a point for each call."""
    figure, axes = new_axes()
    places = [float(roof["intensity"]) for work in works for roof in work["roofs"]]
    heights = [float(roof["gmacs"]) for work in works for roof in work["roofs"]]
    ends = list(places)
    for index, work in enumerate(works):
        colour, marker = COLOURS[index % len(COLOURS)], _MARKERS[index % len(_MARKERS)]
        gmacs, gbytes = float(work["peak"]["gmacs"]), float(work["peak"]["gbytes"])
        ridge = gmacs / gbytes  # multiply-adds a byte
        low, high = min(*places, ridge) / 4, max(*places, ridge) * 4
        ends += [ridge / 2, high / 2]
        heights += [gmacs, gmacs / 2]
        axes.plot([low, ridge, high], [low * gbytes, gmacs, gmacs], color=colour, linewidth=1, linestyle="--")
        for roof in work["roofs"]:
            axes.plot(roof["intensity"], roof["gmacs"], marker, color=colour, markersize=7)
            where = {"xytext": (4, -10), "textcoords": "offset points", "fontsize": 7}
            axes.annotate(f"batch {roof['batch']}", (roof["intensity"], roof["gmacs"]), **where)
        axes.plot([], [], marker, color=colour, linestyle="--", linewidth=1, label=plain(work["backend"]))
    logarithmic(axes, "x", min(ends), max(ends))
    logarithmic(axes, "y", min(heights), max(heights))
    axes.set_xlabel("multiply-adds for each byte that has to move (log scale)", fontsize=9)
    axes.set_ylabel("GMAC/s (log scale)", fontsize=9)
    axes.legend(fontsize=8)
    return png(figure)
