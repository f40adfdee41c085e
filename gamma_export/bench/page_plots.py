"""The pictures of a result, each with a sentence of what it is a picture of; PNG, drawn by matplotlib."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gamma_export.bench.result import Result, Row
from gamma_export.bench.split import PARTS as STEPS
from gamma_runtime.cli import printable

__all__ = ["COLOURS", "Picture", "logarithmic", "new_axes", "one", "pictures", "plain", "png", "rows_of", "stacked"]

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; styles and markers say it again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#303030", "#E69F00")
_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (7, 1)), (0, (3, 1, 1, 1)), (0, (1, 2)))
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
_SIZE, _DPI = (5.0, 3.6), 150  # inches and dots an inch: readable on a phone
_LONGEST = 40  # characters of a name in a picture
_DISTRIBUTIONS = ("end-to-end", "call", "backend", "device", "paced", "streams")
_MARKS = (("p50", 0.5, "o"), ("p90", 0.9, "s"), ("p99", 0.99, "^"))
_FEW = 200.0  # largest over smallest number of an axis with more than one tick a power of ten
_LONG_TAIL = 8.0  # the largest sample over the least from which on the axis is logarithmic


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG under a heading; ``shows`` says in a sentence what it is a picture of."""

    heading: str
    shows: str
    content: bytes


def pictures(result: Result) -> Iterator[Picture]:
    """Distributions, the split, batches, paced load and streams, as far as the result has their rows."""
    yield from _distributions(result)
    for draw in (_split, _batches, _paced, _streams):
        found = draw(result)
        if found is not None:
            yield found


def new_axes(height: float = 1.0) -> tuple[Any, Any]:
    """A figure without a display and without global state, and its axes; ``height`` stretches it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIZE[0], _SIZE[1] * height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    return figure, axes


def png(figure: Any) -> bytes:
    """The figure as a file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def plain(text: str) -> str:
    """A name as it can stand in a picture: no formula, no character without a glyph, not endless."""
    short = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return printable(short).encode("ascii", "replace").decode().replace("$", r"\$")


def rows_of(result: Result, backend: str, metric: str) -> list[Row]:
    """The rows of one contender and metric, in their order."""
    return [row for row in result.rows if (row.backend, row.metric) == (backend, metric)]


def one(result: Result, backend: str, metric: str) -> Row | None:
    """The first of them."""
    return next(iter(rows_of(result, backend, metric)), None)


def _backends(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.backend for row in rows))


