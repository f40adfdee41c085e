"""Engines for a bundle: choose graphs, check them, build all plans, then publish them together."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_runtime.bundle import Bundle, read_engines
from gamma_runtime.cli import printable
from gamma_runtime.cuda_probe import probe
from gamma_runtime.engines.eta import remaining
from gamma_runtime.engines.host import BUILD_INSTEAD, host_os, import_flavour, installed_version, require_gpu
from gamma_runtime.engines.memory import free_memory, refuse, workspace
from gamma_runtime.engines.options import AMPERE_AND_NEWER, BuildProgress, EngineOptions, PlanSpec
from gamma_runtime.engines.plan import BuildPlan, plan_one
from gamma_runtime.engines.store import plan_stem, prepare, publish
from gamma_runtime.engines.timing import TimingCache
from gamma_runtime.engines.timings import Timings, find_cache
from gamma_runtime.engines.worker import Limits, compile_plan
from gamma_runtime.errors import EnvironmentFault, GammaError, InputError, OutputError, UsageError
from gamma_runtime.files import hash_file, temporary_beside

if TYPE_CHECKING:
    from gamma_runtime.manifest import EngineEntry, GraphEntry

__all__ = ["build_engines", "engine_folder", "plan_builds", "require_flavour", "select_graphs"]

_FP8_FROM = 8.9  # Ada
_JOINT = "joint"
_SLACK = 64 << 20  # bytes; kernels and log beside the weights
_LONGEST = 500  # characters of a warning in engines.json


def build_engines(
    bundle: Bundle, options: EngineOptions, progress: Callable[[BuildProgress], None] | None = None
) -> list[EngineEntry]:
    """Build plans and list them in engines.json; all or none, and the manifest is never touched.

    Args:
        bundle: an opened bundle; graph and weights are hashed before any parser sees them.
        options: what to build.
        progress: called a few times a second.

    Raises:
        UsageError: options that do not fit. InputError: no such graph, or one that TensorRT cannot parse.
        IntegrityError: a changed file. EnvironmentFault: no driver, no library, out of memory, or TensorRT gave up.
        OutputError: disk, permission, lock.

    Example:
        >>> bundle = gamma_runtime.bundle.open_bundle("photo.gamma")
        >>> build_engines(bundle, EngineOptions(flavour="tensorrt-rtx"))
    """
    options.check()
    targets = _targets(options)
    plans = plan_builds(bundle, options, targets)
    folder = engine_folder(bundle, options)
    prepare(folder, sum(plan.weights + _SLACK for plan in plans))
    _refuse_too_large(plans, options)
    made: list[tuple[Path, str, EngineEntry]] = []
    with contextlib.ExitStack() as stack:
        timings = stack.enter_context(Timings(folder, options, targets))
        for plan in plans:
            try:
                path = stack.enter_context(temporary_beside(folder / "plan"))
            except OSError as error:
                raise OutputError(f"{folder}: not writable ({error})", hint="use --engine-dir") from error
            log, entry = _build_one(bundle, plan, options, targets, path, timings, progress)
            made.append((path, log, entry))
        publish(folder, made, options.lock_timeout, timings.merge)
    return [entry for _, _, entry in made]


def engine_folder(bundle: Bundle, options: EngineOptions) -> Path:
    """Where plans and engines.json go."""
    return Path(os.path.abspath(options.engine_dir or bundle.folder))


def plan_builds(bundle: Bundle, options: EngineOptions, targets: list[str] | None = None) -> list[BuildPlan]:
    """What `build_engines` would build, with predicted memory and the timing cache's state; nothing is written.

    Raises:
        UsageError, InputError, IntegrityError, EnvironmentFault: as `build_engines`.
    """
    options.check()
    targets = _targets(options) if targets is None else targets
    folder = engine_folder(bundle, options)
    earlier = read_engines(folder)
    sizes = {entry.name: entry.size for entry in bundle.manifest.files}
    cache = find_cache(folder, options, targets)
    graphs = select_graphs(bundle, options)
    _check_fp8(graphs, targets)
    return [plan_one(graph, sizes[graph.weights], options, earlier, cache) for graph in graphs]


def _check_fp8(graphs: list[GraphEntry], targets: list[str]) -> None:
    """TensorRT-RTX would compile for Ampere and newer without a word, and Ampere could not run it.

    Raises:
        UsageError: fp8 for a GPU without it.
    """
    older = [target for target in targets if float(target.rstrip("+")) < _FP8_FROM]
    if older and any(graph.precision == "fp8" for graph in graphs):
        raise UsageError(
            f"fp8 needs compute capability {_FP8_FROM} or newer, not {', '.join(older)}",
            hint="--compute-capability 8.9,12.0 (tensorrt-rtx), or --precision of another graph",
        )


def _refuse_too_large(plans: list[BuildPlan], options: EngineOptions) -> None:
    """Refuse before the first build what does not fit; the graphs are built one after the other.

    Raises:
        EnvironmentFault: with the numbers, unless forced.
    """
    if options.force:
        return
    for plan in plans:
        if plan.too_large:
            raise refuse(plan.too_large, options.low_memory)


def select_graphs(bundle: Bundle, options: EngineOptions) -> list[GraphEntry]:
    """One graph for each precision: the named scene's, else the joint one, else the only one.

    Raises:
        InputError: no graph for that scene or precision. UsageError: several graphs, none joint, and no scene named.
    """
    every = [g for g in bundle.manifest.graphs if g.target != "cpu"]
    precisions = list(dict.fromkeys(g.precision for g in every if options.precision in (None, g.precision)))
    if not precisions:
        have = ", ".join(dict.fromkeys(g.precision for g in every))
        raise InputError(f"{bundle.folder}: no {options.precision} graph", hint=f"this bundle has {have}")
    if options.scene is None:
        return [_default_graph([g for g in every if g.precision == p], options) for p in precisions]
    bundle.graph(options.scene, options.precision)  # an unknown scene is refused in the bundle's words
    scored = [[g for g in every if options.scene in g.scenes and g.precision == p] for p in precisions]
    return [_preferred(graphs, options) for graphs in scored if graphs]


def _preferred(graphs: list[GraphEntry], options: EngineOptions) -> GraphEntry:
    """TensorRT-RTX fuses the Attention operator best; TensorRT before 10.14 does not know it (tensorrt.md 1)."""
    wanted = "op" if options.flavour == "tensorrt-rtx" else "decomposed"
    return min(graphs, key=lambda g: (len(g.scenes), g.attention != wanted))


def _default_graph(graphs: list[GraphEntry], options: EngineOptions) -> GraphEntry:
    joint = [g for g in graphs if g.name == _JOINT]
    if not joint and len(names := sorted({g.name for g in graphs})) > 1:
        raise UsageError(
            f"this bundle has {len(names)} {graphs[0].precision} graphs and no joint one", hint=f"--scene {names[0]}"
        )
    return _preferred(joint or graphs, options)


def _targets(options: EngineOptions) -> list[str]:
    """The compute capabilities to record; for TensorRT the GPU must answer first, else it dies without a word.

    Raises:
        EnvironmentFault: flavour ``tensorrt`` without a usable GPU.
    """
    if options.flavour == "tensorrt-rtx":
        return list(options.compute_capabilities) or [AMPERE_AND_NEWER]
    return [require_gpu("tensorrt", instead=BUILD_INSTEAD).devices[0].compute_capability]


def require_flavour(options: EngineOptions) -> None:
    """Fail early where no engine can be built: options that do not fit, no library, or (for ``tensorrt``) no GPU.

    Raises:
        UsageError: options that do not fit. EnvironmentFault: the library or the GPU is missing.
    """
    options.check()
    _targets(options)
    if installed_version(options.flavour) is None:
        import_flavour(options.flavour)  # says what is missing and what brings it
    if importlib.util.find_spec("polygraphy") is None:  # not imported here: it would choose its TensorRT at once
        raise EnvironmentFault("polygraphy is not installed", hint="pip install polygraphy")


def _build_one(
    bundle: Bundle,
    plan: BuildPlan,
    options: EngineOptions,
    targets: list[str],
    path: Path,
    timings: Timings,
    progress: Callable[[BuildProgress], None] | None,
) -> tuple[str, EngineEntry]:
    """The log's text and the entry of one engine, whose plan lies in ``path``."""
    graph = plan.graph
    shown: list[tuple[float, float]] = []

    def tick(phase: str, fraction: float | None, elapsed: float, pid: int) -> None:
        if progress is None:
            return
        left = remaining(elapsed, fraction, plan.earlier_seconds, shown[-1] if shown else None)
        if left is not None:
            shown[:] = [(elapsed, left)]
        progress(BuildProgress(graph.name, graph.precision, phase, fraction, elapsed, pid, left))

    with tempfile.TemporaryDirectory(prefix="gamma-build-") as scratch:
        log = Path(scratch) / "build.log"
        loaded, target = timings.files(Path(scratch))
        limit = options.workspace_mib or workspace(free_memory(probe()), plan.need, options.low_memory)
        spec = _spec(graph, bundle.graph_file(graph), path, options, limit, loaded, target)
        try:
            done = compile_plan(spec, Path(scratch), log, tick, Limits(options.build_timeout, options.stall_timeout))
        except GammaError as error:
            if kept := _keep_log(log):
                error.hint = f"{error.hint}; build log: {kept}" if error.hint else f"build log: {kept}"
            raise
        used = timings.take(target, done["timing_cache_refused"])
        text = log.read_text(encoding="utf-8", errors="replace")
    return text, _entry(bundle, plan, options, targets, path, spec, done, used)


