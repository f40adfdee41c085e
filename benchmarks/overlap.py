"""Images a second of score_many, with the next images prepared while the graph runs, and without.

    python benchmarks/overlap.py                 # the demo's size, 100 photos of 1 to 4 megapixels
    python benchmarks/overlap.py --size full --photos 8

Writes results/overlap-SIZE-CPU.json. Exit code 7: slower with overlap, or other scores; 8: not valid.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Literal

from common import (
    BenchmarkOptions,
    Bystanders,
    Goal,
    checkpoint,
    command,
    exit_code,
    machine_facts,
    run_child,
    run_script,
    unsteady,
    write_result,
)

from gamma_runtime.cli import log, option, out, run_command
from gamma_runtime.errors import UsageError

CONTENDERS = {"one after another": ["--decode-threads", "0"], "overlapped": []}
PLAIN, OVERLAPPED = CONTENDERS
SCENE = "natural-quality"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(BenchmarkOptions):
    """Flags of this benchmark."""

    rounds: int = option(5, "how often every contender runs")
    size: Literal["demo", "full"] = option("demo", "the demo checkpoint, or the full model with random weights")
    photos: int = option(100, "how many photos a contender scores")
    backend: str = option("onnxruntime", "the library that runs the graph")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.photos < 1:
            raise UsageError(f"--photos {self.photos} is below 1")


def _bundle(options: Options) -> Path:
    """A fresh fp32 bundle of one scene, five crops a photo."""
    kind = "tiny" if options.tiny else options.size
    options.work.mkdir(parents=True, exist_ok=True)
    target = options.work / f"overlap-{kind}.gamma"
    source = [] if kind == "demo" else [checkpoint(options)]
    log(f"exporting the fp32 graph ({kind})")
    run_child([command("gamma-export"), *source, "-o", target, "--precision", "fp32", "--scene", SCENE, "--json"])
    return target


def _rounds(options: Options, bundle: Path) -> list[dict[str, Any]]:
    """Every contender once a round, each in a process of its own; the first of a round changes."""
    photos = options.work / f"photos-{options.photos}"
    common: list[str | Path] = ["--photos", photos, "--count", str(options.photos)]
    run_script("overlap_contender", *common, "--prepare")
    common += ["--bundle", bundle, "--backend", options.backend]
    names, made = list(CONTENDERS), []
    for index in range(options.rounds):
        order = names if index % 2 == 0 else names[::-1]
        one = {name: json.loads(run_script("overlap_contender", *common, *CONTENDERS[name]).output) for name in order}
        log(f"round {index + 1}: " + ", ".join(f"{name} {one[name]['images_per_second']:.1f}/s" for name in names))
        made.append(one)
    return made


def _summary(rounds: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Images a second, and the ratio to scoring without overlap (above 1: faster)."""
    speeds = [one[name]["images_per_second"] for one in rounds]
    ratios = [one[name]["images_per_second"] / one[PLAIN]["images_per_second"] for one in rounds]
    return {
        "images_per_second": statistics.median(speeds),
        "least": min(speeds),
        "most": max(speeds),
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "same_scores": all(one[name]["scores_sha256"] == rounds[0][PLAIN]["scores_sha256"] for one in rounds),
    }


def goals(summaries: dict[str, dict[str, Any]]) -> list[Goal]:
    """Bit-identical scores, and not slower."""
    one = summaries[OVERLAPPED]
    return [
        Goal("the same scores, bit for bit", 1.0, float(one["same_scores"]), "", one["same_scores"]),
        Goal("not slower than one after another", 1.0, one["ratio"], "times", one["ratio"] >= 1.0),
    ]


def measure(options: Options) -> int:
    """Score photos with score_many, with and without preparing the next ones meanwhile."""
    machine = machine_facts()
    bundle = _bundle(options)
    bystanders = Bystanders()
    rounds = _rounds(options, bundle)
    doubts = bystanders.doubts()
    machine["share_of_other_programs"] = bystanders.share()
    summaries = {name: _summary(rounds, name) for name in CONTENDERS}
    doubts += unsteady({name: [one[name]["images_per_second"] for one in rounds] for name in CONTENDERS})
    judged = goals(summaries)
    result = {
        "benchmark": f"score_many of {options.photos} JPEG photos, 1 to 4 megapixels, five crops, {SCENE}, fp32",
        "tiny": options.tiny,
        "size": options.size,
        "photos": options.photos,
        "backend": options.backend,
        "machine": machine,
        "valid": not doubts,
        "doubts": doubts,
        "contenders": summaries,
        "goals": [dataclasses.asdict(goal) for goal in judged],
        "rounds": rounds,
    }
    write_result("overlap" if options.tiny else f"overlap-{options.size}", options, result)
    for name, one in summaries.items():
        out(f"{name}: {one['images_per_second']:.2f} images/s, {one['ratio']:.2f} times as fast")
    for doubt in doubts:
        out(f"not valid: {doubt}")
    return exit_code(options, doubts, judged)


if __name__ == "__main__":
    sys.exit(run_command("overlap", measure, Options))