def _styled(names: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    """Each name with a colour and a line of its own."""
    for index, name in enumerate(names):
        yield name, COLOURS[index % len(COLOURS)], _STYLES[index % len(_STYLES)]


def _ticks(axes: Any, values: Sequence[float], which: str = "x") -> None:
    """A logarithmic axis with a tick at each of the values and nowhere else."""
    from matplotlib.ticker import NullFormatter, NullLocator

    getattr(axes, f"set_{which}scale")("log")
    shown = sorted(set(values))
    getattr(axes, f"set_{which}ticks")(shown, [f"{value:g}" for value in shown])
    axis = getattr(axes, f"{which}axis")
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def logarithmic(axes: Any, which: str, least: float, most: float) -> None:
    """A logarithmic axis that holds two positive numbers and all between, its ticks plain numbers.

    Ticks stand at 1, 2 and 5 of each power of ten, or at the powers alone where that would be many.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(least / 1.5, most * 1.5)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < _FEW * least else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _distributions(result: Result) -> Iterator[Picture]:
    """For each row's name the sorted samples of all contenders, with their percentiles."""
    named: dict[str, list[Row]] = {}
    for row in result.rows:
        if row.unit == "ms" and row.metric in _DISTRIBUTIONS and len(row.samples) > 1:
            named.setdefault(row.name, []).append(row)
    order = sorted(named, key=lambda name: _DISTRIBUTIONS.index(named[name][0].metric))
    for name in order:
        rows = named[name]
        said = "; ".join(
            f"{row.backend} p50 {row.summary.p50:.4g}, p90 {row.summary.p90:.4g}, p99 {row.summary.p99:.4g} ms"
            for row in rows
        )
        shows = f"Share of the samples of {name} that took at most so long. {said}."
        yield Picture(f"Distribution: {name}", shows, _draw_distribution(rows))


def _draw_distribution(rows: Sequence[Row]) -> bytes:
    figure, axes = new_axes()
    for row, (name, colour, style) in zip(rows, _styled([row.backend for row in rows]), strict=True):
        values = sorted(row.samples)
        shares = [(index + 1) / len(values) for index in range(len(values))]
        axes.step(values, shares, where="post", color=colour, linestyle=style, linewidth=1.5, label=plain(name))
        for key, share, marker in _MARKS:
            axes.plot(getattr(row.summary, key), share, marker, color=colour, markersize=6, markeredgecolor="white")
    for key, _, marker in _MARKS:
        axes.plot([], [], marker, color="#6b6b6b", markersize=6, label=key)
    least, most = min(min(row.samples) for row in rows), max(max(row.samples) for row in rows)
    if least > 0 and most > _LONG_TAIL * least:
        logarithmic(axes, "x", least, most)
    axes.set_xlabel("milliseconds" + (" (log scale)" if axes.get_xscale() == "log" else ""), fontsize=9)
    axes.set_ylabel("share of samples", fontsize=9)
    axes.set_ylim(0, 1.04)
    axes.legend(fontsize=8, loc="lower right")
    return png(figure)


def stacked(heights: dict[str, list[float]], names: Sequence[str], label: str) -> bytes:
    """Bars of one contender each, lying, with the parts beside each other; ``heights`` by part, of all contenders."""
    figure, axes = new_axes(0.6 + 0.2 * len(names))
    left = [0.0] * len(names)
    for index, (part, values) in enumerate(heights.items()):
        colour, hatch = COLOURS[index % len(COLOURS)], _HATCHES[index % len(_HATCHES)]
        style = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.6, "label": part}
        axes.barh(range(len(names)), values, left=left, **style)
        left = [before + value for before, value in zip(left, values, strict=True)]
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(label, fontsize=9)
    axes.grid(axis="y", visible=False)
    figure.legend(fontsize=8, loc="outside upper center", ncols=3)
    return png(figure)


def _split(result: Result) -> Picture | None:
    """Means, because they add up to the whole's; medians do not."""
    parts = [row for row in result.rows if row.metric.startswith("split: ")]
    names = _backends(parts)
    if not names:
        return None
    heights: dict[str, list[float]] = {}
    for step in STEPS:
        found = [one(result, name, f"split: {step}") for name in names]
        heights[step] = [row.summary.mean if row else 0.0 for row in found]
    said = "; ".join(
        f"{name}: " + ", ".join(f"{step} {values[index]:.4g} ms" for step, values in heights.items())
        for index, name in enumerate(names)
    )
    shows = f"Mean time of the parts of end-to-end, of one image. {said}."
    return Picture("Split of end-to-end", shows, stacked(heights, names, "milliseconds, mean"))


def _lines(
    axes: Any, result: Result, metric: str, at: str, keys: Sequence[tuple[str, Callable[[Row], float]]]
) -> list[float]:
    """One line a contender and key over a parameter of the rows; gives the parameter's values."""
    rows = [row for row in result.rows if row.metric == metric and getattr(row, at) is not None]
    for name, colour, style in _styled(_backends(rows)):
        mine = sorted(rows_of(result, name, metric), key=lambda row: float(getattr(row, at)))
        places = [getattr(row, at) for row in mine]
        for (key, value), marker in zip(keys, "o^s", strict=False):
            label = f"{plain(name)} {key}".strip()
            face = colour if marker == "o" else "white"
            heights = [value(row) for row in mine]
            axes.plot(places, heights, color=colour, linestyle=style, marker=marker, mfc=face, label=label)
    axes.legend(fontsize=8)
    return [float(getattr(row, at)) for row in rows]


