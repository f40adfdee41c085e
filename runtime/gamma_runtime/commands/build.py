"""gamma-build: TensorRT engines for a bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_runtime.cli import CommonOptions, log, option, out, run_command
from gamma_runtime.engines.options import (
    AMPERE_AND_NEWER,
    LABELS,
    BuildProgress,
    EngineOptions,
    Flavour,
    parse_capabilities,
)

if TYPE_CHECKING:
    from gamma_runtime.bundle import Bundle
    from gamma_runtime.manifest import EngineEntry

__all__ = ["BuildOptions", "build", "build_visibly", "engine_table", "main"]

_NOT_RUN = "compiled, not run on a GPU"
_LINE_EVERY = 10.0  # seconds between two progress lines where there is no terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions(CommonOptions):
    """Flags of gamma-build."""

    bundle: Path = option(help="the bundle folder, NAME.gamma", positional=True)
    engine: Flavour = option(
        EngineOptions.flavour, "tensorrt builds for this machine's GPU; tensorrt-rtx builds without a GPU"
    )
    compute_capability: str | None = option(
        None, "tensorrt-rtx: GPUs to build for, such as 8.6,8.9; left out, Ampere and newer"
    )
    scene: str | None = option(EngineOptions.scene, "the engine of this scene's own graph, not of the joint graph")
    precision: str | None = option(EngineOptions.precision, "fp32, fp16 or bf16; left out, one engine for each")
    workspace_mib: int | None = option(EngineOptions.workspace_mib, "limit of TensorRT's scratch memory in MiB")
    engine_dir: Path | None = option(EngineOptions.engine_dir, "folder for engines, where the bundle is read-only")
    lock_timeout: float = option(EngineOptions.lock_timeout, "seconds to wait for another gamma-build")
    build_timeout: float = option(EngineOptions.build_timeout, "seconds after which a build is stopped")

    def engine_options(self) -> EngineOptions:
        """The library's options.

        Raises:
            UsageError: the compute capabilities cannot be read.
        """
        return EngineOptions(
            flavour=self.engine,
            compute_capabilities=parse_capabilities(self.compute_capability),
            scene=self.scene,
            precision=self.precision,
            workspace_mib=self.workspace_mib,
            engine_dir=self.engine_dir,
            lock_timeout=self.lock_timeout,
            build_timeout=self.build_timeout,
        )


def build(options: BuildOptions) -> int:
    """Build TensorRT engines for a bundle; they are listed in engines.json, and the manifest stays as it is."""
    from gamma_runtime.bundle import open_bundle

    engine_options = options.engine_options()
    engine_options.check()
    bundle = open_bundle(options.bundle)
    entries, note = build_visibly(bundle, engine_options, options.quiet)
    folder = str(options.engine_dir or bundle.folder)
    if options.json:
        engines = [entry.model_dump(mode="json") for entry in entries]
        out(json.dumps({"bundle": str(bundle.folder), "folder": folder, "engines": engines, "note": note}))
    else:
        out(engine_table(entries, note))
    where = f" --engine-dir {shlex.quote(str(options.engine_dir))}" if options.engine_dir else ""
    if not options.quiet:
        log(f"next: gamma-doctor {shlex.quote(str(options.bundle))}{where}")
    return 0


def build_visibly(bundle: Bundle, options: EngineOptions, quiet: bool) -> tuple[list[EngineEntry], str | None]:
    """`build_engines` with progress on stderr; the note says so where the engines could only be compiled.

    Raises:
        GammaError: as `build_engines`.
    """
    from gamma_runtime.cuda_probe import probe
    from gamma_runtime.engines.build import build_engines

    with _progress(quiet) as progress:
        entries = build_engines(bundle, options, progress)
    return entries, None if probe().usable else _NOT_RUN


def engine_table(entries: list[EngineEntry], note: str | None) -> str:
    """One row for each engine, then the note."""
    from gamma_runtime.tables import text_table

    rows = []
    for entry in entries:
        targets = ", ".join(entry.compute_capabilities).replace(AMPERE_AND_NEWER, "8.0 and newer")
        label = f"{LABELS[entry.flavour]} {entry.version}, compute capability {targets}"
        rows.append((entry.file, f"{entry.size / 1e6:.1f}", f"{entry.seconds:.1f}", label))
    table = text_table(("file", "MB", "seconds", "targets"), rows, right=("MB", "seconds"))
    return f"{table}\n{len(entries)} engine{'s' if len(entries) > 1 else ''} {note}" if note else table


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[BuildProgress], None] | None]:
    """A bar on a terminal, a line now and then elsewhere, nothing when quiet; always on stderr."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield _Lines()


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[BuildProgress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[tuple[str, str], TaskID] = {}

        def show(event: BuildProgress) -> None:
            key = (event.graph, event.precision)
            if key not in tasks:
                for done in tasks.values():
                    bars.update(done, total=1.0, completed=1.0)
                    bars.stop_task(done)
                tasks[key] = bars.add_task("", total=None)
            text = f"{event.graph} {event.precision}: {event.phase}"
            bars.update(
                tasks[key],
                description=text,
                total=None if event.fraction is None else 1.0,
                completed=event.fraction or 0.0,
            )

        yield show


class _Lines:
    """One line at the start of every engine, then one every ten seconds."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._next = 0.0

    def __call__(self, event: BuildProgress) -> None:
        key = (event.graph, event.precision)
        if key != self._key:
            self._key, self._next = key, 0.0
        if event.elapsed >= self._next:
            self._next = event.elapsed + _LINE_EVERY
            log(f"building {event.graph} {event.precision}: {event.elapsed:.0f} s, {event.phase}")


def main() -> int:
    """Entry point of gamma-build."""
    return run_command("gamma-build", build, BuildOptions)


if __name__ == "__main__":
    sys.exit(main())
