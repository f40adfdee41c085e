"""Facts about this Python: libraries by their metadata, and the clashes that metadata alone does not show."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from gamma_runtime.engines.host import DISTRIBUTIONS

__all__ = ["CV2", "LIBRARIES", "PythonEnv", "read_python"]

CV2 = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
LIBRARIES: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "pydantic": ("pydantic",),
    **{name: (name,) for name in CV2},
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
_CUDART = ("libcudart.so.13", "libcudart.so.12")
_CUDART_PLACES = (
    "usr/local/cuda/lib64",
    "usr/local/cuda/targets/aarch64-linux/lib",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
)
_CUDART_WHEELS = ("nvidia/cu13/lib", "nvidia/cuda_runtime/lib")


@dataclasses.dataclass(frozen=True)
class PythonEnv:
    """What this interpreter can import, and what it cannot see.

    Attributes:
        version: such as ``3.10.12``.
        libraries: distribution -> version or None.
        ort_hollow: ``import onnxruntime`` would give an empty package, as uninstalling one of its two wheels leaves.
        cv2_at: the folder of the cv2 that would be imported.
        system_tensorrt: JetPack's Python package of TensorRT, whether or not this interpreter sees it.
        sees_tensorrt: this interpreter would find a module called tensorrt.
        in_venv: this is a virtual environment.
        cudart: the CUDA runtime library that was found.
    """

    version: str
    libraries: dict[str, str | None]
    ort_hollow: bool = False
    cv2_at: str | None = None
    system_tensorrt: str | None = None
    sees_tensorrt: bool = False
    in_venv: bool = False
    cudart: str | None = None


def read_python(root: Path = Path("/")) -> PythonEnv:
    """This interpreter; the system's packages and CUDA's library are looked for below ``root``."""
    return PythonEnv(
        version=".".join(map(str, sys.version_info[:3])),
        libraries={name: _version(candidates) for name, candidates in LIBRARIES.items()},
        ort_hollow=_hollow("onnxruntime"),
        cv2_at=_folder("cv2"),
        system_tensorrt=_system_tensorrt(root),
        sees_tensorrt=_spec("tensorrt") is not None,
        in_venv=sys.prefix != sys.base_prefix,
        cudart=_cudart(root),
    )


def _version(candidates: Sequence[str]) -> str | None:
    for name in candidates:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def _hollow(module: str) -> bool:
    """Both wheels write into one folder; removing one takes the other's ``__init__`` or library with it."""
    spec = _spec(module)
    if spec is None:
        return False
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    has_init = any((place / "__init__.py").is_file() for place in places)
    has_library = any(next(place.glob("capi/onnxruntime_pybind11_state*"), None) for place in places)
    return not (has_init and has_library)


def _folder(module: str) -> str | None:
    spec = _spec(module)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    return str(places[0]) if places else spec.origin


def _spec(module: str) -> importlib.machinery.ModuleSpec | None:
    with contextlib.suppress(ValueError, ImportError):
        return importlib.util.find_spec(module)
    return None


def _system_tensorrt(root: Path) -> str | None:
    for place in sorted(root.glob("usr/lib/python3*/dist-packages/tensorrt")):
        return f"/{place.relative_to(root)}"
    return None


def _cudart(root: Path) -> str | None:
    """CUDA's runtime where the loader, the toolkit or the pip wheels have it; nothing is loaded."""
    for name in _CUDART:
        for place in _CUDART_PLACES:
            if (root / place / name).exists():
                return f"/{place}/{name}"
        for entry in sys.path:
            for wheel in _CUDART_WHEELS:
                if (Path(entry) / wheel / name).exists():
                    return f"{wheel}/{name} (pip)"
    return None
