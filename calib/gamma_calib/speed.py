"""Does INT8 pay here? Graphs side by side on a backend: interleaved rounds, each in a process of its own.

A process for each, because spinning thread pools of two sessions in one process distort each other; interleaved,
because a machine's clock and its other users change from minute to minute.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gamma_runtime.errors import EnvironmentFault
from gamma_runtime.steps import Steps

__all__ = ["PAYS", "Speed", "measure_speed"]

PAYS = 1.05  # below it the loss of accuracy buys nothing (user_pains.md row 2)
_CALLS, _SECONDS = 3, 1.5  # timed in a round, at least, after one that is not; quick graphs get more calls
_TIMEOUT = 600.0  # seconds for one round of one graph


@dataclasses.dataclass(frozen=True)
class Speed:
    """Milliseconds of one call by graph, medians over all rounds, on one backend."""

    backend: str
    milliseconds: Mapping[str, float]

    def times_as_fast(self, other: str) -> float:
        """How many times as fast int8 is."""
        return self.milliseconds[other] / self.milliseconds["int8"]

    @property
    def pays(self) -> bool:
        """Whether int8 beats every other graph by at least 5 %."""
        return all(self.times_as_fast(other) >= PAYS for other in self.milliseconds if other != "int8")


def measure_speed(
    graphs: Mapping[str, Path],
    batch: int,
    backends: tuple[str, ...],
    *,
    rounds: int = 3,
    threads: int | None = None,
    steps: Steps | None = None,
) -> list[Speed]:
    """Time each graph on each backend.

    Args:
        graphs: by precision, ``int8`` among them; their weights lie beside them.
        batch: images in a call.
        backends: CPU backends.
        rounds: how often every graph has its turn.
        threads: CPU threads of an inference.
        steps: progress.

    Raises:
        EnvironmentFault: a graph does not run.
    """
    found = []
    for backend in backends:
        times: dict[str, list[float]] = {name: [] for name in graphs}
        with (steps or Steps()).step(f"speed on {backend}, {rounds} rounds", rounds * len(graphs)) as tick:
            for _ in range(rounds):
                for name, path in graphs.items():
                    times[name] += _round(path, batch, backend, threads)
                    tick(1)
        found.append(Speed(backend, {name: statistics.median(values) for name, values in times.items()}))
    return found


def _round(graph: Path, batch: int, backend: str, threads: int | None) -> list[float]:
    words = [sys.executable, "-m", "gamma_calib.speed", str(graph), str(batch), backend, str(threads or 0)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
        return [float(value) for value in json.loads(done.stdout.splitlines()[-1])]
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise EnvironmentFault(
            f"{graph.name} on {backend}: its speed cannot be measured ({said[-1] if said else error})",
            hint="--skip-speed",
        ) from error


def _main(graph: str, batch: str, backend: str, threads: str) -> None:
    """The child: one warm-up call, then the timed ones, in milliseconds, as JSON."""
    from gamma_runtime import backends

    with backends.create(backend, Path(graph), threads=int(threads) or None) as runner:
        shape = (int(batch), *runner.io.image_shape)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)  # a product's time is that of any values
        runner.infer(pixels)
        times: list[float] = []
        while len(times) < _CALLS or sum(times) < _SECONDS * 1e3:
            start = time.perf_counter()
            runner.infer(pixels)
            times.append((time.perf_counter() - start) * 1e3)
    sys.stdout.write(json.dumps(times) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
