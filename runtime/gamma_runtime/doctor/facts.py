"""Everything that `gamma-doctor` knows about this machine and the named bundles."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gamma_runtime.cuda_probe import CudaState, probe
from gamma_runtime.doctor.bundles import BundleFacts, bundle_facts
from gamma_runtime.doctor.findings import Disk, Finding, findings
from gamma_runtime.doctor.machine import Machine, Run, read_machine, run_command
from gamma_runtime.doctor.python_env import PythonEnv, read_python
from gamma_runtime.doctor.video import VideoIO, read_video
from gamma_runtime.errors import EXIT_OK

__all__ = ["Facts", "diagnose"]

_CPU_FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve"),
)


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts and what follows from them; sizes in MiB."""

    gamma_edge: str
    python: str
    os: str
    cpu: dict[str, Any]
    memory_total_mib: int
    memory_free_mib: int
    machine: Machine
    environment: PythonEnv
    video: VideoIO
    libraries: dict[str, str | None]
    backends: dict[str, str]
    cuda: CudaState
    disks: list[Disk]
    findings: list[Finding]
    warnings: list[str]
    bundles: list[BundleFacts]

    @property
    def exit_code(self) -> int:
        """0, or the highest code among broken bundles: a finding about the machine is not a failure of the command."""
        return max((bundle.exit_code for bundle in self.bundles), default=EXIT_OK)


def diagnose(
    bundles: Sequence[Path] = (), engine_dir: Path | None = None, root: Path = Path("/"), run: Run = run_command
) -> Facts:
    """Look at this machine and at the named bundles; never raises for what it finds.

    Args:
        bundles: bundle folders; every file of theirs is hashed.
        engine_dir: where their engines lie; None means inside each bundle.
        root: where /proc, /etc, /sys, /usr and /var are read.
        run: runs dpkg-query, nvpmodel and nvidia-smi.
    """
    from gamma_runtime import __version__
    from gamma_runtime.backends import available

    machine, environment, video, cuda = read_machine(root, run), read_python(root), read_video(), probe()
    disks = _disks([engine_dir] if engine_dir else list(bundles))
    found = findings(machine, environment, cuda, disks, platform.machine(), video)
    return Facts(
        gamma_edge=__version__,
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        os=f"{_os_name()}, kernel {platform.release()}, {platform.machine()}",
        cpu=_cpu(),
        memory_total_mib=machine.memory_total,
        memory_free_mib=machine.memory_free,
        machine=machine,
        environment=environment,
        video=video,
        libraries=environment.libraries,
        backends=available(),
        cuda=cuda,
        disks=disks,
        findings=found,
        warnings=[finding.what for finding in found if finding.level in ("warning", "fault")],
        bundles=[bundle_facts(path, engine_dir, cuda) for path in bundles],
    )


def _disks(folders: Sequence[Path]) -> list[Disk]:
    found = []
    for folder in dict.fromkeys(folders):
        with contextlib.suppress(OSError, ValueError):
            found.append(Disk(str(folder), shutil.disk_usage(folder).free >> 20))
    return found


def _os_name() -> str:
    if platform.system() != "Linux":
        return platform.system()
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return "Linux"


def _cpu() -> dict[str, Any]:
    """Model, cores that this process may use, and the instruction sets that matter to the CPU backends."""
    fields = _cpuinfo()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = fields.get("model name") or platform.processor() or platform.machine()
    return {"model": model, "cores": cores, "flags": [flag for flag in _CPU_FLAGS if flag in flags]}


def _cpuinfo() -> dict[str, str]:
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
        pairs = (line.partition(":") for line in text.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return {}
