"""gamma-run on a video, a camera or a stream: a record a frame, as it comes."""

from __future__ import annotations

import collections
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gamma_runtime.cli import log, out, printable
from gamma_runtime.commands.records import COLUMNS, csv_cell, csv_line, label_line, records_of, row
from gamma_runtime.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from types import FrameType

    from gamma_runtime.commands.run import RunOptions
    from gamma_runtime.decode import Pixels
    from gamma_runtime.scorer import Panel, Result
    from gamma_runtime.sources import Frames, Source

__all__ = ["sorted_out", "write_stream"]

_COLUMNS = (COLUMNS[0], "frame", "seconds", *COLUMNS[1:])


def sorted_out(options: RunOptions) -> tuple[tuple[str, ...], Source | None]:
    """Paths of images, or the one video, camera or stream; what can be known of it before the bundle is opened is.

    Raises:
        UsageError: a stream beside anything else, or options of streams for images. GammaError: as `check_source`.
    """
    from gamma_runtime.sources import check_numbers, check_source, parse_source

    found = [parse_source(path) for path in options.paths]
    streams = [source for source in found if source.kind != "image"]
    if not streams:
        if (options.every, options.frames) != (1, None):
            raise UsageError("--every and --frames are for a video, a camera or a stream")
        return tuple(source.target for source in found), None
    if len(found) > 1:
        names = f"{printable(streams[0].name)} and {len(found) - 1} more"
        raise UsageError(f"{names}: one video, camera or stream at a time", hint="a process each, or images only")
    check_numbers(options.every, options.frames, options.frame_timeout)
    check_source(streams[0])
    return (), streams[0]


def write_stream(panel: Panel, source: Source, options: RunOptions) -> tuple[int, int, int]:
    """Score frames and write each at once; the frames that failed, of all, and the highest exit code.

    SIGINT and SIGTERM end a live source as its user's way to say enough; a file they interrupt, as everywhere.
    """
    from gamma_runtime.sources import frames

    failed = total = 0
    code = EXIT_OK
    _header(panel, options)
    with frames(source, options.every, options.frames, options.frame_timeout, panel.contract.limits) as stream:
        try:
            with _signals_stop(stream.stop if source.live else None):
                for (index, seconds), result in _results(panel, stream, options):
                    total += 1
                    if result.error is not None:
                        failed += 1
                        code = max(code, result.error.exit_code)
                    for record in records_of(result, panel.scenes):
                        _write(record | {"path": source.name, "frame": index, "seconds": seconds}, options)
                    sys.stdout.flush()
        finally:
            if not options.quiet:
                log(f"{stream.read} frames read, {total - failed} scored, {stream.dropped} dropped")
    return failed, total, code


def _results(panel: Panel, stream: Frames, options: RunOptions) -> Iterator[tuple[tuple[int, float], Result]]:
    """Results with their frame's number and time. Of a live source a frame is taken only when it can be scored."""
    places: collections.deque[tuple[int, float]] = collections.deque()

    def pixels() -> Iterator[Pixels]:
        for frame in stream:
            places.append((frame.index, frame.seconds))
            yield frame.pixels

    live = stream.source.live
    batch, threads = (1, 0) if live else (options.batch, options.decode_threads)
    with contextlib.closing(panel.results(pixels(), batch, threads)) as results:
        for result in results:
            yield places.popleft(), result


@contextlib.contextmanager
def _signals_stop(stop: Callable[[], None] | None) -> Iterator[None]:
    """The first SIGINT or SIGTERM calls ``stop``; the second does what it always does."""
    if stop is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    end = stop
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in heard.items():
            signal.signal(number, handler)

    def handle(_number: int, _frame: FrameType | None) -> None:
        restore()
        end()

    for number in heard:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


def _header(panel: Panel, options: RunOptions) -> None:
    if options.csv:
        out(csv_line(_COLUMNS))
    elif not options.json and (line := label_line(panel)):
        out(line)
    sys.stdout.flush()


def _write(record: dict[str, Any], options: RunOptions) -> None:
    if record["error"] is not None:
        record["error"] = record["error"].removeprefix("array: ")
    if options.json:
        out(json.dumps(record, allow_nan=False))
    elif options.csv:
        out(csv_line([csv_cell(record[column]) for column in _COLUMNS]))
    else:
        _, scene, score, std, note = row(record)
        spread = f"  crop std {std}" if std else ""
        out(f"frame {record['frame']:>6}  {record['seconds']:>9.3f} s  {scene}  {score}{spread}  {note}".rstrip())
