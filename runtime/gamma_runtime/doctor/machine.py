"""Facts from /proc, /etc and /sys below one root, and from a few commands: nothing is set, nothing is imported.

The root and the command runner are arguments, so that a recorded machine can be read on any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["Clock", "Gpu", "Machine", "Run", "read_machine", "run_command"]

Run = Callable[[Sequence[str]], "str | None"]
_SECONDS = 10
_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
_MODE = re.compile(r"NV Power Mode:\s*(\S+)(?:\s+(\d+))?")
_STATUS = re.compile(r"pmode:\s*(\d+)")
_SMI = "name,driver_version,pstate,clocks.sm,clocks.max.sm,temperature.gpu,power.draw,clocks_event_reasons.active"
# Bits of nvidia-smi's clocks_event_reasons that slow a GPU down against its owner's will.
_SLOWED = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake"}
_UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2**63 for "no limit"


@dataclasses.dataclass(frozen=True)
class Clock:
    """A clock domain: what it runs at and may run at, in MHz, and who decides."""

    name: str
    now_mhz: int
    most_mhz: int
    governor: str


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What nvidia-smi says of a discrete GPU; ``slowed_by`` is empty when nothing holds it back."""

    name: str
    driver: str
    pstate: str
    sm_mhz: str
    sm_most_mhz: str
    celsius: str
    watts: str
    slowed_by: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the system's own files say; None or empty where it says nothing. Sizes in MiB, temperatures in Celsius."""

    model: str | None = None
    l4t: str | None = None  # such as 36.4.3
    jetpack: str | None = None  # of the nvidia-jetpack package
    tensorrt_debian: str | None = None  # of the libnvinfer package
    power_mode: str | None = None
    power_mode_id: int | None = None
    power_modes: tuple[str, ...] = ()
    clocks: tuple[Clock, ...] = ()
    temperatures: dict[str, float] = dataclasses.field(default_factory=dict)
    memory_total: int = 0
    memory_free: int = 0
    swap_total: int = 0
    swap_free: int = 0
    memory_limit: int | None = None  # of the container
    memory_used: int | None = None
    cpu_limit: float | None = None
    gpus: tuple[Gpu, ...] = ()

    @property
    def is_jetson(self) -> bool:
        """L4T is installed, or the device tree says so."""
        return self.l4t is not None or "jetson" in (self.model or "").lower()


def run_command(command: Sequence[str]) -> str | None:
    """What a command prints, or None when it does not exist, fails or takes longer than ten seconds."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(list(command), capture_output=True, timeout=_SECONDS, check=False)
        return done.stdout.decode(errors="replace") if done.returncode == 0 else None
    return None


def read_machine(root: Path = Path("/"), run: Run = run_command) -> Machine:
    """Read a machine; never raises for what it finds.

    Args:
        root: where ``proc``, ``etc``, ``sys`` and ``var`` lie.
        run: runs dpkg-query, nvpmodel and nvidia-smi.

    Example:
        >>> read_machine().is_jetson
        False
    """
    meminfo = _meminfo(root)
    mode, mode_id = _power_mode(root, run)
    return Machine(
        model=_text(root / "proc/device-tree/model"),
        l4t=_l4t(root, run),
        jetpack=_package("nvidia-jetpack", run),
        tensorrt_debian=_package("libnvinfer10", run) or _package("libnvinfer11", run),
        power_mode=mode,
        power_mode_id=mode_id,
        power_modes=_power_modes(root),
        clocks=_clocks(root),
        temperatures=_temperatures(root),
        memory_total=meminfo.get("MemTotal", 0),
        memory_free=meminfo.get("MemAvailable", 0),
        swap_total=meminfo.get("SwapTotal", 0),
        swap_free=meminfo.get("SwapFree", 0),
        memory_limit=_memory_limit(root),
        memory_used=_mebibytes(root, "memory.current", "memory/memory.usage_in_bytes"),
        cpu_limit=_cpu_limit(root),
        gpus=_gpus(run),
    )


def _text(path: Path) -> str | None:
    """A small text file without the NUL that ends device-tree strings."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except (OSError, ValueError):
        return None
    return text or None


