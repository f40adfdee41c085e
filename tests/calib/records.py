"""A small calibration record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gamma_calib.record import Histogram, Key, Record

METHOD = "histogram 16"
KEY = Key("0" * 64, "1" * 64, "2" * 64, "3" * 64, METHOD, (("gamma-edge", "0.1.0"), ("onnxruntime", "1.31.1")))


def record(done: int = 3, key: Key = KEY, seed: int = 0) -> Record:
    """Three of four images, two tensors."""
    numbers = np.random.default_rng(seed)
    histograms = {
        name: Histogram(low, 4.0, numbers.integers(0, 1000, bins))
        for name, low, bins in (("a", -4.0, 16), ("b/c", 0.0, 7))
    }
    ranges = {"minmax": {"a": (-3.5, 3.75), "b/c": (0.0, 1e-7)}, "percentile 99.99": {"a": (-3.0, 3.0)}}
    channels = {"a": numbers.random(5, np.float32), "b/c": np.array([0, 3.5], np.float32)}
    return Record(key, done, 4, histograms, ranges, channels)


def same(one: Record, other: Record) -> bool:
    """Down to the last count and bit."""
    plain = [(r.key, r.done, r.total, {m: dict(v) for m, v in r.ranges.items()}) for r in (one, other)]
    counts = [{n: (h.low, h.high, h.counts.tolist()) for n, h in r.histograms.items()} for r in (one, other)]
    channels = [{n: (v.dtype.str, v.shape, v.tobytes()) for n, v in r.channels.items()} for r in (one, other)]
    return plain[0] == plain[1] and counts[0] == counts[1] and channels[0] == channels[1]


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any], arrays: bytes | None = None) -> None:
    """Change the header, or all behind it, as somebody would who knows how it is sealed."""
    _, header, data = path.read_bytes().split(b"\n", 2)
    loaded = json.loads(header)
    change(loaded)
    path.write_bytes(sealed(json.dumps(loaded).encode() + b"\n" + (data if arrays is None else arrays)))


def sealed(body: bytes) -> bytes:
    """With the first line that fits it."""
    return b"gamma-calibration 1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
