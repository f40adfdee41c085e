"""Engines as backends: the ones that fit this device, or, where that is allowed, one built now and proven first."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from gamma_runtime.bundle import read_engines
from gamma_runtime.engines.build import build_engines
from gamma_runtime.engines.host import this_device
from gamma_runtime.engines.load import fitting_engine, load_engine
from gamma_runtime.engines.options import LABELS, EngineOptions, Flavour
from gamma_runtime.engines.runtime_cache import RuntimeCache
from gamma_runtime.engines.store import publish, runtime_cache
from gamma_runtime.engines.use import EngineUse
from gamma_runtime.errors import EXIT_GATE, EnvironmentFault, GammaError, InputError, IntegrityError, OutputError
from gamma_runtime.files import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from gamma_runtime.backends.tensorrt_ import TensorRtBackend
    from gamma_runtime.bundle import Bundle
    from gamma_runtime.engines.host import Device
    from gamma_runtime.manifest import EngineEntry, GraphEntry

__all__ = ["DriftError", "open_engines", "rebuild"]

_LOG = logging.getLogger(__name__)
_LOCK_TIMEOUT = 60.0  # seconds
_GENERATIONS = 10  # builds in a row that a reader follows before it gives up


class DriftError(EnvironmentFault):
    """An engine that was just built does not score the golden images like the checkpoint (the exit code of a gate)."""

    exit_code = EXIT_GATE


def open_engines(
    bundle: Bundle, scenes: Sequence[str], precision: str | None, backend: str, use: EngineUse
) -> list[tuple[GraphEntry, TensorRtBackend]]:
    """Load the engines that score some scenes: one that has them all, else one a scene; the GPU is asked first.

    Raises:
        EnvironmentFault: no usable GPU, no library, or no engine that fits; the message says why and what to do.
        IntegrityError: a plan is not the one that was built. InputError: the bundle has no such scene or precision.
        DriftError: with ``rebuild_ok``, the new engine failed the golden images.
    """
    for scene in scenes:
        bundle.graph(scene, precision)  # refused in the bundle's words
    flavour = cast("Flavour", backend)
    device = this_device(flavour)
    folder = use.engine_dir or bundle.folder
    for _ in range(_GENERATIONS):
        listed = read_engines(folder)
        entries = _fitting_or_built(bundle, scenes, precision, device, use)
        try:
            return _open_all(bundle, entries, use)
        except IntegrityError:
            if read_engines(folder) == listed:
                raise
    return _open_all(bundle, _fitting(bundle, scenes, precision, device, use), use)  # else: replaced in the meantime


def _fitting_or_built(
    bundle: Bundle, scenes: Sequence[str], precision: str | None, device: Device, use: EngineUse
) -> list[EngineEntry]:
    try:
        return _fitting(bundle, scenes, precision, device, use)
    except EnvironmentFault as error:
        if not use.rebuild_ok:
            if error.hint:
                error.hint += "; or let it be built now: --rebuild-ok"
            raise
        _LOG.warning("%s", error.message)
    rebuild(bundle, scenes, precision, device.flavour, use)
    return _fitting(bundle, scenes, precision, device, use)


def _open_all(
    bundle: Bundle, entries: Sequence[EngineEntry], use: EngineUse
) -> list[tuple[GraphEntry, TensorRtBackend]]:
    opened: list[tuple[GraphEntry, TensorRtBackend]] = []
    with contextlib.ExitStack() as undo:
        for entry in entries:
            made = _open(bundle, entry, use)
            undo.callback(made.close)
            opened.append((_graph_of(bundle, entry), made))
        undo.pop_all()
    return opened


def _fitting(
    bundle: Bundle, scenes: Sequence[str], precision: str | None, device: Device, use: EngineUse
) -> list[EngineEntry]:
    found = [
        fitting_engine(bundle, use.engine_dir, device.flavour, device, scene=scene, precision=precision, others=scenes)
        for scene in scenes
    ]
    return [entry for index, entry in enumerate(found) if entry not in found[:index]]


def _graph_of(bundle: Bundle, entry: EngineEntry) -> GraphEntry:
    """The manifest's graph that an engine was built from, with the batch that the engine takes."""
    hashes = {file.name: file.sha256 for file in bundle.manifest.files}
    graph = next(g for g in bundle.manifest.graphs if hashes[g.onnx] == entry.onnx_sha256 and g.name == entry.graph)
    return graph.model_copy(update={"batch": entry.batch})


def _open(bundle: Bundle, entry: EngineEntry, use: EngineUse) -> TensorRtBackend:
    from gamma_runtime.backends.tensorrt_ import TensorRtBackend
    from gamma_runtime.cuda.pick import open_cuda

    plan = (use.engine_dir or bundle.folder) / entry.file
    loaded = load_engine(bundle, entry, use.engine_dir)
    cache = None
    if entry.flavour == "tensorrt-rtx":
        cache = RuntimeCache(plan.with_name(runtime_cache(entry)), entry.sha256)
    return TensorRtBackend(plan, loaded, open_cuda(), name=entry.flavour, version=entry.version, use=use, cache=cache)


def rebuild(bundle: Bundle, scenes: Sequence[str], precision: str | None, flavour: Flavour, use: EngineUse) -> None:
    """Build an engine for this device in a folder of its own, prove it on the golden images, then publish it.

    Raises:
        InputError: the bundle has no golden images to prove it with. DriftError: it scores differently; nothing was
            published. GammaError: it does not build, or the place is not writable.
    """
    from gamma_runtime.selftest import selftest

    if not bundle.manifest.golden:
        raise InputError(f"{bundle.folder}: no golden images to prove a new engine with", hint="gamma-build BUNDLE")
    folder = use.engine_dir or bundle.folder
    kind = precision or bundle.manifest.graphs[0].precision
    own = scenes[0] if len(scenes) == 1 and not any(len(g.scenes) > 1 for g in bundle.manifest.graphs) else None
    try:
        folder.mkdir(exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder)
    except OSError as error:
        raise OutputError(f"{folder}: engines cannot be written there ({error})", hint="use --engine-dir") from error
    with scratch as name:
        place = Path(name)
        options = EngineOptions(flavour=flavour, scene=own, precision=kind, engine_dir=place)
        _LOG.warning("building an engine of %s for this device", LABELS[flavour])
        made = build_engines(bundle, options)
        proving = dataclasses.replace(use, engine_dir=place, rebuild_ok=False)
        scored = tuple(dict.fromkeys(scene for entry in made for scene in entry.scenes))
        checks = selftest(bundle, (flavour,), precision=kind, scenes=scored, engine=proving)
        failed = [check for check in checks if not check.passed]
        if failed or not checks:
            raise _drift(folder, flavour, failed)
        published = [(place / e.file, (place / e.log).read_text(encoding="utf-8"), e) for e in made]
        publish(folder, published, _LOCK_TIMEOUT)


def _drift(folder: Path, flavour: Flavour, failed: Sequence[object]) -> GammaError:
    from gamma_runtime.selftest import GoldenCheck

    words = [
        f"{c.file} in {c.scene}: {c.error or f'{c.value} instead of {c.expected:.5f} (allowed {c.tolerance:g})'}"
        for c in failed
        if isinstance(c, GoldenCheck)
    ]
    return DriftError(
        f"{folder}: the new {LABELS[flavour]} engine does not score the golden images like the checkpoint, and was not "
        f"published: {'; '.join(words[:4]) or 'nothing was scored'}",
        hint="another --precision; gamma-verify on the CPU tells whether the graph or the engine drifts",
    )
