"""Run by test_engine_contention.py: a process that puts engines in place, or reads them, while others do the same.

Arguments as JSON: role (publish, naive or read), folder, seconds, entry (of engines.json). Prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gamma_runtime.bundle import ENGINES, read_engines
from gamma_runtime.engines.store import publish, read_plan
from gamma_runtime.errors import IntegrityError
from gamma_runtime.manifest import EngineEntry

SIZE = 1 << 20  # bytes of a plan


def plan_of(entry: dict[str, Any]) -> tuple[bytes, EngineEntry]:
    """A plan that no other build gave, and its entry."""
    content = os.urandom(32) * (SIZE // 32)
    digest = hashlib.sha256(content).hexdigest()
    stem = f"joint-fp32-trt10.3.0-sm87-{digest[:8]}"
    changes = {"file": f"{stem}.plan", "log": f"{stem}.log", "size": SIZE, "sha256": digest}
    return content, EngineEntry.model_validate(entry | changes)


def publish_all(folder: Path, entry: dict[str, Any]) -> Iterator[str | None]:
    while True:
        content, made = plan_of(entry)
        temporary = folder / f"plan.{os.getpid()}"
        temporary.write_bytes(content)
        publish(folder, [(temporary, "log", made)], 30.0)
        yield None


def naive_all(folder: Path, entry: dict[str, Any]) -> Iterator[str | None]:
    """What most tools do: one name, written in place; then the list, written in place."""
    while True:
        content, made = plan_of(entry)
        made = made.model_copy(update={"file": "joint.plan", "log": "joint.log"})
        (folder / "joint.plan").write_bytes(content)
        listed = read_engines(folder).model_copy(update={"engines": [made]}) if (folder / ENGINES).exists() else None
        data = listed.model_dump_json() if listed else json.dumps({"schema_version": 1, "engines": []})
        (folder / ENGINES).write_text(data)
        yield None


def read_all(folder: Path, entry: dict[str, Any]) -> Iterator[str | None]:
    """As `open_engines` reads: a plan that does not fit is a fault, unless engines.json has changed since."""
    while True:
        listed = read_engines(folder)
        try:
            for one in listed.engines:
                read_plan(folder, one)
            yield None
        except IntegrityError as error:
            yield None if read_engines(folder) != listed else str(error)


def main(plan: dict[str, Any]) -> None:
    roles = {"publish": publish_all, "naive": naive_all, "read": read_all}
    folder = Path(plan["folder"])
    work = roles[plan["role"]](folder, plan["entry"])
    faults: list[str] = []
    done, deadline = 0, time.monotonic() + plan["seconds"]
    while time.monotonic() < deadline or done < 2:
        try:
            fault = next(work)
        except Exception as error:
            fault = repr(error)
            work = roles[plan["role"]](folder, plan["entry"])
        done += 1
        faults += [fault] if fault else []
    print(json.dumps({"done": done, "faults": faults[:5], "count": len(faults)}))  # noqa: T201


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
