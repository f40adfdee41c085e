"""Energy beside a measurement, from programs that stand in for tegrastats and nvidia-smi, good ones and bad ones."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gamma_export.bench.measure import measure
from gamma_export.bench.power import Energy, Meter, energy, meter_command
from gamma_export.bench.report import described
from gamma_export.bench.result import row_from
from gamma_export.bench.spec import Spec
from gamma_export.bench.tegrastats import parse_lines
from tests.bench.made import result, row
from tests.runtime.images import encode, photo
from tests.runtime.tiny_bundle import Tiny, make_bundle

DATA = Path(__file__).parents[1] / "data" / "bench"
LINES = DATA / "tegrastats-orin-nano-jp62.txt"
REPEAT = 'while true; do while read -r line; do echo "$line"; sleep 0.01; done < "{file}"; done\n'
PROGRAMS = {
    "good": REPEAT.format(file=LINES),
    "garbage": "while true; do echo 'RAM is cheap'; head -c 100 /dev/urandom; echo; sleep 0.01; done\n",
    "hangs": "trap '' TERM\nwhile true; do sleep 1; done\n",
    "dies": f'head -1 "{LINES}"\nexit 3\n',
    "floods": "yes VDD_IN | tr -d '\\n'\n",
}
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a program on PATH; nothing real is there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr("gamma_export.bench.power._PATIENCE", 0.3)

    def put(script: str, name: str = "tegrastats") -> Path:
        (folder / name).write_text(f"#!/bin/sh\n{script}")
        (folder / name).chmod(0o755)
        return folder / name

    return put


def spec(folder: Path) -> Spec:
    make_bundle(folder / "a.gamma", Tiny(batch=(1, 2, 4)))
    (folder / "0.jpg").write_bytes(encode(photo(500, 400, 0), "JPEG"))
    return Spec(
        bundle=str(folder / "a.gamma"),
        scene="natural-quality",
        backend="onnxruntime",
        precision="fp32",
        threads=1,
        engine_dir=None,
        photos=(str(folder / "0.jpg"),),
        batches=(1, 2),
        rates=(),
        streams=(),
        seconds=0.3,
        within=0.5,
    )


def test_the_trapezoid_within_the_stretch() -> None:
    samples = [(0.0, 99.0), (1.0, 10.0), (2.0, 20.0), (3.0, 99.0)]
    assert energy(samples, 1.0, 2.0, 5) == Energy(joules=15.0, joules_per_image=3.0, watts=15.0, samples=2)
    assert energy(samples, 0.5, 2.5, 5) == Energy(joules=30.0, joules_per_image=6.0, watts=15.0, samples=2)
    assert energy(samples, 1.5, 2.5, 5) is None
    assert energy(samples, 1.0, 2.0, 0) is None
    assert energy([], 2.0, 1.0, 1) is None


@pytest.mark.parametrize("kind", PROGRAMS)
def test_no_program_harms_the_measurement(kind: str, install: Install, tmp_path: Path) -> None:
    install(PROGRAMS[kind])
    begun = time.monotonic()
    said = measure(spec(tmp_path))
    assert time.monotonic() - begun < 300  # a busy machine; the program that hangs sleeps for longer
    rows = [row_from(one) for one in said["rows"] if one["metric"] == "throughput"]
    assert [one.batch for one in rows] == [1, 2]
    assert said["contender"]["power_from"] == "tegrastats"
    text = described(result(rows, contenders=({**said["contender"], "score_difference": 0.0},)))[0]
    if kind == "good":
        drawn = [sample.milliwatts or 0 for sample in parse_lines(LINES.read_text())]
        for one in rows:
            assert min(drawn) / 1e3 <= one.extra["watts"] <= max(drawn) / 1e3
            assert one.extra["joules_per_image"] > 0  # its arithmetic has a test of its own
        assert "J an image at batch 2" in text
        assert "by tegrastats" in text
    else:
        assert all(one.extra == {} for one in rows)
        assert "energy not readable here" in text
    assert any("lines that are not understood" in note for note in said["notes"]) == (kind in ("garbage", "floods"))


@pytest.mark.parametrize("kind", ["good", "hangs"])
def test_the_program_ends_with_the_block(kind: str, install: Install) -> None:
    path = install('echo $$ > "$0.pid"\n' + PROGRAMS[kind])
    with Meter("tegrastats", [str(path)]):
        noted = path.with_name("tegrastats.pid")
        while not noted.exists() or not noted.read_text().strip():
            time.sleep(0.01)
    assert not Path(f"/proc/{noted.read_text().strip()}").exists()


def test_a_program_that_does_not_start(tmp_path: Path) -> None:
    with Meter("tegrastats", [str(tmp_path / "no")]) as meter:
        pass
    assert meter.samples == []


def test_nvidia_smi_is_asked_on_a_gpu_only(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    path = install(REPEAT.format(file=DATA / "nvidia-smi-one.txt"), "nvidia-smi")
    assert meter_command(False) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    command = meter_command(True)
    assert command is not None
    assert command[1][:2] == [str(path), "--id=2"]
    with Meter(*command) as meter:
        deadline = time.monotonic() + 30
        while len(meter.samples) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert meter.samples[0][1] == 71.93


def test_a_result_from_before_energy_was_read() -> None:
    old = result([row([20.0], metric="throughput", unit="images/s")])
    assert "energy not readable here" in described(old)[0]
