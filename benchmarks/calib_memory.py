"""Peak memory of an INT8 export at full size, by the number of photos that calibrate it: it must not grow with them.

    python benchmarks/calib_memory.py --calib PHOTOS

Each number of photos is a `gamma-export --precision int8` of its own, from the first byte of the checkpoint to the
published bundle, with conditioned random weights. Writes results/calib_memory-CPU.json. Exit code 7: over the limit.
Memory does not depend on the load of the machine, so nothing else is judged.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from common import (
    BenchmarkOptions,
    Goal,
    checkpoint,
    command,
    exit_code,
    machine_facts,
    result_of,
    run_child,
    write_result,
)

from gamma_runtime.cli import log, option, out, run_command

LIMIT = 4e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryOptions(BenchmarkOptions):
    """Flags."""

    calib: Path = option(help="photos: a folder, or a list; at least --many")
    few: int = option(64, "photos of the first export")
    many: int = option(512, "photos of the second one")
    threads: int | None = option(None, "of the export")


def measured(options: MemoryOptions, count: int) -> dict[str, Any]:
    """One export: photos that were used, peak bytes, seconds."""
    bundle = options.work / f"calib-memory-{count}.gamma"
    words = [command("gamma-export"), checkpoint(options), "-o", bundle, "--precision", "int8", "--json"]
    words += ["--calib", options.calib, "--calib-count", str(count), "--calib-min", str(count)]
    words += ["--calib-method", "percentile", "--skip-speed", "--scene", "natural-quality"]
    words += ["--threads", str(options.threads)] if options.threads else []
    child = run_child(words)
    found = json.loads(child.output)
    log(f"{count} photos: {child.peak_bytes / 1e9:.2f} GB, {child.seconds:.0f} s")
    return {
        "photos": found["int8"]["quantisation"]["images"],
        "peak_bytes": child.peak_bytes,
        "seconds": child.seconds,
        "published": found["published"],
    }


def measure(options: MemoryOptions) -> int:
    """Each count once."""
    machine = machine_facts()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = [measured(options, count) for count in (options.few, options.many)]
    worst = max(row["peak_bytes"] for row in rows) / 1e9
    most = max(row["photos"] for row in rows)
    judged = [Goal(f"peak memory with up to {most} photos", LIMIT / 1e9, worst, "GB", worst <= LIMIT / 1e9)]
    write_result("calib_memory", options, result_of("calibration memory", options, machine, [], judged, rows))
    for goal in judged:
        out(str(goal))
    return exit_code(options, [], judged)


if __name__ == "__main__":
    sys.exit(run_command("calib_memory", measure, MemoryOptions))
