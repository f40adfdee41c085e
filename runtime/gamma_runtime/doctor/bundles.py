"""Verdicts on named bundles and their engines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_runtime.cuda_probe import CudaState
from gamma_runtime.engines.host import Device, host_os, installed_version
from gamma_runtime.engines.options import LABELS, Flavour
from gamma_runtime.errors import EXIT_OK, GammaError, IntegrityError

if TYPE_CHECKING:
    from gamma_runtime.bundle import Bundle
    from gamma_runtime.manifest import EngineEntry

__all__ = ["BundleFacts", "EngineFacts", "bundle_facts"]


@dataclasses.dataclass(frozen=True)
class EngineFacts:
    """One entry of engines.json. ``why`` says why it does not fit here, or is None; ``broken`` means changed."""

    file: str
    graph: str
    precision: str
    flavour: str
    version: str
    compute_capabilities: list[str]
    fits: bool
    why: str | None
    broken: bool


@dataclasses.dataclass(frozen=True)
class BundleFacts:
    """A named bundle: valid or the error, with the exit code that it means."""

    path: str
    valid: bool
    error: str | None
    exit_code: int
    scenes: list[str]
    precisions: list[str]
    label: str | None
    engines: list[EngineFacts]


def bundle_facts(path: Path, engine_dir: Path | None, cuda: CudaState) -> BundleFacts:
    """Open a bundle, hash every file of it, and look at its engines; never raises for what it finds."""
    from gamma_runtime.bundle import open_bundle, read_engines

    try:
        bundle = open_bundle(path)
    except GammaError as error:
        return BundleFacts(str(path), False, str(error), error.exit_code, [], [], None, [])
    fault: GammaError | None = None
    engines: list[EngineFacts] = []
    try:
        bundle.contract()
        bundle.check_files()
        folder = engine_dir or bundle.folder
        engines = [_engine(bundle, folder, engine, cuda) for engine in read_engines(folder).engines]
    except GammaError as error:
        fault = error
    code = (
        fault.exit_code
        if fault
        else (IntegrityError.exit_code if any(engine.broken for engine in engines) else EXIT_OK)
    )
    return BundleFacts(
        path=str(path),
        valid=fault is None,
        error=None if fault is None else str(fault),
        exit_code=code,
        scenes=[scene.name for scene in bundle.manifest.scenes],
        precisions=list(dict.fromkeys(graph.precision for graph in bundle.manifest.graphs)),
        label=bundle.manifest.checkpoint.label,
        engines=engines,
    )


def _engine(bundle: Bundle, folder: Path, entry: EngineEntry, cuda: CudaState) -> EngineFacts:
    from gamma_runtime.engines.load import why_stale
    from gamma_runtime.engines.store import read_plan

    broken = False
    try:
        read_plan(folder, entry)
        why = why_stale(bundle, entry) or _why_not_here(entry, cuda)
    except IntegrityError as error:
        broken, why = True, error.message
    return EngineFacts(
        file=entry.file,
        graph=entry.graph,
        precision=entry.precision,
        flavour=entry.flavour,
        version=entry.version,
        compute_capabilities=entry.compute_capabilities,
        fits=why is None,
        why=why,
        broken=broken,
    )


def _why_not_here(entry: EngineEntry, cuda: CudaState) -> str | None:
    from gamma_runtime.engines.load import why_not

    flavour: Flavour = entry.flavour
    version = installed_version(flavour)
    if version is None:
        return f"{LABELS[flavour]} is not installed"
    if not cuda.usable:
        return cuda.detail
    return why_not(entry, Device(flavour, version, cuda.devices[0].compute_capability, host_os()))
