"""What NVIDIA's trtexec measured: its log, its ``--exportTimes`` file, and the flags that make two versions alike.

TensorRT 11.0 turned three defaults round (CUDA graph, transfers, spin-wait): the same command line measures something
else there. The flags of `matched_flags` state all three; keep them with the numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from gamma_export.bench import strict_json
from gamma_runtime.errors import InputError, UsageError

__all__ = [
    "METRICS",
    "Conditions",
    "Flags",
    "Log",
    "Query",
    "Stats",
    "matched_flags",
    "parse_log",
    "parse_times",
    "percentiles",
    "stats_of",
    "version_of",
]

# As trtexec writes them, and the keys of its --exportTimes file that they come from.
METRICS = {
    "Latency": "latencyMs",
    "Enqueue Time": "enqueueMs",
    "H2D Latency": "h2dMs",
    "GPU Compute Time": "computeMs",
    "D2H Latency": "d2hMs",
}
_TIMES = ("startEnqMs", "endEnqMs", "h2dMs", "computeMs", "d2hMs", "latencyMs")  # the others are moments
_WARM_UP_MS, _SECONDS, _LEAST, _PERCENTILES = 200, 3, 10, (90, 95, 99)  # the defaults of every version, stated

_PREFIX = r"^(?:\[[^\]\n]{0,80}\] ?)*"  # [11/07/2025-14:36:36] [I]
_NUMBER = r"[+-]?(?:\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})(?:[eE][+-]?\d{1,3})?"
_METRIC = re.compile(_PREFIX + rf"({'|'.join(METRICS)}): (.*)$", re.ASCII)
_PAIR = re.compile(rf"(min|max|mean|median|percentile\((\d{{1,3}}(?:\.\d{{1,6}})?)%\)) = ({_NUMBER}) ms", re.ASCII)
_ALONE = re.compile(
    _PREFIX + rf"(Throughput|Total Host Walltime|Total GPU Compute Time): ({_NUMBER}) (qps|s)$", re.ASCII
)
_ALONE_BEGINS = re.compile(_PREFIX + r"(Throughput|Total Host Walltime|Total GPU Compute Time):", re.ASCII)
_WARNING = re.compile(r"^(?:\[[^\]\n]{0,80}\] ?)*\[W\] (?!\[TRT\])(.{1,500})$", re.ASCII)
_BANNER = re.compile(
    r"^&&&& (RUNNING|PASSED|FAILED) TensorRT\.trtexec \[TensorRT v(\d{5,7})\](?: \[b\d{1,6}\])?(?: # (.*))?$", re.ASCII
)
_VERSION = re.compile(_PREFIX + r"TensorRT version: (\d{1,3}\.\d{1,3}(?:\.\d{1,3}){0,2})", re.ASCII)
_SUMMARY = "=== Performance summary ==="


@dataclasses.dataclass(frozen=True)
class Stats:
    """One metric in milliseconds, as trtexec computes it; percentiles by percent, e.g. ``{99.0: 5.3}``."""

    least: float
    most: float
    mean: float
    median: float
    percentiles: Mapping[float, float]


@dataclasses.dataclass(frozen=True)
class Log:
    """What a log says; None is what it does not.

    Attributes:
        version: of TensorRT, e.g. ``10.13.3``.
        command: the command line as trtexec repeats it.
        passed: what its last line says; None where the log ends before.
        qps: queries a second; a query is one batch.
        metrics: by the names of `METRICS`.
        host_seconds, gpu_seconds: of all queries.
        warnings: of the summary: bound by launches or transfers, unstable clocks.
    """

    version: str | None
    command: str | None
    passed: bool | None
    qps: float | None
    metrics: Mapping[str, Stats]
    host_seconds: float | None
    gpu_seconds: float | None
    warnings: tuple[str, ...]


def parse_log(text: str) -> Log:
    """A log of TensorRT 10.3 to 11.x, of one run.

    Raises:
        InputError: no performance summary or several, or a line of it with a number that cannot be read.
    """
    lines = [line.rstrip() for line in text.split("\n")]
    places = [index for index, line in enumerate(lines) if line.endswith(_SUMMARY)]
    if len(places) != 1:
        hint = "the log of one run; trtexec writes it after the last query"
        raise InputError(f"trtexec: {len(places)} performance summaries in the log", hint=hint)
    summary = list(itertools.takewhile(lambda line: "=== " not in line, lines[places[0] + 1 :]))
    metrics: dict[str, Stats] = {}
    alone: dict[str, float] = {}
    for line in summary:
        if found := _METRIC.match(line):
            metrics.setdefault(found[1], _stats(found[1], found[2]))
        elif found := _ALONE.match(line):
            alone[found[1]] = _finite(found[1], found[2])
        elif (found := _ALONE_BEGINS.match(line)) and found[1] not in alone:
            raise InputError(f"trtexec: {found[1]} cannot be read: {line[-60:]!r}")
    for wanted in ("Latency", "GPU Compute Time"):
        if wanted not in metrics:
            raise InputError(f"trtexec: the performance summary has no {wanted}")
    return Log(
        version=version_of(text),
        command=next((found[3] for line in lines if (found := _BANNER.match(line)) and found[3]), None),
        passed=_passed(lines),
        qps=alone.get("Throughput"),
        metrics=metrics,
        host_seconds=alone.get("Total Host Walltime"),
        gpu_seconds=alone.get("Total GPU Compute Time"),
        warnings=tuple(found[1].strip() for line in summary if (found := _WARNING.match(line))),
    )


def _finite(name: str, word: str) -> float:
    value = float(word)
    if not 0 <= value < 1e12:
        raise InputError(f"trtexec: {name} of {word} is not possible")
    return value


def _stats(name: str, text: str) -> Stats:
    values: dict[str, float] = {}
    percents: dict[float, float] = {}
    for part in text.split(", "):
        found = _PAIR.fullmatch(part)
        if not found:
            raise InputError(f"trtexec: {name} cannot be read at {part[:60]!r}")
        value = _finite(name, found[3])
        if found[2]:
            percents[float(found[2])] = value
        else:
            values[found[1]] = value
    if set(values) != {"min", "max", "mean", "median"} or values["min"] > values["max"]:
        raise InputError(f"trtexec: {name} cannot be read: {text[:60]!r}")
    return Stats(values["min"], values["max"], values["mean"], values["median"], percents)


def version_of(text: str) -> str | None:
    """The version of TensorRT that a log or ``trtexec --help`` names, e.g. ``10.13.3``; None where it names none."""
    lines = [line.rstrip() for line in text.split("\n")]
    for line in lines:
        if found := _VERSION.match(line):
            return found[1]
    for line in lines:
        if found := _BANNER.match(line):
            number = int(found[2])
            if number >= 100_000:  # 101303; before TensorRT 10 it was 8601
                return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
    return None


def _passed(lines: Sequence[str]) -> bool | None:
    words = [found[1] for line in lines if (found := _BANNER.match(line))]
    if "FAILED" in words:
        return False
    return True if "PASSED" in words else None


@dataclasses.dataclass(frozen=True)
class Query:
    """One query of an ``--exportTimes`` file, in milliseconds: ``latency`` is h2d + compute + d2h, nothing queued."""

    enqueue: float
    h2d: float
    compute: float
    d2h: float
    latency: float


def parse_times(content: str) -> list[Query]:
    """A file of ``--exportTimes``: preferred to the log, which rounds to six digits.

    Raises:
        InputError: no JSON list of queries, an empty one, or one with impossible numbers.
    """
    what = "trtexec --exportTimes"
    queries = []
    for index, row in enumerate(strict_json.rows(strict_json.load(content, what), what)):
        start, end, *spans = (strict_json.number(row, key, f"{what}, query {index}") for key in _TIMES)
        if min(end - start, *spans) < 0:
            raise InputError(f"{what}, query {index}: a time below 0")
        queries.append(Query(end - start, *spans))
    if not queries:
        raise InputError(f"{what}: no queries")
    return queries


def percentiles(values: Sequence[float], percents: Sequence[float]) -> dict[str, dict[float, float]]:
    """Percentiles by two definitions, which differ where there are few samples; both named.

    Args:
        values: at least one, in any order.
        percents: from 0 to 100.

    Returns:
        ``trtexec``: always one of the samples, the one at index all - 1 - floor((1 - p) * all) in trtexec's own
        float32 arithmetic. ``linear``: between the two nearest samples, as numpy does it.

    Raises:
        UsageError: no values, or a percent out of its range.
    """
    if not values or not all(0 <= percent <= 100 for percent in percents):
        raise UsageError(f"percentiles {list(percents)} of {len(values)} values")
    ordered = sorted(values)
    last = len(ordered) - 1
    one = np.float32(1)
    trtexec = {}
    for percent in percents:
        left_out = int((one - np.float32(percent) / np.float32(100)) * np.float32(len(ordered)))
        trtexec[float(percent)] = ordered[max(last - left_out, 0)]
    linear = {float(percent): float(np.percentile(ordered, percent)) for percent in percents}
    return {"trtexec": trtexec, "linear": linear}


def stats_of(values: Sequence[float], percents: Sequence[float] = _PERCENTILES) -> Stats:
    """The same numbers as in the log, by trtexec's definitions.

    Raises:
        UsageError: no values, or a percent out of its range.
    """
    found = percentiles(values, percents)["trtexec"]
    return Stats(min(values), max(values), statistics.fmean(values), statistics.median(values), found)


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What is measured, whatever the version's defaults are.

    Attributes:
        cuda_graph: launched as one CUDA graph.
        transfers: copies to and from the GPU are a part of it. Without them trtexec uses managed memory on a Jetson.
        spin_wait: the host waits busily.
    """

    cuda_graph: bool = False
    transfers: bool = True
    spin_wait: bool = False


