"""From a histogram of |value| to the threshold t that int8 represents as 127: the scale is t / 127.

``max`` clips nothing; ``percentile`` clips the largest 0.01 % of the values; ``entropy`` is ONNX Runtime's own choice;
``mse`` makes the expected squared error smallest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_calib.record import Histogram, Record
from gamma_runtime.cli import require
from gamma_runtime.errors import InputError, UsageError

__all__ = ["METHODS", "PERCENTILE", "SMALLEST_SCALE", "threshold", "with_ranges"]

METHODS = ("max", "percentile", "entropy", "mse")
PERCENTILE = 99.99  # of the values, by the method of this name
# For a tensor of zeros, where every scale but 0 is right: the smallest normal float16, so that none rounds it to 0.
SMALLEST_SCALE = 2.0**-14

Doubles: TypeAlias = NDArray[np.float64]


def threshold(histogram: Histogram, peak: float, method: str, levels: int = 127) -> float:
    """The largest |value| to represent; larger ones are clipped to it.

    Args:
        histogram: of |value|, from 0; ``counts`` int64 ``[bins]``.
        peak: the largest |value|; it lies in the last bin that is not empty.
        method: one of `METHODS`.
        levels: quantisation steps between 0 and the threshold.

    Returns:
        More than 0 and at most ``peak``; ``levels * SMALLEST_SCALE`` where every value is 0. Values that are all
        multiplied by a power of two have a threshold that is, exactly.

    Raises:
        UsageError: unknown method. InputError: a histogram of nothing. EnvironmentFault: ``entropy`` without ONNX
            Runtime.

    Example:
        >>> threshold(Histogram(0.0, 4.0, np.array([90, 9, 0, 1])), 3.5, "max")
        3.5
    """
    choose = _chooser(method)
    if not histogram.counts.any():
        raise InputError("a histogram without a value in it has no range", hint="calibrate with images")
    if peak == 0:
        return levels * SMALLEST_SCALE
    return min(choose(histogram, peak, levels), peak)


def with_ranges(record: Record, methods: Sequence[str] = METHODS, tensors: Collection[str] | None = None) -> Record:
    """The record with the range (-t, t) of every tensor by each of the methods, for int8.

    ``tensors``: by name, those that need one; all when None.

    Raises:
        UsageError: unknown method. InputError: a tensor without a value, or without channels.
        EnvironmentFault: ``entropy`` without ONNX Runtime.

    Example:
        >>> with_ranges(record, ["mse"]).ranges["mse"]["blocks.0/ln_1"]
        (-3.25, 3.25)
    """
    for method in methods:
        _chooser(method)
    wanted = {n: h for n, h in record.histograms.items() if tensors is None or n in tensors}
    if missing := sorted(set(wanted) - set(record.channels)):
        raise InputError(f"{missing[0]}: the record lacks its channels", hint="calibrate anew")
    peaks = {name: float(record.channels[name].max()) for name in wanted}
    ranges = dict(record.ranges)
    for method in methods:
        ends = {name: threshold(histogram, peaks[name], method) for name, histogram in wanted.items()}
        ranges[method] = {name: (-end, end) for name, end in ends.items()}
    return dataclasses.replace(record, ranges=ranges)


def _chooser(method: str) -> Callable[[Histogram, float, int], float]:
    if method not in METHODS:
        raise UsageError(f"{method!r} is not a method of calibration", hint=f"one of {', '.join(METHODS)}")
    return {"max": _max, "percentile": _percentile, "entropy": _entropy, "mse": _mse}[method]


def _max(_histogram: Histogram, peak: float, _levels: int) -> float:
    return peak


def _percentile(histogram: Histogram, _peak: float, _levels: int) -> float:
    """Inside a bin the values are taken to lie evenly."""
    edges, until = _edges(histogram), np.cumsum(histogram.counts)
    wanted = until[-1] * (PERCENTILE / 100)
    place = int(np.searchsorted(until, wanted))
    count = histogram.counts[place]
    share = 1 - (until[place] - wanted) / count
    return float(edges[place] + share * (edges[place + 1] - edges[place]))


def _entropy(histogram: Histogram, peak: float, levels: int) -> float:
    """ONNX Runtime's search for the cut that loses least information (Kullback-Leibler) when bins are merged.

    It wants signed values, so the bins up to the peak are mirrored, and has as many merged bins as int8 has values.
    A tensor with 2048 bins takes it 1 to 2 s, minutes for a model, and fewer bins would leave less to choose from: no
    cut is below as many bins as there are levels. Where there are no more than these, nothing is cut.
    """
    bins = int(np.flatnonzero(histogram.counts)[-1]) + 1
    if bins <= levels:
        return peak
    calibrate = require("onnxruntime.quantization.calibrate", "cpu")
    merged = 2 * levels + 1
    collector = calibrate.HistogramCollector("entropy", True, 2 * bins, merged, PERCENTILE, None)
    counts, edges = histogram.counts[:bins], _edges(histogram)[: bins + 1]
    mirrored = np.concatenate([counts[::-1], counts]), np.concatenate([-edges[:0:-1], edges])
    low, high = collector.get_entropy_threshold((*mirrored, np.float64(-peak), np.float64(peak)), merged)
    return float(max(-low, high))


def _mse(histogram: Histogram, peak: float, levels: int) -> float:
    """The end of a bin, or the peak, for which the squared error summed over all values is smallest.

    Inside a bin the values are taken to lie evenly, and the error is integrated over it. That is step² / 12 a value
    where a bin holds many steps, and what the places of the bins within the step make of it where a step holds many
    bins: with a few outliers most values may lie in the first half step, and their error is not step² / 12 but their
    own square. Exact zeros, which have no error, count as spread over the first bin: as long as the step is two bins
    or more this adds the same to every candidate, and below it at most a third of a bin's square a value.
    """
    bins = int(np.flatnonzero(histogram.counts)[-1]) + 1
    counts, edges = histogram.counts[:bins].astype(np.float64), _edges(histogram)[: bins + 1]
    candidates = np.minimum(edges[1:], peak)
    errors = [counts @ np.diff(_error_up_to(edges, end / levels, levels)) for end in candidates]
    return float(candidates[np.argmin(errors)])


def _error_up_to(values: Doubles, step: float, levels: int) -> Doubles:
    """Integral from 0 to each value of the squared distance to the nearest of 0, 1, … ``levels`` steps."""
    nearest = np.minimum(np.rint(values / step), levels)
    rest = values - nearest * step
    return nearest * (step * step * step / 12) + rest * rest * rest / 3


def _edges(histogram: Histogram) -> Doubles:
    return np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
