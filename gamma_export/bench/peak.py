"""What this machine can do at most: a short float32 matrix product and a copy, in a process of their own.

Of their own, because BLAS reads its number of threads when it is loaded. NumPy's BLAS is good, not perfect: where
another library's products are faster, a share above 1 says so.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import gamma_export
from gamma_runtime.errors import EnvironmentFault, UsageError
from gamma_runtime.threads import inference_threads

__all__ = ["Peak", "cache_bytes", "copy_bytes", "measure_peak"]

# Of the square matrices. Small ones end soon, and the best of many short products is less disturbed by other load; too
# small for many threads.
_SIDE, _SIDE_OF_MANY, _MANY = 1024, 2048, 8
_LEAST_COPY, _MOST_COPY, _TIMES_CACHE = 64 << 20, 512 << 20, 4
_BLAS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_TIMEOUT = 120.0  # seconds


@dataclasses.dataclass(frozen=True)
class Peak:
    """The best of several repetitions; other load while it was measured makes it too low, and every share too high.

    Attributes:
        gmacs: 1e9 float32 multiply-adds a second.
        gbytes: 1e9 bytes a second, read and written ones added up.
        threads: of both.
        copy_bytes: size of what was copied.
        cache_bytes: of the last cache, 0 where the system does not say; the copy is meant to be several times as large.
    """

    gmacs: float
    gbytes: float
    threads: int
    copy_bytes: int
    cache_bytes: int

    @property
    def beyond_cache(self) -> bool:
        """Whether the copy says something about memory: it is at least twice as large as the known last cache."""
        return 0 < 2 * self.cache_bytes <= self.copy_bytes


def cache_bytes(root: Path = Path("/")) -> int:
    """The largest cache of the first processor; 0 where /sys does not say.

    Args:
        root: where /sys is.
    """
    sizes = [0]
    for path in root.glob("sys/devices/system/cpu/cpu0/cache/index*/size"):
        try:
            word = path.read_text(encoding="ascii").strip()
            sizes.append(int(word[:-1]) * _UNITS[word[-1]])
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return max(sizes)


def copy_bytes(root: Path = Path("/")) -> int:
    """How much to copy: four times the last cache, between 64 and 512 MiB, at most an eighth of the free memory.

    Args:
        root: where /sys and /proc are.
    """
    wanted = min(max(_TIMES_CACHE * cache_bytes(root), _LEAST_COPY), _MOST_COPY)
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return wanted
    return max(1 << 20, min(wanted, free // 8))


def measure_peak(threads: int | None = None, *, seconds: float = 0.5, size: int | None = None) -> Peak:
    """Measure both, about ``seconds`` each.

    Args:
        threads: of each; as many as an inference takes when None.
        seconds: of repetitions, at least three.
        size: bytes to copy; `copy_bytes` when None.

    Raises:
        UsageError: no positive number of threads, seconds or bytes. EnvironmentFault: the process failed.
    """
    count = inference_threads(threads)
    size = copy_bytes() if size is None else size
    if not 0 < seconds <= 60 or size < 1:
        raise UsageError(f"a peak of {seconds} s and {size} bytes cannot be measured")
    words = [sys.executable, "-m", "gamma_export.bench.peak", str(count), str(seconds), str(size)]
    environment = os.environ | dict.fromkeys(_BLAS, str(count))
    # Security: `-m` puts the working directory first on sys.path, so it must be ours and never the user's.
    home = Path(gamma_export.__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_TIMEOUT, check=True, env=environment, cwd=home
        )
        gmacs, gbytes = json.loads(done.stdout.splitlines()[-1])
        return Peak(float(gmacs), float(gbytes), count, size, cache_bytes())
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise EnvironmentFault(f"the machine's peak cannot be measured ({said[-1] if said else error})") from error


def _best(work: Callable[[], object], seconds: float) -> float:
    """The shortest of repetitions, at least three behind one that is not timed."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _main(threads: str, seconds: str, size: str) -> None:
    """The child: both peaks as JSON."""
    side = _SIDE if int(threads) < _MANY else _SIDE_OF_MANY
    a, b = (np.random.default_rng(seed).random((side, side), np.float32) for seed in range(2))
    product = np.empty_like(a)
    gmacs = side**3 / _best(lambda: np.matmul(a, b, out=product), float(seconds)) / 1e9
    source, target = np.ones(int(size), np.uint8), np.zeros(int(size), np.uint8)
    pairs = list(zip(np.array_split(source, int(threads)), np.array_split(target, int(threads)), strict=True))
    with ThreadPoolExecutor(int(threads)) as pool:  # a copy lets go of Python's lock; one core seldom fills the bus
        spent = _best(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs)), float(seconds))
    sys.stdout.write(json.dumps([gmacs, 2 * int(size) / spent / 1e9]) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