@dataclasses.dataclass(frozen=True)
class Flags:
    """The flags for one version and what they were made from: a record to keep with the numbers."""

    version: str
    conditions: Conditions
    arguments: tuple[str, ...]


def matched_flags(version: str, conditions: Conditions | None = None, *, times: str | None = None) -> Flags:
    """Flags that measure the same in every version from 10.0.

    The three conditions have only one flag each in a version, the one that leaves its default; no flag is the other
    state. Profiles are taken in a run of their own in both.

    Args:
        version: of TensorRT, e.g. ``10.3.0``.
        conditions: None is transfers, no CUDA graph, a host that sleeps: how a program calls an engine that knows none
            of these.
        times: where ``--exportTimes`` writes.

    Raises:
        UsageError: a version before 10.0, or no version.
    """
    wanted = conditions or Conditions()
    found = re.match(r"(\d{1,3})\.\d{1,3}(?:\.|$)", version, re.ASCII)
    if not found or int(found[1]) < 10:
        raise UsageError(f"TensorRT {version[:20]!r}: flags are known for 10.0 and later")
    if int(found[1]) < 11:
        chosen = [
            (wanted.cuda_graph, "--useCudaGraph"),
            (not wanted.transfers, "--noDataTransfers"),
            (wanted.spin_wait, "--useSpinWait"),
            (True, "--separateProfileRun"),  # always so from 11.0 on
            (True, "--stronglyTyped"),  # does nothing from 11.0 on
        ]
    else:
        chosen = [
            (not wanted.cuda_graph, "--noCudaGraph"),
            (wanted.transfers, "--includeDataTransfers"),
            (not wanted.spin_wait, "--noSpinWait"),
        ]
    stated = [f"--warmUp={_WARM_UP_MS}", f"--duration={_SECONDS}", f"--iterations={_LEAST}"]
    stated.append(f"--percentile={','.join(map(str, _PERCENTILES))}")
    if times is not None:
        stated.append(f"--exportTimes={times}")
    return Flags(version, wanted, (*(flag for use, flag in chosen if use), *stated))
