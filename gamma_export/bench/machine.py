"""The machine under a measurement: what it is, and what could slow it down, before and after. Read only."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import re
import statistics
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_runtime.doctor.machine import Machine, Run, read_machine, run_command
from gamma_runtime.threads import usable_cpus

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Conditions", "Watch", "changes", "cpu_model", "facts", "read_conditions", "read_now"]

_LIBRARIES = (
    "gamma-edge",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "opencv-python-headless",
    "simplejpeg",
)


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What changes while one measures; None or empty where this machine does not say.

    Attributes:
        governors: of the CPU's frequency policies and the GPU's, by name.
        mhz: what they run at.
        temperatures: of the thermal zones, in Celsius.
        power_mode: of nvpmodel.
        slowed_by: what nvidia-smi says holds the GPUs back.
        thermal_throttles: how often the processors slowed down for heat since the system started.
        quota_throttles: how often the container's CPU quota stopped this cgroup.
    """

    governors: dict[str, str]
    mhz: dict[str, int]
    temperatures: dict[str, float]
    power_mode: str | None
    slowed_by: tuple[str, ...]
    thermal_throttles: int | None
    quota_throttles: int | None


def read_conditions(machine: Machine, root: Path = Path("/")) -> Conditions:
    """What `read_machine` found that may change, and the counters of throttling.

    Args:
        machine: just read.
        root: where ``sys`` lies.
    """
    return Conditions(
        governors={clock.name: clock.governor for clock in machine.clocks},
        mhz={clock.name: clock.now_mhz for clock in machine.clocks},
        temperatures=machine.temperatures,
        power_mode=machine.power_mode,
        slowed_by=tuple(dict.fromkeys(reason for gpu in machine.gpus for reason in gpu.slowed_by)),
        thermal_throttles=_thermal(root),
        quota_throttles=_quota(root),
    )


def changes(before: Conditions, after: Conditions) -> list[str]:
    """What speaks against numbers that were taken between the two; empty where nothing does."""
    doubts = []
    if before.governors != after.governors:
        doubts.append(f"the governors changed from {before.governors} to {after.governors}")
    if before.power_mode != after.power_mode:
        doubts.append(f"the power mode changed from {before.power_mode} to {after.power_mode}")
    for gpu_reason in dict.fromkeys((*before.slowed_by, *after.slowed_by)):
        doubts.append(f"the GPU was held back: {gpu_reason}")
    for what, first, last in (
        ("processors slowed down for heat", before.thermal_throttles, after.thermal_throttles),
        ("container's CPU quota stopped the programs", before.quota_throttles, after.quota_throttles),
    ):
        if first is not None and last is not None and last > first:
            doubts.append(f"the {what}, {last - first} times")
    return doubts


def facts(machine: Machine) -> dict[str, Any]:
    """What a number is worth nothing without; the load average is that of the last minute."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": usable_cpus(),
        "memory_mib": machine.memory_total,
        "model": machine.model,
        "l4t": machine.l4t,
        "gpus": [{"name": gpu.name, "driver": gpu.driver} for gpu in machine.gpus],
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "os": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
    }


def read_now(root: Path = Path("/"), run: Run = run_command) -> tuple[Machine, Conditions]:
    """The machine and its conditions at this moment."""
    machine = read_machine(root, run)
    return machine, read_conditions(machine, root)


def cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


class Watch:
    """Reads clocks and temperatures every second while something else runs; files only, no command.

    Example:
        >>> with Watch() as watch:
        ...     process.wait()
        >>> watch.seen()["mhz"]
        {'policy0': [2900, 3000, 3000]}
    """

    def __init__(self, root: Path = Path("/"), every: float = 1.0) -> None:
        self._root, self._every = root, every
        self._mhz: dict[str, list[int]] = {}
        self._celsius: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="gamma-bench-watch", daemon=True)

    def seen(self) -> dict[str, Any]:
        """``mhz``: least, median and most of each clock; ``celsius_max`` of each thermal zone."""
        mhz = {name: [min(read), round(statistics.median(read)), max(read)] for name, read in list(self._mhz.items())}
        return {"mhz": mhz, "celsius_max": dict(self._celsius)}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            machine = read_machine(self._root, lambda _: None)
            for clock in machine.clocks:
                self._mhz.setdefault(clock.name, []).append(clock.now_mhz)
            for zone, celsius in machine.temperatures.items():
                self._celsius[zone] = max(celsius, self._celsius.get(zone, celsius))
            if self._over.wait(self._every):
                return


def _thermal(root: Path) -> int | None:
    cpus = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    counts = [int(text) for path in cpus if (text := _text(path)).isdigit()]
    return sum(counts) if counts else None


def _quota(root: Path) -> int | None:
    for name in ("cpu.stat", "cpu/cpu.stat"):
        if match := re.search(r"^nr_throttled (\d+)$", _text(root / "sys/fs/cgroup" / name), re.MULTILINE):
            return int(match[1])
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
