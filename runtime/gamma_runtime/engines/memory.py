"""Whether a build fits: what is free on this machine, what a build takes, and what ended one that did not fit.

Nobody documents what a TensorRT build takes; `predict` says where its numbers come from. They are meant to catch a
build that is hopeless, in seconds rather than after half an hour, and `--force` goes past them.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from gamma_runtime.cuda_probe import CudaState
from gamma_runtime.engines.nvml import free_gpu_bytes
from gamma_runtime.engines.options import LABELS, Flavour
from gamma_runtime.errors import EnvironmentFault

__all__ = [
    "NO_MEMORY_HINT",
    "Free",
    "Need",
    "check_memory",
    "free_memory",
    "looks_like_no_memory",
    "oom_kills",
    "peak_rss",
    "predict",
    "refuse",
    "workspace",
]

MIB = 1 << 20
NO_MEMORY_HINT = "--low-memory, lower --workspace-mib, close other programs, add swap, or build on a larger machine"
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2**63
_LEAST_WORKSPACE = 64  # MiB; below it TensorRT drops tactics that the products need
_LOW_WORKSPACE = 256  # MiB; the cap that issue reports found to help on 2 to 8 GB boards (tensorrt_demos#293)

# TensorRT-RTX, measured on a CPU (benchmarks/results/build_memory-*.json): 325 MiB for a tiny model, 2.4 times the
# weights on top at full size, with the plan streamed to disk; and a little room.
_RTX = (350 * MIB, 2.6)
# TensorRT, from reports: loading the builder's kernel library took 1454 to 1799 MiB of host and 266 to 312 MiB of GPU
# memory (MemUsageChange lines in NVIDIA/TensorRT#3566 and TensorRT-LLM#102, #538, both x86); Torch-TensorRT's
# documentation reckons with 2 to 5 times the weights on the host (3 without needless copies) and 2 times on the GPU.
_HOST = (1500 * MIB, 3.0)
_GPU = (300 * MIB, 2.0)
_MARGIN = 1.1  # on the measured peak of an earlier build of the same graph

_NO_MEMORY = (
    "bad_alloc",
    "outofmemory",
    "out of memory",
    "insufficient memory",
    "could not be allocated",
    "cannot allocate memory",
    "resource temporarily unavailable",  # a thread's stack could not be had
    "failed to map file to memory",  # the parser's words for a weights file that does not fit the address space
    "check(p) failed",  # Myelin's, after an allocation that gave nothing (seen with RLIMIT_AS)
)


@dataclasses.dataclass(frozen=True)
class Free:
    """Bytes that are free: ``host`` None where /proc does not say, ``gpu`` None without a GPU of its own memory.

    On a ``unified`` machine, such as a Jetson, host and GPU take from the same memory.
    """

    host: int | None
    gpu: int | None
    unified: bool


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes that a build probably takes at its peak, and in ``rule`` where the numbers come from."""

    host: int
    gpu: int
    rule: str

    @property
    def total(self) -> int:
        """Where both come from the same memory."""
        return self.host + self.gpu


def predict(flavour: Flavour, weights: int, earlier_peak: int | None = None) -> Need:
    """What building a graph takes.

    Args:
        flavour: whose builder.
        weights: bytes of the graph's weights.
        earlier_peak: resident bytes at the peak of an earlier build of the same graph; better than any rule.

    Example:
        >>> predict("tensorrt-rtx", 344_850_452).host >> 20
        1205
    """
    rtx = flavour == "tensorrt-rtx"
    base, factor = _RTX if rtx else _HOST
    host, rule = int(base + factor * weights), f"{base // MIB} MiB and {factor:g} times the weights"
    rule += " (measured, TensorRT-RTX on a CPU)" if rtx else " (an estimate from reports, not measured on a board)"
    if earlier_peak is not None:
        host, rule = int(earlier_peak * _MARGIN), "the peak of an earlier build here and a tenth"
    return Need(host, 0 if rtx else int(_GPU[0] + _GPU[1] * weights), rule)


