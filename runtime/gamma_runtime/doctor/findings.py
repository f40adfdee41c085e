"""What the facts mean: a level, a sentence, and what to do. Pure functions: any machine can be judged anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from gamma_runtime.cuda_probe import CudaState
from gamma_runtime.doctor.calendar import TABLE_DATE, JetPack, jetpack_of
from gamma_runtime.doctor.machine import Clock, Machine
from gamma_runtime.doctor.python_env import CV2, PythonEnv
from gamma_runtime.doctor.video import VideoIO

__all__ = ["Disk", "Finding", "Level", "findings"]

Level = Literal["ok", "note", "warning", "fault"]

_BUILD_MIB = 4096  # a full-size build wants this much; measured for exports, estimated for TensorRT
_PLAN_MIB = 1024  # one fp16 plan, its timing cache, and room to replace them
_HOT = 85.0  # Celsius; Jetsons begin to slow down a little above


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: the group it is shown in.
        level: ``ok``; ``note`` (good to know); ``warning`` (will disturb); ``fault`` (something does not work).
        what: the finding in a sentence.
        do: what to do about it; None where nothing is to be done.
    """

    area: str
    level: Level
    what: str
    do: str | None = None


@dataclasses.dataclass(frozen=True)
class Disk:
    """Free space, in MiB, where a bundle's engines go."""

    folder: str
    free_mib: int


def findings(
    machine: Machine,
    python: PythonEnv,
    cuda: CudaState,
    disks: Sequence[Disk] = (),
    arch: str = "x86_64",
    video: VideoIO | None = None,
) -> list[Finding]:
    """All findings about a machine, in the order they are shown.

    Args:
        machine: `read_machine`.
        python: `read_python`.
        cuda: the driver's answer.
        disks: free space of the bundles' folders.
        arch: ``platform.machine()``.
        video: `read_video`; None leaves it out.
    """
    row = jetpack_of(machine.l4t) if machine.l4t else None
    return [
        *_board(machine, row),
        *_python(python, row),
        *_libraries(python, row),
        *_video(machine, video),
        *_tensorrt(machine, python, row, arch),
        *_cuda(machine, python, cuda),
        *_power(machine),
        *_heat(machine),
        *_memory(machine),
        *_disks(disks),
    ]


def _board(machine: Machine, row: JetPack | None) -> Iterator[Finding]:
    if not machine.is_jetson:
        return
    model = machine.model or "a Jetson"
    if machine.l4t is None:
        yield Finding(
            "Board",
            "warning",
            f"{model}, but /etc/nv_tegra_release cannot be read",
            "in a container: use an L4T base image, or mount the file",
        )
    elif row is None:
        yield Finding(
            "Board",
            "warning",
            f"{model}: L4T {machine.l4t} is not in the table of {TABLE_DATE}",
            "JetPack 6.1 or later is needed; for one newer than the table, update gamma-edge",
        )
    else:
        old = row.note.startswith("too old")
        yield Finding(
            "Board",
            "fault" if old else "ok",
            f"{model}: L4T {machine.l4t} is JetPack {row.name}, with TensorRT {row.tensorrt}, CUDA {row.cuda},"
            f" Python {row.python} (table of {TABLE_DATE})" + (f"; {row.note}" if row.note else ""),
            "flash JetPack 6.2 or later" if old else None,
        )
        if machine.jetpack is None:
            yield Finding(
                "Board",
                "note",
                "the package nvidia-jetpack is not installed, so TensorRT and CUDA may be missing",
                "sudo apt install nvidia-jetpack",
            )


def _python(python: PythonEnv, row: JetPack | None) -> Iterator[Finding]:
    version = tuple(int(part) for part in python.version.split(".")[:2])
    if row and not python.version.startswith(f"{row.python}."):
        yield Finding(
            "Python",
            "warning",
            f"Python {python.version}; JetPack's TensorRT and cv2 are built for Python {row.python} only",
            f"make the environment with python{row.python}",
        )
    elif version > (3, 12):
        yield Finding("Python", "note", f"Python {python.version}: newer than what was tested (3.10 to 3.12)")
    else:
        yield Finding("Python", "ok", f"Python {python.version}")


