"""From photos to ranges: a calibration of one graph, resumed where an earlier one stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gamma_calib.collect import METHOD, collect
from gamma_calib.images import CalibrationSet, graph_inputs
from gamma_calib.products import find_attention, find_products, stream_taps, taps_of
from gamma_calib.ranges import METHODS, with_ranges
from gamma_calib.record import Key, Record, calibrating, find_record, write_record

if TYPE_CHECKING:
    import onnx

    from gamma_runtime.contract import Contract
    from gamma_runtime.steps import Steps

__all__ = ["calibrate", "record_key"]

_LOCK_TIMEOUT = 2.0  # seconds; a second calibrator of the same record is told, not kept waiting for an hour


def record_key(
    graph_sha256: str, weights_sha256: str, contract: Contract, images: CalibrationSet, kind: str = "int8"
) -> Key:
    """All that decides what a calibration measures; for fp8 that is more than for int8."""
    import onnxruntime

    from gamma_runtime import __version__

    versions = {"gamma-edge": __version__, "numpy": np.__version__, "onnxruntime": onnxruntime.__version__}
    listed = tuple(sorted(versions.items()))
    method = f"{METHOD}, products{', attention' if kind == 'fp8' else ''} and residual stream"
    return Key(graph_sha256, weights_sha256, contract.sha256(), images.sha256, method, listed)


def calibrate(
    graph: Path,
    model: onnx.ModelProto,
    images: CalibrationSet,
    contract: Contract,
    key: Key,
    file: Path,
    *,
    kind: str = "int8",
    methods: Sequence[str] = METHODS,
    threads: int | None,
    steps: Steps,
) -> Record:
    """Measure the activations of every product that could run in 8 bits, and their ranges.

    Args:
        graph: the fp32 ONNX file, its weights beside it.
        model: the same, loaded without weights.
        images: what it is run on.
        contract: how they become crops.
        key: `record_key`.
        file: the record's place; one that fits ``key`` is used, or gone on with.
        kind: ``int8``, or ``fp8``, for which attention is measured too.
        methods: by which ranges are wanted.
        threads: CPU threads of an inference.
        steps: progress.

    Raises:
        OutputError: another calibration writes the same record, or it cannot be written. InputError: as `collect`.
    """
    taps = taps_of(find_products(model))
    if kind == "fp8":
        taps += [tap for attention in find_attention(model) for tap in attention.taps]
    names = {tap.name for tap in taps}
    with calibrating(file, _LOCK_TIMEOUT):
        record = find_record(file, key) or Record(key, 0, len(images.images))
        total = len(images.images) - record.done
        text = f"calibration, {total} photos" + (f", {record.done} were done before" if record.done else "")
        with steps.step(text, total) as tick:
            inputs = _batches(images, contract, record.done)
            every = [*taps, *stream_taps(model)]
            record = collect(graph, every, inputs, record, lambda r: write_record(file, r), threads=threads, tick=tick)
        if any(names - set(record.ranges.get(method, ())) for method in methods):
            with steps.step(f"ranges of {len(taps)} activations by {', '.join(methods)}"):
                record = with_ranges(record, methods, names)
                write_record(file, record)
    return record


def _batches(images: CalibrationSet, contract: Contract, start: int) -> Iterator[NDArray[np.uint8]]:
    """What the graph takes of each image: one image, or where crops vary in number, all of them as a batch."""
    for crops in graph_inputs(images, contract, start):
        yield crops[:, None] if contract.crop.varies else crops[None]
