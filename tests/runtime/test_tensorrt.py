"""The TensorRT backend on an engine that really computes, with CUDA's rules kept by the CPU (`host_cuda`)."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gamma_runtime import backends
from gamma_runtime.backends.base import NonFiniteError
from gamma_runtime.backends.tensorrt_ import TensorRtBackend
from gamma_runtime.backends.tensorrt_session import HungError
from gamma_runtime.cuda import CudaError
from gamma_runtime.errors import EnvironmentFault, InputError, UsageError
from tests.runtime.ort_engine import OrtEngine
from tests.runtime.tensorrt_bench import Bench, crops
from tests.runtime.tiny_bundle import Tiny

Make = Callable[..., TensorRtBackend]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_scores_are_those_of_onnxruntime_bit_for_bit(bench: Bench, integrated: bool, cuda_graph: bool) -> None:
    bench.cuda.integrated = integrated
    backend = bench.backend(cuda_graph=cuda_graph)
    with backends.create("onnxruntime", bench.graph, threads=1) as reference:
        for round_, images in enumerate((2, 2, 2, 1, 4, 4, 3, 2)):  # shapes grow, shrink and repeat
            batch = crops(images, seed=round_)
            wanted, found = reference.infer(batch), backend.infer(batch)
            np.testing.assert_array_equal(found.score, wanted.score)
            np.testing.assert_array_equal(found.crop_scores, wanted.crop_scores)
    copies = bench.cuda.calls.count("cudaMemcpyAsync")
    assert (copies == 0) is integrated, "an integrated GPU copies nothing, a discrete one must"
    assert bench.cuda.calls.count("cudaGraphLaunch") == (3 if cuda_graph else 0)
    assert backend.last_ms > backend.last_device_ms > 0
    assert backend.graph_fault == (None if cuda_graph else "switched off")


def test_outputs_are_the_callers(bench: Bench) -> None:
    backend = bench.backend()
    first = backend.infer(crops(1))
    kept = first.score.copy()
    for seed in range(3):
        backend.infer(crops(1, seed=seed))
    np.testing.assert_array_equal(first.score, kept)


def test_what_cannot_be_captured_runs_plainly(bench: Bench) -> None:
    wanted = bench.backend(cuda_graph=False).infer(crops(2)).score
    bench.cuda.refuse_capture = True
    refused = bench.backend()
    for _ in range(3):
        np.testing.assert_array_equal(refused.infer(crops(2)).score, wanted)
    assert "operation not supported" in str(refused.graph_fault)
    bench.cuda.refuse_capture = False
    bench.engine.faults.uncapturable = True
    other = bench.backend()
    np.testing.assert_array_equal(other.infer(crops(2)).score, wanted)
    assert other.graph_fault == "TensorRT says that this stream cannot be captured"


def test_a_capture_that_fails_inside_ends_and_is_forgotten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.runtime import ort_engine

    backend = bench.backend()
    execute, calls = ort_engine.Context.execute_async_v3, []

    def second_fails(self: ort_engine.Context, stream: int) -> bool:
        calls.append(stream)
        return execute(self, stream) if len(calls) != 2 else False

    monkeypatch.setattr(ort_engine.Context, "execute_async_v3", second_fails)
    for seed in range(3):
        backend.infer(crops(1, seed=seed))
    assert "execute_async_v3 failed" in str(backend.graph_fault)
    assert len(calls) == 4


def test_buffers_persist(bench: Bench) -> None:
    backend = bench.backend()
    backend.infer(crops(4))
    before = bench.cuda.calls.count("cudaHostAlloc"), len(bench.cuda.memory)
    for images in (4, 1, 3, 4):
        backend.infer(crops(images))
    assert (bench.cuda.calls.count("cudaHostAlloc"), len(bench.cuda.memory)) == before


def test_the_narrowest_profile_is_chosen(bench: Bench) -> None:
    engine = OrtEngine(bench.graph, bench.cuda, ((1, 4, 4), (1, 1, 1)))
    backend = bench.backend(engine)
    assert (backend.least, backend.most) == (1, 4)
    for images, profile in ((1, 1), (3, 0), (1, 1)):
        backend.infer(crops(images))
        assert engine.contexts[0].profile == profile


# Row 24: pointers, types, batches, threads


def test_wrong_input_is_a_typed_error(bench: Bench) -> None:
    backend = bench.backend()
    with pytest.raises(InputError, match="a batch of 5; the engine takes 1 to 4"):
        backend.infer(crops(5))
    with pytest.raises(InputError, match="a batch of 0"):
        backend.infer(crops(1)[:0])
    with pytest.raises(InputError, match="float32"):
        backend.infer(crops(1).astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="graph takes uint8"):
        backend.infer(crops(1)[:, :3])
    assert bench.cuda.calls == [], "the GPU was not asked"
    mirrored = crops(2)[:, :, :, ::-1]
    np.testing.assert_array_equal(backend.infer(mirrored).score, backend.infer(mirrored.copy()).score)
    backend.close()
    with pytest.raises(UsageError, match="closed"):
        backend.infer(crops(1))


def test_threads_have_a_context_each_and_lose_it_with_their_end(bench: Bench) -> None:
    backend = bench.backend()
    with backends.create("onnxruntime", bench.graph, threads=1) as reference:
        wanted = [reference.infer(crops(2, seed)).score for seed in range(4)]
    faults: list[BaseException] = []
    here, leave = threading.Barrier(5), threading.Event()

    def score(seed: int) -> None:
        try:
            for _ in range(10):
                np.testing.assert_array_equal(backend.infer(crops(2, seed)).score, wanted[seed])
        except BaseException as error:
            faults.append(error)
        here.wait(60)
        leave.wait(60)

    threads = [threading.Thread(target=score, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    here.wait(60)
    assert backend.contexts == len(bench.engine.contexts) == 4
    leave.set()
    for thread in threads:
        thread.join()
    assert not faults
    gc.collect()
    assert backend.contexts == 0
    bench.cuda.close()  # the ended threads' streams and memory are gone, though the backend is open


def test_one_context_in_two_threads_would_be_noticed(bench: Bench) -> None:
    """Negative control of the test above."""
    backend = bench.backend()
    backend.infer(crops(1))
    (session,) = backend._sessions.values()
    faults: list[BaseException] = []

    def steal() -> None:
        try:
            session.run(crops(2), crops(2).shape)
        except AssertionError as error:
            faults.append(error)

    thread = threading.Thread(target=steal)
    thread.start()
    thread.join()
    assert "in two threads" in str(faults[0])


def test_close_waits_for_those_who_score(bench: Bench) -> None:
    bench.cuda.delay = 0.05
    backend = bench.backend()
    done: list[float] = []
    started = threading.Event()

    def score() -> None:
        started.set()
        backend.infer(crops(1))
        done.append(time.monotonic())

    thread = threading.Thread(target=score)
    thread.start()
    started.wait()
    while not backend._running and not done:
        time.sleep(0.001)
    backend.close()
    closed = time.monotonic()
    thread.join()
    assert done[0] <= closed


def test_a_hundred_cycles_leave_nothing(bench: Bench) -> None:
    threads = threading.active_count()
    for seed in range(100):
        with bench.backend() as backend:
            backend.infer(crops(1, seed=seed))
        assert not bench.cuda.memory
        assert not bench.cuda.handles
    bench.made.clear()
    assert threading.active_count() <= threads  # those of an earlier test may end meanwhile


def test_a_leak_would_be_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the test above: a session that is not closed."""
    backend = bench.backend()
    backend.infer(crops(1))
    monkeypatch.setattr(TensorRtBackend, "_forget", lambda *_: None)
    backend.close()
    assert bench.cuda.memory
    monkeypatch.undo()
    for key in list(backend._sessions):
        backend._forget(key)


