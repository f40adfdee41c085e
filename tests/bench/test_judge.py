"""What makes a measurement not valid, one cause at a time; and what the machine says of itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gamma_export.bench.judge import doubts_of_load, doubts_of_row, remarks_of_row
from gamma_export.bench.machine import Conditions, Watch, changes, cpu_model, facts, read_conditions
from gamma_export.bench.sampling import WarmUp
from gamma_runtime.doctor.machine import Clock, Gpu, Machine
from tests.bench.made import result, row

CALM = Conditions(
    governors={"policy0": "schedutil"},
    mhz={"policy0": 2000},
    temperatures={"cpu": 50.0},
    power_mode="MAXN",
    slowed_by=(),
    thermal_throttles=3,
    quota_throttles=None,
)


def test_a_good_row_has_no_doubts() -> None:
    good = row([10.0] * 20, half_width=0.01, warm_up=WarmUp(30, 1.0, True))
    assert doubts_of_row(good, 0.02) == []
    assert result([good]).verdict == "valid"


def test_too_few_samples() -> None:
    (doubt,) = doubts_of_row(row([10.0] * 20, half_width=0.05), 0.02)
    assert doubt.startswith("onnxruntime call batch=1: the median is known within ±5.0% after 20 samples")


def test_never_warm() -> None:
    (doubt,) = doubts_of_row(row([10.0] * 20, half_width=0.01, warm_up=WarmUp(9, 12.5, False)), 0.02)
    assert doubt == "onnxruntime call batch=1: never became stable in 12.5 s and 9 calls"


@pytest.mark.parametrize(("drift", "way"), [(0.08, "higher"), (-0.08, "lower")])
def test_drift(drift: float, way: str) -> None:
    (doubt,) = doubts_of_row(row([10.0] * 20, drift=drift), 0.02)
    assert f"8.0% {way} than the first's" in doubt
    assert doubts_of_row(row([10.0] * 20, drift=drift / 2), 0.02) == []


def test_speeds_that_differ() -> None:
    steady = row([10.0, 10.1, 9.9, 10.0, 5.0, 10.0, 10.1, 10.0], metric="throughput", unit="images/s")
    assert doubts_of_row(steady, 0.02) == []  # one stretch may be off
    wild = row([10.0, 5.0, 9.0, 4.0, 10.0, 5.0, 9.5, 4.5], metric="throughput", unit="images/s")
    assert "the speeds differ by" in doubts_of_row(wild, 0.02)[0]


def test_other_programs() -> None:
    assert doubts_of_load("openvino", 0.1) == []
    assert doubts_of_load("openvino", None) == []
    assert doubts_of_load("openvino", 0.25) == ["openvino: other programs took 25% of the processor; the limit is 10%"]


def test_what_was_dropped_is_remarked_not_doubted() -> None:
    behind = row([10.0] * 4, metric="paced", rate=30.0, batch=None, extra={"scored": 3, "dropped": 1, "late": 2})
    assert doubts_of_row(behind, 0.02) == []
    assert "1 of 4 images were never scored" in remarks_of_row(behind)[0]
    assert remarks_of_row(dataclasses.replace(behind, extra={"scored": 4, "dropped": 0, "late": 0})) == []


def test_the_verdict_lists_every_doubt() -> None:
    assert result([row([1.0])], doubts=("a", "b")).verdict == "not valid because a; b"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"governors": {"policy0": "powersave"}}, "the governors changed"),
        ({"power_mode": "15W"}, "the power mode changed from MAXN to 15W"),
        ({"slowed_by": ("its temperature",)}, "the GPU was held back: its temperature"),
        ({"thermal_throttles": 5}, "the processors slowed down for heat, 2 times"),
    ],
)
def test_changes_of_the_machine(change: dict[str, object], words: str) -> None:
    (doubt,) = changes(CALM, dataclasses.replace(CALM, **change))  # type: ignore[arg-type]
    assert words in doubt


def test_a_quota_that_stops_us_and_what_does_not_matter() -> None:
    before, after = (dataclasses.replace(CALM, quota_throttles=count) for count in (0, 4))
    assert changes(before, after) == ["the container's CPU quota stopped the programs, 4 times"]
    warmer = dataclasses.replace(CALM, temperatures={"cpu": 70.0}, mhz={"policy0": 2500}, thermal_throttles=None)
    assert changes(CALM, warmer) == []
    assert changes(CALM, CALM) == []


def test_conditions_are_read_from_sys(tmp_path: Path) -> None:
    for cpu, count in ((0, 2), (1, 5)):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{count}\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.stat").write_text("usage_usec 5\nnr_periods 9\nnr_throttled 7\nthrottled_usec 8\n")
    gpu = Gpu("a GPU", "1", "P0", "900", "1800", "80", "60", ("its temperature",))
    machine = Machine(clocks=(Clock("policy0", 1500, 3000, "ondemand"),), power_mode="15W", gpus=(gpu, gpu))
    found = read_conditions(machine, tmp_path)
    assert (found.thermal_throttles, found.quota_throttles) == (7, 7)
    assert (found.governors, found.mhz) == ({"policy0": "ondemand"}, {"policy0": 1500})
    assert (found.power_mode, found.slowed_by) == ("15W", ("its temperature",))
    nothing = read_conditions(Machine(), tmp_path / "no")
    assert (nothing.thermal_throttles, nothing.quota_throttles) == (None, None)


def test_the_watch_keeps_extremes(tmp_path: Path) -> None:
    policy, zone = (tmp_path / name for name in ("sys/devices/system/cpu/cpufreq/policy0", "sys/class/thermal"))
    zone = zone / "thermal_zone0"
    policy.mkdir(parents=True)
    zone.mkdir(parents=True)
    for path, text in ((policy / "cpuinfo_max_freq", "3000000"), (zone / "type", "cpu")):
        path.write_text(text)
    (policy / "scaling_cur_freq").write_text("2000000")
    (zone / "temp").write_text("61000")
    with Watch(tmp_path, every=0.001) as watch:
        while not watch.seen()["mhz"]:
            pass
        (policy / "scaling_cur_freq").write_text("1000000")
        while watch.seen()["mhz"]["policy0"][0] != 1000:
            pass
    assert (watch.seen()["mhz"]["policy0"][0], watch.seen()["mhz"]["policy0"][2]) == (1000, 2000)
    assert watch.seen()["celsius_max"] == {"cpu": 61.0}


def test_facts_name_the_machine() -> None:
    known = facts(Machine(memory_total=2048, model="a board"))
    assert known["cpu"] == cpu_model()
    assert known["memory_mib"] == 2048
    assert known["model"] == "a board"
    assert known["libraries"]["numpy"]
