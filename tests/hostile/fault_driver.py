"""Run by fault_sweep.py under tests/fault_shim.py: a piece of work again and again, disturbed each time.

The argument is a JSON list of plans: what (see fault_subjects.py), out, old (a folder to begin with, or nothing), new
(a published bundle), action, mask and the calls to fault. Prints for each a JSON list with one object a fault: what
happened, what the folder held then, and after the next undisturbed run.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.fault_shim import CHANGES, REMOVALS, Shim
from tests.hostile.fault_subjects import NOTHING, Subject
from tests.hostile.fault_subjects import subject as make_subject
from tests.tiny_export import snapshot

NEVER = 1 << 40
SHIM = Shim()


def child(work: Callable[[], None], report: int) -> int:
    """The exit code that a command would give."""
    from gamma_runtime import cli
    from gamma_runtime.errors import GammaError

    signal.signal(signal.SIGTERM, cli._terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    try:
        work()
    except GammaError as error:
        os.write(report, error.message.encode())
        return error.exit_code
    except SystemExit as error:
        return int(str(error.code))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException as error:  # a bug: the test wants to see it
        os.write(report, repr(error).encode())
        return 1
    return 0


def forked(work: Callable[[], None]) -> tuple[int, str]:
    """Exit code (negative: killed by that signal) and message of the work, done in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = child(work, writer)
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        message = stream.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), message


def state(subject: Subject, out: Path, before: dict[str, bytes | None] | None) -> dict[str, Any]:
    """What the folder holds: untouched or not, which whole thing, and what else."""
    from gamma_runtime.errors import GammaError

    if not out.exists():
        return {"untouched": before is None, "held": NOTHING, "left": []}
    try:
        held = subject.held(out)
    except GammaError as error:
        held = f"broken: {error.message}"
    left = [name for name in os.listdir(out) if name.startswith(".gamma-tmp-")]
    return {"untouched": snapshot(out) == before, "held": held, "left": left}


def age(folder: Path) -> None:
    """Two hours pass."""
    then = time.time() - 7200
    for path in folder.glob(".gamma-tmp-*"):
        os.utime(path, (then, then))


def prepare(out: Path, old: Path | None) -> dict[str, bytes | None] | None:
    shutil.rmtree(out, ignore_errors=True)
    if old is None:
        return None
    shutil.copytree(old, out)
    return snapshot(out)


def fault(plan: dict[str, Any], at: int) -> None:
    """Make ready for trouble: at a call, at a size of files, or from outside after some milliseconds."""
    if plan["action"] == "size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
    elif plan["action"] == "delay":
        parent = os.getpid()
        if os.fork() == 0:
            time.sleep(at / 1000)
            os.kill(parent, plan["signal"])
            os._exit(0)
    else:
        SHIM.arm(at, plan["action"], plan["mask"])


def sweep(plan: dict[str, Any], subject: Subject) -> Iterator[dict[str, Any]]:
    """A record for each fault of a plan."""
    out = Path(plan["out"])
    old = Path(plan["old"]) if plan["old"] else None

    def counting() -> None:
        SHIM.arm(NEVER, 0, plan["mask"])
        subject.work(out)
        raise SystemExit(SHIM.count())  # under 256, or the sweep ends too early and its test fails

    def faulted(at: int) -> None:
        fault(plan, at)
        subject.work(out)

    prepare(out, old)
    if plan.get("events"):
        SHIM.arm(NEVER, 0, plan["mask"])
        subject.work(out)
        yield from ({"name": name, "path": path} for name, path in SHIM.events())
        return
    calls, _ = forked(counting)
    points = plan["points"] or list(range(plan["start"], calls + plan["step"], plan["step"]))
    for at in points:
        before = prepare(out, old)
        code, message = forked(lambda at=at: faulted(at))  # type: ignore[misc]
        SHIM.rest()
        found = {
            "at": at,
            "calls": calls,
            "code": code,
            "message": message,
            "before": sorted(before or ()),
            **state(subject, out, before),
        }
        age(out)
        # What comes next meets the folder, not the computation before it: the whole work here and there is enough.
        again = subject.work if at in (points[0], points[-1]) else subject.again
        code, message = forked(lambda again=again: again(out))  # type: ignore[misc]
        listed = sorted(subject.listed(out)) if code == 0 else []
        after = state(subject, out, None) | {"names": sorted(os.listdir(out)), "listed": listed}
        yield found | {"next": code, "said": message, "after": after}


def main(plans: list[dict[str, Any]]) -> None:
    subjects: dict[str, Subject] = {}
    for plan in plans:
        plan = {"mask": CHANGES | REMOVALS, "start": 0, "step": 1, "points": []} | plan
        if plan["what"] not in subjects:
            subjects[plan["what"]] = make_subject(plan)
        print(json.dumps(list(sweep(plan, subjects[plan["what"]]))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
