"""Run by test_export_faults.py under tests/fault_shim.py: one publication or export after the other, each with a fault.

The argument is a JSON list of plans: what (publish, export, or careless: the negative control), out, old and new
(published bundles), action, mask and the calls to fault. Prints for each a JSON list with one object a fault: what
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
from tests.tiny_export import publish_again, snapshot, whole

NEVER = 1 << 40
SHIM = Shim()


def careless(out: Path, new: Path) -> None:
    """What most writers do: the negative control."""
    out.mkdir(exist_ok=True)
    for path in sorted(new.iterdir()):
        (out / path.name).write_bytes(path.read_bytes())


def exporter(checkpoint: str, photos: str) -> Callable[[Path, Path], None]:
    """The whole export. Libraries are imported here, before the forks; none of them has started a thread then."""
    import cv2
    import onnx.checker
    import onnxruntime
    import scipy.stats
    import torch

    from gamma_export import golden, lint, parity, vision
    from gamma_export.exporter import ExportOptions, export
    from gamma_runtime import manifest, selftest
    from gamma_training import checkpoint as intake
    from gamma_training import tokens
    from tests.tiny_export import SCENES

    used = (cv2, onnx, onnxruntime, scipy, golden, lint, parity, vision, manifest, selftest, intake, tokens)
    assert all(module.__name__ in sys.modules for module in used)
    torch.set_num_threads(1)
    intake.build_model(intake.read_checkpoint(checkpoint))  # torch imports more at the first module, a second in all
    options = ExportOptions(crops="centre", photos=Path(photos), scene=SCENES, threads=1)

    def run(out: Path, _: Path) -> None:
        export(checkpoint, out, options)

    return run


def child(work: Callable[[], None], report: int) -> int:
    """The exit code that a command would give."""
    from gamma_runtime import cli
    from gamma_runtime.errors import GammaError

    signal.signal(signal.SIGTERM, cli._terminate)
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


def state(out: Path, before: dict[str, bytes | None] | None) -> dict[str, Any]:
    """What the folder holds: untouched or not, which whole bundle, and what else."""
    from gamma_runtime.errors import GammaError

    if not out.exists():
        return {"untouched": before is None, "checkpoint": None, "left": []}
    try:
        whole(out)
        checkpoint = json.loads((out / "manifest.json").read_bytes())["checkpoint"]["file"]
    except GammaError as error:
        checkpoint = f"broken: {error.message}"
    left = [name for name in os.listdir(out) if name.startswith(".gamma-tmp-")]
    return {"untouched": snapshot(out) == before, "checkpoint": checkpoint, "left": left}


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


def listed(bundle: Path) -> list[str]:
    return [entry["name"] for entry in json.loads((bundle / "manifest.json").read_bytes())["files"]]


def sweep(plan: dict[str, Any], work: Callable[[Path, Path], None]) -> Iterator[dict[str, Any]]:
    """A record for each fault of a plan."""
    out, new = Path(plan["out"]), Path(plan["new"])
    old = Path(plan["old"]) if plan["old"] else None

    def counting() -> None:
        SHIM.arm(NEVER, 0, plan["mask"])
        work(out, new)
        raise SystemExit(SHIM.count())  # under 256, or the sweep ends too early and its test fails

    def faulted(at: int) -> None:
        fault(plan, at)
        work(out, new)

    prepare(out, old)
    if plan.get("events"):
        SHIM.arm(NEVER, 0, plan["mask"])
        work(out, new)
        yield from ({"name": name, "path": path} for name, path in SHIM.events())
        return
    calls, _ = forked(counting)
    for at in plan["points"] or range(plan["start"], calls + plan["step"], plan["step"]):
        before = prepare(out, old)
        code, message = forked(lambda at=at: faulted(at))  # type: ignore[misc]
        found = {"at": at, "calls": calls, "code": code, "message": message, **state(out, before)}
        age(out)
        again, _ = forked(lambda: work(out, new))
        after = state(out, None) | {"names": sorted(os.listdir(out)), "listed": listed(out)}
        yield found | {"next": again, "after": after}


def main(plans: list[dict[str, Any]]) -> None:
    works: dict[str, Callable[[Path, Path], None]] = {"publish": publish_again, "careless": careless}
    for plan in plans:
        plan = {"mask": CHANGES | REMOVALS, "start": 0, "step": 1, "points": []} | plan
        if plan["what"] not in works:
            works["export"] = exporter(plan["checkpoint"], plan["photos"])
        print(json.dumps(list(sweep(plan, works[plan["what"]]))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
