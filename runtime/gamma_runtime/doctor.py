"""What this machine has, and which bundles and engines fit it.

Nothing heavy is imported: versions come from package metadata.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_runtime.cli import printable
from gamma_runtime.cuda_probe import CudaState, probe
from gamma_runtime.engines.host import DISTRIBUTIONS, Device, host_os, installed_version, memory_mib
from gamma_runtime.engines.options import LABELS, Flavour
from gamma_runtime.errors import EXIT_OK, GammaError, IntegrityError

if TYPE_CHECKING:
    from gamma_runtime.bundle import Bundle
    from gamma_runtime.manifest import EngineEntry

__all__ = ["BundleFacts", "EngineFacts", "Facts", "diagnose", "render"]

_LIBRARIES: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "pydantic": ("pydantic",),
    "opencv-python": ("opencv-python",),
    "opencv-python-headless": ("opencv-python-headless",),
    "opencv-contrib-python": ("opencv-contrib-python",),
    "opencv-contrib-python-headless": ("opencv-contrib-python-headless",),
    "simplejpeg": ("simplejpeg",),
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-gpu": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    **DISTRIBUTIONS,
    "polygraphy": ("polygraphy",),
    "torch": ("torch",),
    "cuda-bindings": ("cuda-bindings",),
    "pycuda": ("pycuda",),
}
_CPU_FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve"),
)


@dataclasses.dataclass(frozen=True)
class EngineFacts:
    """One entry of engines.json. ``why`` says why it does not fit here, or is None; ``broken`` means changed."""

    file: str
    graph: str
    precision: str
    flavour: str
    version: str
    compute_capabilities: list[str]
    fits: bool
    why: str | None
    broken: bool


@dataclasses.dataclass(frozen=True)
class BundleFacts:
    """A named bundle: valid or the error, with the exit code that it means."""

    path: str
    valid: bool
    error: str | None
    exit_code: int
    scenes: list[str]
    precisions: list[str]
    label: str | None
    engines: list[EngineFacts]


@dataclasses.dataclass(frozen=True)
class Facts:
    """Everything that `gamma-doctor` knows; sizes in MiB."""

    gamma_edge: str
    python: str
    os: str
    cpu: dict[str, Any]
    memory_total_mib: int
    memory_free_mib: int
    board: dict[str, str]
    libraries: dict[str, str | None]
    backends: dict[str, str]
    cuda: CudaState
    warnings: list[str]
    bundles: list[BundleFacts]

    @property
    def exit_code(self) -> int:
        """0, or the highest code among broken bundles: no GPU is not a fault."""
        return max((bundle.exit_code for bundle in self.bundles), default=EXIT_OK)


def diagnose(bundles: Sequence[Path] = (), engine_dir: Path | None = None) -> Facts:
    """Look at this machine and at the named bundles; never raises for what it finds.

    Args:
        bundles: bundle folders; every file of theirs is hashed.
        engine_dir: where their engines lie; None means inside each bundle.
    """
    from gamma_runtime import __version__

    libraries = {name: _version(candidates) for name, candidates in _LIBRARIES.items()}
    total, free = memory_mib()
    cuda = probe()
    return Facts(
        gamma_edge=__version__,
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        os=f"{_os_name()}, kernel {platform.release()}, {platform.machine()}",
        cpu=_cpu(),
        memory_total_mib=total,
        memory_free_mib=free,
        board=_board(),
        libraries=libraries,
        backends=_backends(),
        cuda=cuda,
        warnings=_warnings(libraries),
        bundles=[_bundle(path, engine_dir, cuda) for path in bundles],
    )


def _version(candidates: Sequence[str]) -> str | None:
    for name in candidates:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


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


def _board() -> dict[str, str]:
    """A Jetson's module and JetPack; empty elsewhere."""
    board: dict[str, str] = {}
    with contextlib.suppress(OSError):
        model = Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace")
        board["model"] = model.strip("\0\n ")
    with contextlib.suppress(OSError):
        board["l4t"] = Path("/etc/nv_tegra_release").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    if jetpack := _jetpack():
        board["jetpack"] = jetpack
    return board


