"""One page of HTML that needs nothing else: the verdict in words, pictures, and every number as text."""

from __future__ import annotations

import base64
import html
import statistics
from collections.abc import Iterable, Sequence

from gamma_export.bench.page_plots import COLOURS, Picture, logarithmic, new_axes, one, pictures, plain, png
from gamma_export.bench.report import CONDITIONS, TITLES, WATCHED, cells, conditions, described, value, watched
from gamma_export.bench.result import Result
from gamma_export.bench.work import PROFILE, ROOF, peak_words, profile_lines, roof_lines
from gamma_export.bench.work_plots import work_pictures
from gamma_runtime.cli import require

__all__ = ["check_plots", "page"]

_STYLE = """
body{margin:0 auto;max-width:80rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;
overflow-wrap:anywhere}h1{font-size:1.4rem}h2{font-size:1.25rem;margin:2rem 0 .5rem;border-top:1px solid #ccc;
padding-top:1rem}h3{font-size:1.05rem;margin:1.5rem 0 .5rem}p,li{max-width:50rem}
.verdict{padding:.6rem 1rem;border-left:.4rem solid #009E73;background:#eef8f4}
.verdict.doubted{border-color:#D55E00;background:#fdf1ea}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem}
figure{margin:0;min-width:0;max-width:45rem}img{width:100%;height:auto}figcaption{font-size:.9rem;color:#444}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left;overflow-wrap:normal}
td.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
"""
_LEAST_ERROR = 1e-9  # score units; a logarithmic axis has no 0
_VALID = "Valid: nothing that was looked at speaks against these numbers."
_DOUBTED = "Not valid: do not cite these numbers, because"


def check_plots() -> None:
    """Refuse before the work, not after it.

    Raises:
        EnvironmentFault: matplotlib is missing.
    """
    require("matplotlib", "plot")


def page(result: Result, *others: Result) -> str:
    """A result as HTML; several results one after the other, behind a comparison of their bundles.

    Raises:
        EnvironmentFault: matplotlib is missing.
        ValueError: a result that does not hold what gamma-bench writes; also KeyError, TypeError or AttributeError.

    Example:
        >>> page(read_result(Path("before/result.json"))).startswith("<!doctype html>")
        True
    """
    check_plots()
    results = (result, *others)
    names = ", ".join(dict.fromkeys(str(found.bundle["name"]) for found in results))
    head = html.escape(f"gamma-bench: {names}")
    body = _several(results) if others else ""
    body += "\n".join(_section(found, f"run{number}") for number, found in enumerate(results, 1))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{head}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{head}</h1>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _section(result: Result, name: str) -> str:
    """One run: what holds, in short, pictures, all numbers, and under which conditions."""
    bundle, machine, photos = result.bundle, result.machine, result.photos
    where = (
        f"Scene {result.scene}, {bundle['precision']}, {photos['count']} photos, bundle {bundle['sha256'][:12]}, "
        f"{machine['cpu']}, {machine['cores']} processors, {machine['date']}."
    )
    settings = [(flag, value(given, "default")) for flag, given in result.settings.items()]
    parts = [
        f'<h2 id="{name}">{html.escape(str(bundle["name"]))}, {html.escape(str(bundle["precision"]))}</h2>',
        _verdict(result),
        f"<p>{html.escape(where)}</p>",
        _list(_in_short(result)),
        "<h3>Pictures</h3>",
        _panels([*pictures(result), *work_pictures(result)]),
        "<h3>All numbers</h3>",
        _table("All numbers", TITLES, [cells(row) for row in result.rows], numbers=TITLES[3:]),
        _list([*described(result), *result.notes]),
        *_work(result),
        "<h3>Machine</h3>",
        _table("Conditions before and after", CONDITIONS, conditions(result)),
        _table("While it ran", WATCHED, watched(result)),
        _table("Machine", ("fact", "value"), [(fact, value(found)) for fact, found in machine.items()]),
        "<h3>Settings</h3>",
        _table("Settings", ("flag", "value"), settings),
    ]
    return "\n".join(parts)


def _work(result: Result) -> list[str]:
    """The tables of ``--profile``; nothing without it."""
    if not result.work:
        return []
    return [
        "<h3>Work and roof</h3>",
        _table("Work and roof", ROOF, roof_lines(result), numbers=(*ROOF[1:7], ROOF[8])),
        _list(peak_words(result)),
        "<h3>Time by part</h3>",
        _table("Time by part", PROFILE, profile_lines(result), numbers=PROFILE[2:]),
    ]


def _verdict(result: Result) -> str:
    if result.valid:
        return f'<p class="verdict">{_VALID}</p>'
    return f'<div class="verdict doubted"><p>{_DOUBTED}</p>{_list(result.doubts)}</div>'


