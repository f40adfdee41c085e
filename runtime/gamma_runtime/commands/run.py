"""gamma-run: images in, scores out; of videos, cameras and streams see `gamma_runtime.commands.stream`."""

from __future__ import annotations

import collections
import dataclasses
import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_runtime.cli import CommonOptions, log, option, out, printable, quoted, run_command
from gamma_runtime.commands.records import COLUMNS, csv_cell, csv_line, label_line, records_of, row
from gamma_runtime.errors import EXIT_OK, InputError, UsageError

if TYPE_CHECKING:
    from gamma_runtime.scorer import Panel, Result

__all__ = ["RunOptions", "expand", "main", "run"]

_EXTENSIONS = (".bmp", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(CommonOptions):
    """Score images, a video or a camera with an exported bundle."""

    bundle: Path = option(help="bundle folder (NAME.gamma)", positional=True)
    paths: tuple[str, ...] = option(
        help="image files, folders (searched recursively) or globs; or one video file, camera or stream: "
        "v4l2:///dev/video0, csi://0, rtsp://HOST/PATH, http://HOST/PATH, gst:PIPELINE (docs/cameras.md)",
        positional=True,
    )
    scene: tuple[str, ...] = option(
        (), "scene, several with commas or repeated; default: the bundle's own", repeat=True
    )
    backend: str = option("auto", "auto (onnxruntime or openvino), onnxruntime, openvino, tensorrt or tensorrt-rtx")
    precision: str | None = option(None, "fp32, fp16, bf16, int8 or fp8, where the bundle has several")
    batch: int = option(8, "images inferred together, within the graph's range")
    threads: int | None = option(None, "CPU threads of one inference; default: one a physical core")
    decode_threads: int | None = option(
        None, "threads that prepare the next images meanwhile, 0 for none; default: one a processor, at most 4"
    )
    small: str = option("refuse", "images under 224 pixels: refuse, resize (enlarge, flagged) or pad (mirror, flagged)")
    scale: str = option("checkpoint", "checkpoint (its own score levels) or 0-100")
    strict: bool = option(False, "refuse files with several pictures instead of scoring the first")
    engine_dir: Path | None = option(None, "where the engines lie; default: in the bundle")
    rebuild_ok: bool = option(False, "build an engine when none fits, and use it once it scores the golden images")
    infer_timeout: float = option(60.0, "seconds after which an inference on the GPU counts as hung")
    halve_on_oom: bool = option(False, "when the GPU has too little memory for a batch, try its two halves")
    every: int = option(1, "of a video, camera or stream: score every n-th frame")
    frames: int | None = option(None, "of a video, camera or stream: end after so many scored frames")
    frame_timeout: float = option(10.0, "seconds that a camera or stream may give no frame")
    csv: bool = option(False, "comma-separated values on stdout")


def expand(paths: Sequence[str]) -> Iterator[tuple[str, InputError | None]]:
    """Image paths for files, folders and globs, in the order given; what matches nothing comes with its error.

    Files are taken whatever their name; in folders the extension decides, sorted, links to folders not followed.
    """
    for given in paths:
        path = os.path.expanduser(given)
        if os.path.isdir(path):
            yield from _folder(path)
        elif os.path.lexists(path) or not glob.has_magic(path):
            yield path, None  # a missing file gets its error where it is read
        else:
            matches = sorted(glob.glob(path, recursive=True))
            files = [match for match in matches if not os.path.isdir(match)]
            yield from ((file, None) for file in files)
            if not files:
                yield given, InputError(f"{printable(given)}: no file matches")


def _folder(folder: str) -> Iterator[tuple[str, InputError | None]]:
    found = False
    for where, inner, names in os.walk(folder):
        inner.sort()
        for name in sorted(names):
            if name.lower().endswith(_EXTENSIONS):
                found = True
                yield os.path.join(where, name), None
    if not found:
        missing = f"{printable(folder)}: no images in this folder ({' '.join(_EXTENSIONS)})"
        yield folder, InputError(missing)


def run(options: RunOptions) -> int:
    """Score images, a video or a camera: a table or lines, --json (one object a line) or --csv on stdout."""
    from gamma_runtime.commands.stream import sorted_out, write_stream
    from gamma_runtime.engines.use import EngineUse
    from gamma_runtime.scorer import load_panel

    if options.json and options.csv:
        raise UsageError("--json and --csv exclude each other")
    if not options.paths:
        raise UsageError("no images given", hint="gamma-run BUNDLE PATH…, a file, a folder or a glob")
    paths, source = sorted_out(options)
    scenes = tuple(name for given in options.scene for name in given.split(",") if name)
    o = options
    use = EngineUse(
        engine_dir=o.engine_dir,
        rebuild_ok=o.rebuild_ok,
        infer_timeout=o.infer_timeout,
        halve_on_oom=o.halve_on_oom,
    )
    with load_panel(o.bundle, scenes, o.backend, o.precision, o.small, o.threads, o.scale, o.strict, use) as panel:
        if not o.quiet:
            _announce(panel)
        if source is None:
            failed, total, code = _write(panel, dataclasses.replace(o, paths=paths))
        else:
            failed, total, code = write_stream(panel, source, o)
    if failed:
        log(f"{failed} of {total} {'images' if source is None else 'frames'} could not be scored")
    if not o.quiet:
        log(f"next: gamma-verify {quoted(o.bundle)}")
    return code


def _announce(panel: Panel) -> None:
    label = panel.bundle.manifest.checkpoint.label
    note = f"; checkpoint: {label}" if label else ""
    log(f"{', '.join(panel.scenes)} on {panel.backend_name}{note}")


def _write(panel: Panel, options: RunOptions) -> tuple[int, int, int]:
    """Score everything and write it; the number of images that failed, of all, and the highest exit code."""
    failed = total = 0
    code = EXIT_OK
    table: list[tuple[str, ...]] = []
    if options.csv:
        out(csv_line(COLUMNS))
    for result in _progress(_results(panel, options), options.quiet):
        total += 1
        if result.error is not None:
            failed += 1
            code = max(code, result.error.exit_code)
        records = list(records_of(result, panel.scenes))
        if options.json:
            for record in records:
                out(json.dumps(record, allow_nan=False))
        elif options.csv:
            for record in records:
                out(csv_line([csv_cell(record[column]) for column in COLUMNS]))
        else:
            table += map(row, records)
        sys.stdout.flush()
    if not (options.json or options.csv):
        _print_table(table, panel)
    return failed, total, code


def _results(panel: Panel, options: RunOptions) -> Iterator[Result]:
    """Results in the order of the paths; what matched no file keeps its place."""
    from gamma_runtime.scorer import Result

    places: collections.deque[Result | None] = collections.deque()  # None: the next result of the panel

    def images() -> Iterator[str]:
        for path, error in expand(options.paths):
            places.append(None if error is None else Result(path, (), error))
            if error is None:
                yield path

    for result in panel.results(images(), options.batch, options.decode_threads):
        while (missing := places.popleft()) is not None:
            yield missing
        yield result
    yield from (missing for missing in places if missing is not None)


def _progress(results: Iterator[Result], quiet: bool) -> Iterator[Result]:
    """A counter on stderr, only where someone watches."""
    if quiet or not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed} images"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("scoring", total=None)
        for result in results:
            progress.advance(task)
            yield result


def _print_table(rows: list[tuple[str, ...]], panel: Panel) -> None:
    from gamma_runtime.tables import text_table

    low, high = panel.range
    title = f"score {low:.3g} to {high:.3g}"
    titles = ("image", "scene", title, "crop std", "flags / error")
    if line := label_line(panel):
        out(line)
    out(text_table(titles, rows, right=(title, "crop std")))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``gamma-run``."""
    return run_command("gamma-run", run, RunOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
