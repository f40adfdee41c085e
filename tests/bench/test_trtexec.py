"""Logs and times of trtexec, whole and broken, its percentiles, and the flags that make versions alike."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from gamma_export.bench.trtexec import (
    METRICS,
    Conditions,
    matched_flags,
    parse_log,
    parse_times,
    percentiles,
    stats_of,
)
from gamma_runtime.errors import InputError, UsageError

DATA = Path(__file__).parents[1] / "data" / "bench"
VERSIONS = ("10.3.0", "10.13.3", "10.16.1", "11.1.0")
LEAST = """[I] === Performance summary ===
[I] Latency: min = 1 ms, max = 2 ms, mean = 1.5 ms, median = 1.5 ms, percentile(99%) = 2 ms
[I] GPU Compute Time: min = 1 ms, max = 2 ms, mean = 1.5 ms, median = 1.5 ms, percentile(99%) = 2 ms
"""


def read(version: str) -> str:
    return (DATA / f"trtexec-{version}.txt").read_text()


@pytest.mark.parametrize("version", VERSIONS)
def test_logs_of_every_version(version: str) -> None:
    log = parse_log(read(version))
    assert log.version == version
    assert log.passed
    assert log.command is not None
    assert log.command.startswith("trtexec --onnx=model.onnx")
    assert log.qps == 63.2451
    assert set(log.metrics) == set(METRICS)
    assert (log.host_seconds, log.gpu_seconds) == (3.02, 2.87142)
    compute = log.metrics["GPU Compute Time"]
    assert (compute.least, compute.median, compute.most) == (14.9071, 15.0127, 16.4413)
    assert set(compute.percentiles) == {90.0, 95.0, 99.0}


def test_warnings_are_those_of_the_measurement() -> None:
    assert parse_log(read("10.16.1")).warnings == ()
    assert "bound by Enqueue Time" in parse_log(read("10.3.0")).warnings[0]
    assert "coefficient of variance = 3.1%" in parse_log(read("10.13.3")).warnings[0]


def test_version_from_the_banner_and_a_log_that_ends_early() -> None:
    banner = "&&&& RUNNING TensorRT.trtexec [TensorRT v101303] [b9] # trtexec --onnx=a.onnx\n"
    log = parse_log(banner + LEAST)
    assert (log.version, log.passed, log.qps) == ("10.13.3", None, None)
    failed = parse_log(banner + LEAST + banner.replace("RUNNING", "FAILED"))
    assert failed.passed is False
    assert parse_log(LEAST).version is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Throughput: 5 qps",
        LEAST + LEAST,
        LEAST.replace("[I] Latency", "[I] Latenz"),
        LEAST.replace("min = 1 ms", "min = x ms"),
        LEAST.replace("min = 1 ms", "min = inf ms"),
        LEAST.replace("min = 1 ms", "min = 3 ms"),
        LEAST.replace("min = 1 ms, ", ""),
        LEAST.replace("min = 1 ms", "min = 1 s"),
        LEAST.replace("mean = 1.5 ms", "mean = -1.5 ms"),
        LEAST.replace("mean = 1.5 ms", f"mean = {'9' * 5000} ms"),
        LEAST + "[I] Throughput: many qps",
        LEAST + "[I] Throughput: 5",
        LEAST + "[I] Total Host Walltime: 5 qp",
    ],
)
def test_broken_logs_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="trtexec"):
        parse_log(text)


def test_times() -> None:
    queries = parse_times((DATA / "trtexec-times.json").read_text())
    assert len(queries) == 40
    assert all(query.latency == pytest.approx(query.h2d + query.compute + query.d2h) for query in queries)
    assert all(0.2 <= query.enqueue <= 0.3 for query in queries)
    found = stats_of([query.compute for query in queries])
    assert found.least <= found.median <= found.percentiles[90.0] <= found.most


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "[1]",
        "[{}]",
        '[{"startEnqMs": 1, "endEnqMs": 2, "h2dMs": 0, "computeMs": "1", "d2hMs": 0, "latencyMs": 1}]',
        '[{"startEnqMs": 1, "endEnqMs": 2, "h2dMs": 0, "computeMs": NaN, "d2hMs": 0, "latencyMs": 1}]',
        '[{"startEnqMs": 1, "endEnqMs": 2, "h2dMs": 0, "computeMs": true, "d2hMs": 0, "latencyMs": 1}]',
        '[{"startEnqMs": 1, "endEnqMs": 2, "h2dMs": 0, "computeMs": 1e999, "d2hMs": 0, "latencyMs": 1}]',
        '[{"startEnqMs": 1, "endEnqMs": 2, "h2dMs": 0, "computeMs": -1, "d2hMs": 0, "latencyMs": 1}]',
        '[{"startEnqMs": 3, "endEnqMs": 2, "h2dMs": 0, "computeMs": 1, "d2hMs": 0, "latencyMs": 1}]',
        f'[{{"startEnqMs": {"9" * 400}, "endEnqMs": 2, "h2dMs": 0, "computeMs": 1, "d2hMs": 0, "latencyMs": 1}}]',
        f'[{{"startEnqMs": {"9" * 5000}}}]',
        "[" * 100_000,
    ],
)
def test_broken_times_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="exportTimes"):
        parse_times(text)


def test_percentiles_by_both_definitions() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    found = percentiles(values, [50, 90, 99, 100])
    # In float32, (1 - 0.9) * 100 is 10.000002 and leaves out 10; in float64 it is 9.999... and would leave out 9. But
    # (1 - 0.99) * 100 is 0.999999 in float32: of 100 samples, trtexec's 99th percentile is the largest.
    assert found["trtexec"] == {50.0: 50.0, 90.0: 90.0, 99.0: 100.0, 100.0: 100.0}
    assert found["linear"][90.0] == pytest.approx(90.1)
    assert percentiles([3.0], [0, 99])["trtexec"] == {0.0: 3.0, 99.0: 3.0}
    for values, percents in (([], [50]), ([1.0], [101]), ([1.0], [-1])):
        with pytest.raises(UsageError, match="percentiles"):
            percentiles(values, percents)


def test_flags_say_the_same_in_both_worlds() -> None:
    old, new = matched_flags("10.16.1"), matched_flags("11.1.0")
    assert {"--useCudaGraph", "--noDataTransfers", "--useSpinWait"}.isdisjoint(old.arguments)
    assert {"--noCudaGraph", "--includeDataTransfers", "--noSpinWait"} <= set(new.arguments)
    fast = Conditions(cuda_graph=True, transfers=False, spin_wait=True)
    old, new = matched_flags("10.3.0", fast, times="times.json"), matched_flags("11.0", fast)
    assert {"--useCudaGraph", "--noDataTransfers", "--useSpinWait", "--stronglyTyped"} <= set(old.arguments)
    assert {"--noCudaGraph", "--includeDataTransfers", "--noSpinWait"}.isdisjoint(new.arguments)
    assert "--exportTimes=times.json" in old.arguments
    assert old.conditions == new.conditions == fast
    assert "--separateProfileRun" not in new.arguments


@pytest.mark.parametrize("version", ["", "8.6.1", "x", "9.3.0", "10", "10,3"])
def test_flags_of_other_versions_are_not_known(version: str) -> None:
    with pytest.raises(UsageError, match=r"10\.0"):
        matched_flags(version)


def test_cut_or_changed_files_are_read_or_refused() -> None:
    chance = random.Random(11)  # noqa: S311 - broken files, not secrets
    log, times = read("10.13.3"), json.dumps(json.loads((DATA / "trtexec-times.json").read_text())[:3])
    for parse, whole in ((parse_log, log), (parse_times, times)):
        broken = [whole[:end] for end in range(0, len(whole), 7)]
        for _ in range(400):
            at = chance.randrange(len(whole))
            broken.append(whole[:at] + chance.choice('%@[],/ x0-.{}"=\x00é') + whole[at + chance.randrange(3) :])
        for text in broken:
            try:
                parse(text)
            except InputError:
                continue
