"""One photo of 512x384 pixels and its crops through PyTorch, ONNX Runtime, OpenVINO and, on a GPU, TensorRT.

    python benchmarks/against.py                                        # full size, random weights, int8 made for it
    python benchmarks/against.py CHECKPOINT --size demo --int8 BUNDLE   # a bundle that was exported with these crops

From uint8 crops to the score; each contender in a process of its own, in turn; ratios are to eager PyTorch in the
authors' way (text tower on each call). A contender that cannot run here says why, and meets no goal. Writes
results/against-SIZE-CPU.json. Exit code 7: a graph is too slow, or scores differ; 8: not valid.
"""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from against_tables import SCORES, against_text
from common import (
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
from contender import SCENE

from gamma_runtime.cli import log, option, out, run_command
from gamma_runtime.contract import CropPolicy
from gamma_runtime.cuda_probe import probe
from gamma_runtime.errors import EnvironmentFault, InputError, UsageError
from gamma_runtime.files import hash_file
from gamma_runtime.selftest import GATES

AUTHORS = "random10:seed0"
CONTRACT = "contract"
MIN_INT8, MIN_FP32 = 2.5, 1.0  # times as fast as eager PyTorch in the authors' way
FULL_WIDTH = 768


@dataclasses.dataclass(frozen=True)
class Contender:
    """Who runs (contender.py's name), in which precision; ``goal``: least speed, times as fast as the first.

    ``judged``: its scores are a goal. Otherwise they are only said to be others, and its time not to be comparable.
    """

    way: str
    precision: str = "fp32"
    gpu: bool = False
    goal: float | None = None
    in_torch: bool = False
    judged: bool = True

    @property
    def name(self) -> str:
        """As the result file and the table know it."""
        return self.way if self.in_torch else f"{self.way}-{self.precision}"


CONTENDERS = (
    Contender("eager", in_torch=True),
    Contender("eager-no-text", in_torch=True),
    Contender("torch-compile", in_torch=True),
    Contender("onnxruntime", goal=MIN_FP32),
    Contender("openvino", goal=MIN_FP32),
    Contender("onnxruntime", "int8", goal=MIN_INT8),
    Contender("openvino", "int8", goal=MIN_INT8),
    Contender("cuda-autocast", "fp16", gpu=True, in_torch=True, judged=False),
    *(Contender(way, "fp16", gpu=True) for way in ("onnxruntime-cuda", "onnxruntime-tensorrt")),
    *(Contender(way, kind, gpu=True) for way in ("tensorrt", "tensorrt-rtx", "trtexec") for kind in ("fp16", "int8")),
)
FIRST = CONTENDERS[0].name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(BenchmarkOptions):
    """Flags of this benchmark."""

    source: Path | None = option(
        None, "checkpoint; conditioned random weights at full size when left out", positional=True
    )
    int8: Path | None = option(None, "bundle with the checkpoint's int8 graph and these crops; exported when left out")
    size: str = option("full", "for the result file's name; speed is judged for full only")
    crops: str = option(AUTHORS, "crop policy; contract: that of the --int8 bundle")
    rounds: int = option(5, "how often every contender runs")
    calls: int = option(3, "timed calls of a contender in a round, after the warm-up")
    threads: int | None = option(None, "CPU threads of every contender; each library's own choice when left out")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calls < 1:
            raise UsageError(f"--calls {self.calls} is below 1")
        if not re.fullmatch(r"[a-z0-9]{1,20}", self.size):
            raise UsageError(f"--size {self.size!r}: up to 20 small letters and digits, for a file's name")
        if self.crops == CONTRACT and self.int8 is None:
            raise UsageError("--crops contract is the policy of a bundle", hint="--int8 BUNDLE, or --crops five")


def policy_of(options: Options) -> str:
    """The crop policy, in words that every command reads.

    Raises:
        UsageError: none, or one whose number of crops depends on the photo or is cut by the graph.
    """
    text = options.crops
    if text == CONTRACT and options.int8 is not None:
        text = str(CropPolicy(**_manifest(options.int8)["contract"]["crop"]))
    policy = CropPolicy.parse(text)
    if policy.varies or policy.frame:
        raise UsageError(f"--crops {text}: PyTorch takes crops, and always as many", hint="five, gridRxC or randomN")
    return str(policy)


def _manifest(bundle: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{bundle}: no bundle ({error})") from error
    return found


def check_int8(bundle: Path, source: Path, policy: str) -> None:
    """A given bundle is of the same checkpoint and takes the same number of crops.

    Raises:
        InputError: no bundle, without an int8 graph of the scene. UsageError: of another checkpoint, other crops.
    """
    manifest = _manifest(bundle)
    if manifest["checkpoint"]["sha256"] != hash_file(source):
        raise UsageError(f"--int8 {bundle}: it was exported from another checkpoint than {source.name}")
    counts = {g["crops"] for g in manifest["graphs"] if g["precision"] == "int8" and SCENE in g["scenes"]}
    if not counts:
        raise InputError(f"--int8 {bundle}: no int8 graph of {SCENE}")
    if counts != {CropPolicy.parse(policy).crops}:
        raise UsageError(f"--int8 {bundle}: it takes {counts} crops, {policy} are others", hint="--crops contract")


def reason(text: str) -> str:
    """One line without this machine's folders, so that it can be published."""
    return re.sub(r"(?<![\w.])(?:/[\w.@+-]+)+/(?=[\w.@+-])", "", " ".join(text.split()))[:300]


def _export(options: Options, source: Path, policy: str, kind: str) -> Path:
    """A fresh bundle of the one scene in one precision.

    Raises:
        EnvironmentFault: the export failed, or its gate did not hold.
    """
    target = options.work / f"against-{'tiny' if options.tiny else options.size}-{kind}.gamma"
    words: list[str | Path] = ["--precision", kind, "--scene", SCENE, "--crops", policy, "--json"]
    if kind == "int8":
        words += ["--calib", options.work / "calibrate", "--calib-min", "4", "--skip-speed"]
        words += ["--photos", options.work / "verify"]
    log(f"exporting the {kind} graph")
    run_child([command("gamma-export"), source, "-o", target, *words])
    return target


def _bundles(options: Options, source: Path, policy: str) -> tuple[dict[str, Path], dict[str, str]]:
    """The bundle of each precision, and why there is none."""
    found = {"fp32": _export(options, source, policy, "fp32")}
    dims = _manifest(found["fp32"])["checkpoint"]["dims"]
    if options.size == "full" and not options.tiny and dims["vision"]["width"] != FULL_WIDTH:
        raise UsageError("the checkpoint is not of the full size", hint="--size demo, or another name")
    missing: dict[str, str] = {}
    if options.int8 is not None:
        check_int8(options.int8, source, policy)
        found["int8"] = options.int8
    for kind in ("int8", "fp16") if probe().usable else ("int8",):
        if kind not in found:
            try:
                found[kind] = _export(options, source, policy, kind)
            except EnvironmentFault as error:
                missing[kind] = f"no {kind} bundle: {reason(str(error))}"
    return found, missing


class Field:
    """Everything that runs the contenders of one photo."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.source = options.source or checkpoint(options)
        self.policy = policy_of(options)
        self.crops = options.work / "crops.npy"
        options.work.mkdir(parents=True, exist_ok=True)
        run_script("contender", "--name", "prepare", "--crops", self.crops, "--policy", self.policy)
        self.bundles, self.missing = _bundles(options, self.source, self.policy)

    def run(self, one: Contender) -> dict[str, Any]:
        """Times and scores of one process.

        Raises:
            EnvironmentFault: it failed, or cannot run any more.
        """
        found = self._ask(one, self.options.calls)
        if "skipped" in found:
            raise EnvironmentFault(f"{one.name} could run before: {found['skipped']}")
        return found

    def _ask(self, one: Contender, calls: int) -> dict[str, Any]:
        words: list[str | Path] = ["--name", one.way, "--precision", one.precision, "--crops", self.crops]
        words += ["--checkpoint", self.source, "--calls", str(calls)]
        if not one.in_torch:
            words += ["--bundle", self.bundles[one.precision]]
        if self.options.threads is not None:
            words += ["--threads", str(self.options.threads)]
        found: dict[str, Any] = json.loads(run_script("contender", *words).output)
        return found

    def trial(self, one: Contender) -> str | None:
        """Why a contender cannot run here; None when it can. What is compiled or built is kept from then on.

        Raises:
            EnvironmentFault: one that needs no GPU failed, which is a fault and no lack.
        """
        state = probe()
        if one.gpu and not state.usable:
            return f"no usable GPU: {reason(state.detail)}"
        if not one.in_torch and one.precision in self.missing:
            return self.missing[one.precision]
        try:
            found = self._ask(one, calls=1)
        except EnvironmentFault as error:
            if not one.gpu:
                raise
            return f"failed: {reason(str(error))}"
        return reason(found["skipped"]) if "skipped" in found else None


def summary(rounds: list[dict[str, Any]], one: Contender) -> dict[str, Any]:
    """Milliseconds, the ratio to the first contender (above 1: faster than it), and score differences from it."""
    name = one.name
    times, firsts = ([1e3 * statistics.median(r[n]["seconds"]) for r in rounds] for n in (name, FIRST))
    ratios = [first / own for first, own in zip(firsts, times, strict=True)]
    gaps = [abs(a - b) for r in rounds for a, b in zip(*(r[n]["crop_scores"] for n in (FIRST, name)), strict=True)]
    found = {
        "median_ms": statistics.median(times),
        "least_ms": min(times),
        "most_ms": max(times),
        "ratio": statistics.median(firsts) / statistics.median(times),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "score": rounds[0][name]["score"],
        "score_difference": max(abs(r[name]["score"] - r[FIRST]["score"]) for r in rounds),
        "crop_score_difference": max(gaps),
        "mean_crop_score_difference": statistics.fmean(gaps),
    }
    return found | {"same_scores": all(goal.met for goal in score_goals(one, found))}


def score_goals(one: Contender, found: dict[str, Any]) -> list[Goal]:
    """The gate of the contender's precision: the largest difference, and for int8 also the mean."""
    limit, gap, mean = GATES[one.precision], found["crop_score_difference"], found["mean_crop_score_difference"]
    made = [Goal(f"{one.name}: largest score difference", limit, gap, SCORES, gap <= limit)]
    if one.precision == "int8":
        made.append(Goal(f"{one.name}: mean score difference", limit / 4, mean, SCORES, mean <= limit / 4))
    return made


def goals(summaries: dict[str, dict[str, Any]], skipped: dict[str, str], *, speed: bool) -> list[Goal]:
    """Scores by their gates; fp32 not slower than PyTorch, int8 2.5 times as fast; who was skipped met nothing."""
    made = []
    for one in CONTENDERS[1:]:
        if one.name in skipped:
            if one.goal is not None:
                made.append(Goal(f"{one.name}: not measured ({skipped[one.name]})", 1.0, 0.0, "runs", False))
            continue
        found = summaries[one.name]
        made += score_goals(one, found) if one.judged else []
        if speed and one.goal is not None:
            what = f"{one.name}: times as fast as eager PyTorch, at least {one.goal:g}"
            made.append(Goal(what, one.goal, found["ratio"], "times", found["ratio"] >= one.goal))
    return made


def measure(options: Options) -> int:
    """Try every contender once, then time those that run here in interleaved rounds."""
    field = Field(options)
    skipped: dict[str, str] = {}
    for one in CONTENDERS:
        if (why := field.trial(one)) is not None:
            skipped[one.name] = why
            log(f"{one.name} is skipped: {why}")
    running = {one.name: one for one in CONTENDERS if one.name not in skipped}
    if FIRST not in running:
        raise EnvironmentFault(f"{FIRST}: {skipped[FIRST]}", hint="pip install 'gamma-edge[export]'")
    machine, doubts, rounds = watched(list(running), options.rounds, lambda name: field.run(running[name]))
    summaries = {name: summary(rounds, one) for name, one in running.items()}
    judged = goals(summaries, skipped, speed=options.size == "full")
    doubts += [
        f"{one.name}: its scores are others, so its time is not comparable"
        for one in running.values()
        if one.goal is not None and not summaries[one.name]["same_scores"]
    ]
    what = f"crops to score of one 512x384 photo, {field.policy}, scene {SCENE}"
    extra: dict[str, Any] = {"size": options.size, "crops": field.policy, "contenders": summaries, "skipped": skipped}
    result = result_of(what, options, machine, doubts, judged, rounds, **extra)
    write_result("against" if options.tiny else f"against-{options.size}", options, result)
    out(against_text(result))
    return exit_code(options, doubts, judged)


if __name__ == "__main__":
    sys.exit(run_command("against", measure, Options))
