"""INT8 against fp32 on photos that the calibration never saw: scores, speed, size; and beside it the naive recipe.

    python benchmarks/int8.py CHECKPOINT --name demo --calib PHOTOS --photos LIST.txt

Exports the checkpoint in int8 and fp32, scores the photos with both on every CPU backend, quantises the same fp32 graph
naively (all operators, per-tensor, min and max) for comparison, times int8 and fp32 in interleaved rounds, and compiles
the TensorRT-RTX engine. Writes results/int8-NAME-CPU.json. Exit code 7: a goal was not met; 8: not valid.

Without CHECKPOINT: full size, conditioned random weights. Those have no outliers, so they show size and speed, not that
INT8 is safe.
"""

from __future__ import annotations

import dataclasses
import json
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
    result_of,
    run_child,
    run_script,
    unsteady,
    write_result,
)

from gamma_runtime.cli import log, option, out, run_command

MAX_MEAN, MIN_SRCC, MIN_SPEED, MAX_BUNDLE, MAX_DROP = 0.005, 0.998, 2.1, 180e6, 0.003
BACKENDS = ("onnxruntime", "openvino")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8Options(BenchmarkOptions):
    """Flags."""

    source: Path | None = option(
        None, "checkpoint; conditioned random weights at full size when left out", positional=True
    )
    name: str = option("full", "for the result file")
    calib: Path | None = option(None, "photos to calibrate with; the packaged ones with --tiny")
    photos: Path | None = option(None, "list of photos to compare on, a path a line; none of them in --calib")
    labels: Path | None = option(None, "YAML of labelled photos: how much SRCC drops on its test split")
    count: int = option(256, "most photos to calibrate with")
    scene: str = option("natural-quality", "whose working size the photos go through")
    sized: bool = option(False, "judge speed and size too: they are goals for the full-size model")


def _export(options: Int8Options, bundle: Path) -> dict[str, Any]:
    source = options.source or checkpoint(options)
    words = [command("gamma-export"), source, "-o", bundle, "--precision", "int8,fp32", "--joint", "--json"]
    words += ["--calib", options.calib, "--calib-count", str(options.count), "--skip-speed"]
    words += ["--calib-min", "4"] if options.tiny else []
    words += ["--labels", options.labels] if options.labels else []
    found = json.loads(run_child(words).output)
    log(f"{found['int8']['quantisation']['int8_share']:.1%} of the multiply-adds in int8")
    return dict(found)


def graphs_of(bundle: Path) -> dict[str, Path]:
    """A bundle's graphs for CPUs by precision."""
    graphs = json.loads((bundle / "manifest.json").read_text())["graphs"]
    return {g["precision"]: bundle / g["onnx"] for g in graphs if g["target"] != "tensorrt"}


def scores_of(options: Int8Options, bundle: Path, graph: Path, backend: str) -> list[list[float]]:
    """Scores [photos][scenes] of the photos, whole, by one graph."""
    child = run_script(
        "int8_contender", "--name", "score", "--bundle", bundle, "--graph", graph, "--photos", str(options.photos),
        "--scene", options.scene, "--backend", backend,
    )  # fmt: skip
    return list(json.loads(child.output)["scores"])


def differences(wanted: list[list[float]], found: list[list[float]]) -> list[dict[str, Any]]:
    """One for each scene."""
    import numpy as np

    from gamma_calib.compare import compare

    pairs = zip(np.array(wanted).T, np.array(found).T, strict=True)
    return [dataclasses.asdict(compare(one, other)) for one, other in pairs]


def _naive(options: Int8Options, bundle: Path, fp32: Path) -> list[list[float]]:
    """Calibrated on some of the photos to compare on, which favours it; scored by ONNX Runtime."""
    target = bundle / "naive.onnx"
    run_script(
        "int8_contender", "--name", "naive", "--bundle", bundle, "--graph", fp32, "--photos", str(options.photos),
        "--scene", options.scene, "--target", target,
    )  # fmt: skip
    return scores_of(options, bundle, target, "onnxruntime")


def engine_of(bundle: Path) -> dict[str, Any]:
    """A plan compiled by TensorRT-RTX for SM 8.6: its version, size, and what the parsed network computes in."""
    words = [command("gamma-build"), bundle, "--engine", "tensorrt-rtx", "--precision", "int8", "--json"]
    (engine,) = json.loads(run_child([*words, "--compute-capability", "8.6"]).output)["engines"]
    return {"version": engine["version"], "bytes": engine["size"], "network": engine["proof"]["network"]}