def _jetpack() -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(
            ["dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        return asked.stdout.strip() if asked.returncode == 0 and asked.stdout.strip() else None
    return None


def _backends() -> dict[str, str]:
    """Each backend's name with its library's version, or the reason why it cannot be used."""
    from gamma_runtime.backends import available

    return available()


def _warnings(libraries: dict[str, str | None]) -> list[str]:
    """Packages that share an import name and break each other."""
    found = []
    if libraries["onnxruntime"] and libraries["onnxruntime-gpu"]:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and break each other: uninstall both, install one"
        )
    cv2 = [name for name, version in libraries.items() if name.startswith("opencv-") and version]
    if len(cv2) > 1:
        found.append(f"{' and '.join(cv2)} share the name cv2: uninstall all, install one")
    if not cv2 and importlib.util.find_spec("cv2") is None:
        found.append("no OpenCV: only JPEG images can be read; pip install 'gamma-edge[cpu]'")
    return found


def _bundle(path: Path, engine_dir: Path | None, cuda: CudaState) -> BundleFacts:
    from gamma_runtime.bundle import open_bundle, read_engines

    try:
        bundle = open_bundle(path)
    except GammaError as error:
        return BundleFacts(str(path), False, str(error), error.exit_code, [], [], None, [])
    fault: GammaError | None = None
    engines: list[EngineFacts] = []
    try:
        bundle.contract()
        bundle.check_files()
        folder = engine_dir or bundle.folder
        engines = [_engine(bundle, folder, engine, cuda) for engine in read_engines(folder).engines]
    except GammaError as error:
        fault = error
    code = (
        fault.exit_code
        if fault
        else (IntegrityError.exit_code if any(engine.broken for engine in engines) else EXIT_OK)
    )
    return BundleFacts(
        path=str(path),
        valid=fault is None,
        error=None if fault is None else str(fault),
        exit_code=code,
        scenes=[scene.name for scene in bundle.manifest.scenes],
        precisions=list(dict.fromkeys(graph.precision for graph in bundle.manifest.graphs)),
        label=bundle.manifest.checkpoint.label,
        engines=engines,
    )


def _engine(bundle: Bundle, folder: Path, entry: EngineEntry, cuda: CudaState) -> EngineFacts:
    from gamma_runtime.engines.load import why_stale
    from gamma_runtime.engines.store import read_plan

    broken = False
    try:
        read_plan(folder, entry)
        why = why_stale(bundle, entry) or _why_not_here(entry, cuda)
    except IntegrityError as error:
        broken, why = True, error.message
    return EngineFacts(
        file=entry.file,
        graph=entry.graph,
        precision=entry.precision,
        flavour=entry.flavour,
        version=entry.version,
        compute_capabilities=entry.compute_capabilities,
        fits=why is None,
        why=why,
        broken=broken,
    )


def _why_not_here(entry: EngineEntry, cuda: CudaState) -> str | None:
    from gamma_runtime.engines.load import why_not

    flavour: Flavour = entry.flavour
    version = installed_version(flavour)
    if version is None:
        return f"{LABELS[flavour]} is not installed"
    if not cuda.usable:
        return cuda.detail
    return why_not(entry, Device(flavour, version, cuda.devices[0].compute_capability, host_os()))


def render(facts: Facts) -> str:
    """The facts as plain text in sections."""
    cpu = facts.cpu
    lines = [
        "System",
        f"  gamma-edge   {facts.gamma_edge}",
        f"  Python       {facts.python}",
        f"  OS           {facts.os}",
        f"  CPU          {cpu['model']}, {cpu['cores']} cores, {' '.join(cpu['flags']) or 'no known vector extension'}",
        f"  memory       {facts.memory_free_mib} of {facts.memory_total_mib} MiB free",
        *(f"  {name:<12} {value}" for name, value in facts.board.items()),
        "Libraries",
        *(f"  {name:<32} {version or '-'}" for name, version in facts.libraries.items()),
        "Backends",
        *(f"  {name:<14} {state}" for name, state in facts.backends.items()),
        "CUDA",
        f"  {facts.cuda.detail}",
        *(
            f"  GPU {gpu.index}: {gpu.name}, compute capability {gpu.compute_capability}, {gpu.total_memory >> 20} MiB"
            for gpu in facts.cuda.devices
        ),
    ]
    for bundle in facts.bundles:
        lines += _render_bundle(bundle)
    if facts.warnings:
        lines += ["Warnings", *(f"  {warning}" for warning in facts.warnings)]
    return "\n".join(printable(line) for entry in lines for line in entry.split("\n"))


def _render_bundle(bundle: BundleFacts) -> list[str]:
    lines = [f"Bundle {bundle.path}", f"  {'valid' if bundle.valid else 'NOT VALID: ' + str(bundle.error)}"]
    if bundle.scenes:
        lines += [f"  scenes       {', '.join(bundle.scenes)}", f"  precisions   {', '.join(bundle.precisions)}"]
    if bundle.label:
        lines.append(f"  checkpoint   {bundle.label}")
    for engine in bundle.engines:
        verdict = "fits" if engine.fits else f"{'BROKEN' if engine.broken else 'does not fit'}: {engine.why}"
        lines.append(f"  engine       {engine.file}: {verdict}")
    if bundle.valid and not bundle.engines:
        lines.append("  engine       none built")
    return lines
