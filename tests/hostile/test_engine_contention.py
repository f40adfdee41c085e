"""Row 45 of the hostile list for engines: two builds and four readers in one folder; a naive writer is caught."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gamma_runtime.bundle import ENGINES, read_engines
from gamma_runtime.engines.store import read_plan
from gamma_runtime.files import LOCK
from tests.runtime.engine_device import store_plan
from tests.runtime.tiny_bundle import make_bundle


def contend(folder: Path, seconds: float, writers: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What two writers and four readers say."""
    entry = store_plan(make_bundle(folder / "t.gamma"), "joint", folder).model_dump(mode="json")
    shared = {"folder": str(folder), "seconds": seconds, "entry": entry}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.engine_contender", json.dumps(shared | {"role": role})],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for role in [writers] * 2 + ["read"] * 4
    ]
    made = []
    for process in processes:
        said, errors = process.communicate(timeout=seconds + 120)
        assert process.returncode == 0, errors
        made.append(json.loads(said))
    return made[:2], made[2:]


@pytest.mark.parametrize("seconds", [2.0, pytest.param(60.0, marks=pytest.mark.long)])
def test_two_builds_and_four_readers(tmp_path: Path, seconds: float) -> None:
    writers, readers = contend(tmp_path, seconds, "publish")
    assert [fault for one in (*writers, *readers) for fault in one["faults"]] == []
    assert all(one["done"] >= 2 for one in (*writers, *readers)), (writers, readers)
    (entry,) = read_engines(tmp_path).engines
    read_plan(tmp_path, entry)
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {ENGINES, LOCK, entry.file, entry.log}


def test_a_naive_writer_is_caught(tmp_path: Path) -> None:
    _, readers = contend(tmp_path, 2.0, "naive")
    assert sum(one["count"] for one in readers) > 0, readers
