"""The parent's side of a build: start the child, pass its progress on, and explain whatever ends it."""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gamma_runtime
from gamma_runtime import errors
from gamma_runtime.engines.host import memory_mib
from gamma_runtime.engines.options import LABELS, PlanSpec
from gamma_runtime.errors import EnvironmentFault, GammaError

__all__ = ["Tick", "compile_plan"]

Tick = Callable[[str, "float | None", float, int], None]  # phase, fraction, elapsed seconds, process id
_TICK = 0.2  # seconds
_GRACE = 30.0  # seconds for the child to end after its last word
_TAIL_LINES = 8


def compile_plan(spec: PlanSpec, scratch: Path, log: Path, tick: Tick, timeout: float) -> dict[str, Any]:
    """Build one plan in a child process.

    Args:
        spec: what to build; the plan lands in ``spec.plan``.
        scratch: a folder for the child's orders.
        log: file that receives everything the child and its libraries print.
        tick: called a few times a second.
        timeout: seconds after which the child is killed.

    Returns:
        The child's last event: ``version``, ``polygraphy``, ``seconds``.

    Raises:
        GammaError: of the class that fits; the message carries TensorRT's own words.
    """
    order = scratch / "spec.json"
    order.write_text(json.dumps(dataclasses.asdict(spec)), encoding="utf-8")
    start = time.monotonic()
    with log.open("wb") as stream, _spawn(order, spec, stream) as process:
        try:
            last = _follow(process, tick, start, timeout)
            process.wait(timeout=_GRACE)
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFault(
                f"the build was stopped after {time.monotonic() - start:.0f} s (limit {timeout:g} s)",
                hint="raise --build-timeout; if it hung, run gamma-doctor and check the driver with nvidia-smi",
            ) from error
        finally:
            if process.poll() is None:
                process.kill()
    if process.returncode != 0 or last is None:
        raise _explain(process.returncode, time.monotonic() - start, spec, log)
    if last["event"] == "error":
        kind: type[GammaError] = getattr(errors, last["type"])
        raise kind(last["message"], hint=last["hint"])
    return last


def _spawn(order: Path, spec: PlanSpec, log: Any) -> subprocess.Popen[bytes]:
    rtx = spec.flavour == "tensorrt-rtx"
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1" if rtx else "0", "PYTHONUNBUFFERED": "1"}
    # Security: `-m` puts the working directory first on sys.path, so it must be ours and never the user's.
    home = Path(gamma_runtime.__file__).resolve().parent.parent
    return subprocess.Popen(
        [sys.executable, "-m", "gamma_runtime.engines.child", str(order)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=home,
        env=environment,
    )


def _follow(process: subprocess.Popen[bytes], tick: Tick, start: float, timeout: float) -> dict[str, Any] | None:
    """Read events until the child closes its stdout; the last `done` or `error`, or None when there was none."""
    pipe = process.stdout
    if pipe is None:
        return None
    phase: str = "starting TensorRT"
    fraction: float | None = None
    last: dict[str, Any] | None = None
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            elapsed = time.monotonic() - start
            tick(phase, fraction, elapsed, process.pid)
            if elapsed > timeout:
                raise subprocess.TimeoutExpired(process.args, timeout)
            if not selector.select(_TICK):
                continue
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                return last
            *lines, pending = (pending + chunk).split(b"\n")
            for event in map(json.loads, lines):
                if event["event"] == "phase":
                    phase, fraction = event["name"], event["fraction"]
                else:
                    last = event


def _explain(code: int, seconds: float, spec: PlanSpec, log: Path) -> GammaError:
    """A child that ended without a word."""
    label = LABELS[spec.flavour]
    total, free = memory_mib()
    if code == -signal.SIGKILL:
        return EnvironmentFault(
            f"the {label} build was killed (signal 9) after {seconds:.1f} s, as the system does when memory runs out: "
            f"{free} of {total} MiB are free now",
            hint="lower --workspace-mib, close other programs, add swap, or build on a larger machine of the same GPU",
        )
    if code < 0:
        return EnvironmentFault(
            f"{label} crashed in the build ({signal.Signals(-code).name}) after {seconds:.1f} s:\n  {_tail(log)}",
            hint="run gamma-doctor: crashes come from a driver or library that does not match",
        )
    return GammaError(f"the {label} build process failed (exit code {code}):\n  {_tail(log)}")


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n  ".join(lines[-_TAIL_LINES:]) or "nothing was printed"
