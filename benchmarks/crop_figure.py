"""The result of crop_study for people: a table, and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by all eyes


def text(result: dict[str, Any]) -> str:
    """One row a policy."""
    from gamma_runtime.tables import text_table

    authors = result["authors"]
    sizes = list(authors["srcc"])

    def number(value: Any) -> str:
        if isinstance(value, dict):
            return f"{value['mean']:.4f} ({value['least']:.4f} to {value['most']:.4f})"
        return "-" if value is None else f"{value:.4f}"

    rows = [
        (
            name,
            f"{row['crops']:.1f}",
            f"{row['gmac']:.2f}",
            number(row["rms_to_dense"]),
            *(number(row["srcc"].get(size)) for size in sizes),
        )
        for name, row in [*result["policies"].items(), (f"{authors['policy']}, {authors['seeds']} seeds", authors)]
    ]
    titles = ("policy", "crops", "GMAC", "RMS to dense", *(f"SRCC at {size}" for size in sizes))
    source, error = result["source"], result["srcc_standard_error"]
    lines = [
        text_table(titles, rows),
        f"{result['photos']} photos, scene {source['scene']}, {source['file']} ({source['run_by']}); "
        f"standard error of an SRCC: {'-' if error is None else format(error, '.3f')}",
    ]
    return "\n".join(lines + ([result["warning"]] if result["warning"] else []))


def draw(result: dict[str, Any], path: Path) -> None:
    """Left: distance to the dense mean over cost. Right: correlation with opinions over working sizes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5))
    authors = result["authors"]
    sizes = list(authors["srcc"])
    policies = {name: row for name, row in result["policies"].items() if name != "dense"}
    for colour, (name, row) in zip(_COLOURS, policies.items(), strict=True):
        left.plot(row["gmac"], row["rms_to_dense"], "o", color=colour, label=f"{name}, {row['crops']:.3g} crops")
        right.plot(sizes, [_nan(row["srcc"][size]) for size in sizes], "o-", color=colour, label=name)
    spread = authors["rms_to_dense"]
    bars = [[spread["mean"] - spread["least"]], [spread["most"] - spread["mean"]]]
    name = f"{authors['policy']}, {authors['seeds']} seeds: mean and range"
    left.errorbar([authors["gmac"]], [spread["mean"]], bars, fmt="s", color="black", capsize=4, label=name)
    known = {size: value for size, value in authors["srcc"].items() if value}
    if known:
        ranges = [[v["mean"] - v["least"] for v in known.values()], [v["most"] - v["mean"] for v in known.values()]]
        middle = [v["mean"] for v in known.values()]
        right.errorbar(list(known), middle, ranges, fmt="s", color="black", capsize=4, label=name)
    left.set(xlabel="GMAC a photo", ylabel="RMS distance to the dense mean, score units", ylim=(0, None))
    size = result["working_short_side"] or "native"
    left.set_title(f"short side {size}, dense at stride {result['stride']}")
    right.set(xlabel="working size, short side in pixels", ylabel="SRCC with opinion scores")
    right.set_title(f"{result['photos']} photos, scene {result['source']['scene']}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(result["warning"] or result["source"]["file"], color="#b00000" if result["warning"] else "black")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
