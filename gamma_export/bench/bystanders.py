"""How much of the processor other programs took while something was measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["MAX_FOREIGN", "Bystanders"]

MAX_FOREIGN = 0.1  # share of the processor that others may take while we measure


class Bystanders:
    """How much of the processor other programs took since this object was made."""

    def __init__(self) -> None:
        self._start = self._clock()

    @staticmethod
    def _clock() -> tuple[float, float, float] | None:
        """Seconds by the clock, of all processors' work, and of this process and its finished children."""
        try:
            fields = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        user, nice, system, _, _, irq, softirq, steal = fields  # without idle and waiting for disks
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        times = os.times()
        return time.monotonic(), busy, times.user + times.system + times.children_user + times.children_system

    def share(self) -> float | None:
        """0 to 1 of all processors; None where the kernel does not say."""
        end = self._clock()
        if self._start is None or end is None:
            return None
        clock, busy, own = (after - before for after, before in zip(end, self._start, strict=True))
        return round(max(0.0, busy - own) / (clock * (os.cpu_count() or 1)), 3)

    def doubts(self) -> list[str]:
        """Why the machine was not quiet enough; empty when it was."""
        share = self.share()
        if share is None or share <= MAX_FOREIGN:
            return []
        return [f"other programs took {share:.0%} of the processor; the limit is {MAX_FOREIGN:.0%}"]
