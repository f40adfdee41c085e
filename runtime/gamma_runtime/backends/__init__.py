"""The libraries that can run a graph, one file each behind `Backend`. Asking for one never silently gives another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_runtime.cuda_probe import probe
from gamma_runtime.engines.host import MODULES, installed_version
from gamma_runtime.engines.options import Flavour
from gamma_runtime.errors import EnvironmentFault, InputError, UsageError

if TYPE_CHECKING:
    from gamma_runtime.backends.base import Backend

__all__ = ["CPU", "ENGINES", "NAMES", "available", "choose", "create", "installed", "usable"]

CPU = ("onnxruntime", "openvino")
ENGINES: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")  # run what gamma-build made; ``auto`` never means them
NAMES = (*CPU, *ENGINES)
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
_DISTRIBUTIONS = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "openvino": ("openvino",)}


def installed(name: str) -> str | None:
    """The version of a backend's library, without importing it; None when it is not installed.

    Raises:
        UsageError: no backend of that name.
    """
    import importlib.metadata
    import importlib.util

    if name not in NAMES:
        raise UsageError(f"unknown backend {name!r}", hint=f"one of auto, {', '.join(NAMES)}")
    for flavour in ENGINES:
        if name == flavour:
            found = importlib.util.find_spec(MODULES[flavour]) is not None  # JetPack's may come without metadata
            return installed_version(flavour) or ("unknown version" if found else None)
    if importlib.util.find_spec(name) is None:
        return None
    for distribution in _DISTRIBUTIONS[name]:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown version"


def available() -> dict[str, str]:
    """Each backend's name with its library's version, or the reason why it cannot be used. Imports nothing heavy.

    Example:
        >>> available()
        {'onnxruntime': '1.31.1', 'openvino': "not installed: pip install 'gamma-edge[cpu]'", …}
    """
    found = {name: installed(name) or f"not installed: pip install '{_package(name)}'" for name in NAMES}
    state = probe()
    if not state.usable:
        found |= {name: f"{found[name]}; cannot score here: {state.detail}" for name in ENGINES if installed(name)}
    return found


def _package(name: str) -> str:
    return f"gamma-edge[{_EXTRAS.get(name, 'cpu')}]"


def choose(name: str, precision: str) -> str:
    """The backend to run a graph of some precision: the named one, or for ``auto`` the first that can.

    Raises:
        UsageError: no backend of that name. EnvironmentFault: it, or for ``auto`` every one, is not installed.
        InputError: the named one has no kernels for the precision.
    """
    return usable(precision, (name,))[0]


def usable(precision: str, asked: Sequence[str] = ()) -> list[str]:
    """The backends to run a graph of some precision: those asked for, else (and for ``auto``) all that can.

    Raises:
        UsageError, EnvironmentFault, InputError: as `choose`.
    """
    named = [name for name in dict.fromkeys(asked) if name != "auto"]
    for name in named:
        if installed(name) is None:
            raise EnvironmentFault(f"{name} is not installed", hint=f"pip install '{_package(name)}'")
        if not _has_kernels(name, precision):
            raise InputError(f"{name} has no CPU kernels for {precision}", hint="use --backend openvino")
    found = named or [name for name in CPU if installed(name) and _has_kernels(name, precision)]
    if not found:
        raise EnvironmentFault(f"no backend for a {precision} graph is installed", hint="pip install 'gamma-edge[cpu]'")
    return found


def _has_kernels(name: str, precision: str) -> bool:
    return name != "onnxruntime" or precision not in ("bf16", "fp8")


def create(name: str, onnx: Path, *, threads: int | None = None) -> Backend:
    """Compile a graph.

    Args:
        name: ``onnxruntime`` or ``openvino``.
        onnx: the graph; its external data lies beside it. Check hashes before (`Bundle.file`).
        threads: CPU threads of one inference; one for each physical core that may be used when None.

    Raises:
        UsageError: unknown backend, or less than one thread. EnvironmentFault: the library is missing or chose another
            device. InputError: the library refuses the graph, or it is not a Gamma graph.

    Example:
        >>> with create("openvino", Path("photo.gamma/joint.onnx"), threads=2) as backend:
        ...     backend.infer(crops)
    """
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads; at least 1 is needed")
    if name == "onnxruntime":
        from gamma_runtime.backends.onnxruntime_ import OnnxRuntimeBackend

        return OnnxRuntimeBackend(onnx, threads)
    if name == "openvino":
        from gamma_runtime.backends.openvino_ import OpenVinoBackend

        return OpenVinoBackend(onnx, threads)
    if name in ENGINES:
        raise UsageError(
            f"{name} runs engines, not ONNX graphs", hint="gamma_runtime.load(bundle, backend=…) finds one"
        )
    raise UsageError(f"unknown backend {name!r}", hint=f"one of {', '.join(NAMES)}")
