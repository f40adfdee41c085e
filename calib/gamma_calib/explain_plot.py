"""Pictures of what 8 bits do to each block: values and their ranges, channels, and the residual stream's outliers."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gamma_calib.explain import OUTLIER, outliers
from gamma_runtime.cli import require
from gamma_runtime.errors import OutputError

if TYPE_CHECKING:
    from gamma_calib.explain import Activation, Explanation
    from gamma_calib.record import Histogram, Record
    from gamma_runtime.steps import Tick

__all__ = ["check_plot", "plot_blocks"]

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; styles and markers say it again.
# Their vermilion is for limits and what lies beyond, so their orange, too near to it, is left out.
_BLUE, _GREEN, _PURPLE, _SKY, _LIMIT, _GREY = "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#6b6b6b"
_LINES: tuple[tuple[str, Any], ...] = (
    (_BLUE, "-"), (_GREEN, "--"), (_PURPLE, "-."), ("#303030", ":"), (_SKY, (0, (7, 1)))
)  # fmt: skip
_STREAM = ((_GREEN, "o", 14), (_BLUE, "x", 16))
_BINS = 128  # of a picture, or up to twice as many; the record's 2048 are finer than its pixels
_NAMED = 8  # outliers of a tensor that are labelled
_WIDE, _SMALL = (17.0, 5.6, 110), (4.8, 5.2, 150)  # inches and dots an inch: a row of panels, one for a phone
_STATES = {"int8": "8 bits", "partly": "partly 8 bits", "kept": "kept in floating point", "never": "never 8 bits"}
_INTRO = (
    "An int8 product sees its input as 255 codes between -range and +range. Values beyond the range are clipped to it;"
    " the wider the range, the coarser the step between two codes for all the others."
    f" A channel is called an outlier here when its largest value is more than {OUTLIER:g} times that of the median"
    " channel: it alone would set the range of the whole tensor. The residual stream, where a ViT's outliers live, is"
    " never 8 bits."
)

Form = Literal["png", "html", "folder"]


@dataclasses.dataclass(frozen=True)
class _Block:
    """What is drawn of one block; ``highest``: of all panels of channels, so that blocks can be compared."""

    title: str
    name: str
    activations: Sequence[Activation]
    stream: Sequence[str]
    massive: Sequence[int]
    record: Record
    highest: float


@dataclasses.dataclass(frozen=True)
class _Panel:
    """``draw`` fills a figure, ``shows`` says what it is a picture of, ``say`` puts its finding into a sentence."""

    draw: Callable[[Any, _Block], None]
    shows: str
    say: Callable[[_Block], str]


def check_plot(path: Path) -> Form:
    """Refuse before the work, not after it.

    Raises:
        EnvironmentFault: matplotlib is missing. OutputError: neither .png nor .html nor a folder, or no such folder.
    """
    require("matplotlib", "plot")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: its folder does not exist", hint="make it first")
    suffix = path.suffix.lower()
    if path.is_dir() or not suffix:
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path}: a file, not a folder", hint="FILE.png, FILE.html or a FOLDER")
        return "folder"
    if suffix not in (".png", ".html"):
        raise OutputError(f"{path}: --plot writes PNG or HTML", hint="FILE.png, FILE.html or a FOLDER")
    return "html" if suffix == ".html" else "png"


def plot_blocks(found: Explanation, record: Record, title: str, path: Path, tick: Tick) -> list[Path]:
    """Write the pictures; files of the same names are replaced.

    Args:
        found: the facts.
        record: they came from.
        title: the bundle's name.
        path: ``FILE.png``: all blocks below each other; ``FILE.html``: a page that needs nothing else; else a folder,
            made when it is not there, of ``block-NN.png``.
        tick: told of every block.

    Returns:
        The files.

    Raises:
        EnvironmentFault: matplotlib is missing. OutputError: a file cannot be written.
    """
    from gamma_runtime.files import write_atomically

    form = check_plot(path)
    blocks = _blocks(found, record, title, tick)
    if form == "png":
        write_atomically(path, _stacked([_pixels(_figure(block)) for block in blocks]))
        return [path]
    if form == "html":
        write_atomically(path, _page(title, found, blocks).encode())
        return [path]
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be made ({error.strerror or error})") from error
    written = []
    for block in blocks:
        written.append(path / f"block-{int(block.name.rpartition('.')[2]):02d}.png")
        write_atomically(written[-1], _png(_figure(block)))
    return written


def _blocks(found: Explanation, record: Record, title: str, tick: Tick) -> Iterator[_Block]:
    shown = [row for row in found.activations if row.measured]
    everything = [row.measured for row in shown if row.measured] + list(found.stream.values())
    highest = max((m.channels.ratio or 0 for m in everything), default=0)

    for name in found.blocks:
        mine = [row for row in shown if row.tensor.startswith(f"{name}/")]
        stream = [tensor for tensor in found.stream if tensor.startswith(f"{name}/")]
        yield _Block(title, name, mine, stream, found.massive, record, max(highest, OUTLIER))
        tick(1)


# Figures.


def _new(width: float, height: float, dpi: int) -> Any:
    """A figure without a display and without global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _figure(block: _Block) -> Any:
    """Three panels beside each other."""
    figure = _new(*_WIDE)
    figure.suptitle(f"{block.title}, {block.name}", fontsize=13, fontweight="bold", x=0.01, ha="left")
    for panel, part in zip(_PANELS, figure.subfigures(1, 3, wspace=0.02), strict=True):
        panel.draw(part, block)
    return figure


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _pixels(figure: Any) -> NDArray[np.uint8]:
    """RGBA, uint8 ``[height, width, 4]``."""
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())


