"""gamma-doctor on reconstructed samples of Jetsons and a server (tests/data/README.md), and on damaged ones."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gamma_runtime.cuda_probe import CudaDevice, CudaState
from gamma_runtime.doctor import Finding, diagnose, python_env, render
from gamma_runtime.doctor.calendar import jetpack_of
from gamma_runtime.doctor.findings import Disk, findings
from gamma_runtime.doctor.machine import Machine, Run, read_machine, run_command
from gamma_runtime.doctor.python_env import PythonEnv, read_python
from gamma_runtime.doctor.video import VideoIO

SAMPLES = Path(__file__).parent.parent / "data" / "doctor"
NANO, AGX, THOR, SERVER = "orin-nano-jp62", "agx-orin-jp72", "agx-thor-jp71", "server-x86"
NO_DRIVER = CudaState("no-driver", "no NVIDIA driver (libcuda.so.1)")
CLEAN = {"numpy": "1.26.4", "tensorrt": "10.3.0"}


def runner(folder: Path) -> Run:
    """Answers a command with the sample's file of that name; None for one that the machine does not have."""

    def run(command: Sequence[str]) -> str | None:
        name = f"{command[0]} {command[-1]}" if command[0] == "dpkg-query" else command[0]
        path = folder / "commands" / name
        return path.read_text(errors="replace") if path.exists() else None

    return run


def machine(name: str | Path) -> Machine:
    return read_machine(SAMPLES / name, runner(SAMPLES / name))


def gpu(capability: str, driver: str) -> CudaState:
    return CudaState("ok", "1 GPU", driver, (CudaDevice(0, "Orin", capability, 8 << 30),))


def python(version: str, root: str = NANO, **changes: object) -> PythonEnv:
    seen = read_python(SAMPLES / root)
    env = PythonEnv(version, CLEAN, system_tensorrt=seen.system_tensorrt, cudart=seen.cudart, cv2_at="/usr/lib/cv2")
    return dataclasses.replace(env, **changes)  # type: ignore[arg-type]


def about(found: list[Finding], words: str) -> Finding:
    (finding,) = [item for item in found if words in item.what]
    return finding


