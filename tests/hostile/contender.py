"""Run by test_export_faults.py: one of several processes that write to, or read from, one bundle at the same time.

Arguments as JSON: role, out, seconds, and for an exporter checkpoints and photos, for a publisher bundles, for a
reader a photo and the score that each checkpoint gives it. Prints one JSON object: how often, and what went wrong.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.tiny_export import SCENES, publish_again


def export_all(plan: dict[str, Any]) -> Iterator[str | None]:
    import torch

    from gamma_export.exporter import ExportOptions, export

    torch.set_num_threads(1)
    options = ExportOptions(crops="centre", photos=Path(plan["photos"]), scene=SCENES, threads=1)
    for checkpoint in itertools.cycle(plan["checkpoints"]):
        yield None if export(checkpoint, plan["out"], options).published else "not published"


def publish_all(plan: dict[str, Any]) -> Iterator[str | None]:
    for bundle in itertools.cycle(plan["bundles"]):
        publish_again(Path(plan["out"]), Path(bundle), 30.0)
        yield None


def read_all(plan: dict[str, Any]) -> Iterator[str | None]:
    import gamma_runtime

    while True:
        with gamma_runtime.load(plan["out"], threads=1) as scorer:
            checkpoint = scorer.panel.bundle.manifest.checkpoint.file
            score = scorer.score(plan["photo"]).value
        torn = abs(score - plan["scores"][checkpoint]) > 1e-6
        yield f"torn: {checkpoint} gave {score}" if torn else None
        time.sleep(plan["pause"])


def main(plan: dict[str, Any]) -> None:
    work = {"export": export_all, "publish": publish_all, "read": read_all}[plan["role"]](plan)
    faults: list[str] = []
    done = 0
    deadline = float("inf")  # the libraries of the first round take their time
    while time.monotonic() < deadline or done < 2:
        deadline = min(deadline, time.monotonic() + plan["seconds"]) if done else deadline
        try:
            fault = next(work)
        except Exception as error:
            fault = repr(error)
            work = {"export": export_all, "publish": publish_all, "read": read_all}[plan["role"]](plan)
        done += 1
        faults += [fault] if fault else []
    print(json.dumps({"role": plan["role"], "done": done, "faults": faults}))  # noqa: T201


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
