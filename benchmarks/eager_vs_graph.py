"""One 512x384 photo, ten crops: PyTorch in the authors' way against the fp32 graph on onnxruntime and on openvino.

    python benchmarks/eager_vs_graph.py

Writes results/eager_vs_graph-CPU.json. Exit code 7: a graph is slower, or scores differ; 8: not valid.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from common import (
    BenchmarkOptions,
    Bystanders,
    Goal,
    checkpoint,
    command,
    exit_code,
    machine_facts,
    medians,
    run_child,
    run_script,
    unsteady,
    write_result,
)
from contender import POLICY, SCENE

from gamma_runtime.cli import log, option, out, run_command
from gamma_runtime.errors import UsageError

EAGER = "eager"
CONTENDERS = (EAGER, "onnxruntime", "openvino")
SAME_SCORE = 1e-4  # the fp32 gate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(BenchmarkOptions):
    """Flags of this benchmark."""

    rounds: int = option(5, "how often every contender runs")
    calls: int = option(3, "timed calls of a contender in a round, after the warm-up")
    threads: int | None = option(None, "CPU threads of every contender; each library's own choice when left out")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calls < 1:
            raise UsageError(f"--calls {self.calls} is below 1")


def _bundle(options: Options, source: Path) -> Path:
    """A fresh fp32 bundle of the one scene."""
    target = options.work / f"eager-vs-graph{'-tiny' if options.tiny else ''}.gamma"
    words = ["--precision", "fp32", "--scene", SCENE, "--crops", POLICY, "--json"]
    log("exporting the fp32 graph")
    run_child([command("gamma-export"), source, "-o", target, *words])
    return target


def _rounds(options: Options, source: Path, bundle: Path) -> list[dict[str, Any]]:
    """Every contender once a round, each in a process of its own; the first of a round changes."""
    crops = options.work / "crops.npy"
    run_script("contender", "--name", "prepare", "--crops", crops)
    common: list[str | Path] = [
        "--crops",
        crops,
        "--calls",
        str(options.calls),
        "--checkpoint",
        source,
        "--bundle",
        bundle,
    ]
    if options.threads is not None:
        common += ["--threads", str(options.threads)]
    made = []
    for index in range(options.rounds):
        first = index % len(CONTENDERS)
        order = CONTENDERS[first:] + CONTENDERS[:first]
        made.append({name: json.loads(run_script("contender", "--name", name, *common).output) for name in order})
        log(f"round {index + 1}: " + ", ".join(f"{name} {_ms(made[-1], name):.0f} ms" for name in CONTENDERS))
    return made


def _ms(one: dict[str, Any], name: str) -> float:
    return float(statistics.median(one[name]["ms"]))


def _summary(rounds: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Times, the ratio to eager PyTorch (above 1: faster than it), and the scores beside it."""
    times = [_ms(one, name) for one in rounds]
    ratios = [_ms(one, EAGER) / _ms(one, name) for one in rounds]
    gaps = [abs(a - b) for one in rounds for a, b in zip(*(one[n]["crop_scores"] for n in (EAGER, name)), strict=True)]
    return {
        "median_ms": statistics.median(times),
        "least_ms": min(times),
        "most_ms": max(times),
        "ratio": statistics.median(_ms(one, EAGER) for one in rounds) / statistics.median(times),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "score": rounds[0][name]["score"],
        "score_difference": max(abs(one[name]["score"] - one[EAGER]["score"]) for one in rounds),
        "crop_score_difference": max(gaps),
    }


def goals(summaries: dict[str, dict[str, Any]]) -> list[Goal]:
    """Not slower, and the same score."""
    made = []
    for name in CONTENDERS[1:]:
        one = summaries[name]
        gap = one["crop_score_difference"]
        made.append(Goal(f"{name}: the same score", SAME_SCORE, gap, "in score units", gap <= SAME_SCORE))
        made.append(Goal(f"{name}: not slower than eager PyTorch", 1.0, one["ratio"], "times", one["ratio"] >= 1.0))
    return made


def _doubts(rounds: list[dict[str, Any]], summaries: dict[str, dict[str, Any]]) -> list[str]:
    found = unsteady({name: medians(rounds, name, "ms") for name in CONTENDERS})
    for name in CONTENDERS:
        if summaries[name]["crop_score_difference"] > SAME_SCORE:
            found.append(f"{name}: its scores are others, so its time is not comparable")
    return found


def paragraph(result: dict[str, Any]) -> str:
    """The result for people, one paragraph of Markdown."""
    machine, summaries = result["machine"], result["contenders"]
    eager_ms = summaries[EAGER]["median_ms"]
    parts = [
        f"{name} {one['median_ms']:.0f} ms ({one['ratio']:.2f} times as fast, {one['ratio_least']:.2f} to "
        f"{one['ratio_most']:.2f} over the rounds; largest crop score difference {one['crop_score_difference']:.1e})"
        for name, one in summaries.items()
        if name != EAGER
    ]
    what = "a tiny model, which says nothing about speed" if result["tiny"] else "the full-size, untrained model"
    text = (
        f"**Eager PyTorch against the graph**, one 512x384 photo, 10 crops, fp32, {what}, on {machine['cpu']} "
        f"({machine['cores']} cores): eager PyTorch in the authors' way {eager_ms:.0f} ms; {'; '.join(parts)}. "
        f"Medians of {len(result['rounds'])} interleaved round(s), each contender in a process of its own."
    )
    return text + "".join(f" Not valid: {doubt}." for doubt in result["doubts"])


def measure(options: Options) -> int:
    """Time one photo from crops to score in eager PyTorch, onnxruntime and openvino."""
    machine = machine_facts()
    source = checkpoint(options)
    bundle = _bundle(options, source)
    bystanders = Bystanders()
    rounds = _rounds(options, source, bundle)
    doubts = bystanders.doubts()
    machine["share_of_other_programs"] = bystanders.share()
    summaries = {name: _summary(rounds, name) for name in CONTENDERS}
    doubts, judged = doubts + _doubts(rounds, summaries), goals(summaries)
    result = {
        "benchmark": f"crops to score of one 512x384 photo, {POLICY}, scene {SCENE}, fp32",
        "tiny": options.tiny,
        "machine": machine,
        "valid": not doubts,
        "doubts": doubts,
        "contenders": summaries,
        "goals": [dataclasses.asdict(goal) for goal in judged],
        "rounds": rounds,
    }
    write_result("eager_vs_graph", options, result)
    out(paragraph(result))
    return exit_code(options, doubts, judged)


if __name__ == "__main__":
    sys.exit(run_command("eager_vs_graph", measure, Options))