def _in_short(result: Result) -> list[str]:
    """A sentence for each contender."""
    said = []
    for name in dict.fromkeys(row.backend for row in result.rows):
        found = []
        whole, speed, start = (one(result, name, what) for what in ("end-to-end", "throughput", "cold start"))
        if whole:
            found.append(
                f"an image takes {whole.summary.p50:.4g} ms from its bytes to its score, "
                f"99 of 100 at most {whole.summary.p99:.4g} ms"
            )
        if speed:
            found.append(f"{speed.summary.p50:.4g} images a second at saturation")
        if start:
            found.append(f"{start.summary.p50:.4g} ms from the start of a process to its first score")
        if found:
            said.append(f"{name}: {'; '.join(found)}.")
    return said


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _panels(found: Iterable[Picture]) -> str:
    return f'<div class="panels">\n{"".join(_figure(picture) for picture in found)}</div>'


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.content).decode()
    heading, shows = html.escape(picture.heading), html.escape(picture.shows)
    return (
        f"<figure><h4>{heading}</h4>"
        f'<img src="data:image/png;base64,{data}" alt="{heading}; its numbers are in the text below">'
        f"<figcaption>{shows}</figcaption></figure>\n"
    )


def _table(what: str, titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> str:
    """It scrolls by itself where a screen is narrow; the keyboard reaches it."""
    heads = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
    body = ""
    for row in rows:
        cells_of = zip(titles, row, strict=True)
        kinds = ((' class="number"' if title in numbers else "", html.escape(cell)) for title, cell in cells_of)
        body += "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in kinds) + "</tr>\n"
    label = html.escape(what)
    return (
        f'<div class="wide" role="region" aria-label="{label}" tabindex="0"><table>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


# Several bundles.


def _several(results: Sequence[Result]) -> str:
    """A table of the runs, and speed against fidelity where the bundles say how far they are from PyTorch."""
    titles = ("run", "backend", "precision", "end-to-end p50, ms", "parity error", "MiB", "verdict")
    rows = []
    for number, result in enumerate(results, 1):
        for name in dict.fromkeys(row.backend for row in result.rows):
            whole = one(result, name, "end-to-end")
            error, size = _error(result), result.bundle.get("bytes")
            rows.append(
                (
                    f"{number}: {result.bundle['name']}",
                    name,
                    str(result.bundle["precision"]),
                    f"{whole.summary.p50:.4g}" if whole else "not measured",
                    "not known" if error is None else f"{error:.2e}",
                    "not known" if size is None else f"{size / 2**20:.4g}",
                    "valid" if result.valid else "not valid",
                )
            )
    drawn = _pareto(results)
    links = "".join(
        f'<li><a href="#run{number}">{html.escape(str(found.bundle["name"]))}, '
        f"{html.escape(str(found.bundle['precision']))}</a></li>"
        for number, found in enumerate(results, 1)
    )
    return "\n".join(
        [
            '<h2 id="together">Together</h2>',
            _panels([drawn] if drawn else []),
            _table("The runs", titles, rows, numbers=titles[3:6]),
            f"<nav><ul>{links}</ul></nav>\n",
        ]
    )


def _error(result: Result) -> float | None:
    """The largest difference from PyTorch that the bundle's manifest records, in score units."""
    found = (result.bundle.get("parity") or {}).get("max_abs")
    return None if found is None else float(found)


def _pareto(results: Sequence[Result]) -> Picture | None:
    """Down and left is better; None where no bundle says its error."""
    points = []
    for result in results:
        for name in dict.fromkeys(row.backend for row in result.rows):
            whole, error = one(result, name, "end-to-end"), _error(result)
            if whole and error is not None:
                points.append(
                    (error, whole.summary.p50, f"{result.bundle['name']}, {name}", result.bundle.get("bytes"))
                )
    if not points:
        return None
    figure, axes = new_axes(1.0 + 0.08 * len(points))
    typical = statistics.median(size for *_, size in points if size) if any(size for *_, size in points) else 1
    for index, (error, spent, label, size) in enumerate(points):
        area = 60 * (size or typical) / typical
        style = {"color": COLOURS[index % len(COLOURS)], "marker": "os^Dv"[index % 5], "label": plain(label)}
        axes.scatter(max(error, _LEAST_ERROR), spent, min(400, max(20, area)), **style)
    errors = [max(error, _LEAST_ERROR) for error, *_ in points]
    logarithmic(axes, "x", min(errors) / 2, max(errors) * 2)
    axes.set_ylim(0, 1.15 * max(spent for _, spent, *_ in points))
    axes.set_xlabel("largest difference from PyTorch, score units (log scale)", fontsize=9)
    axes.set_ylabel("end-to-end p50, milliseconds", fontsize=9)
    figure.legend(fontsize=8, loc="outside upper center", ncols=1)
    said = "; ".join(f"{label}: {spent:.4g} ms, error {error:.2e}" for error, spent, label, _ in points)
    shows = f"Time against fidelity, down and left is better; larger marks are larger files. {said}."
    return Picture("Time against fidelity", shows, png(figure))
