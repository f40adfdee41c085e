"""Frames of a source: a file's every n-th in order, a live source's newest."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gamma_runtime.cli import printable, require
from gamma_runtime.contract import Limits
from gamma_runtime.decode import Pixels
from gamma_runtime.errors import EnvironmentFault, InputError, UsageError, without_frames
from gamma_runtime.sources.capture import HINTS, check_source, opened
from gamma_runtime.sources.grammar import Source, parse_source

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["THREAD_NAME", "Frame", "Frames", "Late", "Slot", "check_numbers", "frames"]

THREAD_NAME = "gamma-frames"
_MAX_TIMEOUT = 86400.0  # seconds; FFmpeg takes milliseconds in 31 bits
_SLICE = 0.1  # seconds between two looks at whether someone said stop: a signal's handler cannot notify a waiter
_GRACE = 2.0  # seconds that closing waits for the reader; a driver may hold it for longer, and then it ends by itself
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        index: its number in the source, from 0; dropped ones and those between count.
        seconds: since the first frame: by the file's own clock, or by ours for a live source.
        pixels: uint8 ``[H, W, 3]`` RGB, its own memory.
    """

    index: int
    seconds: float
    pixels: Pixels


class Late(Exception):  # noqa: N818 - what happened, not a fault
    """Nothing came in time."""


class Slot(Generic[T]):
    """Room for one item between two threads: a newer one takes the place of one that nobody took yet."""

    def __init__(self) -> None:
        self.dropped = 0
        self._changed = threading.Condition()
        self._items: list[T] = []  # none or one
        self._ended = False
        self._error: Exception | None = None

    def put(self, item: T) -> None:
        """Never waits."""
        with self._changed:
            self.dropped += len(self._items)
            self._items[:] = [item]
            self._changed.notify()

    def end(self, error: Exception | None = None) -> None:
        """Nothing more will come; what is there can still be taken."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def take(self, timeout: float, stopped: threading.Event) -> T | None:
        """Wait for the item; None at the end, or when ``stopped`` is set.

        Raises:
            Late: nothing came within ``timeout`` seconds. What `end` was given: it ended by an error.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not stopped.is_set():
                if self._items:
                    return self._items.pop()
                if self._ended:
                    if self._error is not None:
                        raise self._error
                    return None
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Late
                self._changed.wait(min(left, _SLICE))
        return None