def goals(result: dict[str, Any], sized: bool) -> list[Goal]:
    """By the worst scene and the worst backend."""
    rows = [row for backend in BACKENDS for row in result["int8"][backend]]
    mean, srcc = max(row["mean_abs"] for row in rows), min(row["srcc"] or -1.0 for row in rows)
    judged = [
        Goal("mean |shift| against fp32", MAX_MEAN, mean, "", mean <= MAX_MEAN),
        Goal("SRCC against fp32", MIN_SRCC, srcc, "", srcc >= MIN_SRCC),
    ]
    for row in result["labels"]:
        if row["precision"] == "int8":
            drop = row["srcc_drop"]
            what = f"drop of SRCC on {row['photos']} labelled photos of {row['name']}"
            judged.append(Goal(what, MAX_DROP, drop, "", drop <= MAX_DROP))
    if sized:
        for backend in BACKENDS:
            ratio = result["speed"][backend]["ratio"]
            judged.append(Goal(f"{backend}: int8 against its own fp32", MIN_SPEED, ratio, "times", ratio >= MIN_SPEED))
        size = result["bundle_bytes"]
        judged.append(Goal("int8 bundle without engines", MAX_BUNDLE / 1e6, size / 1e6, "MB", size <= MAX_BUNDLE))
    return judged


def _speed(options: Int8Options, graphs: dict[str, Path]) -> tuple[dict[str, Any], list[str]]:
    """Medians by backend and graph, their ratio, and what speaks against them."""
    import statistics

    from gamma_calib.speed import measure_speed

    found: dict[str, Any] = {}
    doubts: list[str] = []
    for backend in BACKENDS:
        rounds = [measure_speed(graphs, 1, (backend,), rounds=1)[0].milliseconds for _ in range(options.rounds)]
        times = {name: [one[name] for one in rounds] for name in graphs}
        middle = {name: statistics.median(values) for name, values in times.items()}
        found[backend] = {"milliseconds": times, "median": middle, "ratio": middle["fp32"] / middle["int8"]}
        doubts += unsteady({f"{backend} {name}": values for name, values in times.items()})
        log(f"{backend}: int8 {middle['int8']:.1f} ms, fp32 {middle['fp32']:.1f} ms a call")
    return found, doubts


def measure(options: Int8Options) -> int:
    """Export, score, time, compile."""
    machine, bystanders = machine_facts(), Bystanders()
    options.work.mkdir(parents=True, exist_ok=True)
    bundle = options.work / f"int8-{options.name}.gamma"
    report = _export(options, bundle)
    graphs = graphs_of(bundle)
    speed, doubts = _speed(options, graphs)
    wanted = scores_of(options, bundle, graphs["fp32"], "onnxruntime")
    int8 = {name: differences(wanted, scores_of(options, bundle, graphs["int8"], name)) for name in BACKENDS}
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    measured = {
        "name": options.name,
        "checkpoint": report["label"] or "trained",
        "scenes": report["scenes"],
        "photos": len(wanted),
        "calibration": {key: report["int8"]["quantisation"][key] for key in ("images", "method", "methods")},
        "kept": report["int8"]["quantisation"]["kept"],
        "int8_share": report["int8"]["quantisation"]["int8_share"],
        "bundle_bytes": sum(f["size"] for f in files if "fp32" not in f["name"]),
        "fp16_weights_bytes": report["int8"]["weights_bytes"]["fp16"],
        "labels": report["labels"],
        "speed": speed,
        "int8": int8,
        "naive": differences(wanted, _naive(options, bundle, graphs["fp32"])),
        "engine": engine_of(bundle),
    }
    judged = goals(measured, options.sized)
    doubts += bystanders.doubts()
    machine["share_of_other_programs"] = bystanders.share()
    write_result(f"int8-{options.name}", options, result_of("INT8", options, machine, doubts, judged, [], **measured))
    for line in [*map(str, judged), *(f"not valid: {doubt}" for doubt in doubts)]:
        out(line)
    return exit_code(options, doubts, judged)


if __name__ == "__main__":
    sys.exit(run_command("int8", measure, Int8Options))
