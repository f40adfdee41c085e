"""The README's block of against, made from the committed result files; tables.py fills it in."""

from __future__ import annotations

import json
from typing import Any

from int8_tables import RESULTS, load, table

SCORES = "in score units"  # the unit of the goals about scores
NAMES = {
    "eager": "PyTorch, the authors' way (text tower each call)",
    "eager-no-text": "PyTorch without text tower",
    "torch-compile": "torch.compile without text tower",
    "cuda-autocast": "PyTorch on CUDA, fp16 autocast, without text tower",
}


def against() -> str:
    """Every recorded result, full size first."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("against-*.json"))]
    results.sort(key=lambda result: result["size"] != "full")
    return "\n\n".join(map(against_text, results)) or "not measured"


def against_text(result: dict[str, Any]) -> str:
    """One result in Markdown: the table, who was skipped and why, and the goals."""
    machine = result["machine"]
    rows = [
        [
            _name(name),
            f"{one['median_ms']:.3g} ms" if one["median_ms"] < 100 else f"{one['median_ms']:.0f} ms",
            f"{one['ratio']:.2f} ({one['ratio_least']:.2f} to {one['ratio_most']:.2f})",
            f"{one['crop_score_difference']:.0e}{'' if one['same_scores'] else ', NOT comparable'}",
        ]
        for name, one in result["contenders"].items()
    ]
    what = "a tiny model, which says nothing about speed" if result["tiny"] else f"{result['size']} size"
    doubt = "" if result["valid"] else f" **Not a valid measurement**: {'; '.join(result['doubts'])}."
    head = (
        f"One 512x384 photo, crops {result['crops']}, crops to score, {what} ({machine['cpu']}, {machine['cores']} "
        f"cores; each contender in a process of its own, medians of {len(result['rounds'])} interleaved rounds):{doubt}"
    )
    titles = ["contender", "median", "times as fast as the first (range over rounds)", "largest score difference"]
    parts = [head, table(titles, rows)]
    if result["skipped"]:
        parts.append(f"Skipped: {_skipped(result['skipped'])}.")
    if result["goals"]:
        parts.append(f"Goals: {_goals(result['goals'])}.")
    return "\n\n".join(parts)


def eager() -> str:
    """The fp32 graph alone, as eager_vs_graph.py recorded it before against.py took its place."""
    result = load("eager_vs_graph-*.json")
    if result is None:
        return "not measured"
    machine = result["machine"]
    rows = [
        [
            {"eager": "PyTorch, the authors' way"}.get(name, f"fp32 graph on {name}"),
            f"{one['median_ms']:.0f} ms",
            f"{one['ratio']:.2f} ({one['ratio_least']:.2f} to {one['ratio_most']:.2f})",
            f"{one['score_difference']:.0e}",
        ]
        for name, one in result["contenders"].items()
    ]
    doubt = "" if result["valid"] else f" **Not a valid measurement**: {'; '.join(result['doubts'])}."
    return (
        f"One 512x384 photo, ten crops, crops to score ({machine['cpu']}, {machine['cores']} cores; each contender in "
        f"a process of its own, medians of {len(result['rounds'])} interleaved rounds):{doubt}\n\n"
        + table(["contender", "median", "times as fast (range over rounds)", "score difference"], rows)
    )


def _name(name: str) -> str:
    library, _, precision = name.rpartition("-")
    return NAMES.get(name) or f"{library}, {precision}"


def _skipped(skipped: dict[str, str]) -> str:
    """Contenders with the same reason together."""
    together: dict[str, list[str]] = {}
    for name, why in skipped.items():
        together.setdefault(why, []).append(f"`{name}`")
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in together.items())


def _goals(goals: list[dict[str, Any]]) -> str:
    """Speeds and what is not met, one by one; the gates that hold as a number."""
    gates = [goal for goal in goals if goal["unit"] == SCORES]
    said = [_goal(goal) for goal in goals if goal not in gates or not goal["met"]]
    return "; ".join([*said, f"{sum(goal['met'] for goal in gates)} of {len(gates)} gates of scores hold"])


def _goal(goal: dict[str, Any]) -> str:
    return f"{goal['what']}: {goal['measured']:.2g} {goal['unit']}, {'met' if goal['met'] else '**not met**'}"