def _libraries(python: PythonEnv, row: JetPack | None) -> Iterator[Finding]:
    have = python.libraries
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if have.get(name)]
    repair = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'gamma-edge[cpu]' (or [gpu])"
    if len(both) == 2:
        what = "onnxruntime and onnxruntime-gpu are both installed and break each other: uninstall both, install one"
        yield Finding("Libraries", "warning", what, repair)
    if python.ort_hollow:
        what = "onnxruntime is an empty shell: its twin was uninstalled and took files of it along"
        yield Finding("Libraries", "fault", what, repair)
    cv2 = [name for name in CV2 if have.get(name)]
    if len(cv2) > 1:
        what = f"{' and '.join(cv2)} share the name cv2: uninstall all, install one"
        yield Finding("Libraries", "warning", what, f"pip uninstall -y {' '.join(cv2)}, then install one of them")
    if not cv2 and python.cv2_at is None:
        yield Finding(
            "Libraries",
            "warning",
            "no OpenCV: only JPEG images can be read; pip install 'gamma-edge[cpu]'",
            "on a Jetson use JetPack's cv2: python3 -m venv --system-site-packages"
            if row
            else "pip install 'gamma-edge[cpu]'",
        )
    if row and cv2:
        what = f"{cv2[0]} from pip hides JetPack's cv2 and has no GStreamer: csi:// and pipelines do not open"
        yield Finding("Libraries", "note", what, f"pip uninstall {cv2[0]}, and use --system-site-packages")
    numpy = have.get("numpy") or "2"
    if row and row.python == "3.10" and not cv2 and int(numpy.split(".")[0]) >= 2:
        what = f"numpy {numpy} with JetPack {row.name}'s cv2, which is built for numpy 1: import cv2 fails"
        yield Finding("Libraries", "fault", what, "pip install 'numpy<2'")


def _video(machine: Machine, video: VideoIO | None) -> Iterator[Finding]:
    if video is None:
        return
    if video.cv2 is None:
        yield Finding("Video", "note", f"cv2 cannot be imported ({video.problem}): no videos, cameras and streams")
        return
    lacking = [
        f"no {name}: {what} not open"
        for name, has, what in (
            ("GStreamer", video.gstreamer, "csi:// and gst: do"),
            ("FFmpeg", video.ffmpeg, "video files, http:// and rtsp:// do"),
            ("V4L2", video.v4l2, "v4l2:// does"),
        )
        if not has
    ]
    has = [n for n, h in (("GStreamer", video.gstreamer), ("FFmpeg", video.ffmpeg), ("V4L2", video.v4l2)) if h]
    what = f"cv2 {video.cv2} ({video.folder}) has {', '.join(has) or 'no video'}"
    if not lacking:
        yield Finding("Video", "ok", what)
        return
    advice = "PyPI's wheels never have GStreamer; Debian's and Ubuntu's python3-opencv have it"
    if machine.is_jetson:
        advice = "use JetPack's cv2: uninstall opencv-python*, python3 -m venv --system-site-packages .venv"
    level: Level = "warning" if machine.is_jetson else "note"
    yield Finding("Video", level, f"{what}; {'; '.join(lacking)}", advice if not video.gstreamer else None)


def _tensorrt(machine: Machine, python: PythonEnv, row: JetPack | None, arch: str) -> Iterator[Finding]:
    version, rtx = python.libraries.get("tensorrt"), python.libraries.get("tensorrt-rtx")
    if version:
        fits = row is None or version.startswith(row.tensorrt) or (row.l4t >= (39, 2, 2) and version.startswith("11."))
        yield Finding(
            "TensorRT",
            "ok" if fits else "warning",
            f"TensorRT {version}" + ("" if fits or row is None else f"; JetPack {row.name} has {row.tensorrt}"),
            None if fits else "pip uninstall tensorrt, and use JetPack's: python3 -m venv --system-site-packages",
        )
    elif python.sees_tensorrt:
        yield Finding("TensorRT", "note", "a Python package of TensorRT without metadata: its version is not known")
    elif python.system_tensorrt:
        venv = "this virtual environment does not see it" if python.in_venv else "this interpreter does not see it"
        yield Finding(
            "TensorRT",
            "warning",
            f"JetPack's TensorRT is at {python.system_tensorrt}, but {venv}",
            "make the environment again with python3 -m venv --system-site-packages .venv"
            if python.in_venv
            else "use the system's python3",
        )
    elif row:
        installed = f"the library is installed ({machine.tensorrt_debian})" if machine.tensorrt_debian else "none"
        yield Finding(
            "TensorRT",
            "warning",
            f"no Python package of TensorRT: {installed}",
            "sudo apt install python3-libnvinfer (or nvidia-jetpack); never pip install tensorrt on a Jetson",
        )
    if rtx and arch not in ("x86_64", "AMD64"):
        what = f"TensorRT-RTX {rtx} on {arch}: it exists for x86-64 only"
        yield Finding("TensorRT", "fault", what, "pip uninstall tensorrt-rtx, and use --engine tensorrt")
    elif rtx:
        what = f"TensorRT-RTX {rtx}: builds engines without a GPU, but none for a Jetson"
        yield Finding("TensorRT", "ok", what)


