"""From engines.json to an engine in memory: what fits, what is stale, and what must not be loaded."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_runtime.bundle import Bundle, read_engines
from gamma_runtime.engines.host import Device, import_flavour, require_gpu, same_version
from gamma_runtime.engines.options import LABELS, Flavour
from gamma_runtime.engines.store import read_plan
from gamma_runtime.errors import EnvironmentFault

if TYPE_CHECKING:
    from gamma_runtime.manifest import EngineEntry

__all__ = ["LoadedEngine", "deserialize", "fitting_engine", "load_engine", "logged", "why_not", "why_stale"]

_CPU = "or score on the CPU: gamma-run BUNDLE PHOTO --backend onnxruntime"
_MAX_LINES = 8
_KEPT_LINES = 100


@dataclasses.dataclass(frozen=True)
class LoadedEngine:
    """A deserialised engine. Runtime and logger must live as long as it does, so they travel together."""

    engine: Any
    runtime: Any
    logger: Any


def why_not(entry: EngineEntry, device: Device) -> str | None:
    """Why an engine does not run on a device, as a sentence; None when it does."""
    if entry.os != device.os:
        return f"built on {entry.os}, this is {device.os}"
    fits = same_version(entry.version, device.version) and any(
        _covers(target, device.compute_capability) for target in entry.compute_capabilities
    )
    if fits and entry.flavour == device.flavour:
        return None
    built = "+".join(_sm(target) for target in entry.compute_capabilities)
    here = device.version if entry.flavour == device.flavour else f"{LABELS[device.flavour]} {device.version}"
    return f"built for {LABELS[entry.flavour]} {entry.version}/{built}, here {here}/{_sm(device.compute_capability)}"


def _sm(capability: str) -> str:
    plain = capability.removesuffix("+")
    return f"sm_{plain.replace('.', '')}{' and newer' if plain != capability else ''}"


def _covers(target: str, capability: str) -> bool:
    if target.endswith("+"):
        return float(capability) >= float(target[:-1])
    return target == capability


def why_stale(bundle: Bundle, entry: EngineEntry) -> str | None:
    """Why an engine does not belong to the bundle's graphs any more; None when it does."""
    hashes = {file.name: file.sha256 for file in bundle.manifest.files}
    same = [g for g in bundle.manifest.graphs if g.name == entry.graph and g.precision == entry.precision]
    if not same:
        return f"stale: the bundle has no {entry.precision} graph {entry.graph} any more"
    if any((hashes[g.onnx], hashes[g.weights]) == (entry.onnx_sha256, entry.weights_sha256) for g in same):
        return None
    return f"stale: built from another {entry.precision} graph {entry.graph} than the bundle has now"


def fitting_engine(
    bundle: Bundle,
    engine_dir: Path | None,
    flavour: Flavour,
    device: Device,
    *,
    scene: str | None = None,
    precision: str | None = None,
    others: Sequence[str] = (),
) -> EngineEntry:
    """The engine for this device: of the scene's own graph before the joint one, then the newest.

    With ``others`` the one that scores most of these scenes comes first: one pass instead of several.

    Args:
        bundle: the bundle whose graphs it must come from.
        engine_dir: where engines.json lies; None means in the bundle.
        flavour: ``tensorrt`` or ``tensorrt-rtx``; never another one instead.
        device: where it is to run, from `gamma_runtime.engines.host.this_device`.
        scene: must be among the engine's scenes; the bundle's default scene when None.
        precision: any when None.
        others: scenes that will be scored together with it.

    Raises:
        EnvironmentFault: none fits; the message says why not for each. IntegrityError: engines.json is broken.
    """
    scene = scene or bundle.manifest.default_scene
    folder = engine_dir or bundle.folder
    wanted = [
        entry
        for entry in read_engines(folder).engines
        if entry.flavour == flavour and scene in entry.scenes and precision in (None, entry.precision)
    ]
    reasons = {entry.file: why_stale(bundle, entry) or why_not(entry, device) for entry in wanted}
    fitting = [entry for entry in wanted if reasons[entry.file] is None]
    if fitting:
        together = max(len(set(others) & set(entry.scenes)) for entry in fitting)
        fitting = [entry for entry in fitting if len(set(others) & set(entry.scenes)) == together]
        fewest = min(len(entry.scenes) for entry in fitting)
        return max((entry for entry in fitting if len(entry.scenes) == fewest), key=lambda entry: entry.created)
    what = f"{LABELS[flavour]} engine for scene {scene}{f' in {precision}' if precision else ''}"
    hint = f"gamma-build {shlex.quote(str(bundle.folder))} --engine {flavour}"
    if engine_dir is not None:
        hint += f" --engine-dir {shlex.quote(str(engine_dir))}"
    if not wanted:
        raise EnvironmentFault(f"{folder}: no {what} was built", hint=hint)
    text = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise EnvironmentFault(f"{folder}: no {what} fits here: {text}", hint=hint)


def load_engine(bundle: Bundle, entry: EngineEntry, engine_dir: Path | None = None) -> LoadedEngine:
    """Check a plan, ask the driver, and only then let TensorRT see the bytes.

    Raises:
        IntegrityError: the plan is not the one that was built. EnvironmentFault: no usable GPU, or TensorRT
            refused it.
    """
    folder = engine_dir or bundle.folder
    content = read_plan(folder, entry)
    require_gpu(entry.flavour, instead=_CPU)
    return deserialize(import_flavour(entry.flavour), content, f"{folder / entry.file}")


def deserialize(trt: Any, content: bytes, name: str) -> LoadedEngine:
    """Turn checked plan bytes into an engine.

    Not through Polygraphy, whose loader sets ``engine_host_code_allowed``: a plan of ours carries no host code.

    Args:
        trt: the TensorRT module.
        content: the plan.
        name: for the error message.

    Raises:
        EnvironmentFault: TensorRT returned nothing; the message carries what it logged.
    """
    logger = _logger(trt)
    try:
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(content) if runtime is not None else None
    except TypeError as error:  # pybind11's words for "the factory returned a null pointer"
        logger.lines.append(str(error))
        engine = None
    if engine is None:
        raise EnvironmentFault(
            f"{name}: {trt.__name__} {trt.__version__} does not load this engine:\n  {logged(logger)}",
            hint="run gamma-doctor on the bundle; gamma-build makes the engine again on this device",
        )
    return LoadedEngine(engine, runtime, logger)


def logged(logger: Any) -> str:
    """The last warnings and errors that TensorRT logged, one a line."""
    return "\n  ".join(logger.lines[-_MAX_LINES:]) or "TensorRT logged no reason"


def _logger(trt: Any) -> Any:
    """A TensorRT logger that keeps warnings and errors; messages are for our own errors, never for the terminal."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.Logger.INTERNAL_ERROR, trt.Logger.ERROR, trt.Logger.WARNING):
                self.lines.append(text.strip())
                del self.lines[:-_KEPT_LINES]  # a server that runs for months

    return Logger()
