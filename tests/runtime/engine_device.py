"""A machine with a GPU, as far as the runtime can see: a driver that answers, `HostCuda`, and a `tensorrt` module whose
plans name a graph that ONNX Runtime computes (`ort_engine`). What is real: everything of ours."""

from __future__ import annotations

import hashlib
import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from gamma_runtime.bundle import Bundle
from gamma_runtime.cuda import IMPLEMENTATIONS
from gamma_runtime.cuda_probe import CudaDevice, CudaState
from gamma_runtime.engines.host import host_os
from gamma_runtime.engines.store import publish
from gamma_runtime.manifest import EngineEntry
from tests.runtime.host_cuda import HostCuda
from tests.runtime.ort_engine import OrtEngine

__all__ = ["VERSION", "EngineDevice", "store_plan"]

VERSION = "10.3.0"


class EngineDevice:
    """Attributes: ``cuda``, and every ``engine`` that was deserialised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cuda = HostCuda()
        self.engines: list[OrtEngine] = []
        state = CudaState("ok", "1 GPU", "13.0", (CudaDevice(0, "Host Orin", "8.7", 8 << 30),))
        for module in ("gamma_runtime.engines.host", "gamma_runtime.backends", "gamma_runtime.doctor.facts"):
            monkeypatch.setattr(f"{module}.probe", lambda: state)
        monkeypatch.setitem(IMPLEMENTATIONS, "host", lambda: self.cuda)
        monkeypatch.setenv("GAMMA_CUDA", "host")
        monkeypatch.setitem(sys.modules, "tensorrt", self._module())

    def _module(self) -> types.ModuleType:
        module: Any = types.ModuleType("tensorrt")
        module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
        module.__version__ = VERSION
        device = self

        class ILogger:
            pass

        class Runtime:
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def deserialize_cuda_engine(self, plan: bytes) -> OrtEngine:
                graph, least, optimal, most, _ = plan.decode().split("\n")
                engine = OrtEngine(Path(graph), device.cuda, ((int(least), int(optimal), int(most)),))
                engine.logger = self.logger
                device.engines.append(engine)
                return engine

        module.ILogger, module.Runtime = ILogger, Runtime
        module.Logger = types.SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)
        return module


def store_plan(
    bundle: Bundle, name: str, folder: Path | None = None, graph: str | None = None, tail: str = "", **changes: Any
) -> EngineEntry:
    """Publish a plan of a bundle's graph; ``graph`` lets the plan compute another one than it says."""
    folder = folder or bundle.folder
    entry = next(g for g in bundle.manifest.graphs if g.name == name)
    computed = next(g for g in bundle.manifest.graphs if g.name == (graph or name))
    hashes = {file.name: file.sha256 for file in bundle.manifest.files}
    content = "\n".join([str(bundle.folder / computed.onnx), *map(str, entry.batch), tail]).encode()
    digest = hashlib.sha256(content).hexdigest()
    stem = f"{name}-fp32-trt10.3.0-sm87-{digest[:8]}"
    made = EngineEntry.model_validate(
        {
            "file": f"{stem}.plan",
            "size": len(content),
            "sha256": digest,
            "flavour": "tensorrt",
            "version": VERSION,
            "compute_capabilities": ["8.7"],
            "graph": name,
            "scenes": entry.scenes,
            "precision": entry.precision,
            "onnx_sha256": hashes[entry.onnx],
            "weights_sha256": hashes[entry.weights],
            "batch": entry.batch,
            "options": {},
            "log": f"{stem}.log",
            "seconds": 0.0,
            "created": "2026-11-24T00:00:00+00:00",
            "os": host_os(),
            **changes,
        }
    )
    temporary = folder / "plan"
    temporary.write_bytes(content)
    publish(folder, [(temporary, "log", made)], 1.0)
    return made
