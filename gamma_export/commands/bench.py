"""gamma-bench: how fast a bundle is on this machine, and whether that can be trusted; runs compared, or on a page."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gamma_runtime.cli import CommonOptions, log, option, out, quoted, require, run_command
from gamma_runtime.errors import (
    EXIT_INVALID_MEASUREMENT,
    EXIT_OK,
    EnvironmentFault,
    InputError,
    OutputError,
    UsageError,
)

if TYPE_CHECKING:
    from gamma_export.bench.result import Result
    from gamma_export.bench.spec import Spec
    from gamma_runtime.bundle import Bundle

__all__ = [
    "BenchOptions",
    "CompareOptions",
    "PageOptions",
    "bench_command",
    "compare_command",
    "main",
    "page_command",
]

N = TypeVar("N", int, float)
_SETTINGS = ("backend", "precision", "threads", "batch", "seconds", "within", "rate", "streams", "starts", "profile")
_COMPARE = ("backend", "what", "unit", "A", "B", "B / A", "95 % interval", "B is")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions(CommonOptions):
    """Flags of gamma-bench."""

    bundle: Path = option(help="the bundle folder, NAME.gamma", positional=True)
    photos: tuple[str, ...] = option(help="image files, folders or globs", positional=True)
    scene: str | None = option(None, "scene; the bundle's first one when left out")
    backend: tuple[str, ...] = option(
        ("auto",), "contender, several with commas or repeated; auto: every CPU backend that can", repeat=True
    )
    precision: str | None = option(None, "fp32, fp16, bf16, int8 or fp8, where the bundle has several")
    threads: int | None = option(None, "CPU threads of one inference; default: one a physical core")
    engine_dir: Path | None = option(None, "where the engines lie; default: in the bundle")
    batch: str = option("1", "images of a call, several with commas; those outside the graph's range are left out")
    seconds: float = option(10.0, "limit of each row's warm-up, and again of its measurement")
    within: float = option(2.0, "per cent: a row has enough samples when its median is known within ± this")
    rate: str = option("1,5,30", "images a second that arrive by the clock, several with commas; none for no such rows")
    streams: str = option("1,2", "threads that score at once, several with commas; none for no such rows")
    starts: int = option(3, "cold starts of each contender")
    profile: bool = option(False, "also count the graph's work, measure the machine's peak, and time the model's parts")
    out: Path | None = option(None, "folder for result.json, report.md and report.html")

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            UsageError: a number that makes no sense.
        """
        if not 0 < self.seconds < math.inf or not 0 < self.within < math.inf:
            raise UsageError(f"--seconds {self.seconds:g} and --within {self.within:g} must be above 0")
        if self.starts < 1:
            raise UsageError(f"--starts {self.starts} is below 1")
        numbers(self.batch, "--batch", int, empty=False)
        numbers(self.streams, "--streams", int)
        numbers(self.rate, "--rate", float)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(CommonOptions):
    """Flags of gamma-bench compare."""

    first: Path = option(help="A: a result.json", positional=True)
    second: Path = option(help="B: another", positional=True)
    anyway: bool = option(False, "also different models, scenes, photos or machines, or results that are not valid")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageOptions(CommonOptions):
    """Flags of gamma-bench page."""

    results: tuple[Path, ...] = option(help="result.json of one run, or of several", positional=True)
    output: Path = option(help="the page, FILE.html", alias="-o")


def numbers(text: str, flag: str, kind: type[N], empty: bool = True) -> tuple[N, ...]:
    """A flag's numbers, separated by commas; none for the word ``none``.

    Raises:
        UsageError: not a number above 0, or none where one is needed.
    """
    if empty and text == "none":
        return ()
    try:
        found = tuple(dict.fromkeys(kind(word) for word in text.split(",")))
    except ValueError as error:
        raise UsageError(f"{flag} {text!r}: numbers with commas between them are needed") from error
    if not all(0 < number < math.inf for number in found):
        raise UsageError(f"{flag} {text!r}: every number must be above 0")
    return found


def bench_command(options: BenchOptions) -> int:
    """Measure a bundle on photos: latencies, first call, cold start, throughput, paced load, memory, and a verdict.

    Exit code 8 when the measurement is not valid. gamma-bench compare A.json B.json [--anyway] [--json] says of two
    results what is faster, slower or no different. gamma-bench page RESULT.json… -o report.html shows results.
    """
    from gamma_export.bench.identity import identify_bundle
    from gamma_export.bench.report import text
    from gamma_export.bench.run import measure_all
    from gamma_runtime.bundle import open_bundle

    if options.out:
        _check_folder(options.out)
    if options.profile:
        require("onnx", "export")
    bundle = open_bundle(options.bundle)
    specs = _specs(options, bundle)
    identity = identify_bundle(bundle, specs[0].scene, specs[0].precision)
    settings = {name: getattr(options, name) for name in _SETTINGS}
    result = measure_all(specs, identity, settings, options.starts, (lambda _: None) if options.quiet else log)
    out(result.to_json() if options.json else text(result))
    if options.out:
        _write(options.out, result)
        _write_page(options.out, result)
    if not options.quiet:
        log(f"next: {_next(options)}")
    return EXIT_OK if result.valid else EXIT_INVALID_MEASUREMENT


