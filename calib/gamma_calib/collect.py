"""Activations of chosen tensors of a graph, streamed into histograms of |value|; it can be killed and goes on later.

A histogram has 2048 bins of equal width over 0 <= |value| < R, and R is a power of two. A value that does not fit
doubles R, and neighbouring bins are summed in pairs: bins of the new width begin where every other one of the old width
did, so each value lies where it would have lain had R been that large from the start. What is counted depends neither
on the order of the images nor on interruptions, down to the last bit.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_calib.record import Histogram, Record
from gamma_runtime.cli import require
from gamma_runtime.errors import EnvironmentFault, GammaError, InputError, OutputError, UsageError
from gamma_runtime.files import temporary_beside
from gamma_runtime.threads import BUDGET, inference_threads

if TYPE_CHECKING:
    from gamma_runtime.steps import Tick

__all__ = ["BINS", "METHOD", "Tap", "collect"]

BINS = 2048
METHOD = f"histogram {BINS}"  # for the record's key
_LOWEST = 2.0**-100  # R of a tensor of zeros; from here on the bins' widths and their inverses are normal float32
_SLICE = 1 << 18  # values at a time: 3 MiB of scratch, which a processor's cache holds
_PROVIDERS = ["CPUExecutionProvider"]
_ERRORS_ONLY = 3  # ONNX Runtime's severity scale: 2 warning, 3 error

Floats: TypeAlias = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Tap:
    """What is measured.

    Attributes:
        name: under which the record has it.
        tensor: of the graph, float32 ``[rows, width]``; several taps of one tensor cost one fetch.
        columns: first and last plus one of those that count; None is all of them.
    """

    name: str
    tensor: str
    columns: tuple[int, int] | None = None


def _silent(_: int) -> None:
    """No progress."""


def collect(
    graph: Path,
    taps: Sequence[Tap],
    inputs: Iterator[NDArray[np.uint8]],
    record: Record,
    save: Callable[[Record], None],
    *,
    threads: int | None = None,
    tick: Tick = _silent,
    save_every: float = 30.0,
) -> Record:
    """Run a graph on the images that are not in the record yet, and count what its tensors hold.

    Args:
        graph: checked fp32 ONNX file (`Bundle.graph_file`), with its weights beside it; so is a copy with the taps,
            for as long as it takes to open it.
        taps: names are unique.
        inputs: image by image what the graph takes, uint8 ``[N, …]`` with any N; begins with number ``record.done``.
        record: where to begin, of the same taps.
        save: gets a record that is whole for its number of images, now and then and at the end.
        threads: CPU threads of an inference; one for each physical core when None.
        tick: told of every image.
        save_every: seconds between two calls of ``save``, at least: what a kill may cost.

    Returns:
        The complete record, as it was saved last: ``histograms`` and ``channels`` by the taps' names, and the largest
        |value| m of each as ``ranges["max"][name] == (-m, m)``; other ranges of an earlier state are gone.

    Raises:
        InputError: too few images; one that the graph refuses, or that gives NaN or infinity; a graph without one of
            the tensors, or that ONNX Runtime refuses. UsageError: taps that do not fit each other, the record, or
            their tensor. EnvironmentFault: a library is missing, or memory. OutputError: no room beside the graph.

    Example:
        >>> record = find_record(path, key) or Record(key, 0, len(images))
        >>> collect(graph, taps, map(crops, images[record.done :]), record, lambda made: write_record(path, made))
    """
    meters = _resume(taps, record)
    if record.complete:
        return record
    tapped = _Tapped(graph, list(dict.fromkeys(tap.tensor for tap in taps)), inference_threads(threads))
    last = time.monotonic()
    for number in range(record.done + 1, record.total + 1):
        crops = next(inputs, None)
        if crops is None:
            raise InputError(f"{number - 1} of {record.total} images: there are no more", hint="give all of them")
        for tensor, values in tapped.run(crops, where := f"image {number} of {record.total}"):
            with BUDGET.hold(1):
                for meter in (meter for meter in meters if meter.tap.tensor == tensor):
                    meter.add(values, where)
        tick(1)
        if number == record.total or time.monotonic() - last >= save_every:
            record = _measured(record, meters, number)
            save(record)
            last = time.monotonic()
    return record


def _resume(taps: Sequence[Tap], record: Record) -> list[_Meter]:
    names = {tap.name for tap in taps}
    if not taps or len(names) != len(taps):
        raise UsageError(f"{len(taps)} taps with {len(names)} names; one or more are needed, each with its own")
    for tap in taps:
        if tap.columns and not 0 <= tap.columns[0] < tap.columns[1]:
            raise UsageError(f"{tap.name}: columns {tap.columns[0]} to {tap.columns[1]} are none")
    if not record.done:
        return [_Meter(tap) for tap in taps]
    if not names == set(record.histograms) == set(record.channels):
        raise UsageError("a record of other tensors cannot be continued", hint="calibrate anew")
    return [_Meter(tap, record.histograms[tap.name], record.channels[tap.name]) for tap in taps]


def _measured(record: Record, meters: Sequence[_Meter], done: int) -> Record:
    return dataclasses.replace(
        record,
        done=done,
        histograms={meter.tap.name: Histogram(0.0, meter.high, meter.counts.copy()) for meter in meters},
        ranges={"max": {meter.tap.name: (-meter.peak, meter.peak) for meter in meters}},
        channels={meter.tap.name: meter.maxima.copy() for meter in meters},
    )


class _Meter:
    """Counts the values of one tap.

    Attributes:
        high: R, the histogram's end.
        counts: int64 ``[BINS]``.
        maxima: largest |value| of every channel, float32 ``[width]``; empty before the first image.
    """

    def __init__(self, tap: Tap, histogram: Histogram | None = None, maxima: Floats | None = None) -> None:
        self.tap = tap
        self.high = histogram.high if histogram else _LOWEST
        self.counts = histogram.counts.astype(np.int64) if histogram else np.zeros(BINS, np.int64)
        self.maxima = np.zeros(0, np.float32) if maxima is None else maxima.astype(np.float32)
        if len(self.counts) != BINS or (histogram and histogram.low) or math.frexp(self.high)[0] != 0.5:
            raise UsageError(f"{tap.name}: another kind of histogram cannot be continued", hint="calibrate anew")

    @property
    def peak(self) -> float:
        """The largest |value|."""
        return float(self.maxima.max())

    def add(self, values: Floats, where: str) -> None:
        """Count one image's tensor.

        Args:
            values: the whole of it, ``[rows, width]``.
            where: the image, for an error.

        Raises:
            InputError: NaN or infinity, or another width than before. UsageError: it lacks the tap's columns.
        """
        begin, end = self.tap.columns or (0, values.shape[1])
        if end > values.shape[1]:
            raise UsageError(f"{self.tap.name}: columns {begin} to {end} of {self.tap.tensor} {list(values.shape)}")
        if not self.maxima.size:
            self.maxima = np.zeros(end - begin, np.float32)
        if self.maxima.size != end - begin:
            raise InputError(f"{where}: {self.tap.name} has {end - begin} channels, it had {self.maxima.size}")
        height = min(len(values), max(1, _SLICE // (end - begin)))
        sizes = np.empty((height, end - begin), np.float32)
        places = np.empty(sizes.shape, np.intp)
        for row in range(0, len(values), height):
            rows = values[row : row + height, begin:end]
            self._count(np.abs(rows, out=sizes[: len(rows)]), places[: len(rows)], where)

    def _count(self, sizes: Floats, places: NDArray[np.intp], where: str) -> None:
        """Count |value|; both arrays are overwritten."""
        largest = sizes.max(axis=0)  # NaN is larger than all others
        if not np.isfinite(largest).all():
            raise InputError(
                f"{where}: {self.tap.tensor} holds NaN or infinity", hint="gamma-verify --layers shows the stages"
            )
        np.maximum(self.maxima, largest, out=self.maxima)
        while float(largest.max()) >= self.high:  # R may be larger than any float32
            self._double()
        # A factor that is a power of two rounds nothing, and what falls off a positive number is what floor takes.
        np.multiply(sizes, np.float32(BINS / self.high), out=sizes)
        np.copyto(places, sizes, casting="unsafe")
        self.counts += np.bincount(places.reshape(-1), minlength=BINS)

    def _double(self) -> None:
        self.high *= 2
        self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])


class _Tapped:
    """A session of the graph with tensors of it as the outputs, and with any number of images."""

    def __init__(self, graph: Path, tensors: list[str], threads: int) -> None:
        ort = require("onnxruntime", "cpu")
        model, self._input = _with_outputs(graph, tensors)
        self._graph, self._tensors, self._threads = graph, tensors, threads
        self._value: Any = ort.OrtValue
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # As in gamma_runtime.backends.onnxruntime_: spin within a call only.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            # A file, not bytes: ONNX Runtime 1.20 finds the weights only beside one.
            with temporary_beside(graph) as copy:
                copy.write_bytes(model)
                self._session: Any = ort.InferenceSession(str(copy.absolute()), options, providers=_PROVIDERS)
        except OSError as error:
            hint = "calibrate a copy of the bundle in a folder that can be written"
            raise OutputError(f"{graph.parent}: no copy of the graph can lie there ({error})", hint=hint) from error
        except Exception as error:  # the library's exceptions share no base class
            raise _explain(str(graph), error) from error

    def run(self, crops: NDArray[np.uint8], where: str) -> Iterator[tuple[str, Floats]]:
        """The tensors of one image, one after another, so that only one is in memory twice.

        Raises:
            InputError: the graph refuses the image, or a tensor is not float32 ``[rows, width]`` with something in it.
        """
        try:
            with BUDGET.hold(self._threads):
                feed = {self._input: self._value.ortvalue_from_numpy(np.ascontiguousarray(crops))}
                found = self._session.run_with_ort_values(self._tensors, feed)
        except Exception as error:  # as above
            raise _explain(f"{self._graph}: {where}", error) from error
        for place, tensor in enumerate(self._tensors):
            values, found[place] = found[place].numpy(), None
            if values.dtype != np.float32 or values.ndim != 2 or not values.size:
                is_now = f"{tensor} is {values.dtype} {list(values.shape)}"
                raise InputError(f"{self._graph}: {where}: {is_now}, not float32 [rows, width]")
            yield tensor, values


def _with_outputs(graph: Path, tensors: Sequence[str]) -> tuple[bytes, str]:
    """A copy of the graph that gives these tensors for any number of images, and the name of its input."""
    onnx = require("onnx", "export")
    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, which is not to be imported for its name
        raise _explain(str(graph), error) from error
    inner = model.graph
    made = {name for node in inner.node for name in node.output}
    if missing := [tensor for tensor in tensors if tensor not in made]:
        raise InputError(
            f"{graph}: no tensor {missing[0]!r} ({len(missing)} of {len(tensors)} are missing)",
            hint="export the bundle again with this version: calibration knows the graph by its names",
        )
    weights = {weight.name for weight in inner.initializer}
    taken = [value for value in inner.input if value.name not in weights]
    if len(taken) != 1 or not taken[0].type.tensor_type.shape.dim:
        raise InputError(f"{graph}: {len(taken)} inputs, or one without a shape; a Gamma graph takes one batch")
    taken[0].type.tensor_type.shape.dim[0].dim_param = "N"
    del inner.value_info[:]  # shapes of the fixed batch
    del inner.output[:]
    inner.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in tensors)  # the library infers the types
    return model.SerializeToString(), taken[0].name


def _explain(what: str, error: Exception) -> GammaError:
    """Our error for one of the libraries'."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or "Failed to allocate memory" in text or "bad_alloc" in text:
        return EnvironmentFault(f"{what}: out of memory ({text})", hint="fewer crops an image, or close other programs")
    return InputError(f"{what}: it cannot be run ({type(error).__name__}: {text})")
