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
from pathlib import Path
from typing import Any

from gamma_runtime.cli import require
from gamma_runtime.engines.configure import (
    attach_timing_cache,
    capability_members,
    combined_cache,
    configuration,
    trim_heap,
)
from gamma_runtime.engines.host import import_flavour
from gamma_runtime.engines.memory import NO_MEMORY_HINT, looks_like_no_memory, peak_rss
from gamma_runtime.engines.options import LABELS, PlanSpec
from gamma_runtime.engines.progress import Emit
from gamma_runtime.engines.proof import check_engine, check_products, count_engine, count_products
from gamma_runtime.errors import EnvironmentFault, GammaError, InputError

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_MAX_LINES = 12


class _Lines(logging.Handler):
    """Keeps the first errors, and the first warnings in case there are only these."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._errors: dict[str, None] = {}
        self._warnings: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        lines = self._errors if record.levelno >= logging.ERROR else self._warnings
        text = record.getMessage().strip()
        if not text.startswith("[!]") and len(lines) < _MAX_LINES:  # [!]: Polygraphy's last word; our error says it
            lines[text.removeprefix("[E] ").removeprefix("[W] ")] = None

    def text(self) -> str:
        return "\n  ".join(self._errors or self._warnings) or "TensorRT logged no reason"

    def no_memory(self) -> bool:
        return looks_like_no_memory("\n".join([*self._errors, *self._warnings]))


def _die_with_parent() -> None:
    """No orphan keeps building when the parent is killed; only Linux has this, elsewhere the orphan ends by itself."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _listen(quiet: bool) -> _Lines:
    """Send Polygraphy's and TensorRT's messages to stderr, and keep those that explain a failure."""
    from polygraphy.logger import G_LOGGER

    G_LOGGER.use_python_logging_system = True
    # The log file may lie in memory (tmpfs), so a build that saves memory says less.
    G_LOGGER.module_severity = {"": G_LOGGER.INFO if quiet else G_LOGGER.VERBOSE}
    kept, stream = _Lines(), logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("Polygraphy")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in (kept, stream):
        logger.addHandler(handler)
    return kept


def _parse(spec: PlanSpec, kept: _Lines) -> Any:
    """The strongly typed network of the graph: (builder, network, parser), which must live together.

    Raises:
        InputError: the parser refused the graph. EnvironmentFault: TensorRT gave no builder, or no memory is left.
    """
    from polygraphy.backend.trt import network_from_onnx_path
    from polygraphy.exception import PolygraphyException

    label = LABELS[spec.flavour]
    try:
        return network_from_onnx_path(spec.onnx, strongly_typed=True)
    except PolygraphyException as error:
        if kept.no_memory():
            raise _no_memory(f"{spec.onnx}: {label} cannot read this graph", kept) from error
        raise InputError(
            f"{spec.onnx}: {label} cannot parse this graph:\n  {kept.text()}",
            hint="export the bundle again with this version of gamma-edge, or use --backend onnxruntime",
        ) from error
    except TypeError as error:  # pybind11's words for "the factory returned a null pointer"
        raise EnvironmentFault(
            f"{label} does not start ({error}):\n  {kept.text()}", hint="run gamma-doctor"
        ) from error


def _no_memory(what: str, kept: _Lines) -> EnvironmentFault:
    return EnvironmentFault(f"{what}: out of memory:\n  {kept.text()}", hint=NO_MEMORY_HINT)


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


def _write_plan(trt: Any, builder: Any, network: Any, config: Any, target: str) -> bool:
    """Build and write the plan; False when TensorRT gave up.

    Where TensorRT can stream the plan (10.9 on, and RTX) it is never held as a whole: at full size that
    lowers the peak by 15 % (fp16, TensorRT-RTX 1.7.1 on a CPU: 1297 to 1112 MiB). Otherwise it is held once.
    """
    with Path(target).open("wb") as stream:
        if hasattr(builder, "build_serialized_network_to_stream"):
            writer = _writer(trt, stream)
            done = bool(builder.build_serialized_network_to_stream(network, config, writer))
            if writer.error is not None:
                raise writer.error
        else:
            plan = builder.build_serialized_network(network, config)
            done = plan is not None
            if done:
                stream.write(memoryview(plan))
        stream.flush()
        os.fsync(stream.fileno())
        return done and stream.tell() > 0


