"""One place decides how many threads there are: counted in the process, and read back from the libraries."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from gamma_runtime import backends
from gamma_runtime.backends.base import Backend, GraphIO, Outputs
from gamma_runtime.errors import UsageError
from gamma_runtime.scorer import load
from gamma_runtime.threads import BUDGET, Budget, decode_threads, inference_threads, usable_cpus
from tests.runtime.images import photo
from tests.runtime.tiny_bundle import make_bundle

NAMES = ["onnxruntime", "openvino"]
CPUS = len(os.sched_getaffinity(0))


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, CPUS),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, CPUS),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "20000 100000"}, 1),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "100000 100000"}, 1),
        ({"proc/self/cgroup": "0::/elsewhere/x", "sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/b/cpu.max": "100000 100000"}, CPUS),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "nonsense"}, CPUS),
        (
            {
                "proc/self/cgroup": "4:memory:/m\n1:cpu,cpuacct:/d",
                "sys/fs/cgroup/cpu/d/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/d/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            CPUS,
        ),
    ],
)
def test_processors_by_the_quota(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert usable_cpus(machine(tmp_path, files)) == expected


def test_two_threads_of_one_core_count_once(tmp_path: Path) -> None:
    every = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    places = [f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list" for n in os.sched_getaffinity(0)]
    siblings = dict.fromkeys(places, every)
    assert inference_threads(None, machine(tmp_path, siblings)) == 1
    assert inference_threads(None, tmp_path / "nothing") == CPUS
    assert inference_threads(7, tmp_path) == 7


def test_wrong_numbers() -> None:
    with pytest.raises(UsageError, match="0 threads"):
        inference_threads(0)
    with pytest.raises(UsageError, match="-1 decoding threads"):
        decode_threads(-1)
    assert decode_threads(0) == 0
    assert 1 <= decode_threads(None) <= min(4, CPUS)


COUNT = """
import json, os, sys, time
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[3])]))
import cv2, numpy as np, onnxruntime, openvino, simplejpeg
from gamma_runtime.scorer import load
def count(): return len(os.listdir("/proc/self/task"))
image = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), dtype=np.uint8)
cv2.setNumThreads(1)
before, made = count(), []
scorers = []
for _ in range(2):
    scorers.append(load(sys.argv[1], backend=sys.argv[2]))
    list(scorers[-1].score_many([image] * 3, decode_threads=0))
    made.append(count() - before)
results = scorers[0].score_many([image] * 40)
next(results)
decoding = count() - before - made[-1]
results.close()
deadline = time.monotonic() + 30  # a joined thread is on the kernel's list a moment longer
while (after := count() - before - made[-1]) > 0 and time.monotonic() < deadline:
    time.sleep(0.01)