def _stacked(images: Sequence[NDArray[np.uint8]]) -> bytes:
    """One PNG; drawn as one figure, a deep model's panels would take minutes to lay out."""
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(stream, np.concatenate(images), format="png")
    return stream.getvalue()


# Panels.


def _draw_values(figure: Any, block: _Block) -> None:
    """A strip for each tensor, all over the same sizes."""
    figure.suptitle("Sizes of the values: those beyond the range\n(right of the line) are clipped", fontsize=10)
    end = max((row.measured.peak for row in block.activations if row.measured), default=1.0)
    strips = figure.subplots(max(1, len(block.activations)), 1, sharex=True, squeeze=False)[:, 0]
    for axes, row, (colour, _) in zip(strips, block.activations, _cycled(block), strict=False):
        _draw_strip(axes, row, block.record.histograms[row.tensor], end, colour)
    strips[-1].set_xlim(0, 1.02 * end or 1)
    strips[-1].set_xlabel("|value|", fontsize=9)
    figure.supylabel("number of values, log scale", fontsize=9)


def _draw_strip(axes: Any, row: Activation, histogram: Histogram, end: float, colour: str) -> None:
    """Pale where the product is not 8 bits."""
    fine = (end or 1) / (histogram.high - histogram.low) * len(histogram.counts)  # bins that are seen
    step = 2 ** max(0, int(np.log2(max(1.0, fine / _BINS))))
    counts = np.add.reduceat(histogram.counts, np.arange(0, len(histogram.counts), step))
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    edges = np.append(edges[:-1:step], edges[-1])
    axes.stairs(counts, np.minimum(edges, row.range), fill=True, color=colour, alpha=0.8 if _in_int8(row) else 0.35)
    axes.stairs(counts, np.maximum(edges, row.range), fill=True, color=_LIMIT)
    axes.axvline(row.range, color=_LIMIT, linewidth=1.6)
    axes.set_yscale("log")
    axes.set_ylim(0.5, max(10.0, float(counts.max())) ** 1.7)  # room for the words
    axes.tick_params(labelsize=7)
    text = f"{_flow(row)}\n{_STATES[row.state]}, {_say_range(row)}"
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    axes.text(0.99, 0.94, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, bbox=box)


