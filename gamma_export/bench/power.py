"""What the board draws while a contender is at its limit, read from tegrastats or nvidia-smi beside it.

Their lines get our own clock's time as they come, so that only those within the measured stretch count. Whatever these
programs do (hang, die, talk nonsense) ends in no number, never in a measurement that fails.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from gamma_export.bench import nvidia_smi, tegrastats
from gamma_runtime.errors import GammaError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Energy", "Meter", "energy", "meter_command"]

_EVERY_MS = 200
_LONGEST = 1 << 14  # bytes of a line
_MOST = 100_000  # lines
_PATIENCE = 2.0  # seconds to be gone
_LEAST = 2  # samples within the stretch


@dataclasses.dataclass(frozen=True)
class Energy:
    """Of one stretch.

    Attributes:
        joules: by the trapezoid.
        joules_per_image: of the images that were scored in it.
        watts: the mean.
        samples: that lay in it.
    """

    joules: float
    joules_per_image: float
    watts: float
    samples: int


def meter_command(on_gpu: bool) -> tuple[str, list[str]] | None:
    """The program that says the power here: its name, and its words.

    Args:
        on_gpu: the contender runs on a GPU; nvidia-smi, which knows nothing else, is asked only then.
    """
    if path := shutil.which("tegrastats"):
        return "tegrastats", [path, "--interval", str(_EVERY_MS)]
    if on_gpu and (path := shutil.which("nvidia-smi")):
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
        query = "--query-gpu=" + ",".join(nvidia_smi.QUERY)
        return "nvidia-smi", [path, f"--id={shown}", query, "--format=csv", f"--loop-ms={_EVERY_MS}"]
    return None


def energy(samples: Sequence[tuple[float, float]], begin: float, end: float, images: int) -> Energy | None:
    """Energy of a stretch; the power at its ends is that of the nearest sample inside.

    Args:
        samples: seconds and watts, in the order of time.
        begin: seconds of the same clock.
        end: likewise.
        images: that were scored between the two.

    Returns:
        None for fewer than two samples inside, no images or no time.

    Example:
        >>> energy([(0.0, 10.0), (1.0, 20.0)], 0.0, 1.0, 5).joules_per_image
        3.0
    """
    inside = [(when, watts) for when, watts in samples if begin <= when <= end]
    if len(inside) < _LEAST or images < 1 or end <= begin:
        return None
    places = [(begin, inside[0][1]), *inside, (end, inside[-1][1])]
    joules = sum((a + b) / 2 * (late - early) for (early, a), (late, b) in itertools.pairwise(places))
    return Energy(joules, joules / images, joules / (end - begin), len(inside))


def _tegra_watts(line: str) -> float | None:
    milliwatts = tegrastats.parse_line(line).milliwatts
    return None if milliwatts is None else milliwatts / 1e3


class _NvidiaSmi:
    """Lines behind a header."""

    def __init__(self) -> None:
        self._header = ""

    def __call__(self, line: str) -> float | None:
        if not self._header:
            self._header = line
            return None
        return nvidia_smi.parse(f"{self._header}\n{line}")[0].watts


class _Lines(Protocol):
    """What is needed of a pipe."""

    def readline(self, size: int, /) -> bytes: ...


class Meter:
    """Reads a program's lines until the end of the block; makes nothing worse when it cannot.

    Attributes:
        samples: seconds of `time.perf_counter` and watts.
        unread: lines that were not understood.

    Example:
        >>> with Meter("tegrastats", ["tegrastats", "--interval", "200"]) as meter:
        ...     work()
        >>> energy(meter.samples, begin, end, images)
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.samples: list[tuple[float, float]] = []
        self.unread = 0
        self._command = list(command)
        self._read: Callable[[str], float | None] = _tegra_watts if name == "tegrastats" else _NvidiaSmi()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        quiet = subprocess.DEVNULL
        with suppress(OSError):
            # A session of its own: whatever the program started itself is ended with it.
            self._process = subprocess.Popen(
                self._command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, start_new_session=True
            )
        if self._process and self._process.stdout:
            listen = (self._process.stdout,)
            self._thread = threading.Thread(target=self._listen, args=listen, name="gamma-bench-power", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._process:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        if self._thread:
            self._thread.join(_PATIENCE)
            if self._process.stdout and not self._thread.is_alive():
                self._process.stdout.close()

    def _listen(self, lines: _Lines) -> None:
        count = 0
        while count < _MOST and (line := lines.readline(_LONGEST)):
            now = time.perf_counter()
            count += 1
            try:
                watts = self._read(line.decode("ascii"))
            except (GammaError, ValueError):
                self.unread += 1
                continue
            if watts is not None:
                self.samples.append((now, watts))
