"""The block of docs/int8.md, made from the committed result files; tables.py fills it in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def load(pattern: str) -> dict[str, Any] | None:
    """The first result file of that name; None where there is none."""
    files = sorted(RESULTS.glob(pattern))
    return json.loads(files[0].read_text()) if files else None


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def int8() -> str:
    """INT8 on photos that the calibration never saw, ours and the naive recipe; speed and size; the scale's place."""
    files = sorted(RESULTS.glob("int8-*.json"))
    if not files:
        return "not measured"
    results = [json.loads(path.read_text()) for path in files]
    scores = [row for result in results for row in _int8_rows(result)]
    goals = [
        [
            f"{result['name']}: {goal['what']}".replace("|", ""),
            f"{goal['measured']:.4g} {goal['unit']}".strip(),
            f"{goal['limit']:g}",
            "met" if goal["met"] else "NOT met",
        ]
        for result in results
        for goal in result["goals"]
    ]
    doubts = [
        f"**The times of {r['name']} are not valid**: {'; '.join(r['doubts'])}; its scores do not depend on them."
        for r in results
        if r["doubts"]
    ]
    machine = results[0]["machine"]
    about = "; ".join(
        f"{r['name']}: {r['checkpoint']}, {r['photos']} photos, calibrated by {r['calibration']['method']} on "
        f"{r['calibration']['images']} others, {r['int8_share']:.0%} of the multiply-adds in int8"
        for r in results
    )
    titles = ["checkpoint", "recipe", "mean shift", "largest", "99 %", "SRCC against fp32"]
    return "\n\n".join(
        [
            f"{machine['cpu']}, {machine['cores']} cores; scores of whole photos, worst scene. {about}. "
            + _missing(results),
            *doubts,
            table(titles, scores),
            table(["goal", "measured", "limit", ""], goals),
            _scales(),
            *_experts_in_int4(),
            *_calibration_memory(),
        ]
    )


def _missing(results: list[dict[str, Any]]) -> str:
    names = {result["name"] for result in results}
    return "" if "study" in names else "The study checkpoint's rows are empty: it was not made where these were."


def _int8_rows(result: dict[str, Any]) -> list[list[str]]:
    naive = ("all operators, per tensor, min and max, on onnxruntime", result["naive"])
    return [
        [
            result["name"],
            what,
            f"{max(row['mean_abs'] for row in rows):.4f}",
            f"{max(row['max_abs'] for row in rows):.3f}",
            f"{max(row['p99_abs'] for row in rows):.3f}",
            f"{min(row['srcc'] for row in rows):.4f}",
        ]
        for what, rows in [*((f"ours, on {name}", rows) for name, rows in result["int8"].items()), naive]
    ]


def _experts_in_int4() -> list[str]:
    """Adaptive experts with weights in 4 bits beside the same recipe in 8: the worst scene, and both libraries."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("int4-*.json"))]
    rows = [
        [
            result["name"],
            f"{kind}, {result['weights_bytes'][kind] / 1e6:.1f} MB",
            *(
                f"{max(row['mean_abs'] for row in rows):.4f}, largest {max(row['max_abs'] for row in rows):.3f}"
                for rows in result["scores"][kind].values()
            ),
            *(f"{times['fp32'] / times[kind]:.2f} times" for times in result["milliseconds"].values()),
        ]
        for result in results
        for kind in ("int8", "int4")
    ]
    doubts = [
        f"**The times of {r['name']} with int4 are not valid**: {'; '.join(r['doubts'])}."
        for r in results
        if r["doubts"]
    ]
    backends = list(results[0]["milliseconds"]) if results else []
    titles = ["checkpoint", "adaptive experts", *(f"mean shift, {name}" for name in backends)]
    titles += [f"speed against fp32, {name}" for name in backends]
    return ["The experiment with 4 bits:", *doubts, table(titles, rows)] if rows else []


def _calibration_memory() -> list[str]:
    """Peak memory of a whole export at full size, by the photos that calibrated it."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("calib_memory-*.json"))]
    peaks = [f"{row['peak_bytes'] / 1e9:.2f} GB with {row['photos']} photos" for r in found for row in r["rounds"]]
    text = "Peak memory of `gamma-export --precision int8` at full size (`python benchmarks/calib_memory.py`): "
    return [f"{text}{', '.join(peaks)}."] if peaks else []


def _scales() -> str:
    """The second product of a MoAE block in three ways; worst block of each."""
    result = load("int8_scale.json")
    if result is None:
        return "not measured"
    ways = list(next(iter(result["blocks"].values())))
    rows = [
        [
            way,
            f"{min(found[way]['error'] for found in result['blocks'].values()):.0%} to "
            f"{max(found[way]['error'] for found in result['blocks'].values()):.0%}",
            f"{max(found[way]['activations_at_0'] for found in result['blocks'].values()):.1%}",
            str(min(found[way]["largest_weight_code"] for found in result["blocks"].values())),
        ]
        for way in ways
    ]
    titles = ["scale of the adaptive experts", "error of their output", "activations at code 0", "largest weight code"]
    return (
        f"A MoAE block's second product with a scale of {result['scale']}, full size, {result['checkpoint']}:\n\n"
        + (table(titles, rows))
    )
