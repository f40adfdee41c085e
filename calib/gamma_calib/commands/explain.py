"""gamma-calib explain: which tensors are 8 bits, what their ranges clip, and which channels stand out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_runtime.cli import CommonOptions, log, option, out
from gamma_runtime.errors import EXIT_OK, InputError

if TYPE_CHECKING:
    from gamma_calib.explain import Activation, Explanation, Measured

__all__ = ["ExplainOptions", "explain_command"]

_STATES = {"int8": "yes", "partly": "partly", "kept": "no", "never": "never"}
_LEGEND = """8 bits: no: the search for a recipe kept it in floating point; never: no recipe takes it
99% within: what 99% of the values need of the range; alone: mean |shift| of the scores, only that product in 8 bits"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainOptions(CommonOptions):
    """Flags of gamma-calib explain."""

    bundle: Path = option(help="a bundle with int8 graphs", positional=True)
    record: Path | None = option(
        None, "the calibration record; when left out, the one that gamma-export left in the bundle's .calib folder"
    )
    plot: Path | None = option(
        None, "pictures of every block: one FILE.png, one page FILE.html, or a FOLDER for block-NN.png"
    )


def explain_command(options: ExplainOptions) -> int:
    """Show which tensors of an int8 bundle are 8 bits, their ranges, what is clipped, and outlier channels."""
    from gamma_calib.explain import explain, record_of
    from gamma_calib.explain_plot import check_plot, plot_blocks
    from gamma_runtime.bundle import open_bundle
    from gamma_runtime.steps import Steps

    if options.plot:
        check_plot(options.plot)
    bundle = open_bundle(options.bundle)
    record = record_of(bundle, options.record)
    if options.plot and record is None:
        raise InputError(
            f"{bundle.folder}: pictures need the calibration record, and none lies beside the bundle",
            hint="--record FILE, or gamma-export --precision int8 --calib PHOTOS",
        )
    found = explain(bundle, record)
    written: list[Path] = []
    if options.plot and record is not None:
        with Steps(options.quiet).step(f"pictures of {len(found.blocks)} blocks", len(found.blocks)) as tick:
            written = plot_blocks(found, record, bundle.folder.name, options.plot, tick)
    if options.json:
        out(json.dumps({**dataclasses.asdict(found), "plots": [str(path) for path in written]}))
    else:
        out(_as_text(found))
    for line in found.missing:
        log(f"warning: {line}")
    if written and not options.quiet:
        log(f"{written[0]}" + (f" and {len(written) - 1} more" if written[1:] else "") + " written")
    return EXIT_OK


def _as_text(found: Explanation) -> str:
    parts = [
        f"int8: {found.int8_share:.1%} of the multiply-adds; ranges by {found.method} from {found.images} photos",
        "what goes into the products:",
        _activation_table(found),
        _LEGEND,
    ]
    if any(row.measured for row in found.activations) or found.stream:
        parts += ["their channels, and those of the residual stream, which is never 8 bits:", _channel_table(found)]
    if found.stream:
        parts.append(_massive(found))
    return "\n".join([*parts, "weights in 8 bits, a scale for each output channel:", _weight_table(found)])


def _activation_table(found: Explanation) -> str:
    from gamma_runtime.tables import text_table

    titles = ("tensor", "8 bits", "read by", "range", "step", "peak", "clipped", "99% within", "alone")
    return text_table(titles, [_activation_row(row) for row in found.activations], right=titles[3:])


def _activation_row(row: Activation) -> tuple[str, ...]:
    """``alone``: the most sensitive group's; what is measured stays empty without a record."""
    alone = [group.alone for group in row.groups if group.alone is not None]
    names = [
        group.name.partition("/")[2] + ("" if group.int8 or row.state != "partly" else " (no)") for group in row.groups
    ]
    measured = row.measured
    return (
        row.tensor,
        _STATES[row.state],
        ", ".join(names),
        f"{row.range:.3g}",
        f"{row.scale:.2e}",
        f"{measured.peak:.3g}" if measured else "",
        _percent(measured.clipped) if measured and measured.clipped is not None else "",
        f"{measured.used:.0%}" if measured and measured.used is not None else "",
        f"{max(alone):.1e}" if alone else "",
    )


def _percent(share: float) -> str:
    """Small ones are what matters here, and nothing clipped is not the same as next to nothing."""
    return "0" if share == 0 else f"{share:.4%}" if share >= 1e-6 else "<0.0001%"


def _channel_table(found: Explanation) -> str:
    from gamma_calib.explain import OUTLIER
    from gamma_runtime.tables import text_table

    rows = [(row.tensor, _STATES[row.state], row.measured) for row in found.activations]
    rows += [(name, "never", measured) for name, measured in found.stream.items()]
    order = list(dict.fromkeys(name.partition("/")[0] for name, _, _ in rows))
    rows.sort(key=lambda row: order.index(row[0].partition("/")[0]))  # a block's stream behind its products
    titles = ("tensor", "8 bits", "channels", "median", "largest", f">{OUTLIER:g}x", "largest channels, x median")
    lines = [(name, state, *_channel_cells(measured)) for name, state, measured in rows if measured]
    return text_table(titles, lines, right=titles[2:-1])


def _channel_cells(measured: Measured) -> Iterator[str]:
    channels = measured.channels
    yield f"{channels.count}"
    yield f"{channels.median:.3g}"
    yield f"{measured.peak:.3g}"
    yield f"{channels.above}"
    if channels.median:
        yield ", ".join(f"{number} ({peak / channels.median:.1f}x)" for number, peak in channels.top)
    else:
        yield ", ".join(f"{number}" for number, _ in channels.top)


def _massive(found: Explanation) -> str:
    from gamma_calib.explain import OUTLIER

    what = f"more than {OUTLIER:g} times the median in more than half of the blocks"
    if not found.massive:
        return f"massive channels of the residual stream: none is {what}"
    return f"massive channels of the residual stream, {what}: {', '.join(map(str, found.massive))}"


def _weight_table(found: Explanation) -> str:
    from gamma_runtime.tables import text_table

    titles = ("weight", "inputs", "outputs", "codes 0", "least scale", "largest scale", "ratio")
    lines = [
        (
            row.tensor,
            *(str(size) for size in row.shape),
            f"{row.zeros:.1%}",
            f"{row.least_scale:.2e}",
            f"{row.largest_scale:.2e}",
            f"{row.scale_ratio:.1f}",
        )
        for row in found.weights
    ]
    return text_table(titles, lines, right=titles[1:])
