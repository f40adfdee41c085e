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
from gamma_runtime.engines.eta import remaining_text
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
    from gamma_runtime.engines.plan import BuildPlan
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
    precision: str | None = option(
        EngineOptions.precision, "fp32, fp16, bf16, int8 or fp8; an engine for each when left out"
    )
    workspace_mib: int | None = option(
        EngineOptions.workspace_mib,
        "limit of TensorRT's scratch memory in MiB; left out, half of what is free on a Jetson",
    )
    optimization_level: int | None = option(
        EngineOptions.optimization_level, "0 to 5, how long TensorRT searches; left out, its own (3)"
    )
    low_memory: bool = option(EngineOptions.low_memory, "for small boards: a lower peak, a less thorough search")
    no_timing_cache: bool = option(not EngineOptions.timing_cache, "neither use nor write what earlier builds measured")
    force: bool = option(EngineOptions.force, "build although the predicted memory does not fit")
    dry_run: bool = option(False, "say what would be built, and what it takes; build nothing")
    engine_dir: Path | None = option(EngineOptions.engine_dir, "folder for engines, where the bundle is read-only")
    lock_timeout: float = option(EngineOptions.lock_timeout, "seconds to wait for another gamma-build")
    build_timeout: float = option(EngineOptions.build_timeout, "seconds after which a build is stopped")
    stall_timeout: float = option(
        EngineOptions.stall_timeout, "seconds without a sign of life after which a build is stopped"
    )

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
            optimization_level=self.optimization_level,
            low_memory=self.low_memory,
            timing_cache=not self.no_timing_cache,
            force=self.force,
            engine_dir=self.engine_dir,
            lock_timeout=self.lock_timeout,
            build_timeout=self.build_timeout,
            stall_timeout=self.stall_timeout,
        )


def build(options: BuildOptions) -> int:
    """Build TensorRT engines for a bundle; they are listed in engines.json, and the manifest stays as it is."""
    from gamma_runtime.bundle import open_bundle

    engine_options = options.engine_options()
    engine_options.check()
    bundle = open_bundle(options.bundle)
    if options.dry_run:
        return _dry_run(bundle, engine_options, options.json)
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


def _dry_run(bundle: Bundle, options: EngineOptions, as_json: bool) -> int:
    """Show what would be built; ends as the build would begin, so with the refusal where it does not fit."""
    from gamma_runtime.engines.build import engine_folder, plan_builds
    from gamma_runtime.engines.memory import refuse

    plans = plan_builds(bundle, options)
    if as_json:
        builds = [plan.to_json() for plan in plans]
        out(json.dumps({"bundle": str(bundle.folder), "folder": str(engine_folder(bundle, options)), "builds": builds}))
    else:
        out(_plan_table(plans))
    for text in dict.fromkeys(plan.timing_cache.warning for plan in plans if plan.timing_cache.warning):
        log(f"warning: {text}")
    if refused := [plan.too_large for plan in plans if plan.too_large]:
        if not options.force:
            raise refuse(refused[0], options.low_memory)
        log(f"warning: {refused[0]}")
    return 0


def _plan_table(plans: list[BuildPlan]) -> str:
    from gamma_runtime.engines.memory import MIB
    from gamma_runtime.tables import text_table

    def mib(size: int | None) -> str:
        return "?" if size is None else str(size // MIB)

    rows = []
    for plan in plans:
        needed, free = mib(plan.need.total if plan.free.unified else plan.need.host), mib(plan.free.host)
        gpu = "-" if plan.free.unified or not plan.need.gpu else f"{mib(plan.need.gpu)} of {mib(plan.free.gpu)}"
        limit = "TensorRT's own" if plan.workspace_mib is None else str(plan.workspace_mib)
        before = "-" if plan.earlier_seconds is None else f"{plan.earlier_seconds:.1f}"
        what = f"{plan.graph.name} {plan.graph.precision}"
        rows.append((what, f"{needed} of {free}", gpu, limit, plan.timing_cache.state, before))
    head = ("engine", "MiB needed of free", "GPU MiB", "workspace MiB", "timing cache", "seconds before")
    rule = "; ".join(dict.fromkeys(plan.need.rule for plan in plans))
    return f"{text_table(head, rows)}\nnothing was built; memory predicted from: {rule}"


def build_visibly(bundle: Bundle, options: EngineOptions, quiet: bool) -> tuple[list[EngineEntry], str | None]:
    """`build_engines` with progress on stderr; the note says so where the engines could only be compiled.

    Raises:
        GammaError: as `build_engines`.
    """
    from gamma_runtime.cuda_probe import probe
    from gamma_runtime.engines.build import build_engines

    with _progress(quiet) as progress:
        entries = build_engines(bundle, options, progress)
    for text in dict.fromkeys(text for entry in entries for text in entry.warnings):
        log(f"warning: {text}")
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
            left = remaining_text(event.remaining)
            text = f"{event.graph} {event.precision}: {event.phase}, {left}"
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
            left = remaining_text(event.remaining)
            log(f"building {event.graph} {event.precision}: {event.elapsed:.0f} s, {event.phase}, {left}")


def main() -> int:
    """Entry point of gamma-build."""
    return run_command("gamma-build", build, BuildOptions)


if __name__ == "__main__":
    sys.exit(main())