def _draw_inputs(figure: Any, block: _Block) -> None:
    """Sorted, and both axes logarithmic: a few outliers take as much room as all the others."""
    from matplotlib.ticker import FuncFormatter

    axes = figure.subplots()
    for row, (colour, style) in zip(block.activations, _cycled(block), strict=False):
        peaks = block.record.channels[row.tensor]
        heights = np.sort(_in_medians(peaks))[::-1]
        ranks, found = np.arange(1, len(heights) + 1), outliers(peaks)
        label = f"{_short(row.tensor)} ({_STATES[row.state]})" + (f", outliers {_named(found, 3)}" if found else "")
        axes.plot(ranks, heights, color=colour, linestyle=style, linewidth=1.8, label=label)
        axes.plot(ranks[: len(found)], heights[: len(found)], "o", color=colour, markersize=4)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rank, _: f"{rank:g}"))
    axes.set_xlabel("rank of the channel: 1 has the largest peak", fontsize=9)
    axes.set_title(_folded(_say_inputs(block).partition(" (")[0]), fontsize=10)
    _dress(axes, block)


def _draw_stream(figure: Any, block: _Block) -> None:
    """By the channels' numbers: an outlier that goes through the stream stands in the same place in every block."""
    axes = figure.subplots()
    highest: dict[int, float] = {}
    for tensor, (colour, marker, size) in zip(block.stream, _STREAM, strict=False):
        peaks = block.record.channels[tensor]
        heights = _in_medians(peaks)
        label = f"after {_short(tensor)}, median {np.median(peaks):.3g}"
        places = np.arange(len(peaks))
        axes.scatter(places, heights, size, color=colour, marker=marker, linewidths=0.8, label=label)
        for channel in outliers(peaks)[:_NAMED] or [int(np.argmax(peaks))]:
            highest[channel] = max(highest.get(channel, 0), float(heights[channel]))
    for channel, height in highest.items():
        if height > OUTLIER:
            axes.vlines(channel, 1, height, color=_GREY, linewidth=0.9, zorder=0)
        _label(axes, (channel, height), channel, "black" if height > OUTLIER else _GREY, channel in block.massive)
    axes.set_xlabel("channel number" + "; bold: outliers in more than half of the blocks" * bool(block.massive))
    axes.xaxis.label.set_size(9)
    axes.set_title(_folded(_say_stream(block)), fontsize=10)
    _dress(axes, block)


