"""The build itself, in a process of its own: ``python -m gamma_runtime.engines.child SPEC.json``.

Polygraphy chooses TensorRT or TensorRT-RTX once per process, and a build that runs out of memory is killed: both ask
for a child. It reports on stdout, one JSON object a line; everything else that any library prints lands on stderr,
which the parent keeps as the build log.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gamma_runtime.cli import require
from gamma_runtime.engines.host import import_flavour
from gamma_runtime.engines.options import LABELS, PlanSpec
from gamma_runtime.errors import EnvironmentFault, GammaError, InputError, UsageError

__all__ = ["main"]

Emit = Callable[[dict[str, Any]], None]
_PR_SET_PDEATHSIG = 1
_MAX_LINES = 12
_EVENT_INTERVAL = 0.1  # seconds between two progress events


class _Lines(logging.Handler):
    """Keeps the errors, and the warnings in case there are only these."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._errors: list[str] = []
        self._warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        lines = self._errors if record.levelno >= logging.ERROR else self._warnings
        text = record.getMessage().strip()
        if not text.startswith("[!]"):  # that is Polygraphy's own last word; our error says it
            lines.append(text.removeprefix("[E] ").removeprefix("[W] "))

    def text(self) -> str:
        kept = list(dict.fromkeys(self._errors or self._warnings))[:_MAX_LINES]
        return "\n  ".join(kept) or "TensorRT logged no reason"


def _die_with_parent() -> None:
    """No orphan keeps building when the parent is killed; only Linux has this, elsewhere the orphan ends by itself."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _listen() -> _Lines:
    """Send Polygraphy's and TensorRT's messages to stderr, and keep those that explain a failure."""
    from polygraphy.logger import G_LOGGER

    G_LOGGER.use_python_logging_system = True
    G_LOGGER.module_severity = {"": G_LOGGER.VERBOSE}
    kept, stream = _Lines(), logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("Polygraphy")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in (kept, stream):
        logger.addHandler(handler)
    return kept


def _monitor(trt: Any, emit: Emit) -> Any:
    """TensorRT's progress as events, where this version reports it (10.0 on)."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Nested phases; the fraction is that of the outermost one."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, list[int]] = {}  # name -> steps done, steps; in order of nesting
            self._last = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = [0, max(num_steps, 1)]
            self._report(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                self._phases[phase_name][0] = step + 1
            self._report(phase_name)
            return True

        def _report(self, name: str) -> None:
            now = time.monotonic()
            if now - self._last < _EVENT_INTERVAL or not self._phases:
                return
            self._last = now
            fraction = 0.0
            for done, steps in reversed(self._phases.values()):
                fraction = min(1.0, (done + fraction) / steps)
            emit({"event": "phase", "name": name, "fraction": round(fraction, 3)})

    return Monitor()


def _parse(spec: PlanSpec, kept: _Lines) -> Any:
    """The strongly typed network of the graph: (builder, network, parser), which must live together.

    Raises:
        InputError: the parser refused the graph. EnvironmentFault: TensorRT gave no builder.
    """
    from polygraphy.backend.trt import network_from_onnx_path
    from polygraphy.exception import PolygraphyException

    try:
        return network_from_onnx_path(spec.onnx, strongly_typed=True)
    except PolygraphyException as error:
        raise InputError(
            f"{spec.onnx}: {LABELS[spec.flavour]} cannot parse this graph:\n  {kept.text()}",
            hint="export the bundle again with this version of gamma-edge, or use --backend onnxruntime",
        ) from error
    except TypeError as error:  # pybind11's words for "the factory returned a null pointer"
        raise EnvironmentFault(
            f"{LABELS[spec.flavour]} does not start ({error}):\n  {kept.text()}", hint="run gamma-doctor"
        ) from error


def _check_io(spec: PlanSpec, network: Any) -> None:
    """Inputs and outputs must be those that the manifest promises.

    Raises:
        InputError: with both tables.
    """
    expected = sorted((name, dtype) for name, dtype, *_ in [*spec.inputs, *spec.outputs])
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    found = sorted((tensor.name, _DTYPES.get(tensor.dtype.name, tensor.dtype.name)) for tensor in tensors)
    if found != expected:
        raise InputError(
            f"{spec.onnx}: inputs and outputs are {found}, the manifest says {expected}", hint="re-run gamma-export"
        )


_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "UINT8": "uint8", "INT32": "int32"}


