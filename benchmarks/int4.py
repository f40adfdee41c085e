"""An experiment: adaptive experts with weights in 4 bits, beside the same bundle in 8 bits: scores, size, speed.

    python benchmarks/int4.py CHECKPOINT BUNDLE --name full --photos LIST.txt

BUNDLE is what benchmarks/int8.py leaves in build/benchmarks: int8 and fp32 graphs of the checkpoint. Its recipe is
replayed with ``--experts int4``, both are scored against fp32 on photos that calibrated nothing, timed in interleaved
rounds on every CPU backend, and compiled by TensorRT-RTX. Writes results/int4-NAME-CPU.json. It judges nothing but
whether its own measurement is valid (exit code 8).
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
    command,
    exit_code,
    machine_facts,
    result_of,
    run_child,
    unsteady,
    write_result,
)
from int8 import BACKENDS, Int8Options, differences, engine_of, graphs_of, scores_of

from gamma_runtime.cli import log, option, out, run_command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int4Options(BenchmarkOptions):
    """Flags."""

    source: Path = option(help="checkpoint of the bundle", positional=True)
    bundle: Path = option(help="with int8 and fp32 graphs", positional=True)
    name: str = option("full", "for the result file")
    photos: Path = option(help="list of photos to compare on, a path a line")
    scene: str = option("natural-quality", "whose working size the photos go through")


def export(options: Int4Options, bundle: Path) -> None:
    """The same recipe, adaptive experts' weights in 4 bits; no gate stops it: how far it is off is the result."""
    words = [command("gamma-export"), options.source, "-o", bundle, "--precision", "int8", "--joint", "--json"]
    run_child([*words, "--recipe", options.bundle, "--experts", "int4", "--gate", "0.9", "--skip-speed"])


def speeds(options: Int4Options, graphs: dict[str, Path]) -> tuple[dict[str, Any], list[str]]:
    """Milliseconds a call, median by backend and graph, and what speaks against them."""
    from gamma_calib.speed import measure_speed

    found, doubts = {}, []
    for backend in BACKENDS:
        rounds = [measure_speed(graphs, 1, (backend,), rounds=1)[0].milliseconds for _ in range(options.rounds)]
        times = {name: [one[name] for one in rounds] for name in graphs}
        found[backend] = {name: statistics.median(values) for name, values in times.items()}
        doubts += unsteady({f"{backend} {name}": values for name, values in times.items()})
        log(f"{backend}: " + ", ".join(f"{name} {value:.1f} ms" for name, value in found[backend].items()))
    return found, doubts


def measure(options: Int4Options) -> int:
    """Export, time, score, compile."""
    machine, bystanders = machine_facts(), Bystanders()
    options.work.mkdir(parents=True, exist_ok=True)
    bundle = options.work / f"int4-{options.name}.gamma"
    export(options, bundle)
    before = graphs_of(options.bundle)
    graphs = {"int8": before["int8"], "int4": graphs_of(bundle)["int8"], "fp32": before["fp32"]}
    median, doubts = speeds(options, graphs)
    scorer = Int8Options(photos=options.photos, scene=options.scene)
    wanted = scores_of(scorer, bundle, graphs["fp32"], "onnxruntime")
    manifests = {
        name: json.loads((folder / "manifest.json").read_text())
        for name, folder in (("int8", options.bundle), ("int4", bundle))
    }
    measured = {
        "name": options.name,
        "checkpoint": manifests["int4"]["checkpoint"]["label"] or "trained",
        "photos": len(wanted),
        "groups_in_int4": manifests["int4"]["quantisation"]["int4"],
        "weights_bytes": {
            name: sum(f["size"] for f in found["files"] if f["name"].startswith("weights-int8"))
            for name, found in manifests.items()
        },
        "milliseconds": median,
        "scores": {
            name: {b: differences(wanted, scores_of(scorer, bundle, graphs[name], b)) for b in BACKENDS}
            for name in ("int8", "int4")
        },
        "engine": engine_of(bundle),
    }
    doubts += bystanders.doubts()
    machine["share_of_other_programs"] = bystanders.share()
    write_result(f"int4-{options.name}", options, result_of("INT4", options, machine, doubts, [], [], **measured))
    for doubt in doubts:
        out(f"not valid: {doubt}")
    return exit_code(options, doubts, [])


if __name__ == "__main__":
    sys.exit(run_command("int4", measure, Int4Options))
