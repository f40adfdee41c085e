"""Lines of tegrastats, of several modules and JetPack versions, whole and broken."""

from __future__ import annotations

import datetime
import random
from pathlib import Path

import pytest

from gamma_export.bench.tegrastats import Clock, Memory, Rail, Sample, parse_line, parse_lines, summarise
from gamma_runtime.errors import InputError

DATA = Path(__file__).parents[1] / "data" / "bench"
SAMPLES = sorted(DATA.glob("tegrastats-*.txt"))


def read(name: str) -> list[Sample]:
    return parse_lines((DATA / f"tegrastats-{name}.txt").read_text())


def test_there_are_samples() -> None:
    assert len(SAMPLES) >= 8


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_is_read(path: Path) -> None:
    samples = parse_lines(path.read_text())
    assert all(sample.ram and sample.cpus and sample.celsius and sample.rails for sample in samples)
    found = summarise(samples, 1.0)
    assert found.samples == len(samples)
    assert found.mean_watts is not None
    assert found.peak_watts is not None
    assert found.mean_watts <= found.peak_watts


def test_orin_nano_field_by_field() -> None:
    sample = read("orin-nano-jp62")[0]
    assert sample.time == datetime.datetime(2025, 10, 8, 4, 35, 2)
    assert sample.ram == Memory(3712, 7620, 4.0)
    assert sample.swap == Memory(369, 3810)
    assert sample.cpus[0] == Clock(38, (1510,))
    assert len(sample.cpus) == 6
    assert sample.emc == Clock(31, (2133,))
    assert sample.gpu == Clock(98, (612,))
    assert sample.celsius["tj"] == 58.625
    assert sample.rails["VDD_IN"] == Rail(9000, 8800)
    assert sample.milliwatts == 9000


def test_agx_orin_adds_its_rails_but_not_one_twice() -> None:
    first, second = read("agx-orin-jp51")
    assert first.milliwatts == 2340 + 390 + 4020  # VDDQ_VDD2_1V8AO is within VIN_SYS_5V0
    assert "NC" not in first.rails
    assert "GPU" not in first.celsius  # -256: without power
    assert second.gpu == Clock(97, (1294, 1294))
    assert first.cpus[8:] == (None,) * 4
    assert summarise([first, second]).rail == "sum of VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"


def test_agx_xavier_names_rails_like_units() -> None:
    first, _ = read("agx-xavier-jp51")
    assert first.rails["GPU"] == Rail(4012, 3900)
    assert first.celsius["GPU"] == 37.0
    assert first.milliwatts == 4012 + 1540 + 2460 + 921 + 2776


def test_thor() -> None:
    idle, busy = read("agx-thor-jp70")
    assert idle.gpu == Clock(None, (0, 0, 0))
    assert busy.gpu == Clock(None, (1575, 1575, 1575))
    assert busy.milliwatts == 58800
    (late,) = read("agx-thor-jp72")
    assert late.gpu is None
    assert late.rails["VIN"] == Rail(87420, 43710, 87420)
    assert late.rails["VDD_GPU"].now == -390  # an offset of the monitor, seen on idle boards


def test_jetpack_4_has_no_time_and_no_units() -> None:
    (sample,) = read("tx2-jp46")
    assert sample.time is None
    assert sample.swap is None
    assert sample.gpu == Clock(12, ())
    assert sample.rails["VDD_IN"] == Rail(3140, 3208)
    found = summarise([sample, sample])
    assert (found.seconds, found.joules) == (None, None)
    assert found.mean_watts == pytest.approx(3.14)


@pytest.mark.parametrize(
    ("text", "clock"),
    [
        ("0%@[0,0]", Clock(0, (0, 0))),
        ("99%@[1300]", Clock(99, (1300,))),
        ("7%@918", Clock(7, (918,))),
        ("61%", Clock(61, ())),
        ("@[314,315,316]", Clock(None, (314, 315, 316))),
        ("@314", Clock(None, (314,))),
        ("off", Clock(0, ())),
    ],
)
def test_spellings_of_the_gpu(text: str, clock: Clock) -> None:
    assert parse_line(f"RAM 1/2MB (lfb 1x4MB) GR3D_FREQ {text} VIC off").gpu == clock


def test_other_spellings_of_memory_and_cores() -> None:
    sample = parse_line("RAM 1/2MB (lfb 3x512kB) CPU [10%,off,20%]@1428 EMC_FREQ @665")
    assert sample.ram == Memory(1, 2, 0.5)
    assert sample.cpus == (Clock(10, (1428,)), None, Clock(20, (1428,)))
    assert sample.emc == Clock(None, (665,))