# Row 19: None and False


@pytest.mark.parametrize(
    "method",
    ["create_execution_context", "set_input_shape", "set_tensor_address", "execute_async_v3"],
)
def test_no_from_tensorrt_carries_its_words_and_the_next_call_works(bench: Bench, method: str) -> None:
    backend = bench.backend()
    bench.engine.faults.refuse = method
    for _ in range(3):
        with pytest.raises(
            EnvironmentFault, match=rf"TensorRT's {method}.* failed:\n.*the engine's own words"
        ) as caught:
            backend.infer(crops(1))
        assert caught.value.exit_code == 5
        assert not bench.cuda.memory
    bench.engine.faults.refuse = ""
    assert np.isfinite(backend.infer(crops(1)).score).all()


def test_failed_shape_inference_is_typed(bench: Bench) -> None:
    bench.engine.faults.refuse = "infer_shapes"
    with pytest.raises(EnvironmentFault, match="infer_shapes failed"):
        bench.backend().infer(crops(1))


def test_profile_that_cannot_be_switched(bench: Bench) -> None:
    engine = OrtEngine(bench.graph, bench.cuda, ((1, 4, 4), (1, 1, 1)))
    engine.faults.refuse = "set_optimization_profile_async"
    with pytest.raises(EnvironmentFault, match=r"set_optimization_profile_async\(1\) failed"):
        bench.backend(engine).infer(crops(1))


