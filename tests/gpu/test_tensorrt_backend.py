"""On a GPU: the backends `tensorrt` and `tensorrt-rtx` against ONNX Runtime and PyTorch. Not run without one."""

from __future__ import annotations

import gc
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

import gamma_runtime
from gamma_runtime import backends
from gamma_runtime.backends.tensorrt_ import TensorRtBackend
from gamma_runtime.bundle import Bundle, open_bundle
from gamma_runtime.cuda import IMPLEMENTATIONS, Kind, Owner, open_cuda
from gamma_runtime.cuda.arrays import DeviceCrops
from gamma_runtime.cuda_probe import probe
from gamma_runtime.engines import EngineOptions, EngineUse, build_engines
from gamma_runtime.engines.host import import_flavour
from gamma_runtime.engines.options import Flavour
from gamma_runtime.errors import EnvironmentFault
from gamma_runtime.scorer import Scorer, load_panel
from gamma_runtime.selftest import GATES, selftest
from tests.gpu.graphs import Measured

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.gpu
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")
PRECISION = "fp16"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo checkpoint, all scenes in one graph, batch 1 to 4, the photos' own pixels."""
    from gamma_export.demo import demo_checkpoint
    from gamma_export.exporter import ExportOptions, export

    folder = tmp_path_factory.mktemp("tensorrt")
    options = ExportOptions(precision=(PRECISION,), joint=True, crops="five", batch="1:2:4", native=True)
    report = export(demo_checkpoint(), folder / "demo.gamma", options)
    return open_bundle(report.bundle)


@pytest.fixture(scope="module", params=FLAVOURS)
def flavour(request: pytest.FixtureRequest, bundle: Bundle) -> Flavour:
    """An installed flavour with its engine; only on a GPU that it does not list may it refuse."""
    chosen: Flavour = request.param
    if backends.installed(chosen) is None:
        pytest.skip(f"{chosen} is not installed")
    try:
        build_engines(bundle, EngineOptions(flavour=chosen, precision=PRECISION))
        gamma_runtime.load(bundle, backend=chosen).close()
    except EnvironmentFault as error:
        if _lists_this_gpu(chosen):
            raise
        pytest.skip(f"{chosen}: {error}")
    return chosen


def _lists_this_gpu(flavour: Flavour) -> bool:
    """TensorRT builds for the GPU it runs on; TensorRT-RTX names those that it knows."""
    members = getattr(import_flavour(flavour), "ComputeCapability", None) if flavour == "tensorrt-rtx" else None
    return members is None or f"SM{probe().devices[0].compute_capability.replace('.', '')}" in members.__members__


@pytest.fixture
def scorer(bundle: Bundle, flavour: Flavour) -> Iterator[Scorer]:
    with gamma_runtime.load(bundle, backend=flavour) as made:
        yield made


def _pictures(count: int = 6) -> list[NDArray[np.uint8]]:
    from gamma_export.photos import packaged_photos
    from gamma_runtime.contract import Limits
    from gamma_runtime.decode import decode

    return [decode(path, Limits()).pixels for path in packaged_photos()[:count]]


def _backend(scorer: Scorer) -> TensorRtBackend:
    backend = scorer.panel._graphs[0].backend
    assert isinstance(backend, TensorRtBackend)
    return backend


def _values(scorer: Scorer, images: list[NDArray[np.uint8]], batch: int = 1) -> NDArray[np.float64]:
    return np.array([score.crop_scores for score in scorer.score_many(images, batch=batch)])


def test_golden_images_score_as_in_pytorch(bundle: Bundle, flavour: Flavour, measured: Measured) -> None:
    checks = selftest(bundle, (flavour,), precision=PRECISION)
    measured(max_abs=max(check.difference or 0.0 for check in checks), gate=GATES[PRECISION])
    assert checks
    assert all(check.passed for check in checks)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_scores_are_near_onnxruntimes(bundle: Bundle, scorer: Scorer, measured: Measured, batch: int) -> None:
    with gamma_runtime.load(bundle, backend="onnxruntime") as reference:
        gap = np.abs(_values(scorer, _pictures(), batch) - _values(reference, _pictures())).max()
    measured(max_abs=float(gap), gate=GATES[PRECISION])
    assert gap <= GATES[PRECISION]