def _keep_log(log: Path) -> Path | None:
    """Copy a failed build's log to where its reader finds it: the system's temporary folder, not the bundle."""
    if not log.is_file() or not log.stat().st_size:
        return None
    handle, name = tempfile.mkstemp(prefix="gamma-build-failed-", suffix=".log")
    with os.fdopen(handle, "wb") as stream:
        stream.write(log.read_bytes())
    return Path(name)


def _spec(
    graph: GraphEntry,
    onnx: Path,
    plan: Path,
    options: EngineOptions,
    workspace_mib: int | None,
    cache: Path | None,
    cache_out: Path | None,
) -> PlanSpec:
    least, optimal, most = graph.batch

    def fill(shape: list[int | str], batch: int) -> list[int]:
        return [batch if isinstance(size, str) else size for size in shape]

    return PlanSpec(
        flavour=options.flavour,
        onnx=str(onnx),
        plan=str(plan),
        inputs=[
            (name, dtype, fill(shape, least), fill(shape, optimal), fill(shape, most))
            for name, (dtype, shape) in graph.inputs.items()
        ],
        outputs=[(name, dtype) for name, (dtype, _) in graph.outputs.items()],
        precision=graph.precision,
        int8_share=graph.int8_share,
        compute_capabilities=list(options.compute_capabilities),
        workspace_mib=workspace_mib,
        optimization_level=options.optimization_level,
        low_memory=options.low_memory,
        timing_cache=None if cache is None else str(cache),
        timing_cache_out=None if cache_out is None else str(cache_out),
    )