def _specs(options: BenchOptions, bundle: Bundle) -> list[Spec]:
    """One a contender.

    Raises:
        GammaError: no such scene or precision, a backend is not installed, or a photo list that names nothing.
    """
    from gamma_export.bench.spec import Spec
    from gamma_runtime import backends

    scene = options.scene or bundle.manifest.default_scene
    precision = bundle.graph(scene, options.precision).precision
    asked = [name for given in options.backend for name in given.split(",") if name]
    photos = _photos(options.photos)
    return [
        Spec(
            bundle=str(bundle.folder.resolve()),
            scene=scene,
            backend=backend,
            precision=precision,
            threads=options.threads,
            engine_dir=str(options.engine_dir.resolve()) if options.engine_dir else None,
            photos=photos,
            batches=numbers(options.batch, "--batch", int, empty=False),
            rates=numbers(options.rate, "--rate", float),
            streams=numbers(options.streams, "--streams", int),
            seconds=options.seconds,
            within=options.within / 100,
            profile=options.profile,
        )
        for backend in backends.usable(precision, asked)
    ]


def _photos(given: tuple[str, ...]) -> tuple[str, ...]:
    """Absolute paths.

    Raises:
        UsageError: none were given. InputError: a folder or glob without a photo.
    """
    from gamma_runtime.commands.run import expand

    if not given:
        raise UsageError("no photos given", hint="gamma-bench BUNDLE PHOTO…, a file, a folder or a glob")
    found = list(expand(given))
    for _, error in found:
        if error is not None:
            raise error
    return tuple(os.path.abspath(path) for path, _ in found)


def _check_folder(folder: Path) -> None:
    """Notice before minutes of measuring that the result could not be written; makes nothing yet.

    Raises:
        OutputError: it could not.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: cannot be written", hint="another folder for --out")


def _write(folder: Path, result: Result) -> None:
    from gamma_export.bench.report import markdown
    from gamma_runtime.files import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.md", markdown(result).encode())
    write_atomically(folder / "result.json", (result.to_json() + "\n").encode())


def _write_page(folder: Path, result: Result) -> None:
    """The page needs a library that a board need not have; what was measured is kept without it."""
    from gamma_export.bench.page import page
    from gamma_runtime.files import write_atomically

    try:
        text = page(result)
    except EnvironmentFault as error:
        log(f"no report.html: {error}")
        return
    write_atomically(folder / "report.html", text.encode())


def _next(options: BenchOptions) -> str:
    if options.out:
        return f"gamma-bench compare {quoted(options.out / 'result.json')} OTHER.json"
    return f"gamma-bench {quoted(options.bundle)} PHOTOS --out FOLDER keeps the result"


def compare_command(options: CompareOptions) -> int:
    """Compare two results row by row: the ratio of medians with its interval, and faster, slower or no difference.

    Exit code 8 when one of them is not valid.
    """
    from gamma_export.bench.compare import compare, differences, lines, remarks
    from gamma_export.bench.result import read_result
    from gamma_runtime.tables import text_table

    results = {name: read_result(getattr(options, name)) for name in ("first", "second")}
    first, second = results.values()
    rows = compare(first, second, options.anyway)
    said = differences(first, second) + remarks(first, second)
    doubted = [f"{quoted(getattr(options, name))} is {one.verdict}" for name, one in results.items() if not one.valid]
    if options.json:
        plain: dict[str, Any] = {"rows": [dataclasses.asdict(row) for row in rows], "remarks": said + doubted}
        out(json.dumps(plain, allow_nan=False))
    else:
        out(text_table(_COMPARE, lines(rows), right=_COMPARE[3:6]))
        for remark in said + doubted:
            out(f"note: {remark}")
    return EXIT_INVALID_MEASUREMENT if doubted and not options.anyway else EXIT_OK


def page_command(options: PageOptions) -> int:
    """Show recorded results on one page of HTML that needs nothing else; several together, with time against fidelity.

    Exit code 0 also for results that are not valid: the page says so.
    """
    from gamma_export.bench.page import check_plots, page
    from gamma_export.bench.result import read_result
    from gamma_runtime.files import write_atomically

    if not options.results:
        raise UsageError("no results given", hint="gamma-bench page RESULT.json… -o report.html")
    check_plots()
    _check_folder(options.output.parent)
    first, *others = [read_result(path) for path in options.results]
    try:
        text = page(first, *others)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        listed = ", ".join(map(quoted, options.results))
        raise InputError(f"{listed}: not what gamma-bench writes ({type(error).__name__}: {error})") from error
    write_atomically(options.output, text.encode())
    out(
        json.dumps({"page": str(options.output), "results": len(options.results)})
        if options.json
        else str(options.output)
    )
    return EXIT_OK


def main() -> int:
    """Entry point of gamma-bench."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["page"]:
        return run_command("gamma-bench page", page_command, PageOptions, arguments[1:])
    if arguments[:1] == ["compare"]:
        return run_command("gamma-bench compare", compare_command, CompareOptions, arguments[1:])
    return run_command("gamma-bench", bench_command, BenchOptions)


if __name__ == "__main__":
    sys.exit(main())