def _number(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


def _l4t(root: Path, run: Run) -> str | None:
    """/etc/nv_tegra_release, or the version of the package that brings it (such as 36.4.3-20250107174145)."""
    if match := _RELEASE.search(_text(root / "etc/nv_tegra_release") or ""):
        return f"{match[1]}.{match[2]}"
    match = re.match(r"\d+(\.\d+)+", _package("nvidia-l4t-core", run) or "")
    return match[0] if match else None


def _package(name: str, run: Run) -> str | None:
    found = run(["dpkg-query", "-W", "-f=${Version}", name])
    return found.strip() or None if found else None


def _power_mode(root: Path, run: Run) -> tuple[str | None, int | None]:
    """`nvpmodel -q` where it may be called, else the file that it keeps and the names of /etc/nvpmodel.conf."""
    if match := _MODE.search(run(["nvpmodel", "-q"]) or ""):
        return match[1], int(match[2]) if match[2] else None
    status = _STATUS.search(_text(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return None, None
    names = dict(_modes(root))
    return names.get(int(status[1])), int(status[1])


def _power_modes(root: Path) -> tuple[str, ...]:
    return tuple(name for _, name in _modes(root))


def _modes(root: Path) -> list[tuple[int, str]]:
    pattern = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", re.MULTILINE)
    return [(int(m[1]), m[2]) for m in pattern.finditer(_text(root / "etc/nvpmodel.conf") or "")]


def _clocks(root: Path) -> tuple[Clock, ...]:
    """CPU frequency policies (kHz) and the GPU's devfreq (Hz)."""
    found = [
        _clock(folder.name, folder, "scaling_cur_freq", "cpuinfo_max_freq", "scaling_governor", 1000)
        for folder in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
    ]
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if re.search(r"gpu|gpc|ga10b|gv11b|nvd", folder.name):
            found.append(_clock(f"gpu {folder.name}", folder, "cur_freq", "max_freq", "governor", 1_000_000))
    return tuple(clock for clock in found if clock)


def _clock(name: str, folder: Path, now: str, most: str, governor: str, divisor: int) -> Clock | None:
    numbers = _number(folder / now), _number(folder / most)
    if None in numbers:
        return None
    current, top = (int(number or 0) // divisor for number in numbers)
    return Clock(name, current, top, _text(folder / governor) or "unknown")


def _temperatures(root: Path) -> dict[str, float]:
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind, milli = _text(zone / "type"), _number(zone / "temp")
        if kind and milli is not None:
            found[kind] = round(milli / 1000, 1)
    return found


def _meminfo(root: Path) -> dict[str, int]:
    found = {}
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        with contextlib.suppress(ValueError, IndexError):
            found[name] = int(rest.split()[0]) // 1024
    return found


def _mebibytes(root: Path, second: str, first: str) -> int | None:
    """A number of bytes of this container's cgroup, of version 2 or 1, in MiB; None for no limit."""
    for name in (second, first):
        value = _number(root / "sys/fs/cgroup" / name)
        if value is not None:
            return None if value >= _UNLIMITED else value >> 20
    return None


def _memory_limit(root: Path) -> int | None:
    return _mebibytes(root, "memory.max", "memory/memory.limit_in_bytes")


def _cpu_limit(root: Path) -> float | None:
    """CPUs' worth of time that the cgroup may use; None for all."""
    words = (_text(root / "sys/fs/cgroup/cpu.max") or "").split()
    if len(words) != 2:
        words = [str(_number(root / f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us") or 0) for name in ("quota", "period")]
    with contextlib.suppress(ValueError, ZeroDivisionError):
        share = int(words[0]) / int(words[1])
        return round(share, 2) if share > 0 else None
    return None


def _gpus(run: Run) -> tuple[Gpu, ...]:
    said = run(["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader,nounits"])
    found = []
    for line in (said or "").splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(_SMI.split(",")):
            continue
        try:
            bits = int(cells[-1], 16)
        except ValueError:
            bits = 0  # "[N/A]"
        slowed = tuple(words for bit, words in _SLOWED.items() if bits & bit)
        name, driver, pstate, now, most, celsius, watts = cells[:-1]
        found.append(Gpu(name, driver, pstate, now, most, celsius, watts, slowed))
    return tuple(found)