def test_graph_replays_give_the_same_bits(bundle: Bundle, flavour: Flavour, measured: Measured) -> None:
    pictures = _pictures(3)
    with load_panel(bundle, (), flavour, engine=EngineUse(cuda_graph=False)) as panel:
        eager = _values(Scorer(panel), pictures)
    with gamma_runtime.load(bundle, backend=flavour) as scorer:
        rounds = [_values(scorer, pictures) for _ in range(3)]
        backend = _backend(scorer)
        measured(graph_fault=backend.graph_fault, device_ms=backend.last_device_ms)
        (session,) = backend._sessions.values()
        assert backend.graph_fault is None
        assert session.replays == 8
    for found in rounds:
        np.testing.assert_array_equal(found, eager)


def test_threads_have_a_context_each(scorer: Scorer) -> None:
    pictures = _pictures(4)
    wanted = _values(scorer, pictures)
    faults: list[BaseException] = []

    def score(index: int) -> None:
        try:
            for _ in range(20):
                np.testing.assert_array_equal(_values(scorer, [pictures[index]])[0], wanted[index])
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=score, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    gc.collect()
    assert _backend(scorer).contexts == 1


def test_device_memory_stays_flat(bundle: Bundle, flavour: Flavour, measured: Measured) -> None:
    cuda = open_cuda()
    picture = _pictures(1)

    def cycle(times: int) -> int:
        for _ in range(times):
            with gamma_runtime.load(bundle, backend=flavour) as scorer:
                _values(scorer, picture * 2, batch=2)
        gc.collect()
        return cuda.memory_info()[0]

    before = cycle(3)
    after = cycle(10)
    measured(free_before=before, free_after=after)
    assert before - after < 8 << 20


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_implementation_copies_and_scores(
    bundle: Bundle, flavour: Flavour, monkeypatch: pytest.MonkeyPatch, implementation: str
) -> None:
    module = {"cuda-bindings": "cuda", "pycuda": "pycuda"}.get(implementation)
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{implementation} is not installed")
    cuda = open_cuda(implementation)
    with Owner(cuda) as owner:
        first, second, stream = owner.buffer(4096, zero_copy=False), owner.buffer(4096, zero_copy=False), owner.stream()
        first.host[:] = np.arange(4096) % 251
        first.upload(cuda, 4096, stream)
        cuda.memcpy_2d_async(second.device, 64, first.device, 64, 64, 64, Kind.DEVICE_TO_DEVICE, stream)
        second.download(cuda, 4096, stream)
        cuda.stream_synchronize(stream)
        np.testing.assert_array_equal(first.host, second.host)
    monkeypatch.setenv("GAMMA_CUDA", implementation)
    with gamma_runtime.load(bundle, backend=flavour) as scorer:
        assert np.isfinite(_values(scorer, _pictures(1) * 2)).all()
        assert (_backend(scorer).graph_fault is None) is (implementation != "pycuda")


def test_tensors_on_the_device_score_like_arrays(scorer: Scorer, cuda: torch.device) -> None:
    import torch

    for picture in _pictures(3):
        tensor = torch.from_numpy(picture.copy()).to(cuda)
        assert isinstance(scorer.prepare(tensor).crops, DeviceCrops)
        assert scorer.score(tensor).crop_scores == scorer.score(picture).crop_scores
        mirrored = tensor.flip(1)
        assert scorer.score(mirrored).crop_scores == scorer.score(picture[:, ::-1]).crop_scores


def test_work_pending_on_torchs_stream_is_waited_for(scorer: Scorer, cuda: torch.device) -> None:
    import torch

    picture = _pictures(1)[0]
    wanted = scorer.score(picture).crop_scores
    source = torch.from_numpy(picture.copy()).to(cuda)
    target = torch.zeros_like(source)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(200_000_000)
        target.copy_(source)
        assert scorer.score(target).crop_scores == wanted


def test_runtime_cache_is_written_and_taken(bundle: Bundle, flavour: Flavour) -> None:
    if flavour != "tensorrt-rtx":
        pytest.skip("only TensorRT-RTX compiles at run time")
    for _ in range(2):
        with gamma_runtime.load(bundle, backend=flavour) as scorer:
            _values(scorer, _pictures(1))
            backend = _backend(scorer)
        assert backend.cache_fault is None
    assert list(Path(bundle.folder).glob("*.rtxcache"))
    assert backend._cache is not None
    assert backend._cache.warm
