"""The parent's side of a build: start the child, pass its progress on, and explain whatever ends it."""

from __future__ import annotations

import contextlib
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
from gamma_runtime.engines.memory import NO_MEMORY_HINT, looks_like_no_memory, oom_kills
from gamma_runtime.engines.options import LABELS, PlanSpec
from gamma_runtime.errors import EnvironmentFault, GammaError

__all__ = ["Limits", "Tick", "combine_caches", "compile_plan"]

Tick = Callable[[str, "float | None", float, int], None]  # phase, fraction, elapsed seconds, process id
_TICK = 0.2  # seconds
_GRACE = 30.0  # seconds for the child to end after its last word
_TAIL_LINES = 8
_SLOW = "raise --build-timeout, or try --optimization-level 1"
_HUNG = "it hangs in the driver or in a tactic: run gamma-doctor; if it only is slow, raise --stall-timeout"


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a build is given up: seconds in all, and seconds without a sign of life (an event, or a longer log)."""

    total: float
    stall: float


class _Stopped(Exception):  # noqa: N818 - not an error of its own; compile_plan explains it
    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.hint = hint


def compile_plan(spec: PlanSpec, scratch: Path, log: Path, tick: Tick, limits: Limits) -> dict[str, Any]:
    """Build one plan in a child process.

    Args:
        spec: what to build; the plan lands in ``spec.plan``.
        scratch: a folder for the child's orders.
        log: file that receives everything the child and its libraries print.
        tick: called a few times a second.
        limits: when the child is killed.

    Returns:
        The child's last event: ``version``, ``polygraphy``, ``seconds``, ``peak_rss``, ``proof``.

    Raises:
        GammaError: of the class that fits; the message carries TensorRT's own words.
    """
    order = scratch / "spec.json"
    order.write_text(json.dumps(dataclasses.asdict(spec)), encoding="utf-8")
    return _run([str(order)], spec.flavour, log, tick, limits)


def combine_caches(flavour: str, first: Path, second: Path, target: Path, limits: Limits) -> None:
    """Merge two timing caches, in a child process because TensorRT does it.

    Raises:
        GammaError: TensorRT could not.
    """
    arguments = ["--combine", flavour, *map(str, (first, second, target))]
    _run(arguments, flavour, target.with_suffix(".log"), lambda *_: None, limits)


def _run(arguments: list[str], flavour: str, log: Path, tick: Tick, limits: Limits) -> dict[str, Any]:
    start, kills = time.monotonic(), oom_kills()
    with log.open("wb") as stream:
        process = _spawn(arguments, flavour, stream)
    try:
        last = _follow(process, tick, log, start, limits)
        process.wait(timeout=_GRACE)
    except (_Stopped, subprocess.TimeoutExpired) as error:
        why = str(error) if isinstance(error, _Stopped) else "it reported its result, but did not end"
        raise EnvironmentFault(
            f"the build was stopped after {time.monotonic() - start:.0f} s ({why})",
            hint=error.hint if isinstance(error, _Stopped) else _HUNG,
        ) from error
    finally:
        _stop(process)
    if process.returncode != 0 or last is None:
        raise _explain(process.returncode, time.monotonic() - start, flavour, log, kills)
    if last["event"] == "error":
        kind: type[GammaError] = getattr(errors, last["type"])
        raise kind(last["message"], hint=last["hint"])
    return last


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the child if it still runs. One that hangs inside the driver cannot be killed, and is not waited for."""
    if process.poll() is None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE)
    if process.stdout is not None:
        process.stdout.close()


def _spawn(arguments: list[str], flavour: str, log: Any) -> subprocess.Popen[bytes]:
    rtx = flavour == "tensorrt-rtx"
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1" if rtx else "0", "PYTHONUNBUFFERED": "1"}
    # Security: `-m` puts the working directory first on sys.path, so it must be ours and never the user's.
    home = Path(gamma_runtime.__file__).resolve().parent.parent
    return subprocess.Popen(
        [sys.executable, "-m", "gamma_runtime.engines.child", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=home,
        env=environment,
    )


def _follow(
    process: subprocess.Popen[bytes], tick: Tick, log: Path, start: float, limits: Limits
) -> dict[str, Any] | None:
    """Read events until the child closes its stdout; the last `done` or `error`, or None when there was none.

    Raises:
        _Stopped: a limit was reached.
    """
    pipe = process.stdout
    if pipe is None:
        return None
    phase: str = "starting TensorRT"
    fraction: float | None = None
    last: dict[str, Any] | None = None
    pending = b""
    alive, logged = start, 0
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            tick(phase, fraction, now - start, process.pid)
            if (size := log.stat().st_size) != logged:
                alive, logged = now, size
            _check_limits(limits, now - start, now - alive, phase)
            if not selector.select(_TICK):
                continue
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                return last
            alive = time.monotonic()
            *lines, pending = (pending + chunk).split(b"\n")
            for event in map(json.loads, lines):
                if event["event"] == "phase":
                    phase, fraction = event["name"], event["fraction"]
                else:
                    last = event


def _check_limits(limits: Limits, elapsed: float, silent: float, phase: str) -> None:
    if elapsed > limits.total:
        raise _Stopped(f"limit {limits.total:g} s, in {phase!r}", _SLOW)
    if silent > limits.stall:
        raise _Stopped(f"no sign of life for {silent:.0f} s in {phase!r}, limit {limits.stall:g} s", _HUNG)


def _explain(code: int, seconds: float, flavour: str, log: Path, kills: int | None) -> GammaError:
    """A child that ended without a word."""
    label = LABELS[flavour]
    total, free = memory_mib()
    now = oom_kills()
    if code == -signal.SIGKILL:
        counted = kills is not None and now is not None and now > kills
        why = (
            "and the kernel counted a kill for lack of memory" if counted else "as the system does when memory runs out"
        )
        return EnvironmentFault(
            f"the {label} build was killed (signal 9) after {seconds:.1f} s, {why}: {free} of {total} MiB are free now",
            hint=f"{NO_MEMORY_HINT} of the same GPU",
        )
    tail = _tail(log)
    if code != 0 and looks_like_no_memory(tail):
        return EnvironmentFault(
            f"the {label} build ran out of memory after {seconds:.1f} s ({free} of {total} MiB free now):\n  {tail}",
            hint=NO_MEMORY_HINT,
        )
    if code < 0:
        return EnvironmentFault(
            f"{label} crashed in the build ({signal.Signals(-code).name}) after {seconds:.1f} s:\n  {tail}",
            hint="run gamma-doctor: crashes come from a driver or library that does not match",
        )
    return GammaError(f"the {label} build process failed (exit code {code}):\n  {tail}")


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n  ".join(lines[-_TAIL_LINES:]) or "nothing was printed"
