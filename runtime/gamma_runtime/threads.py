"""How many CPU threads work at once: one place decides, and everything that works asks here.

The processors are those of the affinity mask, held within the cgroup's quota. An inference gets one thread for each
physical core of them, as the libraries choose on an empty machine. `BUDGET` then keeps the whole process within the
processors: an inference takes as many places as it has threads, preparing an image takes one, and whoever finds too few
free waits its turn. So several scorers, or decoding beside inference, never have more threads at work than processors.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from gamma_runtime.errors import UsageError

__all__ = ["BUDGET", "OPENCV", "Budget", "OpenCvThreads", "decode_threads", "inference_threads", "usable_cpus"]

_MAX_DECODERS = 4  # each holds a decoded image: 0.2 GB at the limit of 64 megapixels


def usable_cpus(root: Path = Path("/")) -> int:
    """Processors that this process may keep busy: its affinity mask, within the cgroup's quota; at least 1.

    A quota of 2.5 counts as 2: a third thread would stop all of them for a part of every period.

    Args:
        root: where /proc and /sys are.
    """
    return max(1, math.floor(min(len(_mask()), _quota(root))))


def inference_threads(asked: int | None, root: Path = Path("/")) -> int:
    """Threads of one inference: as asked, else one for each physical core that may be used.

    Raises:
        UsageError: less than one was asked for.
    """
    if asked is not None and asked < 1:
        raise UsageError(f"{asked} threads; at least 1 is needed")
    return asked or min(usable_cpus(root), _cores(_mask(), root))


def decode_threads(asked: int | None) -> int:
    """Threads that prepare the next images while the graph runs: as asked (0: none), else one a processor, at most 4.

    Raises:
        UsageError: a negative number was asked for.
    """
    if asked is not None and asked < 0:
        raise UsageError(f"{asked} decoding threads; 0 (none) or more is needed")
    return min(_MAX_DECODERS, usable_cpus()) if asked is None else asked


def _mask() -> Collection[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _cores(cpus: Collection[int], root: Path) -> int:
    """Physical cores: processors that are threads of one core count once."""
    listed = {cpu: root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list" for cpu in cpus}
    return len({_read(path) or str(cpu) for cpu, path in listed.items()})


def _quota(root: Path) -> float:
    """The least quota, in processors, of this process's cgroup and all above it; infinity when there is none."""
    least = math.inf
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        for above in (group, *group.parents):  # in a container the whole path may be missing, but not its root
            least = min(least, _quota_v2(root / "sys/fs/cgroup" / above), _quota_v1(root / "sys/fs/cgroup/cpu" / above))
    return least


def _quota_v2(group: Path) -> float:
    words = (_read(group / "cpu.max") or "").split()
    return _share(*words) if len(words) == 2 else math.inf


def _quota_v1(group: Path) -> float:
    return _share(_read(group / "cpu.cfs_quota_us") or "", _read(group / "cpu.cfs_period_us") or "")


def _share(quota: str, period: str) -> float:
    """Microseconds of work in a period; ``max`` and -1 mean no limit."""
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else math.inf


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


class Budget:
    """Places for threads at work; first come, first served, so that a wide request is never overtaken for ever.

    Example:
        >>> with BUDGET.hold(2):
        ...     session.run(...)
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self.reset()

    def reset(self) -> None:
        """Every place is free: a forked child has none of the threads that held some."""
        self.free = self.places
        self._changed = threading.Condition()
        self._queue: collections.deque[object] = collections.deque()

    @contextlib.contextmanager
    def hold(self, threads: int) -> Iterator[None]:
        """Wait for as many places, at most all there are, and give them back at the end; none needs no wait."""
        wanted = min(threads, self.places)
        taken, turn = 0, object()
        try:
            if wanted:
                with self._changed:
                    self._queue.append(turn)
                    self._changed.wait_for(lambda: self._queue[0] is turn and self.free >= wanted)
                    self.free -= wanted
                    taken = wanted
                    self._leave(turn)
            yield
        finally:
            if wanted:
                with self._changed:
                    self.free += taken
                    self._leave(turn)

    def _leave(self, turn: object) -> None:
        if turn in self._queue:  # not yet served, or just now
            self._queue.remove(turn)
        self._changed.notify_all()


BUDGET = Budget(usable_cpus())


class OpenCvThreads:
    """Turns OpenCV's own threads off while bundles are open: images are spread over threads, not stripes of one.

    OpenCV has one number for the whole process. The first open bundle sets it to 1, the last one that closes sets it
    back; whoever calls ``cv2.setNumThreads`` in between has the last word.
    """

    def __init__(self) -> None:
        self._users = 0
        self._before = 0
        self.reset()

    def reset(self) -> None:
        """A forked child goes on with what was set, and a lock of its own."""
        self._lock = threading.RLock()  # a forgotten bundle may be collected, and released, in the middle of `hold`

    def hold(self) -> None:
        """One more bundle is open; without OpenCV nothing happens."""
        with self._lock:
            self._users += 1
            if self._users == 1 and (cv2 := _opencv()):
                self._before = cv2.getNumThreads()
                cv2.setNumThreads(1)

    def release(self) -> None:
        """One less."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and (cv2 := _opencv()) and cv2.getNumThreads() == 1:
                cv2.setNumThreads(self._before)


OPENCV = OpenCvThreads()


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:  # said where an image needs it
        return None
    return cv2


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=BUDGET.reset)
    os.register_at_fork(after_in_child=OPENCV.reset)