def _cuda(machine: Machine, python: PythonEnv, cuda: CudaState) -> Iterator[Finding]:
    wanted = machine.is_jetson or bool(machine.gpus)
    if cuda.usable:
        for gpu in cuda.devices:
            what = f"GPU {gpu.index}: {gpu.name}, compute capability {gpu.compute_capability}, CUDA {cuda.driver}"
            yield Finding("CUDA", "ok", what)
    elif cuda.cause in ("no-driver", "no-gpu") and not wanted:
        yield Finding("CUDA", "note", f"{cuda.detail}: the CPU backends are used", None)
    else:
        yield Finding("CUDA", "fault", cuda.detail, cuda.hint)
    if python.cudart is None and (cuda.usable or wanted):
        what = "no CUDA runtime library (libcudart) was found"
        yield Finding(
            "CUDA",
            "warning",
            what,
            "install CUDA's runtime: on a Jetson nvidia-jetpack, else nvidia-cuda-runtime",
        )
    elif python.cudart:
        major = python.cudart.partition(".so.")[2][:2]
        newer = bool(cuda.driver) and int(major) > int(str(cuda.driver).split(".")[0])
        yield Finding(
            "CUDA",
            "warning" if newer else "ok",
            f"CUDA runtime library {python.cudart}" + (f"; the driver offers CUDA {cuda.driver}" if newer else ""),
            "install the runtime library of the driver's CUDA version" if newer else None,
        )
    for smi in machine.gpus:
        if smi.slowed_by:
            what = f"{smi.name} is held back by {' and '.join(smi.slowed_by)} ({smi.sm_mhz} of {smi.sm_most_mhz} MHz)"
            yield Finding("CUDA", "warning", what, "cool it, or raise its power limit, before timing anything")


def _power(machine: Machine) -> Iterator[Finding]:
    if machine.is_jetson:
        mode, best = machine.power_mode, [name for name in machine.power_modes if name.startswith("MAXN")]
        if mode is None and machine.power_mode_id is None:
            yield Finding("Power", "note", "the power mode cannot be read", "sudo nvpmodel -q")
        elif mode and (mode.startswith("MAXN") or not best):
            full = not best or mode == max(best, key=len)
            yield Finding("Power", "ok" if full else "note", f"power mode {mode}" + _others(machine, mode))
        else:
            what = f"power mode {mode or machine.power_mode_id}{_others(machine, mode)}: slower than this board can be"
            yield Finding("Power", "note", what, "sudo nvpmodel -m ID; the mode's number is in /etc/nvpmodel.conf")
    for clock in _one_of_each(machine):
        fixed = clock.now_mhz >= clock.most_mhz or clock.governor == "performance"
        what = f"{clock.name}: {clock.now_mhz} of {clock.most_mhz} MHz, governor {clock.governor}"
        if fixed or not machine.is_jetson:
            yield Finding("Power", "ok", what)
        else:
            yield Finding("Power", "note", f"{what}: timings will vary", "sudo jetson_clocks, before timing anything")


def _one_of_each(machine: Machine) -> list[Clock]:
    """Clocks without repetition: eight equal cores say one thing."""
    seen: dict[tuple[str, int, str], Clock] = {}
    for clock in machine.clocks:
        seen.setdefault((clock.name.rstrip("0123456789"), clock.most_mhz, clock.governor), clock)
    return list(seen.values())


def _others(machine: Machine, mode: str | None) -> str:
    others = [name for name in machine.power_modes if name != mode]
    return f" (others: {', '.join(others)})" if others else ""


def _heat(machine: Machine) -> Iterator[Finding]:
    if not machine.temperatures:
        return
    zone, hottest = max(machine.temperatures.items(), key=lambda item: item[1])
    hot = hottest >= _HOT
    yield Finding(
        "Power",
        "warning" if hot else "ok",
        f"hottest sensor: {zone}, {hottest:g} C" + (": near where clocks are throttled" if hot else ""),
        "check the fan; timings taken now say little" if hot else None,
    )


def _memory(machine: Machine) -> Iterator[Finding]:
    free, limit = machine.memory_free, machine.memory_limit
    swap = f", swap {machine.swap_free} of {machine.swap_total} MiB free" if machine.swap_total else ", no swap"
    if limit is not None and limit < machine.memory_total:
        free = min(free, limit - (machine.memory_used or 0))
        yield Finding("Memory", "note", f"this container may use {limit} of {machine.memory_total} MiB")
    if machine.cpu_limit is not None:
        what = f"this container may use {machine.cpu_limit:g} CPUs' time"
        yield Finding("Memory", "note", what, f"--threads {max(1, int(machine.cpu_limit))}: more threads only wait")
    little = free + machine.swap_free < _BUILD_MIB
    yield Finding(
        "Memory",
        "warning" if little else "ok",
        f"{free} of {machine.memory_total} MiB free{swap}"
        + (f"; building a full-size engine may need about {_BUILD_MIB} MiB" if little else ""),
        "close other programs, stop the desktop (sudo systemctl isolate multi-user.target), or add swap"
        if little
        else None,
    )


def _disks(disks: Sequence[Disk]) -> Iterator[Finding]:
    for disk in disks:
        little = disk.free_mib < _PLAN_MIB
        yield Finding(
            "Disk",
            "warning" if little else "ok",
            f"{disk.folder}: {disk.free_mib} MiB free" + (f"; engines want {_PLAN_MIB} MiB" if little else ""),
            "free some space, or gamma-build --engine-dir" if little else None,
        )