# Row 21: out of memory


def test_out_of_memory_says_asked_and_free_and_leaves_nothing(bench: Bench) -> None:
    bench.cuda.limit = 1 << 20
    backend = bench.backend()
    for _ in range(100):
        with pytest.raises(CudaError, match=r"1\.4 MiB asked for, [01] of 1 MiB are free") as caught:
            backend.infer(crops(2))
        assert caught.value.exit_code == 5
        assert not bench.cuda.memory
    assert np.isfinite(backend.infer(crops(1)).score).all(), "a batch that fits still works"


def test_half_a_batch_only_when_asked(bench: Bench) -> None:
    batch = crops(4)
    wanted = bench.backend().infer(batch)
    bench.engine.faults.scratch = 1 << 20
    bench.cuda.limit = bench.cuda.used() + (6 << 20)
    with pytest.raises(CudaError, match="out of memory"):
        bench.backend().infer(batch)
    halved = bench.backend(halve_on_oom=True)
    found = halved.infer(batch)
    np.testing.assert_array_equal(found.score, wanted.score)
    np.testing.assert_array_equal(found.crop_scores, wanted.crop_scores)
    bench.engine.faults.scratch = 10 << 20
    with pytest.raises(CudaError, match="out of memory"):
        halved.infer(crops(3))  # the halves do not fit either: no endless retry


def test_tensorrts_own_out_of_memory_is_recognised(bench: Bench) -> None:
    bench.engine.faults.refuse, bench.engine.faults.words = (
        "create_execution_context",
        "OutOfMemory (Requested 5 bytes)",
    )
    with pytest.raises(CudaError, match=r"out of memory, 1024 of 1024 MiB are free:\n +OutOfMemory \(Req") as caught:
        bench.backend().infer(crops(1))
    assert caught.value.out_of_memory


# Rows 22, 23 and 25: a lost context, a hang, NaN


def test_a_sticky_error_ends_the_backend(bench: Bench) -> None:
    backend = bench.backend()
    backend.infer(crops(1))
    bench.engine.faults.crash = True
    with pytest.raises(CudaError, match="illegal memory access") as caught:
        backend.infer(crops(2))
    assert caught.value.sticky
    before = len(bench.cuda.calls)
    with pytest.raises(EnvironmentFault, match=r"the GPU failed in an earlier call .*; nothing was computed") as again:
        backend.infer(crops(1))
    assert again.value.exit_code == 5
    assert "restart this process" in str(again.value.hint)
    backend.close()
    assert len(bench.cuda.calls) == before, "a lost context is left alone"


def test_a_hang_is_noticed(bench: Bench) -> None:
    backend = bench.backend(infer_timeout=0.3)
    backend.infer(crops(1))
    bench.cuda.stall.set()
    start = time.monotonic()
    with pytest.raises(HungError, match=r"no result after 0\.\d s \(limit 0\.3 s\)"):
        backend.infer(crops(1))
    assert time.monotonic() - start < 5
    with pytest.raises(EnvironmentFault, match="the GPU failed in an earlier call"):
        backend.infer(crops(1))
    backend.close()
    bench.cuda.stall.clear()  # lets the stream's thread end; the bench does not ask for leaks: nothing could be freed
    bench.cuda.sticky = CudaError("end", 719, "of the test")


def test_nan_is_no_score(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Tiny(batch=(1, 2, 4), dark_is_nan=True))
    with bench.backend() as backend, pytest.raises(NonFiniteError):
        backend.infer(np.zeros_like(crops(1)))


# TensorRT-RTX's compiled kernels