def free_memory(state: CudaState | None = None, root: Path = Path("/")) -> Free:
    """What is free now: the kernel's MemAvailable, less where a control group limits us, and the GPU's own.

    Args:
        state: the driver's answer; None or unusable means no GPU.
        root: where proc, sys and etc lie; a recorded machine in tests.
    """
    amounts = [amount for amount in (_mem_available(root), _cgroup_headroom(root)) if amount is not None]
    unified = (root / "etc/nv_tegra_release").exists() or "tegra" in _read(root / "proc/device-tree/compatible")
    gpu = None if unified or state is None or not state.usable else free_gpu_bytes()
    return Free(min(amounts) if amounts else None, gpu, unified)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _mem_available(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _cgroups(root: Path) -> list[Path]:
    """The folders of our memory control group: version 2, version 1, and as a container sees its own."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += [root / f"sys/fs/cgroup{path}", root / "sys/fs/cgroup"]
        elif "memory" in controllers.split(","):
            found += [root / f"sys/fs/cgroup/memory{path}", root / "sys/fs/cgroup/memory"]
    return found


def _cgroup_headroom(root: Path) -> int | None:
    """Bytes up to the limit; the page cache in it counts as used, so this is on the careful side."""
    rooms = []
    for folder in _cgroups(root):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = _read(folder / limit).strip(), _read(folder / used).strip()
            if most.isdigit() and now.isdigit() and int(most) < _UNLIMITED:
                rooms.append(max(int(most) - int(now), 0))
    return min(rooms) if rooms else None


def oom_kills(root: Path = Path("/")) -> int | None:
    """How often the kernel killed for want of memory so far: in our control group if it counts, else anywhere."""
    for path in [folder / name for folder in _cgroups(root) for name in ("memory.events", "memory.oom_control")]:
        if (count := _count(_read(path))) is not None:
            return count
    return _count(_read(root / "proc/vmstat"))


def _count(text: str) -> int | None:
    counts = [line.split()[1] for line in text.splitlines() if line.startswith("oom_kill ")]
    return int(counts[0]) if counts else None


def workspace(free: Free, need: Need, low_memory: bool) -> int | None:
    """The workspace limit in MiB when the user names none; None leaves TensorRT's own, which is all GPU memory.

    Half of what the build leaves free on a board whose GPU shares the memory: a tactic that takes it all is the one
    that gets the process killed. Asked again before each engine, since the one before may have changed what is free.
    """
    cap = None
    if free.unified and free.host is not None:
        cap = max((free.host - need.total) // 2 // MIB, _LEAST_WORKSPACE)
    if low_memory:
        cap = min(cap or _LOW_WORKSPACE, _LOW_WORKSPACE)
    return cap


def check_memory(what: str, flavour: Flavour, need: Need, free: Free) -> str | None:
    """None when the build fits; else a sentence with the numbers.

    Example:
        >>> check_memory("joint fp16", "tensorrt-rtx", Need(2 << 30, 0, "a rule"), Free(1 << 30, None, False))
        'joint fp16: a TensorRT-RTX build takes about 2048 MiB of memory, 1024 MiB are available; predicted: a rule'
    """
    host = need.total if free.unified else need.host
    short = []
    if free.host is not None and free.host < host:
        short.append(f"about {host // MIB} MiB of memory, {free.host // MIB} MiB are available")
    if free.gpu is not None and free.gpu < need.gpu:
        short.append(f"about {need.gpu // MIB} MiB of GPU memory, {free.gpu // MIB} MiB are free")
    if not short:
        return None
    return f"{what}: a {LABELS[flavour]} build takes {' and '.join(short)}; predicted: {need.rule}"


def refuse(sentence: str, low_memory: bool) -> EnvironmentFault:
    """The error for a build that would not fit."""
    steps = ["close other programs (on a Jetson the desktop: sudo systemctl isolate multi-user.target)", "add swap"]
    if not low_memory:
        steps.insert(0, "--low-memory")
    return EnvironmentFault(sentence, hint=f"{', '.join(steps)}, or --force to try it all the same")


def looks_like_no_memory(text: str) -> bool:
    """TensorRT and the C++ library say it in many ways, mostly in the middle of something else."""
    lower = text.lower()
    return any(words in lower for words in _NO_MEMORY)


def peak_rss() -> int | None:
    """This process's own peak of resident memory in bytes; not getrusage's, which begins with the parent's."""
    for line in _read(Path(f"/proc/{os.getpid()}/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return None
