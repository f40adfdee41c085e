"""TensorRT's own progress reports, as events for the parent."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["Emit", "monitor"]

Emit = Callable[[dict[str, Any]], None]
_EVENT_INTERVAL = 0.1  # seconds between two progress events


def monitor(trt: Any, emit: Emit) -> Any:
    """An IProgressMonitor, where this version has one (10.0 on), else None."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Nested phases; the fraction is that of the outermost one."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, list[int]] = {}  # name -> steps done, steps; in order of nesting
            self._last = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = [0, max(num_steps, 1)]
            self._report(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                self._phases[phase_name][0] = step + 1
            self._report(phase_name)
            return True

        def _report(self, name: str) -> None:
            now = time.monotonic()
            if now - self._last < _EVENT_INTERVAL or not self._phases:
                return
            self._last = now
            fraction = 0.0
            for done, steps in reversed(self._phases.values()):
                fraction = min(1.0, (done + fraction) / steps)
            emit({"event": "phase", "name": name, "fraction": round(fraction, 3)})

    return Monitor()
