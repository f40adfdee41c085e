"""engines.json: what this device built, or somebody else says it did."""

from __future__ import annotations

import json
from pathlib import Path

from gamma_runtime.bundle import ENGINES, read_engines
from gamma_runtime.engines import read_plan
from tests.fuzz.harness import Target
from tests.hostile.test_manifest import BAD_ENGINES, ENGINE


def _seeds() -> list[bytes]:
    good = {"schema_version": 1, "engines": [ENGINE]}
    return [json.dumps(data).encode() for data in (good, *BAD_ENGINES.values())]


def _read(folder: Path, _: bytes) -> None:
    for entry in read_engines(folder).engines:
        read_plan(folder, entry)


TARGET = Target(_seeds, lambda folder, data: (folder / ENGINES).write_bytes(data), _read, json=True)
