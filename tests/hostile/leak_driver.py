"""Run by test_leaks.py in a process of its own: one thing again and again; prints what is held after each part.

Arguments as JSON: what (a name of `WORK`), bundle, backend, threads, warm_up, calls, samples. Prints a list of samples,
each with the resident bytes, file handles and threads of this process. Before each sample garbage is collected and
malloc_trim gives the C library's free pages back to the kernel: both are settling, neither hides what is still held.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gamma_runtime.errors import EnvironmentFault, GammaError
from gamma_runtime.scorer import Scorer, load
from tests.runtime.images import encode, photo, png

GROUP = 20  # images of one call of score_many
BAD = ("truncated", "bomb", "small", "dtype", "backend", "missing")


def sample(settled: int = 0) -> dict[str, int]:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    deadline = time.monotonic() + 1.0  # a joined thread is on the kernel's list a moment longer
    while len(os.listdir("/proc/self/task")) > settled and time.monotonic() < deadline:
        time.sleep(0.01)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident": pages * resource.getpagesize(),
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def images(folder: Path) -> list[Any]:
    """A path, bytes, an array; different sizes, so that buffers are not always the same ones."""
    (folder / "a.jpg").write_bytes(encode(photo(500, 400), "JPEG"))
    return [folder / "a.jpg", encode(photo(300, 260, seed=1), "PNG"), photo(420, 300, seed=2)]


def bad_image(kind: str) -> Any:
    if kind == "truncated":
        return encode(photo(500, 400), "JPEG")[:-500]
    if kind == "bomb":
        return png(16000, 16000, 8, 2, [b"\0"])
    others = {"small": photo(100, 90), "dtype": np.zeros((300, 300, 3), np.float32), "missing": "none.jpg"}
    return others.get(kind, photo())


def score_one(scorer: Scorer, pictures: list[Any]) -> Callable[[int], None]:
    return lambda index: (scorer.score(pictures[index % len(pictures)]), None)[1]


def score_many(scorer: Scorer, pictures: list[Any]) -> Callable[[int], None]:
    """Every 20th call scores 20 images, so that a call is an image here too."""

    def call(index: int) -> None:
        if index % GROUP == 0:
            group = [pictures[i % len(pictures)] for i in range(GROUP)]
            assert len(list(scorer.score_many(group, batch=4))) == GROUP

    return call


def score_from_threads(scorer: Scorer, pictures: list[Any]) -> Callable[[int], None]:
    """Four threads at a time, each with a quarter of the calls."""

    def call(index: int) -> None:
        if index % GROUP == 0:
            workers = [
                threading.Thread(target=lambda: [scorer.score(pictures[i % 3]) for i in range(GROUP // 4)])
                for _ in range(4)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

    return call


def failing(scorer: Scorer, kind: str) -> Callable[[int], None]:
    """One bad image by `score` and, every 20th call, some by `score_many`, closed early."""
    image = bad_image(kind)
    if kind == "backend":

        def refuse(crops: Any) -> Any:
            raise EnvironmentFault(f"no memory for {crops.shape}") from MemoryError("the library's own")

        scorer.panel._graphs[0].backend._infer = refuse  # type: ignore[method-assign]

    def call(index: int) -> None:
        try:
            scorer.score(image)
        except GammaError:
            pass
        else:
            raise AssertionError(f"{kind}: scored")
        if index % GROUP == 0:
            results = scorer.score_many([image] * 8, batch=2, on_error="yield")
            with contextlib.suppress(GammaError):
                next(results)
            results.close()

    return call


def work(plan: dict[str, Any], folder: Path) -> Callable[[int], None]:
    """What to call, by its name; `leaky`, `leaky-handles` and `unclosed` are controls.

    `leaky` keeps ``plan['leak']`` bytes a call.
    """
    what = plan["what"]

    def opened() -> Scorer:
        return load(plan["bundle"], backend=plan["backend"], threads=plan["threads"])

    if what == "cycle":

        def cycle(_: int) -> None:
            with opened() as scorer:
                scorer.score(pictures[0])

        pictures = images(folder)
        return cycle
    if what == "unclosed":
        scorers: list[Scorer] = []
        return lambda _: scorers.append(opened())
    if what in BAD:
        return failing(opened(), what)
    pictures = images(folder)
    if what == "leaky":
        kept: list[bytearray] = []
        inner = score_one(opened(), pictures)
        return lambda index: (inner(index), kept.append(bytearray(b"x" * plan["leak"])))[0]
    if what == "leaky-handles":
        handles: list[int] = []
        inner = score_one(opened(), pictures)
        return lambda index: (inner(index), handles.append(os.open(os.devnull, os.O_RDONLY)))[0]
    makers = {"score": score_one, "score_many": score_many, "several": score_from_threads}
    return makers[what](opened(), pictures)


def main(plan: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        call = work(plan, Path(folder))
        for index in range(plan["warm_up"]):
            call(index)
        samples = [sample()]
        part = plan["calls"] // plan["samples"]
        for _ in range(plan["samples"]):
            for index in range(part):
                call(index)
            samples.append(sample(samples[0]["threads"]))
    print(json.dumps(samples))  # noqa: T201


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
