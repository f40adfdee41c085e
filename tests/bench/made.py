"""Results and rows without measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gamma_export.bench.result import Result, Row, make_row

CONDITIONS: dict[str, Any] = {
    "governors": {"policy0": "performance"},
    "mhz": {"policy0": 3000},
    "temperatures": {},
    "power_mode": None,
    "slowed_by": (),
    "thermal_throttles": None,
    "quota_throttles": 0,
}


def row(samples: Sequence[float], **fields: Any) -> Row:
    return make_row(samples, **{"backend": "onnxruntime", "metric": "call", "unit": "ms", "batch": 1, **fields})


def result(rows: Sequence[Row], **fields: Any) -> Result:
    names = dict.fromkeys(one.backend for one in rows)
    contender = {
        "version": "1.0",
        "threads": 2,
        "crops": 5,
        "peak_host_mib": 100.0,
        "gpu_mib": None,
        "scores": [0.5],
        "score_difference": 0.0,
        "share_of_other_programs": 0.0,
        "mhz": {"policy0": [2900, 3000, 3000]},
        "celsius_max": {},
    }
    plain: dict[str, Any] = {
        "machine": {"cpu": "a cpu", "cores": 2, "model": None, "gpus": [], "date": "2026-11-28T00:00:00+00:00"},
        "before": CONDITIONS,
        "after": CONDITIONS,
        "bundle": {
            "name": "a.gamma",
            "sha256": "0" * 64,
            "checkpoint_sha256": "1" * 64,
            "label": None,
            "precision": "fp32",
        },
        "scene": "natural-quality",
        "photos": {"count": 1, "sha256": "2" * 64, "names": ["a.jpg"]},
        "settings": {"seconds": 1.0, "backend": ["auto"]},
        "contenders": tuple({"backend": name, **contender} for name in names),
        "rows": tuple(rows),
    }
    return Result(**{**plain, **fields})
