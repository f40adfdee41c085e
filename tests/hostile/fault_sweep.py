"""One fault after the other: ask fault_driver.py for the records, and judge them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from gamma_runtime.bundle import MANIFEST
from gamma_runtime.files import LOCK
from tests.fault_shim import CHANGES, FROM_THEN_ON, ONCE, environment
from tests.hostile.fault_subjects import NEW, NOTHING, OLD, RECORD

__all__ = ["IDS", "RULES", "SIGNALS", "check", "check_failures", "check_next", "check_signals", "sweep"]

SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
RULES = dict.fromkeys((ONCE, FROM_THEN_ON), CHANGES)  # a disk that is full still removes files
IDS = {ONCE: "once", FROM_THEN_ON: "full", **{number: number.name for number in SIGNALS}}


def sweep(*plans: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """For each plan a record of each fault."""
    plans = tuple(plan | ({"mask": RULES[plan["action"]]} if plan["action"] in RULES else {}) for plan in plans)
    command = [sys.executable, "-m", "tests.hostile.fault_driver", json.dumps(plans)]
    shim = environment(Path(plans[0]["out"]))
    done = subprocess.run(command, env=shim, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_next(record: dict[str, Any]) -> None:
    """Whatever happened, the next run works, and leaves nothing but its own files and those that were there before."""
    assert record["next"] == 0, record
    assert record["after"]["held"] == NEW, record
    assert record["after"]["left"] == [], record
    known = {*record["before"], *record["after"]["listed"], MANIFEST, LOCK, f"{RECORD}.lock"}
    assert set(record["after"]["names"]) <= known, record


def check_failures(records: list[dict[str, Any]]) -> None:
    """Exit 6 and the old thing byte for byte, or the whole new one."""
    replaced = 0
    for record in records:
        check_next(record)
        if record["held"] == NEW:
            replaced += record["code"] == 6  # it was in place when its folder could not be synced
            assert record["code"] in (0, 6), record
        else:
            assert record["code"] == 6, record
            assert record["held"] in (OLD, NOTHING), record
            assert record["untouched"], record
        assert record["left"] == [], record
    assert replaced <= 1
    assert {record["code"] for record in records} == {0, 6}


def check_signals(records: list[dict[str, Any]], code: int, fresh: bool) -> None:
    """The old thing or the new one, whole; where there was none, none or the new one."""
    for record in records:
        check_next(record)
        assert record["code"] in (code, 0), record
        assert record["held"] in (NOTHING if fresh else OLD, NEW), record
        assert len(record["left"]) <= 2, record
        if code > 0:  # cleaned up, unless it came during the cleaning
            assert record["untouched"] or record["held"] in (NEW, NOTHING) or record["left"], record
    assert {record["code"] for record in records} >= {code}


def check(records: list[dict[str, Any]], action: int, fresh: bool, least: int = 40) -> None:
    """A sweep until the work succeeds; more than ``least`` calls were counted."""
    assert records[-1]["at"] >= records[-1]["calls"] > least
    if action in SIGNALS:
        check_signals(records, SIGNALS[signal.Signals(action)], fresh)
    else:
        check_failures(records)