class Frames:
    """Iterates over a source's frames; made by `frames`. Also a context manager.

    Attributes:
        read: frames that the source gave so far, those between the n-th ones included.
        given: frames handed out.
        dropped: n-th frames that nobody asked for before the next one came; always 0 for a file.
    """

    def __init__(self, source: Source, every: int, limit: int | None, timeout: float, limits: Limits) -> None:
        self.source = source
        self.given = 0
        self._limit = limit
        self._stopped = threading.Event()
        reader = _LiveReader if source.live else _FileReader
        self._reader = reader(source, every, timeout, limits)
        self._release = weakref.finalize(self, self._reader.close)

    @property
    def read(self) -> int:
        """See the class."""
        return self._reader.read

    @property
    def dropped(self) -> int:
        """See the class."""
        return self._reader.dropped

    @property
    def stopped(self) -> bool:
        """`stop` was called."""
        return self._stopped.is_set()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Frame:
        """The next frame.

        Raises:
            InputError: the source does not open, gives nothing for ``timeout`` seconds, or, live, has ended.
        """
        if self.given == self._limit or self.stopped or not self._release.alive:
            self.close()
            raise StopIteration
        try:
            frame = self._reader.next(self._stopped)
        except BaseException:
            self.close()
            raise
        if frame is None:
            self.close()
            raise StopIteration
        self.given += 1
        return frame

    def stop(self) -> None:
        """No further frame is handed out. May be called by a signal's handler, and by another thread."""
        self._stopped.set()

    def close(self) -> None:
        """Give the camera or file back; calling it twice is fine."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def frames(
    source: Source | str,
    every: int = 1,
    limit: int | None = None,
    timeout: float = 10.0,
    limits: Limits | None = None,
) -> Frames:
    """Open a video file, a camera or a stream.

    A file gives every n-th frame, in order; none is left out. A live source is read by a thread that keeps the newest
    n-th frame and nothing else: what is not asked for in time is dropped, so at most three frames are in memory.

    Args:
        source: what `parse_source` gives, or the text for it.
        every: n; 1 for every frame.
        limit: frames to hand out; None for all there are.
        timeout: seconds that a live source may give no frame.
        limits: on the frame's size; those of a bundle's contract by default.

    Raises:
        UsageError: a number that makes no sense, or no such kind of source. InputError: the file or device is missing,
        or not what it should be. EnvironmentFault: this OpenCV cannot open such a source, or no thread can be started.

    Example:
        >>> with load("photo.gamma") as scorer, frames("v4l2:///dev/video0", every=5) as stream:
        ...     for frame in stream:
        ...         print(frame.index, scorer.score(frame.pixels).value)
    """
    check_numbers(every, limit, timeout)
    found = parse_source(source) if isinstance(source, str) else source
    check_source(found)
    return Frames(found, every, limit, timeout, limits or Limits())


def check_numbers(every: int, limit: int | None, timeout: float) -> None:
    """Hold the numbers that `frames` takes against what makes sense.

    Raises:
        UsageError: less than every frame, less than one frame, or no time to wait for one.
    """
    if every < 1:
        raise UsageError(f"every {every}th frame; at least 1 is needed")
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} frames; at least 1 is needed")
    if not 0 < timeout <= _MAX_TIMEOUT:
        raise UsageError(f"a timeout of {timeout:g} seconds; more than 0 and at most {_MAX_TIMEOUT:g} is needed")


def _retrieved(cv2: Any, capture: Any, source: Source) -> Pixels:
    """The frame that was grabbed last, RGB; OpenCV has BGR, or grey where a pipeline says so."""
    good, stored = capture.retrieve()
    if not good:
        raise InputError(f"{printable(source.name)}: a frame cannot be converted")
    to_rgb = cv2.COLOR_GRAY2RGB if stored.ndim == 2 or stored.shape[2] == 1 else cv2.COLOR_BGR2RGB
    pixels: Pixels = cv2.cvtColor(stored, to_rgb)
    return pixels


class _FileReader:
    """Reads when asked. Frames between are grabbed: decoded, as later ones need them, but not converted."""

    dropped = 0

    def __init__(self, source: Source, every: int, timeout: float, limits: Limits) -> None:
        self.read = 0
        self._source = source
        self._every = every
        self._cv2 = require("cv2", "cpu")
        self._open = contextlib.ExitStack()
        self._capture = self._open.enter_context(opened(source, timeout, limits))
        self._first: float | None = None

    def next(self, _stopped: threading.Event) -> Frame | None:
        while self._capture.grab():
            index = self.read
            self.read += 1
            if self._first is None:
                self._first = self._clock()
            if index % self._every == 0:
                pixels = _retrieved(self._cv2, self._capture, self._source)
                return Frame(index, round(max(0.0, self._clock() - self._first), 6), pixels)
        if self.read == 0:
            raise InputError(f"{printable(self._source.name)}: no frame of it can be decoded", hint="a damaged file?")
        return None

    def _clock(self) -> float:
        seconds: float = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000
        return seconds if math.isfinite(seconds) else 0.0

    def close(self) -> None:
        self._open.close()


class _LiveReader:
    """A thread that reads all the time; it opens the source too, because that may take as long as it likes."""

    def __init__(self, source: Source, every: int, timeout: float, limits: Limits) -> None:
        self.read = 0
        self._source = source
        self._every = every
        self._timeout = timeout
        self._limits = limits
        self._slot: Slot[Frame] = Slot()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise EnvironmentFault(f"no thread for reading ({error})", hint="a limit of processes?") from error

    @property
    def dropped(self) -> int:
        return self._slot.dropped

    def next(self, stopped: threading.Event) -> Frame | None:
        name = printable(self._source.name)
        try:
            frame = self._slot.take(self._timeout, stopped)
        except Late:
            hint = "is it still connected?" if self.read else HINTS[self._source.kind]
            hint += " (--frame-timeout waits longer)"
            raise InputError(f"{name}: no frame for {self._timeout:g} seconds", hint=hint) from None
        if frame is None and not stopped.is_set():
            raise InputError(f"{name}: the stream ended after {self.read} frames", hint="start again when it is back")
        return frame

    def _run(self) -> None:
        try:
            with opened(self._source, self._timeout, self._limits) as capture:
                for frame in self._frames(capture):
                    self._slot.put(frame)
        except Exception as error:  # raised where the frames are asked for
            self._slot.end(without_frames(error))
        else:
            self._slot.end()

    def _frames(self, capture: Any) -> Iterator[Frame]:
        cv2 = require("cv2", "cpu")
        first: float | None = None
        while not self._closed.is_set() and capture.grab():
            now = time.monotonic()
            first = now if first is None else first
            index = self.read
            self.read += 1
            if index % self._every == 0:
                yield Frame(index, round(now - first, 6), _retrieved(cv2, capture, self._source))

    def close(self) -> None:
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(_GRACE)
