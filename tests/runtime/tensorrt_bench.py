"""A TensorRT backend on an engine that really computes, with CUDA's rules kept by the CPU (`host_cuda`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from gamma_runtime.backends.tensorrt_ import TensorRtBackend
from gamma_runtime.engines import EngineUse
from gamma_runtime.engines.runtime_cache import RuntimeCache
from tests.runtime.host_cuda import HostCuda
from tests.runtime.ort_engine import OrtEngine, loaded
from tests.runtime.tiny_bundle import Tiny, make_bundle


class Bench:
    """A ranged graph (batch 1 to 4), its engine, and the backends made from it."""

    def __init__(self, folder: Path, tiny: Tiny | None = None) -> None:
        bundle = make_bundle(folder / "t.gamma", tiny or Tiny(batch=(1, 2, 4)))
        self.graph = bundle.file(next(g.onnx for g in bundle.manifest.graphs if g.name == "joint"))
        self.cuda = HostCuda()
        self.made: list[TensorRtBackend] = []
        self.engine = OrtEngine(self.graph, self.cuda, ((1, 2, 4),))

    def backend(
        self, engine: OrtEngine | None = None, cache: RuntimeCache | None = None, **use: Any
    ) -> TensorRtBackend:
        made = TensorRtBackend(
            self.graph,
            loaded(engine or self.engine),
            self.cuda,
            name="tensorrt",
            version="10.3.0",
            use=EngineUse(**use),
            cache=cache,
        )
        self.made.append(made)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """At the end everything is closed, and nothing may be left."""
        for backend in self.made:
            backend.close()
        if self.cuda.sticky is None and not self.cuda.stall.is_set():
            self.cuda.close()


def crops(images: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (images, 5, 224, 224, 3), dtype=np.uint8)
