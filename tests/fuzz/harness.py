"""What every fuzz target obeys: only a GammaError of an expected class escapes, one printable line, nothing is written.

Nothing of ours is imported here at the top: run.py imports the targets under coverage instrumentation first.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["HERE", "NAMES", "Target", "check", "kept", "mutated_json", "scratch"]

HERE = Path(__file__).parent
NAMES = ("bundle", "calibration", "checkpoint", "contract", "engines", "graph", "image", "manifest", "source", "table")
_VALUES: tuple[Any, ...] = (None, True, 0, 1, -1, 2**31, 2**63, 1e308, "", "../x", "a\0b", "\x1b[2J", "9" * 400, [], {})


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        seeds: good and bad inputs, made by code.
        write: puts an input where ``read`` finds it.
        read: what may raise GammaError and nothing else.
        codes: exit codes that a refusal may have.
        refuses: every input must be refused.
        json: inputs are JSON objects, and are changed as such.
        longest: bytes of an input.
    """

    seeds: Callable[[], list[bytes]]
    write: Callable[[Path, bytes], object]
    read: Callable[[Path, bytes], object]
    codes: tuple[int, ...] = (3, 4)
    refuses: bool = False
    json: bool = False
    longest: int = 1 << 14


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    memory = "/dev/shm"  # noqa: S108 - files of an unguessable name, and thousands a second
    return tempfile.TemporaryDirectory(prefix="gamma-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)


def scratch() -> Path:
    """A folder for the input under test, the same for the whole process."""
    return Path(_root().name)


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for path in folder.rglob("*"):
        status = path.lstat()
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return sorted(found)


def check(target: Target, data: bytes) -> int:
    """Try one input; the exit code that it would give, 0 when it was accepted.

    Raises:
        AssertionError: the oracle's verdict. Anything else that escaped, as it is.
    """
    from gamma_runtime.errors import GammaError

    folder = scratch()
    target.write(folder, data)
    before = _listing(folder)
    code, said = 0, ""
    try:
        target.read(folder, data)
    except GammaError as error:
        code, said = error.exit_code, error.message
    if code not in (0, *target.codes):
        raise AssertionError(f"exit code {code}: {said}")
    if not said.isprintable():
        raise AssertionError(f"not one printable line: {said!r}")
    if target.refuses and not code:
        raise AssertionError("accepted")
    if _listing(folder) != before:
        raise AssertionError("something was written")
    return code


def kept(name: str) -> Iterator[Path]:
    """The inputs that are kept as files: a small corpus, and everything that once escaped."""
    for kind in ("corpus", "crashes"):
        yield from sorted((HERE / kind / name).glob("*"))


def mutated_json(data: bytes, seed: int) -> bytes | None:
    """One to three changes of a JSON object's structure; None when it is none."""
    numbers = random.Random(seed)  # noqa: S311 - a repeatable choice, no secret
    try:
        made = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(made, dict) or not made:
        return None
    for _ in range(numbers.choice((1, 1, 2, 3))):
        place: Any = made
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = numbers.choice(keys)
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or numbers.random() < 0.2:
                break
            place = inner
        action = numbers.randrange(4)
        if action == 0 and len(place) > 1:
            del place[key]
        elif action == 1 and isinstance(place, list):
            place.append(inner)
        elif action == 2 and isinstance(place, dict):
            place[f"{key}{numbers.randrange(10)}"] = inner
        else:
            place[key] = numbers.choice(_VALUES)
    return json.dumps(made).encode()