def _median(row: Row) -> float:
    return row.summary.p50


def _tail(row: Row) -> float:
    return row.summary.p99


def _two(height: float = 1.5) -> tuple[Any, Any, Any]:
    """A figure with two panels below each other."""
    figure, first = new_axes(height)
    first.remove()
    upper, lower = figure.subplots(2, 1)
    for axes in (upper, lower):
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    return figure, upper, lower


def _curve(result: Result, metrics: tuple[str, str], at: str, xlabel: str) -> bytes | None:
    """Latency above, images a second below, over the same parameter; None where a line would be a point."""
    values = {getattr(row, at) for row in result.rows if row.metric == metrics[0]} - {None}
    if len(values) < 2:
        return None
    figure, upper, lower = _two()
    _ticks(upper, _lines(upper, result, metrics[0], at, (("p50", _median), ("p99", _tail))))
    upper.set_ylabel("milliseconds of a call", fontsize=9)
    upper.set_ylim(bottom=0)
    places = _lines(lower, result, metrics[1], at, (("", _median),))
    if places:
        _ticks(lower, places)
    lower.set_ylabel("images a second", fontsize=9)
    lower.set_ylim(bottom=0)
    lower.set_xlabel(xlabel, fontsize=9)
    return png(figure)


def _said(result: Result, metric: str, word: str) -> str:
    rows = [row for row in result.rows if row.metric == metric]
    return "; ".join(f"{row.backend} {row.name} {row.summary.p50:.4g} {word}" for row in rows)


def _batches(result: Result) -> Picture | None:
    drawn = _curve(result, ("call", "throughput"), "batch", "images of a call (log scale)")
    shows = (
        "Above: milliseconds of a call over its images. Below: images a second at saturation. "
        f"{_said(result, 'call', 'ms')}; {_said(result, 'throughput', 'images/s')}."
    )
    return None if drawn is None else Picture("Batches", shows, drawn)


def _streams(result: Result) -> Picture | None:
    drawn = _curve(result, ("streams", "streams throughput"), "streams", "threads that score at once")
    shows = (
        "Above: milliseconds of a score over the threads that score at once. Below: images a second of all together. "
        f"{_said(result, 'streams', 'ms')}; {_said(result, 'streams throughput', 'images/s')}."
    )
    return None if drawn is None else Picture("Streams", shows, drawn)


def _missed(row: Row) -> float:
    """Per cent of the images that came late or never."""
    late, dropped = row.extra.get("late", 0.0), row.extra.get("dropped", 0.0)
    return 100 * (late + dropped) / row.summary.n


def _paced(result: Result) -> Picture | None:
    rows = [row for row in result.rows if row.metric == "paced" and row.rate is not None]
    if not rows:
        return None
    figure, upper, lower = _two()
    rates = _lines(upper, result, "paced", "rate", (("p50", _median), ("p99", _tail)))
    _ticks(upper, rates)
    values = [value for row in rows for value in (row.summary.p50, row.summary.p99) if value > 0]
    if values:
        logarithmic(upper, "y", min(values), max(values))
    upper.set_ylabel("ms since it was due (log)", fontsize=9)
    _ticks(lower, _lines(lower, result, "paced", "rate", (("", _missed),)))
    lower.set_ylim(-3, 103)
    lower.set_ylabel("late or dropped, %", fontsize=9)
    lower.set_xlabel("images a second that arrive by the clock (log scale)", fontsize=9)
    said = "; ".join(
        f"{row.backend} at {row.rate:g} images/s: p50 {row.summary.p50:.4g} ms, p99 {row.summary.p99:.4g} ms, "
        f"{row.extra.get('late', 0):g} late and {row.extra.get('dropped', 0):g} dropped of {row.summary.n}"
        for row in rows
    )
    return Picture("Paced load", f"Latency, and images that came late or never, over the rate. {said}.", png(figure))
