"""Decoding beside inference: same results, in order, bounded, and nothing stays behind however it ends."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gamma_runtime.bundle import Bundle
from gamma_runtime.errors import EnvironmentFault, GammaError, InputError
from gamma_runtime.prefetch import THREAD_NAME, chunked, prefetched
from gamma_runtime.scorer import Scorer, load, load_panel
from gamma_runtime.threads import BUDGET
from tests.runtime.images import encode, photo
from tests.runtime.tiny_bundle import FACTORS, Tiny, make_bundle

THREADS = [0, 1, 3]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    made = make_bundle(tmp_path_factory.mktemp("b") / "t.gamma")
    for backend in ("onnxruntime", "openvino"):  # the libraries keep some files open from their first use on
        load(made, backend=backend).close()
    return made


@pytest.fixture
def scorer(bundle: Bundle) -> Iterator[Scorer]:
    with load(bundle, threads=1) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _nothing_stays(bundle: Bundle) -> Iterator[None]:
    """No thread, no file handle, no place of the budget outlives a test."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)] == []
    assert BUDGET.free == BUDGET.places
    assert len(os.listdir("/proc/self/fd")) <= before


def decoders() -> int:
    return sum(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate())


def mixed(tmp_path: Path) -> list[Any]:
    (tmp_path / "a.jpg").write_bytes(encode(photo(900, 700), "JPEG"))
    data = encode(photo(500, 400, seed=1), "PNG")
    return [tmp_path / "a.jpg", data, photo(seed=2), b"nonsense", data[:500], photo(50, 50), "none.jpg", photo(seed=3)]


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_same_results_in_the_same_places(tmp_path: Path, backend: str, batch: int) -> None:
    ranged = make_bundle(tmp_path / "r.gamma", Tiny(batch=(1, 4, 8)))
    images = mixed(tmp_path) * 2
    with load_panel(ranged, tuple(FACTORS), backend, threads=1) as panel:
        plain, *others = [list(panel.results(images, batch, threads)) for threads in THREADS]
    for other in others:
        assert [r.scores for r in other] == [r.scores for r in plain]
        assert [str(r.error) for r in other] == [str(r.error) for r in plain]
    assert [r.error is None for r in plain[:8]] == [True, True, True, False, False, False, False, True]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_never_more_than_a_bound_ahead_of_the_consumer(scorer: Scorer, threads: int, batch: int) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        for seed in itertools.count():
            taken += 1
            yield photo(seed=seed % 3)

    ahead = []
    results = scorer.score_many(endless(), batch=batch, decode_threads=threads)
    for used, _ in enumerate(itertools.islice(results, 12)):
        ahead.append(taken - used)
    results.close()
    assert max(ahead) == batch + (max(batch, threads) if threads else 0)


def test_decoding_and_inference_happen_at_the_same_time(scorer: Scorer) -> None:
    """The graph does not return before a later image was begun: without overlap this would wait for ever."""
    begun = [threading.Event() for _ in range(4)]
    (graph,) = scorer.panel._graphs
    infer, prepare = graph.backend._infer, scorer.panel.prepare
    seen: list[bool] = []

    def slow(crops: np.ndarray) -> Any:
        seen.append(begun[min(len(seen) + 1, 3)].wait(30))
        return infer(crops)

    def watched(image: Any) -> Any:
        begun[int(image[0, 0, 0])].set()
        return prepare(image)

    graph.backend._infer = slow  # type: ignore[method-assign]
    scorer.panel.prepare = watched  # type: ignore[method-assign]
    images = [np.full((240, 240, 3), index, np.uint8) for index in range(4)]
    assert len(list(scorer.score_many(images, batch=1, decode_threads=1))) == 4
    assert seen == [True] * 4


