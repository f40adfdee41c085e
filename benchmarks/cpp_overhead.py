"""The C++ runtime beside the Python one, same bundle, same OpenVINO: overhead an image, cold start, memory.

    make cpp && python benchmarks/cpp_overhead.py               # the demo's size
    make cpp && python benchmarks/cpp_overhead.py --size full

Overhead is everything but the inference: reading, decoding, reducing, cropping, copying. Cold start is the whole
process that scores one photo. Writes results/cpp_overhead-SIZE-CPU.json. Exit code 7: a goal is not met; 8: not valid.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Literal

from common import (
    ROOT,
    BenchmarkOptions,
    Goal,
    checkpoint,
    command,
    exit_code,
    result_of,
    run_child,
    run_script,
    watched,
    write_result,
)

from gamma_runtime.cli import log, option, out, run_command
from gamma_runtime.errors import UsageError

SCENE = "natural-quality"
MAX_ANONYMOUS = 80.0  # MB beside the weights
NAMES = ("Python", "C++")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(BenchmarkOptions):
    """Flags."""

    rounds: int = option(5, "how often each is measured")
    size: Literal["demo", "full"] = option("demo", "the demo checkpoint, or the full model with random weights")
    photos: int = option(20, "JPEG photos of 1 to 4 megapixels")
    build: Path = option(ROOT / "build" / "cpp", "where make cpp has put the C++ runtime")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.build / "runtime" / "cpp" / "tests" / "overhead").is_file():
            raise UsageError(f"{self.build}: no C++ runtime there", hint="make cpp")


def _bundle(options: Options) -> Path:
    """A fresh fp32 bundle of one scene: OpenVINO holds its weights as they are."""
    options.work.mkdir(parents=True, exist_ok=True)
    target = options.work / f"cpp-{'tiny' if options.tiny else options.size}.gamma"
    source = [] if options.size == "demo" and not options.tiny else [checkpoint(options)]
    log("exporting the fp32 graph")
    run_child([command("gamma-export"), *source, "-o", target, "--precision", "fp32", "--scene", SCENE, "--json"])
    return target


def _measured(options: Options, bundle: Path, photos: Path, name: str) -> dict[str, Any]:
    """One contender in processes of its own: milliseconds an image, and seconds of a process that scores one photo."""
    tools = options.build / "runtime" / "cpp"
    paths = sorted(photos.glob("*.jpg"))
    passes = "1" if options.size == "full" else "3"
    if name == "C++":
        found = json.loads(run_child([tools / "tests" / "overhead", bundle, "1", passes, *paths]).output)
        cold = run_child([tools / "gamma-run-cpp", bundle, paths[0], "--threads", "1", "--json"])
    else:
        words: list[str | Path] = ["--bundle", bundle, "--photos", photos, "--passes", passes]
        found = json.loads(run_script("cpp_contender", *words).output)
        one = [command("gamma-run"), bundle, paths[0], "--backend", "openvino", "--threads", "1", "--json", "--quiet"]
        cold = run_child(one)
    overhead = [total - infer for total, infer in zip(found["total_ms"], found["infer_ms"], strict=True)]
    return {
        "seconds": [value / 1e3 for value in overhead],  # of each image, without its inference
        "infer_ms": statistics.median(found["infer_ms"]),
        "cold_start_s": cold.seconds,
        "scores": found["scores"],
        "anonymous_bytes": found["anonymous_bytes"],
        "resident_bytes": found["resident_bytes"],
    }


def _summary(rounds: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Medians over the rounds."""

    def middle(key: str) -> float:
        return float(statistics.median(one[name][key] for one in rounds))

    return {
        "overhead_ms": 1e3 * statistics.median(statistics.median(one[name]["seconds"]) for one in rounds),
        "infer_ms": middle("infer_ms"),
        "cold_start_s": middle("cold_start_s"),
        "anonymous_mb": middle("anonymous_bytes") / 1e6,
        "resident_mb": middle("resident_bytes") / 1e6,
    }


def goals(summaries: dict[str, dict[str, float]], weights: int, gap: float) -> list[Goal]:
    """Not more overhead than Python, little memory beside the weights, the same scores."""
    python, cpp = (summaries[name] for name in NAMES)
    ratio = cpp["overhead_ms"] / python["overhead_ms"]
    beside = cpp["anonymous_mb"] - weights / 1e6
    return [
        Goal("overhead an image, C++ over Python", 1.0, ratio, "times", ratio <= 1.0),
        Goal(
            "anonymous memory of C++ beside the weights",
            MAX_ANONYMOUS,
            beside,
            "MB",
            beside <= MAX_ANONYMOUS,
        ),
        Goal("largest difference of a score", 1e-6, gap, "", gap <= 1e-6),
    ]


def measure(options: Options) -> int:
    """Interleaved rounds of both."""
    bundle = _bundle(options)
    photos = options.work / f"photos-{options.photos}"
    run_script("overlap_contender", "--photos", photos, "--count", str(options.photos), "--prepare")
    machine, doubts, rounds = watched(NAMES, options.rounds, lambda name: _measured(options, bundle, photos, name))
    summaries = {name: _summary(rounds, name) for name in NAMES}
    pairs = zip(rounds[0]["Python"].pop("scores"), rounds[0]["C++"].pop("scores"), strict=True)
    gap = max(abs(one - other) for one, other in pairs)
    for one in rounds:
        for name in NAMES:
            one[name].pop("scores", None)
            one[name]["seconds"] = [round(value, 6) for value in one[name]["seconds"]]
    weights = sum(path.stat().st_size for path in bundle.glob("weights-*.bin"))
    judged = goals(summaries, weights, gap)
    what = f"C++ beside Python, {options.photos} JPEG photos of 1 to 4 megapixels, fp32, OpenVINO, one thread"
    extra: dict[str, Any] = {"size": options.size, "weights_bytes": weights, "contenders": summaries}
    result = result_of(what, options, machine, doubts, judged, rounds, **extra)
    write_result("cpp_overhead" if options.tiny else f"cpp_overhead-{options.size}", options, result)
    for name, one in summaries.items():
        shown = ", ".join(f"{key} {value:.4g}" for key, value in one.items())
        out(f"{name}: {shown}")
    for goal in judged:
        out(str(goal))
    for doubt in doubts:
        out(f"not valid: {doubt}")
    return exit_code(options, doubts, judged)


if __name__ == "__main__":
    sys.exit(run_command("cpp_overhead", measure, Options))