def test_unknown_fields_are_skipped() -> None:
    known = "RAM 1/2MB (lfb 1x4MB) VDD_IN 5mW/5mW"
    assert parse_line("RAM 1/2MB (lfb 1x4MB) MTS fg 0% bg 0% QPU [7] x@y VDD_IN 5mW/5mW new=1") == parse_line(known)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        "RAM",
        "RAM x/2MB",
        "RAM 3/2MB",
        "RAM 1/2GB",
        "RAM 1/2MB CPU 10%",
        "RAM 1/2MB CPU [10%@1,",
        "RAM 1/2MB CPU [10%@1,x]",
        "RAM 1/2MB CPU [101%@1]",
        "RAM 1/2MB CPU []",
        "RAM 1/2MB GR3D_FREQ",
        "RAM 1/2MB GR3D_FREQ 4",
        "RAM 1/2MB GR3D_FREQ 4%@",
        "RAM 1/2MB GR3D_FREQ 4%@[",
        "RAM 1/2MB GR3D_FREQ 4%@[1,]",
        "RAM 1/2MB GR3D_FREQ 400%",
        "RAM 1/2MB EMC_FREQ -1%",
        "RAM 1/2MB cpu@4x.5C",
        "RAM 1/2MB VDD_IN",
        "RAM 1/2MB VDD_IN 51x0mW/5000mW",
        "RAM 1/2MB VDD_IN 5100mW/50",
        "RAM 1/2MB VDD_IN 5.1W/5.0W",
        "RAM 1/2MB VIN nan",
        "13-40-2025 10:00:00 RAM 1/2MB",
        "RAM 1/2MB " + "x" * 20000,
        f"RAM 1/{'9' * 5000}MB",
        f"RAM 1/2MB VDD_IN {'9' * 5000}mW/1mW",
    ],
)
def test_broken_lines_are_refused(line: str) -> None:
    with pytest.raises(InputError, match="tegrastats"):
        parse_line(line)


def test_a_log_names_the_line_and_forgives_its_end() -> None:
    good = "RAM 1/2MB (lfb 1x4MB) VDD_IN 5100mW/5000mW"
    with pytest.raises(InputError, match="line 3"):
        parse_lines(f"{good}\n\nRAM x\n{good}\n")
    assert len(parse_lines(f"{good}\n{good}\nRAM 1/2MB GR3D_FREQ 4")) == 2
    with pytest.raises(InputError, match="line 2"):
        parse_lines(f"{good}\nRAM 1/2MB GR3D_FREQ 4\n")
    with pytest.raises(InputError, match="empty"):
        parse_lines("\n\n")


def test_energy_over_timestamps() -> None:
    found = summarise(read("xavier-nx-jp51"))
    assert found.rail == "VDD_IN"
    assert found.seconds == 2.0
    assert found.longest_gap == 1.0
    assert found.joules == pytest.approx((2.76 + 11.24) / 2 + (11.24 + 11.76) / 2)
    assert found.mean_watts == pytest.approx(found.joules / 2)
    assert found.peak_watts == 11.76
    assert found.gpu_mhz == (1109, 1109)  # while it had work
    assert found.max_celsius["GPU"] == 51.0
    assert found.max_ram_mb == 3170


def test_energy_over_an_interval_and_over_shared_seconds() -> None:
    samples = read("orin-nano-jp62")
    area = (9.0 + 9.4) / 2 + (9.4 + 9.2) / 2 + (9.2 + 5.2) / 2
    found = summarise(samples, 0.2)
    assert found.joules == pytest.approx(area * 0.2)
    assert found.gpu_mhz == (509, 612)
    spread = summarise(samples)  # two lines a second: half a second apart
    assert spread.seconds == 1.5
    assert spread.joules == pytest.approx(area * 0.5)


def test_what_cannot_be_summed_is_refused() -> None:
    early, late = read("xavier-nx-jp51")[:2]
    with pytest.raises(InputError, match="no samples"):
        summarise([])
    with pytest.raises(InputError, match="goes back"):
        summarise([late, early])
    with pytest.raises(InputError, match="interval"):
        summarise([early, late], 0.0)
    with pytest.raises(InputError, match="rails change"):
        summarise([early, read("agx-orin-jp51")[0]], 1.0)


def test_a_cut_or_changed_line_is_read_or_refused() -> None:
    chance = random.Random(7)  # noqa: S311 - broken lines, not secrets
    for path in SAMPLES:
        line = path.read_text().splitlines()[0]
        broken = [line[:end] for end in range(len(line))]
        for _ in range(300):
            at = chance.randrange(len(line))
            broken.append(line[:at] + chance.choice("%@[],/ x0-.\x00é") + line[at + chance.randrange(3) :])
        for text in broken:
            try:
                summarise([parse_line(text)], 1.0)
            except InputError:
                continue