def _dress(axes: Any, block: _Block) -> None:
    """The same axis in all blocks."""
    from matplotlib.ticker import FuncFormatter

    axes.axhline(OUTLIER, color=_LIMIT, linestyle=(0, (4, 2)), linewidth=1.2, label=f"outliers: above {OUTLIER:g}x")
    axes.axhline(1, color=_GREY, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylim(0.1, 2.5 * block.highest)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda height, _: f"{height:g}x"))
    axes.set_ylabel("peak (largest |value|) of a channel / of the median channel", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(fontsize=8, loc="lower left")


def _label(axes: Any, at: tuple[float, float], channel: int, colour: str, bold: bool = False) -> None:
    style = {"fontsize": 9, "color": colour, "fontweight": "bold" if bold else "normal"}
    axes.annotate(str(channel), at, xytext=(3, 4), textcoords="offset points", **style)


def _in_medians(peaks: NDArray[np.float32]) -> NDArray[np.float64]:
    """No channel is 0, which a logarithm would lose."""
    values = peaks.astype(np.float64)
    return np.asarray(np.maximum(values / (np.median(values) or values.max() or 1), 1e-3))


def _cycled(block: _Block) -> Iterator[tuple[str, Any]]:
    """A colour and a style for each activation."""
    return (_LINES[index % len(_LINES)] for index in range(len(block.activations)))


def _in_int8(row: Activation) -> bool:
    return row.state in ("int8", "partly")


def _short(tensor: str) -> str:
    return tensor.partition("/")[2]


def _flow(row: Activation) -> str:
    """Where a tensor goes; what the experts' second products take in has no other name than theirs."""
    name, readers = _short(row.tensor), ", ".join(_short(group.name) for group in row.groups)
    return f"input of {name}" if readers == name else f"{name} into {readers}" if readers else name


def _folded(text: str) -> str:
    """Two lines, also where one would do, so that panels beside each other have one height."""
    lines = textwrap.wrap(text, 58)
    return "\n".join(lines if lines[1:] else [*lines, ""])


# Sentences.


def _say_range(row: Activation) -> str:
    share = row.measured.clipped if row.measured else None
    amount = "nothing" if not share else f"{share:.3%}" if share >= 1e-5 else "less than 0.001%"
    return f"range {row.range:.3g}, " + (f"{amount} clipped" if _in_int8(row) else f"would clip {amount}")


def _say_values(block: _Block) -> str:
    said = [
        f"{_short(row.tensor)} ({_STATES[row.state]}): {_say_range(row)}, largest |value| {row.measured.peak:.3g}"
        for row in block.activations
        if row.measured
    ]
    return "Sizes of the values: " + "; ".join(said)


def _say_inputs(block: _Block) -> str:
    counts = {_short(row.tensor): len(outliers(block.record.channels[row.tensor])) for row in block.activations}
    some = [f"{count} in {name}" for name, count in counts.items() if count]
    return f"Inputs of the products: {_number(sum(counts.values()))}" + (f" ({', '.join(some)})" if some else "")


def _say_stream(block: _Block) -> str:
    if not block.stream:
        return "Residual stream: not in this record"
    found = list(dict.fromkeys(c for tensor in block.stream for c in outliers(block.record.channels[tensor])))
    named = f": {_named(found, _NAMED)}" if found else ""
    return f"Residual stream (never 8 bits): {_number(len(found))}{named}"


def _named(channels: Sequence[int], most: int) -> str:
    return ", ".join(map(str, channels[:most])) + (" …" if len(channels) > most else "")


def _number(count: int) -> str:
    return "no outlier channel" if not count else f"{count} outlier channel{'s' if count > 1 else ''}"


_PANELS = (
    _Panel(_draw_values, "histograms of |value| of what goes into the products, each with its range", _say_values),
    _Panel(_draw_inputs, "channels of the products' inputs by their largest |value|, sorted", _say_inputs),
    _Panel(_draw_stream, "channels of the residual stream by their largest |value|, by number", _say_stream),
)


# The page.

_STYLE = """
body{margin:0 auto;max-width:110rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.15rem;margin:2rem 0 .5rem;border-top:1px solid #ccc;padding-top:1rem}
p{max-width:45rem}nav a{display:inline-block;padding:.4rem .6rem;color:#0050a0}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem}
figure{margin:0}img{width:100%;height:auto}figcaption{font-size:.9rem;color:#444;overflow-wrap:anywhere}
"""


def _page(title: str, found: Explanation, blocks: Iterable[_Block]) -> str:
    """Pictures inside, so that the file can be sent around; beside each other where the screen is wide."""
    body = "\n".join(_section(block) for block in blocks)
    links = " ".join(f'<a href="#{name}">{name}</a>' for name in found.blocks)
    massive = ", ".join(map(str, found.massive)) or "none"
    facts = (
        f"{found.int8_share:.1%} of the multiply-adds are in 8 bits; ranges by {found.method} from {found.images}"
        f" photos. Channels of the residual stream that are outliers in more than half of the blocks: {massive}."
    )
    head = html.escape(f"{title}: what 8 bits do to it")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{head}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{head}</h1>\n"
        f"<p>{html.escape(facts)}</p>\n<p>{html.escape(_INTRO)}</p>\n<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def _section(block: _Block) -> str:
    return f'<h2 id="{block.name}">{block.name}</h2>\n<div class="panels">\n{"".join(_pictures(block))}</div>'


def _pictures(block: _Block) -> Iterator[str]:
    for panel in _PANELS:
        figure = _new(*_SMALL)
        panel.draw(figure, block)
        data = base64.b64encode(_png(figure)).decode()
        shows, said = html.escape(f"{block.name}: {panel.shows}"), html.escape(panel.say(block))
        yield (
            f'<figure><img src="data:image/png;base64,{data}" alt="{shows}"><figcaption>{said}</figcaption></figure>\n'
        )