def _writer(trt: Any, stream: Any) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        """Passes pieces on; a full disk must not become an exception inside TensorRT, so it is kept for later."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: Any) -> int:
            try:
                return int(stream.write(memoryview(data)))
            except OSError as error:
                self.error = error
                return 0

    return Writer()


def _build(spec: PlanSpec, emit: Emit) -> dict[str, Any]:
    trt = import_flavour(spec.flavour)
    polygraphy = require("polygraphy", "rtx" if spec.flavour == "tensorrt-rtx" else "tensorrt")
    kept = _listen(quiet=spec.low_memory)
    capability_members(spec, trt)  # before the parser works for nothing
    from polygraphy.backend.trt import util as trt_util

    emit({"event": "phase", "name": "Parsing graph", "fraction": None})
    builder, network, _parser = _parse(spec, kept)  # the parser owns the weights' memory: it must live on
    _check_io(spec, network)
    counted = count_products(network)
    check_products(counted, spec.precision, spec.int8_share)
    if spec.low_memory:
        trim_heap()
    start = time.monotonic()
    config = configuration(spec, trt, builder, network, emit)
    logging.getLogger("Polygraphy").info("Building with:\n%s", trt_util.str_from_config(config, network))
    refused = None
    if spec.timing_cache is not None:
        refused = attach_timing_cache(config, Path(spec.timing_cache).read_bytes())
    if not _write_plan(trt, builder, network, config, spec.plan):
        what = f"{LABELS[spec.flavour]} {trt.__version__} did not build {spec.onnx}"
        if kept.no_memory():
            raise _no_memory(what, kept)
        raise EnvironmentFault(
            f"{what}{' for ' + ', '.join(spec.compute_capabilities) if spec.compute_capabilities else ''}:\n"
            f"  {kept.text()}",
            hint="try another --precision or --compute-capability, or --low-memory; the build log has every message",
        )
    seconds = time.monotonic() - start
    if spec.timing_cache_out is not None:
        Path(spec.timing_cache_out).write_bytes(combined_cache(config, config.get_timing_cache(), []))
    del network, builder, config, _parser  # the engine is loaded next, and needs the room
    return {
        "event": "done",
        "version": trt.__version__,
        "polygraphy": polygraphy.__version__,
        "seconds": seconds,
        "timing_cache_refused": refused,
        "peak_rss": peak_rss(),
        "proof": {"network": counted, "engine": _inspect(spec, trt)},
    }


def _inspect(spec: PlanSpec, trt: Any) -> dict[str, Any] | None:
    """The types in the finished engine. None for TensorRT-RTX, whose engines are one opaque layer and may lack a GPU.

    A build that saves memory leaves it out: the engine would have to be loaded.

    Raises:
        EnvironmentFault: not the precision that was asked for.
    """
    if spec.flavour == "tensorrt-rtx" or spec.low_memory:
        return None
    from gamma_runtime.engines.load import deserialize

    try:
        loaded = deserialize(trt, Path(spec.plan).read_bytes(), spec.plan)
        inspector = loaded.engine.create_engine_inspector()
        counted = count_engine(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    except EnvironmentFault as error:  # too little memory to load it, or a later schema: no reason to throw it away
        return {"unknown": error.message}
    check_engine(counted, spec.precision)
    return counted


def _combine(flavour: str, first: str, second: str, target: str) -> dict[str, Any]:
    """Merge two timing cache files into ``target``; the second adds what the first has not."""
    trt = import_flavour("tensorrt-rtx" if flavour == "tensorrt-rtx" else "tensorrt")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    config = builder.create_builder_config()
    cache = config.create_timing_cache(Path(first).read_bytes())
    if cache is None:
        raise EnvironmentFault(f"{first}: TensorRT cannot read this timing cache")
    Path(target).write_bytes(combined_cache(config, cache, [Path(second)]))
    return {"event": "done"}


def main(arguments: list[str]) -> int:
    """Build what the JSON file describes, or ``--combine FLAVOUR FIRST SECOND TARGET``; the last event is the result.

    0 unless it is a bug, which ends with its traceback.
    """
    _die_with_parent()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print to stdout print into the log

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    # TensorRT-RTX deprecates timing caches, which Polygraphy always sets; an error out of it would end the build.
    warnings.simplefilter("ignore", DeprecationWarning)
    os.environ["POLYGRAPHY_AUTOINSTALL_DEPS"] = "0"  # Security: never let it run pip
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # kernels that no tactic uses take no memory
    try:
        if arguments[0] == "--combine":
            emit(_combine(*arguments[1:]))
        else:
            spec = PlanSpec(**json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
            os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if spec.flavour == "tensorrt-rtx" else "0"
            emit(_build(spec, emit))
    except GammaError as error:
        emit({"event": "error", "type": type(error).__name__, "message": error.message, "hint": error.hint})
    except OSError as error:
        hint = "check the free space and the permissions"
        emit({"event": "error", "type": "OutputError", "message": str(error), "hint": hint})
    except MemoryError:
        message = "out of memory in the build"
        emit({"event": "error", "type": "EnvironmentFault", "message": message, "hint": NO_MEMORY_HINT})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