def test_orin_nano() -> None:
    nano = machine(NANO)
    assert (nano.model, nano.l4t) == ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "36.4.3")
    assert (nano.jetpack, nano.tensorrt_debian) == ("6.2+b77", "10.3.0.30-1+cuda12.5")
    assert (nano.power_mode, nano.power_mode_id, nano.power_modes[2]) == ("25W", 1, "MAXN_SUPER")
    assert [(c.now_mhz, c.most_mhz) for c in nano.clocks][-1] == (305, 1020)
    assert nano.temperatures["gpu-thermal"] == 50.9
    assert (nano.memory_total, nano.swap_free, nano.memory_limit) == (7802060 // 1024, 1024, None)
    found = findings(nano, python("3.10.12"), gpu("8.7", "12.6"), arch="aarch64")
    assert about(found, "L4T 36.4.3 is JetPack 6.2, with TensorRT 10.3, CUDA 12.6, Python 3.10").level == "ok"
    assert about(found, "TensorRT 10.3.0").level == "ok"
    assert about(found, "power mode 25W").do == "sudo nvpmodel -m ID; the mode's number is in /etc/nvpmodel.conf"
    assert about(found, "gpu 17000000.gpu: 305 of 1020 MHz").level == "note"
    assert about(found, "CUDA runtime library /usr/local/cuda/lib64/libcudart.so.12").level == "ok"
    assert about(found, "may need about 4096 MiB").level == "warning"
    assert about(found, "compute capability 8.7").level == "ok"
    assert not [item for item in found if item.level == "fault"]


def test_agx_orin() -> None:
    agx = machine(AGX)
    assert (agx.power_mode, agx.power_mode_id) == ("MAXN", 0)  # from the status file: no nvpmodel here
    found = findings(agx, python("3.12.3", AGX, libraries={"tensorrt": "10.16.2.10", "numpy": "2.2.0"}), NO_DRIVER)
    assert about(found, "JetPack 7.2, with TensorRT 10.16.2, CUDA 13.2").level == "ok"
    assert about(found, "power mode MAXN").level == "ok"
    assert about(found, "hottest sensor: tj-thermal, 88.5 C").level == "warning"
    assert about(found, "policy0: 2201 of 2201 MHz").level == "ok"
    assert about(found, "no NVIDIA driver").level == "fault"  # a Jetson has a GPU: its driver is missing


def test_thor_in_a_container() -> None:
    thor = machine(THOR)
    assert (thor.memory_limit, thor.memory_used, thor.cpu_limit) == (8192, 2048, 4.0)
    assert thor.power_mode == "120W"
    found = findings(thor, python("3.12.3", THOR, libraries={"numpy": "2.2.0"}), gpu("11.0", "13.0"), arch="aarch64")
    assert about(found, "JetPack 7.1, with TensorRT 10.13.3").level == "ok"
    assert about(found, "nvidia-jetpack is not installed").do == "sudo apt install nvidia-jetpack"
    assert about(found, "no Python package of TensorRT").level == "warning"
    assert about(found, "this container may use 8192 of").level == "note"
    assert about(found, "4 CPUs' time").do == "--threads 4: more threads only wait"
    assert about(found, "6144 of").level == "ok"
    assert about(found, "gpu gpu-gpc-0").level == "note"


def test_server() -> None:
    server = machine(SERVER)
    assert not server.is_jetson
    assert (server.memory_limit, server.cpu_limit, server.jetpack) == (None, None, None)
    assert server.gpus[0].slowed_by == ("power cap", "heat")
    found = findings(server, python("3.12.3", SERVER, libraries={"tensorrt-rtx": "1.7.1"}), gpu("8.9", "12.4"))
    assert about(found, "is held back by power cap and heat (1035 of 2040 MHz)").level == "warning"
    assert about(found, "libcudart.so.13; the driver offers CUDA 12.4").level == "warning"
    assert about(found, "TensorRT-RTX 1.7.1").level == "ok"
    assert not [item for item in found if item.area == "Board"]


@pytest.mark.parametrize(
    ("changes", "words", "level", "advice"),
    [
        ({"version": "3.12.3"}, "built for Python 3.10 only", "warning", "python3.10"),
        ({"libraries": {"numpy": "2.2.0"}}, "built for numpy 1: import cv2 fails", "fault", "numpy<2"),
        ({"libraries": {"numpy": "1.26.4"}, "in_venv": True}, "does not see it", "warning", "--system-site-packages"),
        ({"libraries": {"tensorrt": "11.4.0"}}, "JetPack 6.2 has 10.3", "warning", "pip uninstall tensorrt"),
        ({"libraries": {**CLEAN, "tensorrt-rtx": "1.7"}}, "exists for x86-64 only", "fault", "--engine tensorrt"),
        ({"libraries": {**CLEAN, "opencv-python": "4.8"}}, "no GStreamer", "note", "pip uninstall opencv-python"),
        ({"ort_hollow": True}, "empty shell", "fault", "pip uninstall -y onnxruntime onnxruntime-gpu"),
        ({"cv2_at": None}, "no OpenCV", "warning", "--system-site-packages"),
        ({"cudart": None}, "no CUDA runtime library", "warning", "nvidia-jetpack"),
    ],
)
def test_what_disturbs_on_a_jetson(changes: dict[str, object], words: str, level: str, advice: str) -> None:
    healthy = findings(machine(NANO), python("3.10.12"), gpu("8.7", "12.6"), arch="aarch64")
    assert not [item for item in healthy if words in item.what]
    env = dataclasses.replace(python("3.10.12"), **changes)  # type: ignore[arg-type]
    found = about(findings(machine(NANO), env, gpu("8.7", "12.6"), arch="aarch64"), words)
    assert (found.level, advice in str(found.do)) == (level, True)


@pytest.mark.parametrize(
    ("l4t", "jetpack", "tensorrt"),
    [
        ("36.3.0", "6.0", "8.6"),
        ("36.4.0", "6.1", "10.3"),
        ("36.5.2", "6.2", "10.3"),
        ("38.2.1", "7.0", "10.13.3"),
        ("38.4.0", "7.1", "10.13.3"),
        ("39.2.1", "7.2", "10.16.2"),
        ("39.2.2", "7.2.2 or later", "10.16.2"),
    ],
)
def test_table_of_jetpacks(l4t: str, jetpack: str, tensorrt: str) -> None:
    row = jetpack_of(l4t)
    assert row is not None
    assert (row.name, row.tensorrt) == (jetpack, tensorrt)
    assert jetpack_of("32.7.4") is None
    assert jetpack_of("40.1") is None


def test_releases_outside_the_table_are_said_to_be() -> None:
    old, unknown = (dataclasses.replace(machine(NANO), l4t=l4t) for l4t in ("36.3.0", "40.1"))
    assert about(findings(old, python("3.10.12"), NO_DRIVER), "too old").level == "fault"
    assert about(findings(unknown, python("3.10.12"), NO_DRIVER), "L4T 40.1 is not in the table").level == "warning"
    hidden = dataclasses.replace(machine(NANO), l4t=None)
    assert about(findings(hidden, python("3.10.12"), NO_DRIVER), "nv_tegra_release cannot be read").level == "warning"


@pytest.mark.parametrize("name", [NANO, AGX, THOR, SERVER])
def test_damaged_files_are_survived(tmp_path: Path, name: str) -> None:
    shutil.copytree(SAMPLES / name, tmp_path / name)
    for path in (tmp_path / name).rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff\x00garbage, 12, x\n" * 3)
    broken = read_machine(tmp_path / name, runner(tmp_path / name))
    assert (broken.l4t, broken.power_mode, broken.clocks, broken.gpus) == (None, None, (), ())
    assert findings(broken, python("3.10.12"), NO_DRIVER)
    empty = read_machine(tmp_path / "nothing", lambda _: None)
    assert empty == Machine()
    assert findings(empty, python("3.10.12"), NO_DRIVER)


def test_a_full_disk_is_said() -> None:
    disks = [Disk("a.gamma", 100), Disk("b.gamma", 100_000)]
    found = [item for item in findings(machine(SERVER), python("3.12.3"), NO_DRIVER, disks) if item.area == "Disk"]
    assert [item.level for item in found] == ["warning", "ok"]
    assert "--engine-dir" in str(found[0].do)


def test_text_and_json_carry_every_finding(tmp_path: Path) -> None:
    facts = diagnose([], root=SAMPLES / NANO, run=runner(SAMPLES / NANO))
    text = render(facts)
    for finding in facts.findings:
        assert f"{finding.level:<8} {finding.what}" in text
        assert finding.do is None or f"-> {finding.do}" in text
    said = json.loads(json.dumps(dataclasses.asdict(facts)))
    assert said["machine"]["l4t"] == "36.4.3"
    assert {"area", "level", "what", "do"} == set(said["findings"][0])


def test_half_an_onnxruntime_is_found(tmp_path: Path) -> None:
    """As uninstalling one of the two wheels leaves it: a folder without its Python part or without its library."""
    package = tmp_path / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    code = (
        "from pathlib import Path; from gamma_runtime.doctor.python_env import read_python; "
        "print(read_python(Path('/')).ort_hollow)"
    )

    def hollow() -> bool:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip() == "True"

    (package / "__init__.py").write_text("")
    assert hollow()
    (package / "capi" / "onnxruntime_pybind11_state.so").write_bytes(b"")
    assert not hollow()


def test_a_folder_without_init_is_hollow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way that it is left: Python takes the folder for a namespace, and the import has no attributes."""
    (tmp_path / "ort_shell" / "capi").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert python_env._hollow("ort_shell")
    assert not python_env._hollow("no_such_module")
    assert not python_env._hollow("onnxruntime")


def test_l4t_is_read_from_its_package_where_the_file_is_hidden() -> None:
    def run(command: Sequence[str]) -> str | None:
        return "36.4.3-20250107174145" if command[-1] == "nvidia-l4t-core" else None

    assert read_machine(SAMPLES / SERVER, run).l4t == "36.4.3"


def test_commands_that_fail_or_do_not_exist_say_nothing() -> None:
    assert run_command([sys.executable, "-c", "print('here')"]) == "here\n"
    assert run_command([sys.executable, "-c", "import sys; sys.stdout.buffer.write(b'\\xff')"]) == "\ufffd"
    assert run_command([sys.executable, "-c", "raise SystemExit(3)"]) is None
    assert run_command(["no-such-command-anywhere"]) is None


@pytest.mark.parametrize(
    ("name", "video", "level", "words"),
    [
        (NANO, VideoIO("4.8.0", "/usr/lib/cv2", True, True, True), "ok", "has GStreamer, FFmpeg, V4L2"),
        (
            NANO,
            VideoIO("4.12.0", "/venv/cv2", True, True, False),
            "warning",
            "no GStreamer: csi:// and gst: do not open",
        ),
        (
            SERVER,
            VideoIO("4.12.0", "/venv/cv2", True, True, False),
            "note",
            "no GStreamer: csi:// and gst: do not open",
        ),
        (SERVER, VideoIO("4.6.0", "/usr/lib/cv2", False, False, False), "note", "no V4L2: v4l2:// does not open"),
        (SERVER, VideoIO(problem="numpy.core.multiarray failed to import"), "note", "multiarray failed to import"),
    ],
)
def test_video(name: str, video: VideoIO, level: str, words: str) -> None:
    (found,) = [f for f in findings(machine(name), python("3.10.12"), NO_DRIVER, video=video) if f.area == "Video"]
    assert (found.level, words in found.what) == (level, True)
    assert ("JetPack's cv2" in (found.do or "")) == (level == "warning")
