"""Rows 42 and 44 of the hostile list: full disks and signals, at every call that changes the folder, and between."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gamma_runtime.bundle import MANIFEST
from tests import tiny_export
from tests.fault_shim import ONCE
from tests.hostile.fault_sweep import IDS, SIGNALS, check, check_failures, check_next, check_signals, sweep
from tests.tiny_export import checkpoint, copy, exported, manifest, snapshot

OLD, NEW = 7, 8  # seeds
STEPS = {(ONCE, False): 2, (signal.SIGKILL, False): 2}  # the others are looked at here and there


def plan(out: Path, what: str, action: int | str, fresh: bool = False, **more: Any) -> dict[str, Any]:
    """For fault_driver.py."""
    made = {
        "what": what,
        "out": str(out),
        "old": None if fresh else str(exported(OLD)),
        "new": str(exported(NEW)),
        "checkpoint": str(checkpoint(NEW)),
        "photos": str(tiny_export.photos()),
        "action": action,
    }
    return made | more


def names(seed: int) -> set[str]:
    return {entry["name"] for entry in manifest(exported(seed))["files"]}


@pytest.mark.parametrize("fresh", [False, True], ids=["over an old bundle", "new folder"])
@pytest.mark.parametrize("action", IDS, ids=IDS.values())
def test_publication_with_a_fault_at_a_call(tmp_path: Path, action: int, fresh: bool) -> None:
    step = STEPS.get((action, fresh), 7)
    (records,) = sweep(plan(tmp_path / "b.gamma", "publish", action, fresh, step=step))
    check(records, action, fresh)


def test_export_with_a_fault_here_and_there(tmp_path: Path) -> None:
    out = tmp_path / "b.gamma"
    kill = signal.SIGKILL
    failed, killed = sweep(
        plan(out, "export", ONCE, step=35, start=2), plan(out, "export", kill, fresh=True, step=35, start=7)
    )
    check(failed, ONCE, fresh=False)
    check(killed, kill, fresh=True)


@pytest.mark.long
@pytest.mark.parametrize("fresh", [False, True], ids=["over an old bundle", "new folder"])
@pytest.mark.parametrize("action", IDS, ids=IDS.values())
def test_faults_at_every_call(tmp_path: Path, action: int, fresh: bool) -> None:
    for what in ("publish", "export"):
        (records,) = sweep(plan(tmp_path / "b.gamma", what, action, fresh))
        check(records, action, fresh)


def test_the_sweep_itself_can_fail(tmp_path: Path) -> None:
    """A writer that changes the bundle in place is caught by these checks."""
    (records,) = sweep(plan(tmp_path / "b.gamma", "careless", ONCE))
    assert any(record["held"].startswith("broken") for record in records)
    with pytest.raises(AssertionError):
        check_failures(records)


# Power cuts: what is on the disk when


def test_files_are_durable_before_the_manifest_and_the_manifest_before_the_end(tmp_path: Path) -> None:
    out = tmp_path / "b.gamma"
    (events,) = sweep(plan(out, "publish", 0, events=True))
    calls = [(call["name"], call["path"].removeprefix(f"{out}/")) for call in events]
    published = calls.index(("rename", MANIFEST))
    for name in names(NEW) - names(OLD):
        staged = next(i for i, call in enumerate(calls) if call[0] == "rename" and call[1].endswith(f"/{name}"))
        assert [call[0] for call in calls[staged - 2 : staged]] == ["write", "fsync"]
        moved = calls.index(("rename", name))
        assert staged < moved < published
        assert ("fsync", str(out)) in calls[moved:published]
    assert calls[published - 1][0] == "fsync"
    assert ("fsync", str(out)) in calls[published:]
    assert not {path for name, path in calls if name == "unlink"} & names(OLD)  # readers of the old one go on


# Told by the kernel, and at any moment


def test_files_that_cannot_grow_and_signals_between_calls(tmp_path: Path) -> None:
    out = tmp_path / "b.gamma"
    size = max(entry["size"] for entry in manifest(exported(NEW))["files"])
    delays = [plan(out, "export", "delay", signal=number, points=[60, 200]) for number in SIGNALS]
    full, *stopped = sweep(plan(out, "export", "size", points=[4096, size - 1, size]), *delays)
    for record in full[:-1]:
        check_next(record)
        assert (record["code"], record["untouched"], record["left"]) == (6, True, []), record
        assert "File too large" in record["message"]
    assert full[-1]["code"] == 0
    for number, records in zip(SIGNALS, stopped, strict=True):
        check_signals(records, SIGNALS[number], fresh=False)


@pytest.mark.long
@pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])
def test_signals_at_many_moments(tmp_path: Path, number: signal.Signals) -> None:
    points = list(range(0, 600, 10))
    (records,) = sweep(plan(tmp_path / "b.gamma", "export", "delay", signal=number, points=points))
    check_signals(records, SIGNALS[number], fresh=False)


def test_the_command_stops_when_it_is_told(tmp_path: Path) -> None:
    bundle = copy(tmp_path / "b.gamma")
    before = snapshot(bundle)
    start = "import sys; from gamma_export.commands.export import main; sys.exit(main())"
    argv = [sys.executable, "-c", start, *tiny_export.arguments(), "-o", str(bundle)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "checkpoint" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.endswith("interrupted\n")
    assert "Traceback" not in rest
    assert snapshot(bundle) == before