def _entry(
    bundle: Bundle,
    planned: BuildPlan,
    options: EngineOptions,
    targets: list[str],
    plan: Path,
    spec: PlanSpec,
    done: dict[str, Any],
    used: TimingCache,
) -> EngineEntry:
    from gamma_runtime.manifest import EngineEntry

    graph = planned.graph
    hashes = {entry.name: entry.sha256 for entry in bundle.manifest.files}
    digest = hash_file(plan)
    stem = plan_stem(graph.name, graph.precision, options.flavour, done["version"], targets, digest)
    return EngineEntry(
        file=f"{stem}.plan",
        size=plan.stat().st_size,
        sha256=digest,
        flavour=options.flavour,
        version=done["version"],
        compute_capabilities=targets,
        graph=graph.name,
        scenes=graph.scenes,
        precision=graph.precision,
        onnx_sha256=hashes[graph.onnx],
        weights_sha256=hashes[graph.weights],
        batch=graph.batch,
        options={
            "strongly_typed": True,
            "tf32": False,
            "profiling_verbosity": "DETAILED",
            "workspace_mib": spec.workspace_mib,
            "optimization_level": options.optimization_level,
            "low_memory": options.low_memory,
            "timing_cache": {"state": used.state, "sha256": used.sha256},
            "attention": graph.attention,
            "default_targets": not options.compute_capabilities and options.flavour == "tensorrt-rtx",
            "polygraphy": done["polygraphy"],
        },
        log=f"{stem}.log",
        seconds=round(done["seconds"], 3),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        os=host_os(),
        peak_rss=done["peak_rss"],
        proof={name: counted for name, counted in done["proof"].items() if counted is not None},
        warnings=[printable(text)[:_LONGEST] for text in (used.warning, planned.too_large) if text],
    )
