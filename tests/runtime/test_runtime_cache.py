"""TensorRT-RTX's compiled kernels, kept beside the engine: whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gamma_runtime.engines.runtime_cache import RuntimeCache
from gamma_runtime.errors import EnvironmentFault
from tests.runtime.ort_engine import OrtEngine
from tests.runtime.tensorrt_bench import Bench, crops


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


def test_runtime_cache_is_kept_and_checked(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "e.rtxcache"

    def once(sha256: str = "a" * 64) -> bool:
        engine = OrtEngine(bench.graph, bench.cuda, ((1, 2, 4),), rtx=True)
        cache = RuntimeCache(path, sha256)
        with bench.backend(engine, cache) as backend:
            backend.infer(crops(1))
        assert backend.cache_fault is None
        return cache.warm

    assert not once()
    assert path.read_bytes().startswith(b"gamma-rtx-cache 1 " + b"a" * 64)
    assert once()
    assert not once("b" * 64), "another engine's kernels"
    assert once("b" * 64)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert not once("b" * 64), "a changed byte"


def test_runtime_cache_that_cannot_be_written_costs_no_score(bench: Bench, tmp_path: Path) -> None:
    engine = OrtEngine(bench.graph, bench.cuda, ((1, 2, 4),), rtx=True)
    with bench.backend(engine, RuntimeCache(tmp_path / "gone" / "e.rtxcache", "a" * 64)) as backend:
        backend.infer(crops(1))
    assert "cannot be written" in str(backend.cache_fault)


def test_runtime_cache_that_tensorrt_refuses_is_typed(bench: Bench, tmp_path: Path) -> None:
    engine = OrtEngine(bench.graph, bench.cuda, ((1, 2, 4),), rtx=True)
    engine.faults.refuse = "set_runtime_cache"
    with pytest.raises(EnvironmentFault, match="set_runtime_cache failed"):
        bench.backend(engine, RuntimeCache(tmp_path / "e.rtxcache", "a" * 64)).infer(crops(1))
