"""Steps of training on two processes (DDP over gloo, a thread each) against one process of one and of two threads.

    python benchmarks/train_scaling.py

The same global batch, cached activations. Writes results/train_scaling-CPU.json. Exit code 7: two processes are not
fast enough, or losses differ; 8: not valid.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from common import (
    ROOT,
    BenchmarkOptions,
    Goal,
    checkpoint,
    exit_code,
    loss_gap,
    medians,
    result_of,
    run_child,
    watched,
    write_result,
)

from gamma_runtime.cli import option, out, run_command
from gamma_runtime.errors import UsageError

ONE, THREADS, PROCESSES = "one thread", "two threads", "two processes"
WAYS = {ONE: 1, THREADS: 2, PROCESSES: 1}  # threads of a process
SAME_LOSS = 1e-4  # relative: the ways differ in the order of sums only
LEAST = 1.5  # times as fast as one thread; 2 would be perfect


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(BenchmarkOptions):
    """Flags of this benchmark."""

    batch: int = option(8, "photos of a step, over all processes together; the authors' number")
    steps: int = option(3, "timed steps of a way in a round, after a first one")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 2 or self.batch % 2:
            raise UsageError(f"--batch {self.batch} cannot be shared by two processes")


def _run(options: Options, source: Path, way: str) -> dict[str, Any]:
    """One way in processes of its own."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if way == PROCESSES else []
    words = ["--way", "cached", "--batch", str(options.batch), "--steps", str(options.steps)]
    script = ROOT / "benchmarks" / "train_contender.py"
    command = [sys.executable, *launch, script, "--checkpoint", source, "--threads", str(WAYS[way]), *words]
    found: dict[str, Any] = json.loads(run_child(command).output)
    return found


def _ratio(rounds: list[dict[str, Any]], slow: str) -> float:
    return statistics.median(medians(rounds, slow)) / statistics.median(medians(rounds, PROCESSES))


def exchange_share(rounds: list[dict[str, Any]]) -> float:
    """Share of a step of two processes that is gone when gradients are not exchanged: what did not hide behind work."""
    without = statistics.median(medians(rounds, PROCESSES, "seconds_without_exchange"))
    return 1 - without / statistics.median(medians(rounds, PROCESSES))


def goals(rounds: list[dict[str, Any]]) -> list[Goal]:
    """The same losses, and at least 1.5 times one thread's speed."""
    gap, faster = loss_gap(rounds, ONE), _ratio(rounds, ONE)
    return [
        Goal("the same losses", SAME_LOSS, gap, "relative", gap <= SAME_LOSS),
        Goal("two processes against one of one thread", LEAST, faster, "times", faster >= LEAST),
    ]


def paragraph(result: dict[str, Any]) -> str:
    """The result for people, one paragraph of Markdown."""
    machine, seconds, ratios = result["machine"], result["seconds_a_step"], result["times_as_fast"]
    what = "a tiny model, which says nothing about speed" if result["tiny"] else "the full-size model"
    text = (
        f"**Two processes** (DDP over gloo, a thread each), batch {result['batch']} over both, fp32, cached"
        f" activations, {what}, on {machine['cpu']} ({machine['cores']} cores): {seconds[PROCESSES]:.2f} s a step,"
        f" {ratios[ONE]:.2f} times as fast as one process of one thread ({seconds[ONE]:.2f} s) and"
        f" {ratios[THREADS]:.2f} times as one of two threads ({seconds[THREADS]:.2f} s). Exchanging gradients takes"
        f" {result['exchange_share']:.0%} of a step. The losses are the same within {result['loss_difference']:.0e}."
        f" Medians of {len(result['rounds'])} interleaved round(s)."
    )
    return text + "".join(f" Not valid: {doubt}." for doubt in result["doubts"])


def measure(options: Options) -> int:
    """Time a step of training on two processes, on one, and on one of two threads."""
    source = checkpoint(options)
    machine, doubts, rounds = watched(list(WAYS), options.rounds, lambda way: _run(options, source, way))
    if machine["cores"] < 2:
        doubts.append("one core: nothing can run beside anything")
    judged = goals(rounds)
    result = result_of(
        f"a step of training, batch {options.batch}, fp32, one scene, cached activations",
        options,
        machine,
        doubts,
        judged,
        rounds,
        batch=options.batch,
        seconds_a_step={way: statistics.median(medians(rounds, way)) for way in WAYS},
        times_as_fast={way: _ratio(rounds, way) for way in (ONE, THREADS)},
        exchange_share=exchange_share(rounds),
        loss_difference=judged[0].measured,
    )
    write_result("train_scaling", options, result)
    out(paragraph(result))
    return exit_code(options, doubts, judged)


if __name__ == "__main__":
    sys.exit(run_command("train_scaling", measure, Options))
