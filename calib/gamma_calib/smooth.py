"""SmoothQuant: loud channels of a LayerNorm's output made quieter, and the products behind it as much louder.

Exact in floating point: the LayerNorm's weight and bias are divided by a factor for each channel, and the rows of every
product that reads it are multiplied by it. In 8 bits the outliers that stretched the activation's range are then shared
with the weights, which have a scale for each output channel to spare (arXiv 2211.10438, equation 4). It cannot pass an
activation function, so the second products of MLPs keep what they have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gamma_calib.qdq import Source
    from gamma_calib.record import Record

__all__ = ["readers", "smoothed_ranges", "smoothing"]

_LEAST, _MOST = 1e-2, 1e2  # of a factor, so that no weight of fp16 leaves its range
_DIGITS = 4  # of a factor in the manifest


def readers(norm: str) -> tuple[str, ...]:
    """Weights of the products that read a LayerNorm, such as ``blocks.3.ln_2``, in a block of either kind."""
    block, _, which = norm.rpartition(".")
    names = ("attn.qkv",) if which == "ln_1" else ("mlp.in", "moae.in", "moae.gate")
    return tuple(f"{block}.{name}.weight" for name in names)


def smoothing(source: Source, record: Record, alpha: float) -> dict[str, tuple[float, ...]]:
    """Factors of every LayerNorm before a product in 8 bits, by its weights' prefix.

    Args:
        source: the fp32 graph.
        record: has the largest |value| of every channel.
        alpha: how much of the outliers the weights take, 0 to 1; 0 leaves them all to the activations.
    """
    held = {tensor.name for tensor in source.model.graph.initializer}
    made = {}
    for tap, peaks in record.channels.items():
        norm = tap.replace("/", ".")
        if not norm.startswith("blocks.") or not norm.endswith((".ln_1", ".ln_2")):
            continue
        weights = [source.value(name) for name in readers(norm) if name in held and not name.endswith("gate.weight")]
        loud = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0).astype(np.float64)
        made[norm] = _factors(peaks.astype(np.float64), loud, alpha)
    return made


def _factors(peaks: NDArray[np.float64], loud: NDArray[np.float64], alpha: float) -> tuple[float, ...]:
    """peak^alpha / weight^(1 - alpha), around 1; 1 where a channel or its weights are silent."""
    heard = (peaks > 0) & (loud > 0)
    factors = np.ones_like(peaks)
    factors[heard] = peaks[heard] ** alpha / loud[heard] ** (1 - alpha)
    if heard.any():
        factors[heard] /= np.exp(np.log(factors[heard]).mean())
    return tuple(float(f"{factor:.{_DIGITS}g}") for factor in np.clip(factors, _LEAST, _MOST))


def smoothed_ranges(
    ranges: Mapping[str, float], record: Record, smooth: Mapping[str, tuple[float, ...]]
) -> dict[str, float]:
    """The ranges; those of smoothed activations are their channels' peaks: outliers are gone, so nothing is clipped."""
    made = dict(ranges)
    for tap in ranges:
        if factors := smooth.get(tap.replace("/", ".")):
            made[tap] = float((record.channels[tap].astype(np.float64) / np.array(factors)).max())
    return made
