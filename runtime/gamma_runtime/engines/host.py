"""This machine as the engines see it: which TensorRT is installed, for which GPU, and why not."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import platform
from typing import Any

from gamma_runtime.cuda_probe import CudaState, probe
from gamma_runtime.engines.options import LABELS, Flavour
from gamma_runtime.errors import EnvironmentFault

__all__ = [
    "BUILD_INSTEAD",
    "DISTRIBUTIONS",
    "MODULES",
    "Device",
    "host_os",
    "import_flavour",
    "installed_version",
    "memory_mib",
    "require_gpu",
    "same_version",
    "this_device",
]

MODULES: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
BUILD_INSTEAD = "or compile without a GPU: gamma-build BUNDLE --engine tensorrt-rtx"
# The wheels are called after the CUDA they need; JetPack's own package is plain `tensorrt`.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}


@dataclasses.dataclass(frozen=True)
class Device:
    """Where an engine is to run: TensorRT's ``version``, the GPU's ``compute_capability`` (``"8.7"``), and ``os``."""

    flavour: Flavour
    version: str
    compute_capability: str
    os: str


def host_os() -> str:
    """Operating system and machine, such as ``Linux-x86_64``; plans do not cross them."""
    return f"{platform.system()}-{platform.machine()}"


def memory_mib() -> tuple[int, int]:
    """Total and available main memory in MiB; zeros where /proc/meminfo does not exist."""
    sizes = {"MemTotal": 0, "MemAvailable": 0}
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            for line in stream:
                name, _, rest = line.partition(":")
                if name in sizes:
                    sizes[name] = int(rest.split()[0]) // 1024
    except OSError:
        pass
    return sizes["MemTotal"], sizes["MemAvailable"]


def installed_version(flavour: Flavour) -> str | None:
    """The installed package's version, read from its metadata: nothing is imported. None when not installed."""
    for name in DISTRIBUTIONS[flavour]:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def same_version(one: str, other: str) -> bool:
    """Equal in every component that both state: JetPack says 10.3.0 where the wheel says 10.3.0.30."""
    return all(a == b for a, b in zip(one.split("."), other.split("."), strict=False))


def import_flavour(flavour: Flavour) -> Any:
    """The TensorRT module. Call `require_gpu` first, except for a TensorRT-RTX build.

    Raises:
        EnvironmentFault: not installed, or installed and broken (native libraries missing or of another version).
    """
    module, label = MODULES[flavour], LABELS[flavour]
    install = f"pip install 'gamma-edge[{_EXTRAS[flavour]}]'"
    if flavour == "tensorrt-rtx" and platform.machine() not in ("x86_64", "AMD64"):
        install = f"TensorRT-RTX exists for x86-64 only, this is {platform.machine()}: use --engine tensorrt"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise EnvironmentFault(f"{label} is not installed", hint=install) from error
        raise EnvironmentFault(f"{label} is installed but incomplete ({error})", hint=install) from error
    except (ImportError, OSError, AttributeError) as error:
        raise EnvironmentFault(
            f"{label} is installed but does not load: its Python part and its native library do not match ({error})",
            hint="reinstall both in one version, then run gamma-doctor",
        ) from error


def require_gpu(flavour: Flavour, *, instead: str) -> CudaState:
    """The driver's answer, when there is a GPU that this TensorRT can use.

    Args:
        flavour: whose CUDA version the driver must offer.
        instead: the command that works without a GPU; part of the hint.

    Raises:
        EnvironmentFault: no driver, driver too old, no GPU, or every GPU hidden; the message says which.
    """
    state = probe()
    if not state.usable:
        raise EnvironmentFault(f"{LABELS[flavour]} needs a GPU here: {state.detail}", hint=f"{state.hint}; {instead}")
    needed = _cuda_major(flavour)
    if needed and state.driver and int(state.driver.split(".")[0]) < needed:
        raise EnvironmentFault(
            f"NVIDIA driver too old: it offers CUDA {state.driver}, the installed "
            f"{LABELS[flavour]} needs CUDA {needed}",
            hint=f"update the driver, or install the {LABELS[flavour]} packages built for CUDA {state.driver}",
        )
    return state


def _cuda_major(flavour: Flavour) -> int | None:
    """The CUDA major version that the installed wheels were built for; None for JetPack's own packages."""
    for name in DISTRIBUTIONS[flavour][1:]:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return int(name[-2:])
    return None


def this_device(flavour: Flavour) -> Device:
    """The first visible GPU with the installed TensorRT.

    Raises:
        EnvironmentFault: no usable GPU, or TensorRT is not installed.
    """
    state = require_gpu(flavour, instead="or score on the CPU: gamma-run BUNDLE PHOTO --backend onnxruntime")
    version = installed_version(flavour) or str(import_flavour(flavour).__version__)
    return Device(flavour, version, state.devices[0].compute_capability, host_os())
