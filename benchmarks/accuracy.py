"""Accuracy after export: a checkpoint in PyTorch, its fp32 and its fp16 bundle, on the same labelled photos.

    python benchmarks/accuracy.py CHECKPOINT --data CONFIG.yaml --name demo

Writes results/accuracy-NAME.json. Exit code 7: an SRCC moves by more than 0.001. Photos are only read: the result holds
numbers, and no names of files.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, Goal, command, machine_facts, run_child

from gamma_runtime.cli import log, option, out, run_command
from gamma_runtime.errors import EXIT_GATE, EXIT_OK
from gamma_runtime.files import hash_file, write_atomically

UNCHANGED = 1e-3
KEPT = ("photos", "sets", "scenes", "distortions", "protocol")  # of what gamma-eval says; the rest names files
PRECISIONS = ("fp32", "fp16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this benchmark."""

    checkpoint: Path = option(help="to evaluate and export", positional=True)
    data: Path = option(help="YAML with a list `data:`, as for gamma-eval")
    name: str = option(help="of the result file")
    scene: str = option("natural-quality", "scenes of the photos, with commas")
    split: str = option("test", "which photos")
    limit: int | None = option(None, "at most so many photos of each set")
    result: Path = option(RESULTS, "folder for the result")


def _evaluate(options: Options, source: Path, *more: str) -> dict[str, Any]:
    words: list[str | Path] = [command("gamma-eval"), source, "--data", options.data, "--split", options.split]
    if options.limit is not None:
        words += ["--limit", str(options.limit)]
    made = json.loads(run_child([*words, "--json", "--quiet", *more]).output)
    return {name: made[name] for name in KEPT}


def _srcc(source: dict[str, Any]) -> dict[str, float]:
    return {row["name"]: row["srcc"] for row in source["sets"]}


def measure(options: Options) -> int:
    """Evaluate three times, and compare."""
    machine = machine_facts()
    sources: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "accuracy.gamma"
        words = ["--precision", ",".join(PRECISIONS), "--scene", options.scene, "--json", "--quiet"]
        log("exporting")
        run_child([command("gamma-export"), options.checkpoint, "-o", bundle, *words])
        log("PyTorch")
        sources["pytorch"] = _evaluate(options, options.checkpoint)
        for precision in PRECISIONS:
            log(precision)
            sources[precision] = _evaluate(options, bundle, "--precision", precision)
    gaps = {
        precision: max(abs(srcc - _srcc(sources["pytorch"])[name]) for name, srcc in _srcc(sources[precision]).items())
        for precision in PRECISIONS
    }
    judged = [Goal(f"SRCC unchanged in {p}", UNCHANGED, gap, "SRCC", gap <= UNCHANGED) for p, gap in gaps.items()]
    result = {
        "benchmark": "accuracy after export",
        "machine": machine,
        "checkpoint_sha256": hash_file(options.checkpoint),
        "split": options.split,
        "sources": sources,
        "goals": [dataclasses.asdict(goal) for goal in judged],
    }
    path = options.result / f"accuracy-{options.name}.json"
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    log(f"written: {path}")
    for goal in judged:
        out(str(goal))
    return EXIT_OK if all(goal.met for goal in judged) else EXIT_GATE


if __name__ == "__main__":
    sys.exit(run_command("accuracy", measure, Options))