@pytest.mark.parametrize("threads", THREADS)
def test_closed_early(scorer: Scorer, threads: int) -> None:
    results = scorer.score_many((photo(seed=s) for s in itertools.count()), batch=2, decode_threads=threads)
    next(results)
    assert bool(threads) <= decoders() <= threads
    results.close()


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_in_the_consumer(scorer: Scorer, threads: int) -> None:
    def consume() -> None:
        for score in scorer.score_many([photo()] * 20, batch=2, decode_threads=threads):
            raise ZeroDivisionError(score.value)

    with pytest.raises(ZeroDivisionError):
        consume()


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_of_the_source_comes_after_the_results_before_it(scorer: Scorer, threads: int) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from [photo()] * 5
        raise OSError("the camera is gone")

    results, scores = scorer.score_many(source(), batch=2, decode_threads=threads), []
    with pytest.raises(OSError, match="camera"):
        scores.extend(results)
    assert len(scores) == 5


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_that_is_not_the_images(scorer: Scorer, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little memory for the fourth image: three results, then the error."""
    prepare = scorer.panel.prepare

    def limited(image: Any) -> Any:
        if image.shape[0] > 1000:
            raise MemoryError("2 GB")
        return prepare(image)

    monkeypatch.setattr(scorer.panel, "prepare", limited)
    images = [photo(), photo(), photo(), np.zeros((1001, 300, 3), np.uint8), photo()]
    scores: list[Any] = []
    with pytest.raises(MemoryError):
        scores.extend(scorer.score_many(images, batch=2, decode_threads=threads))
    assert len(scores) == 3


@pytest.mark.parametrize("threads", THREADS)
def test_a_failing_backend_stops_everything(scorer: Scorer, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(crops: np.ndarray) -> Any:
        raise EnvironmentFault("the library failed")

    monkeypatch.setattr(scorer.panel._graphs[0].backend, "_infer", broken)
    with pytest.raises(EnvironmentFault, match="the library failed"):
        list(scorer.score_many((photo() for _ in itertools.count()), decode_threads=threads))


CTRL_C = """
import itertools, os, signal, sys, threading
import numpy as np
from gamma_runtime.scorer import load
def source():
    for index in itertools.count():
        if index == 6:
            os.kill(os.getpid(), signal.SIGINT)
        yield np.full((300, 300, 3), index, np.uint8)
with load(sys.argv[1], backend="onnxruntime", threads=1) as scorer:
    try:
        list(scorer.score_many(source(), batch=2, decode_threads=int(sys.argv[2])))
    except KeyboardInterrupt:
        print("interrupted", threading.active_count(), flush=True)
"""


@pytest.mark.parametrize("threads", THREADS)
def test_ctrl_c(bundle: Bundle, threads: int) -> None:
    """In a process of its own: a signal is no business of the test runner's."""
    argv = [sys.executable, "-c", CTRL_C, str(bundle.folder), str(threads)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted 1\n"), done.stderr


def test_first_bad_image_stops_the_rest(scorer: Scorer) -> None:
    with pytest.raises(InputError, match="not an image"):
        list(scorer.score_many([photo(), b"nonsense", *[photo()] * 20], batch=1))


def test_one_image_needs_no_thread(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    prepare = scorer.panel.prepare
    monkeypatch.setattr(scorer.panel, "prepare", lambda image: counts.append(decoders()) or prepare(image))
    scorer.score(photo())
    assert counts == [0]


def test_kept_errors_hold_no_image(scorer: Scorer) -> None:
    """An error in a list of results used to hold, by its traceback, the file's bytes and the pixels."""
    errors = list(scorer.score_many([b"nonsense", photo(20, 20), "none.jpg"], on_error="yield"))
    for error in errors:
        assert isinstance(error, GammaError)
        chain: BaseException | None = error
        while chain is not None:
            assert chain.__traceback__ is None
            chain = chain.__cause__ or chain.__context__


def test_chunks() -> None:
    assert list(chunked(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(chunked([], 2)) == []


def test_a_source_that_ends_at_once() -> None:
    assert list(prefetched(str, iter([]), 2, 4)) == []
    assert list(prefetched(str, iter([1]), 2, 4)) == [(1, "1")]


NO_THREADS = """
import sys, threading
from gamma_runtime.commands.run import RunOptions, run
from gamma_runtime.cli import run_command
from gamma_runtime.scorer import load
load(sys.argv[1], threads=1).score(sys.argv[2])
threading.stack_size(1 << 40)  # more than any machine maps
sys.exit(run_command("gamma-run", run, RunOptions, sys.argv[1:]))
"""


@pytest.mark.parametrize(("extra", "code"), [([], 5), (["--decode-threads", "0"], 0)])
def test_no_thread_can_be_started(bundle: Bundle, tmp_path: Path, extra: list[str], code: int) -> None:
    (tmp_path / "a.png").write_bytes(encode(photo(), "PNG"))
    argv = [sys.executable, "-c", NO_THREADS, str(bundle.folder), str(tmp_path / "a.png"), "--threads", "1", *extra]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("no thread for decoding" in done.stderr) == bool(code)
    assert "Traceback" not in done.stderr
