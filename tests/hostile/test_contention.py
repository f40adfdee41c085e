"""Row 45 of the hostile list: several exporters and readers in one folder; nothing torn, nothing unexpected."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gamma_runtime
from gamma_export.photos import packaged_golden
from gamma_runtime.bundle import MANIFEST
from gamma_runtime.files import LOCK
from tests import tiny_export
from tests.tiny_export import checkpoint, copy, exported, manifest, whole

OLD, NEW = 7, 8  # seeds


def contend(out: Path, seconds: float, pause: float, roles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    copy(out, seed=OLD)
    photo = str(packaged_golden()[0])
    scores = {}
    for seed in (OLD, NEW):
        with gamma_runtime.load(exported(seed), threads=1) as scorer:
            scores[f"tiny-{seed}.pth"] = scorer.score(photo).value
    assert abs(scores[f"tiny-{OLD}.pth"] - scores[f"tiny-{NEW}.pth"]) > 1e-3  # else nothing torn would show
    shared = {"out": str(out), "seconds": seconds, "pause": pause, "photo": photo, "scores": scores}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.contender", json.dumps(shared | role)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for role in roles
    ]
    made = []
    for process in processes:
        said, errors = process.communicate(timeout=seconds + 120)
        assert process.returncode == 0, errors
        made.append(json.loads(said))
    return made


def check_contention(out: Path, seconds: float, pause: float, readers: int) -> None:
    checkpoints = [str(checkpoint(seed)) for seed in (OLD, NEW)]
    writer = {"role": "export", "photos": str(tiny_export.photos())}
    writers = [writer | {"checkpoints": order} for order in (checkpoints, checkpoints[::-1])]
    made = contend(out, seconds, pause, [*writers, *[{"role": "read"}] * readers])
    assert [fault for one in made for fault in one["faults"]] == []
    assert all(one["done"] >= 2 for one in made), made
    whole(out)
    left = {path.name for path in out.iterdir()} - {MANIFEST, LOCK}
    assert not any(name.startswith(".") for name in left)
    assert len(left) <= 2 * len(manifest(out)["files"])


def test_two_exporters_and_two_readers(tmp_path: Path) -> None:
    check_contention(tmp_path / "b.gamma", 3.0, 0.05, 2)  # a pause, or the exporters take half a minute to start


@pytest.mark.long
def test_two_exporters_and_four_readers_for_a_minute(tmp_path: Path) -> None:
    check_contention(tmp_path / "b.gamma", 60.0, 0.0, 4)


@pytest.mark.long
def test_publications_without_a_pause_are_never_read_torn(tmp_path: Path) -> None:
    """Far more often than any exporter can: a reader may give up when its files go; it never mixes two bundles."""
    bundles = [str(exported(seed)) for seed in (OLD, NEW)]
    publishers = [{"role": "publish", "bundles": order} for order in (bundles, bundles[::-1])]
    made = contend(tmp_path / "b.gamma", 60.0, 0.0, [*publishers, *[{"role": "read"}] * 4])
    assert [one["faults"] for one in made[:2]] == [[], []]
    for reader in made[2:]:
        assert reader["done"] - len(reader["faults"]) > 20, reader
        assert {fault.split("(")[0] for fault in reader["faults"]} <= {"IntegrityError", "InputError"}, reader["faults"]
