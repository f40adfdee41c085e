"""What the benchmarks share: facts about the machine, child processes with their cost, checkpoints, result files.

The parent of a benchmark stays small and idle: it imports no library that starts threads, and a child begins with the
parent's memory as its own peak, so whatever is large (also making the checkpoint) happens in a child.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gamma_export.bench.bystanders import Bystanders
from gamma_export.bench.machine import cpu_model
from gamma_runtime.cli import log, option
from gamma_runtime.engines.host import memory_mib
from gamma_runtime.errors import EXIT_GATE, EXIT_INVALID_MEASUREMENT, EXIT_OK, EnvironmentFault, UsageError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "build" / "benchmarks"
MAX_SPREAD = 0.15  # of a contender's rounds, (most - least) / median
_LIBRARIES = ("numpy", "torch", "onnx", "onnxruntime", "openvino", "opencv-python-headless", "gamma-edge")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What every benchmark takes."""

    rounds: int = option(3, "how often everything is measured")
    tiny: bool = option(False, "a tiny model, to test the script itself; the result stays in the work folder")
    work: Path = option(WORK, "folder for checkpoints and bundles")

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"--rounds {self.rounds} is below 1")


@dataclasses.dataclass(frozen=True)
class Child:
    """A finished process: ``log`` is its stderr; wall seconds, and its peak resident memory in bytes.

    The kernel counts the parent's peak at the start as the child's, so the peak is right only for a small parent.
    """

    output: str
    log: str
    seconds: float
    peak_bytes: int


def run_child(command: Sequence[str | Path]) -> Child:
    """Run a command in the checkout and wait for it.

    Raises:
        EnvironmentFault: it did not end with 0; the message carries its last lines.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start = time.monotonic()
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)  # this child's own cost, unlike RUSAGE_CHILDREN
        seconds = time.monotonic() - start
        code = process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (output, errors):
            stream.seek(0)
            texts.append(stream.read())
    if code:
        tail = "\n  ".join(texts[1].strip().splitlines()[-8:])
        raise EnvironmentFault(f"{' '.join(words[:4])} … ended with {code}:\n  {tail}")
    return Child(texts[0], texts[1], seconds, usage.ru_maxrss * 1024)


def run_script(script: str, *arguments: str | Path) -> Child:
    """A script of this folder with the same Python."""
    return run_child([sys.executable, ROOT / "benchmarks" / f"{script}.py", *arguments])


def command(name: str) -> Path:
    """A command of the packages, from the environment that runs this."""
    return Path(sys.executable).parent / name


def checkpoint(options: BenchmarkOptions) -> Path:
    """The conditioned random-weight checkpoint, made once (in a child) and kept in the work folder."""
    path = options.work / f"gamma-{'tiny' if options.tiny else 'full'}-untrained-1.pth"
    if not path.is_file():
        log(f"making {path.name}, once")
        run_script("checkpoint", path, *(["--tiny"] if options.tiny else []))
    return path


def machine_facts() -> dict[str, Any]:
    """What a number is worth nothing without; the load average is that of the last minute."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": memory_mib()[0],
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "os": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def spread(values: Sequence[float]) -> float:
    """(most - least) / median."""
    return (max(values) - min(values)) / statistics.median(values)


def unsteady(times: Mapping[str, Sequence[float]]) -> list[str]:
    """Whose rounds (one number each) differ by too much; a doubt for each of them."""
    moved = {name: spread(values) for name, values in times.items()}
    return [
        f"{name}: the rounds differ by {by:.0%}; the limit is {MAX_SPREAD:.0%}"
        for name, by in moved.items()
        if by > MAX_SPREAD
    ]


def in_turn(names: Sequence[str], rounds: int, run: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """What ``run`` says of every name, round by round; the first one of a round changes, and medians are logged.

    Args:
        names: of the contenders.
        rounds: how many.
        run: measures one of them; its ``seconds`` are a list.
    """
    made = []
    for index in range(rounds):
        first = index % len(names)
        found = {name: run(name) for name in [*names[first:], *names[:first]]}
        made.append(found)
        said = (f"{name} {statistics.median(found[name]['seconds']):.2f} s" for name in names)
        log(f"round {index + 1}: {', '.join(said)}")
    return made


def medians(rounds: Sequence[Mapping[str, Any]], name: str, of: str = "seconds") -> list[float]:
    """The contender's median of each round."""
    return [float(statistics.median(one[name][of])) for one in rounds]


def watched(
    names: Sequence[str], rounds: int, run: Callable[[str], dict[str, Any]]
) -> tuple[dict[str, Any], list[str], list[dict[str, Any]]]:
    """`in_turn` with an eye on the machine: its facts, what speaks against the measurement, and the rounds."""
    machine, bystanders = machine_facts(), Bystanders()
    made = in_turn(names, rounds, run)
    machine["share_of_other_programs"] = bystanders.share()
    return machine, bystanders.doubts() + unsteady({name: medians(made, name) for name in names}), made


def loss_gap(rounds: Sequence[Mapping[str, Any]], first: str) -> float:
    """Largest relative difference of a loss from the contender ``first``'s at the same step."""
    return max(
        abs(ours - theirs) / theirs
        for one in rounds
        for other in one.values()
        for ours, theirs in zip(other["losses"], one[first]["losses"], strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Goal:
    """A limit that was set before measuring."""

    what: str
    limit: float
    measured: float
    unit: str
    met: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.measured:.4g} {self.unit}, {'met' if self.met else 'NOT met'}"


def exit_code(options: BenchmarkOptions, doubts: Sequence[str], judged: Sequence[Goal]) -> int:
    """0, or 8: the measurement is not valid, or 7: a goal is not met; a tiny model's numbers are not judged."""
    if options.tiny:
        return EXIT_OK
    if doubts:
        return EXIT_INVALID_MEASUREMENT
    return EXIT_OK if all(goal.met for goal in judged) else EXIT_GATE


def result_of(
    benchmark: str,
    options: BenchmarkOptions,
    machine: dict[str, Any],
    doubts: list[str],
    judged: Sequence[Goal],
    rounds: list[dict[str, Any]],
    **measured: Any,
) -> dict[str, Any]:
    """A result file's content: what it is, how far it can be believed, what was found, and every round."""
    return {
        "benchmark": benchmark,
        "tiny": options.tiny,
        "machine": machine,
        "valid": not doubts,
        "doubts": doubts,
        **measured,
        "goals": [dataclasses.asdict(goal) for goal in judged],
        "rounds": rounds,
    }


def write_result(name: str, options: BenchmarkOptions, result: dict[str, Any]) -> Path:
    """NAME-CPU.json among the recorded results, or tiny-NAME.json in the work folder."""
    slug = re.sub(r"[^a-z0-9]+", "-", result["machine"]["cpu"].lower()).strip("-")
    path = options.work / f"tiny-{name}.json" if options.tiny else RESULTS / f"{name}-{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    log(f"written: {path}")
    return path