def _configure(spec: PlanSpec, trt: Any, emit: Emit) -> Any:
    """A callable that makes the builder configuration: profile, workspace, targets, progress."""
    from polygraphy.backend.trt import CreateConfig, PostprocessConfig, Profile

    profile = Profile()
    for name, _, least, optimal, most in spec.inputs:
        profile.add(name, tuple(least), tuple(optimal), tuple(most))
    pools = None
    if spec.workspace_mib is not None:
        pools = {trt.MemoryPoolType.WORKSPACE: spec.workspace_mib << 20}
    create = CreateConfig(
        profiles=[profile],
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        memory_pool_limits=pools,
        progress_monitor=_monitor(trt, emit),
    )

    def target(builder: Any, network: Any, config: Any) -> None:
        members = _members(spec, trt)
        config.num_compute_capabilities = len(members)
        for index, member in enumerate(members):
            config.set_compute_capability(member, index)

    return PostprocessConfig(create, target) if spec.compute_capabilities else create


def _members(spec: PlanSpec, trt: Any) -> list[Any]:
    """The enum members of the asked compute capabilities, found by name.

    Raises:
        UsageError: this TensorRT cannot compile for one of them.
    """
    known = trt.ComputeCapability.__members__ if hasattr(trt, "ComputeCapability") else {}
    wanted = {capability: f"SM{capability.replace('.', '')}" for capability in spec.compute_capabilities}
    if missing := [capability for capability, name in wanted.items() if name not in known]:
        have = [f"{name[2:-1]}.{name[-1]}" for name in known if name.startswith("SM")]
        raise UsageError(
            f"{LABELS[spec.flavour]} {trt.__version__} cannot compile for compute capability {', '.join(missing)}",
            hint=f"it knows {', '.join(have)}; a Jetson builds its own engine: gamma-build BUNDLE --engine tensorrt",
        )
    return [known[name] for name in wanted.values()]


def _build(spec: PlanSpec, emit: Emit) -> dict[str, Any]:
    trt = import_flavour(spec.flavour)
    polygraphy = require("polygraphy", "rtx" if spec.flavour == "tensorrt-rtx" else "tensorrt")
    kept = _listen()
    if spec.compute_capabilities:
        _members(spec, trt)  # before the parser works for nothing
    from polygraphy.backend.trt import engine_bytes_from_network
    from polygraphy.exception import PolygraphyException

    emit({"event": "phase", "name": "Parsing graph", "fraction": None})
    made = _parse(spec, kept)
    _check_io(spec, made[1])
    start = time.monotonic()
    try:
        plan = engine_bytes_from_network(made, config=_configure(spec, trt, emit))
    except PolygraphyException as error:
        raise EnvironmentFault(
            f"{LABELS[spec.flavour]} {trt.__version__} did not build {spec.onnx}"
            f"{' for ' + ', '.join(spec.compute_capabilities) if spec.compute_capabilities else ''}:\n  {kept.text()}",
            hint="try another --precision or --compute-capability; the build log has every message",
        ) from error
    seconds = time.monotonic() - start
    with Path(spec.plan).open("wb") as stream:
        stream.write(memoryview(plan))
        stream.flush()
        os.fsync(stream.fileno())
    return {"event": "done", "version": trt.__version__, "polygraphy": polygraphy.__version__, "seconds": seconds}


def main(path: str) -> int:
    """Build the plan that the JSON file describes; 0 when the last event says how it went, else a bug's traceback."""
    _die_with_parent()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print to stdout print into the log

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    # TensorRT-RTX deprecates timing caches, which Polygraphy always sets; an error out of it would end the build.
    warnings.simplefilter("ignore", DeprecationWarning)
    spec = PlanSpec(**json.loads(Path(path).read_text(encoding="utf-8")))
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if spec.flavour == "tensorrt-rtx" else "0"
    os.environ["POLYGRAPHY_AUTOINSTALL_DEPS"] = "0"  # Security: never let it run pip
    try:
        emit(_build(spec, emit))
    except GammaError as error:
        emit({"event": "error", "type": type(error).__name__, "message": error.message, "hint": error.hint})
    except OSError as error:
        hint = "check the free space and the permissions"
        emit({"event": "error", "type": "OutputError", "message": f"{spec.plan}: {error}", "hint": hint})
    except MemoryError:
        emit({"event": "error", "type": "EnvironmentFault", "message": "out of memory in the build", "hint": None})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
