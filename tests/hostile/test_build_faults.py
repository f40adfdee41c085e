"""Rows 30, 42 and 44 of the hostile list: full disks and signals while engines or a calibration record are written."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_export
from tests.fault_shim import ONCE
from tests.hostile.fault_subjects import NEW, OLD, RECORD, build_old, write_old
from tests.hostile.fault_sweep import IDS, SIGNALS, check, check_next, check_signals, sweep
from tests.runtime.engine_bundle import make_bundle, needs_rtx

LEAST = {"build": 10, "record": 4}  # calls


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the folders hold at first: a bundle with engines or without, a folder with a record or without."""
    root = tmp_path_factory.mktemp("before")
    for name in ("record", "record-fresh"):
        (root / name).mkdir()
        (root / name / f"{RECORD}.lock").touch()  # stays, as any lock file does
    write_old(root / "record")
    return root


def plan(folders: Path, out: Path, what: str, action: int | str, fresh: bool, **more: Any) -> dict[str, Any]:
    old = folders / (f"{what}-fresh" if fresh else what)
    if what == "build" and not old.exists():
        make_bundle(old, joint=False, scenes=("natural-quality",))
        if not fresh:
            build_old(old)
    return {"what": what, "out": str(out), "old": str(old), "new": None, "action": action} | more


@pytest.mark.parametrize("fresh", [False, True], ids=["over an old record", "the first record"])
@pytest.mark.parametrize("action", IDS, ids=IDS.values())
def test_record_with_a_fault_at_every_call(folders: Path, tmp_path: Path, action: int, fresh: bool) -> None:
    (records,) = sweep(plan(folders, tmp_path / "out", "record", action, fresh))
    check(records, action, fresh, LEAST["record"])


@needs_rtx
def test_build_with_a_fault_here_and_there(folders: Path, tmp_path: Path) -> None:
    kill = signal.SIGKILL
    failed, killed = sweep(
        plan(folders, tmp_path / "out", "build", ONCE, fresh=False, step=5),
        plan(folders, tmp_path / "out", "build", kill, fresh=True, step=6, start=1),
    )
    check(failed, ONCE, False, LEAST["build"])
    check(killed, kill, True, LEAST["build"])


@needs_rtx
@pytest.mark.long
@pytest.mark.parametrize("fresh", [False, True], ids=["over old engines", "the first engines"])
@pytest.mark.parametrize("action", IDS, ids=IDS.values())
def test_build_with_a_fault_at_every_call(folders: Path, tmp_path: Path, action: int, fresh: bool) -> None:
    (records,) = sweep(plan(folders, tmp_path / "out", "build", action, fresh))
    check(records, action, fresh, LEAST["build"])


@needs_rtx
@pytest.mark.long
@pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])
def test_build_with_signals_at_many_moments(folders: Path, tmp_path: Path, number: signal.Signals) -> None:
    points = list(range(0, 600, 20))  # milliseconds
    (records,) = sweep(plan(folders, tmp_path / "out", "build", "delay", fresh=False, signal=number, points=points))
    check_signals(records, SIGNALS[number], fresh=False)


def test_a_record_that_cannot_grow(folders: Path, tmp_path: Path) -> None:
    size = (folders / "record" / RECORD).stat().st_size
    (records,) = sweep(
        plan(folders, tmp_path / "out", "record", "size", fresh=False, points=[0, 100, size // 2, 1 << 20])
    )
    for record in records[:-1]:
        check_next(record)
        assert (record["code"], record["held"], record["untouched"], record["left"]) == (6, OLD, True, []), record
    assert (records[-1]["code"], records[-1]["held"]) == (0, NEW)


def test_the_manifest_of_these_tests_is_checked(folders: Path, tmp_path: Path) -> None:
    """A build that changed the bundle's own files would be noticed."""
    from gamma_runtime.errors import IntegrityError
    from tests.hostile.fault_subjects import subject

    made = subject(plan(folders, tmp_path, "build", ONCE, fresh=True))
    bundle = shutil.copytree(folders / "build-fresh", tmp_path / "b.gamma")
    assert made.held(bundle) == "nothing"
    weights = tiny_export.manifest(bundle)["files"][-1]["name"]
    (bundle / weights).write_bytes(b"other")
    with pytest.raises(IntegrityError):
        made.held(bundle)