threads = scorers[0].panel._graphs[0].backend.threads
print(json.dumps({"made": made, "decoding": decoding, "after": after, "threads": threads}))
"""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cpus", range(1, min(CPUS, 2) + 1))
def test_threads_of_a_process_are_counted(tmp_path: Path, name: str, cpus: int) -> None:
    """Two scorers in one process, and decoding: the settings follow the affinity mask, and so do the real threads."""
    bundle = make_bundle(tmp_path / "t.gamma")
    argv = [sys.executable, "-c", COUNT, str(bundle.folder), name, str(cpus)]
    found = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert found["threads"] == cpus
    # ONNX Runtime works in the caller's thread too; OpenVINO keeps a thread for callbacks beside those of a model.
    most = {"onnxruntime": [cpus - 1, 2 * (cpus - 1)], "openvino": [cpus + 1, 2 * (cpus + 1)]}[name]
    assert all(made <= limit for made, limit in zip(found["made"], most, strict=True)), found
    assert 1 <= found["decoding"] <= cpus
    assert found["after"] == 0


def test_settings_are_read_back(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "t.gamma")
    graph = path.file(path.manifest.graphs[0].onnx)
    for asked in (None, 1, 2):
        wanted = inference_threads(asked)
        with backends.create("onnxruntime", graph, threads=asked) as backend:
            options = backend._session.get_session_options()  # type: ignore[attr-defined]
            assert (options.intra_op_num_threads, options.inter_op_num_threads) == (wanted, 1)
            assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
            assert options.get_session_config_entry("session.force_spinning_stop") == "1", "only while a call runs"
            assert backend.threads == wanted
        with backends.create("openvino", graph, threads=asked) as backend:
            compiled = backend._compiled  # type: ignore[attr-defined]
            assert compiled.get_property("INFERENCE_NUM_THREADS") <= wanted
            assert compiled.get_property("ENABLE_CPU_PINNING") is (wanted >= usable_cpus())
            assert backend.threads == wanted


def test_opencv_is_given_back(tmp_path: Path) -> None:
    gc.collect()  # what an earlier test left open
    bundle = make_bundle(tmp_path / "t.gamma")
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        first, second = load(bundle), load(bundle)
        assert cv2.getNumThreads() == 1
        first.close()
        first.close()
        assert cv2.getNumThreads() == 1
        second.close()
        assert cv2.getNumThreads() == 2
        with load(bundle):
            cv2.setNumThreads(3)
        assert cv2.getNumThreads() == 3, "whoever sets it in between has the last word"
    finally:
        cv2.setNumThreads(before)


def test_opencv_is_given_back_when_nobody_closes(tmp_path: Path) -> None:
    gc.collect()
    bundle = make_bundle(tmp_path / "t.gamma")
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        forgotten = load(bundle)
        assert cv2.getNumThreads() == 1
        del forgotten
        gc.collect()
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


class Watched(Backend):
    """A real backend whose library only notes how many threads are at work, and waits for another call if told so."""

    name = "watched"
    now = most = 0
    guard = threading.Lock()

    def __init__(self, threads: int, meeting: threading.Barrier | None = None) -> None:
        super().__init__(Path("watched"), "1", GraphIO(None, 1, None))
        self.threads, self.meeting = threads, meeting

    def _infer(self, crops: np.ndarray) -> Outputs:
        with Watched.guard:
            Watched.now += self.threads
            Watched.most = max(Watched.most, Watched.now)
        if self.meeting:
            self.meeting.wait(30)
        with Watched.guard:
            Watched.now -= self.threads
        return Outputs(np.zeros(len(crops), np.float32), np.zeros((len(crops), 1), np.float32))

    def _close(self) -> None:
        pass


def _together(watched: list[Watched], calls: int) -> int:
    crops = np.zeros((1, 1, 224, 224, 3), np.uint8)
    Watched.now = Watched.most = 0
    workers = [threading.Thread(target=lambda b=b: [b.infer(crops) for _ in range(calls)]) for b in watched]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    return Watched.most


def test_scorers_of_one_process_stay_within_the_processors() -> None:
    assert _together([Watched(BUDGET.places) for _ in range(3)], 50) == BUDGET.places
    assert _together([Watched(100), Watched(1)], 50) == 100, "more than there are were asked for: alone, then"
    assert BUDGET.free == BUDGET.places


def test_a_gpu_waits_for_no_processor() -> None:
    meeting = threading.Barrier(2)
    with BUDGET.hold(BUDGET.places):
        _together([Watched(0, meeting), Watched(0, meeting)], 3)


@pytest.mark.skipif(BUDGET.places < 2, reason="one processor")
def test_narrow_inferences_run_side_by_side() -> None:
    meeting = threading.Barrier(2)
    assert _together([Watched(1, meeting), Watched(1, meeting)], 3) == 2


def test_a_wide_request_is_not_overtaken() -> None:
    budget, order = Budget(2), []

    def ask(places: int) -> None:
        with budget.hold(places):
            order.append(places)

    first = budget.hold(1)
    first.__enter__()
    workers = []
    for places in (2, 1):
        workers.append(threading.Thread(target=ask, args=(places,)))
        workers[-1].start()
        while len(budget._queue) < len(workers):
            pass
    first.__exit__(None, None, None)
    for worker in workers:
        worker.join(30)
    assert order == [2, 1]
    assert budget.free == 2


def test_an_error_gives_the_places_back() -> None:
    budget = Budget(1)
    with pytest.raises(ZeroDivisionError), budget.hold(1):
        1 / 0  # noqa: B018
    assert budget.free == 1


FORK = """
import os, sys
import numpy as np
from gamma_runtime.errors import UsageError
from gamma_runtime.scorer import load
image = np.full((300, 300, 3), 128, np.uint8)
scorer = load(sys.argv[1], backend=sys.argv[2])
results = scorer.score_many([image] * 20, batch=1)
next(results)
child = os.fork()
if child == 0:
    words = []
    for use in (lambda: scorer.score(image), lambda: next(results)):
        try:
            use()
        except UsageError as error:
            words.append(str(error))
    results.close()
    scorer.close()
    with load(sys.argv[1], backend=sys.argv[2], threads=1) as own:
        words.append(str(len(list(own.score_many([image] * 5)))))
    print("|".join(words).replace("\\n", " "), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(len(list(results)), flush=True)
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_forked_child_is_told_to_load_its_own(tmp_path: Path, name: str) -> None:
    bundle = make_bundle(tmp_path / "t.gamma")
    argv = [sys.executable, "-c", FORK, str(bundle.folder), name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    child, parent = done.stdout.splitlines()
    scored, resumed, own = child.split("|")
    assert "forked child" in scored
    assert "hint: call gamma_runtime.load in every process" in scored
    assert "fork" in resumed
    assert own == "5"
    assert parent == "19"


def test_several_threads_share_a_scorer(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "t.gamma")
    pictures = [photo(300 + i, 260, seed=i) for i in range(6)]
    found: list[list[float]] = [[] for _ in range(3)]
    with load(bundle) as scorer:
        wanted = [scorer.score(picture).value for picture in pictures]

        def work(index: int) -> None:
            found[index] = [score.value for score in scorer.score_many(pictures, batch=2)]

        workers = [threading.Thread(target=work, args=(index,)) for index in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    assert found == [wanted] * 3
