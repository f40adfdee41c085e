"""Kept inputs replayed, a short run of each target, the oracle's own negative controls. `make fuzz` runs longer."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gamma_runtime.errors import InputError, IntegrityError
from tests.fuzz.harness import HERE, NAMES, Target, check, kept, mutated_json

SECONDS = 2


def target(name: str) -> Target:
    found: Target = importlib.import_module(f"tests.fuzz.{name}").TARGET
    return found


def test_every_target_has_a_file() -> None:
    files = {path.stem for path in HERE.glob("*.py")} - {"harness", "run", "test_fuzz"}
    assert files == set(NAMES)
    assert {path.name for kind in ("corpus", "crashes") for path in (HERE / kind).glob("*") if path.is_dir()} <= files


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_kept_inputs(name: str) -> None:
    made = target(name)
    codes = [check(made, data) for data in [*made.seeds(), *(path.read_bytes() for path in kept(name))]]
    assert any(codes)  # something is refused
    assert made.refuses or 0 in codes or name in ("checkpoint", "engines")  # and something is not


@pytest.mark.parametrize("name", NAMES)
def test_a_short_run(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install 'gamma-edge[fuzz]' (wheels for Linux on x86-64 only)")
    command = [sys.executable, "-m", "tests.fuzz.run", name, f"-max_total_time={SECONDS}", "-seed=1"]
    # A shell between: the kernel counts this process's own peak, gigabytes after a full-size test, as its child's.
    between = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    done = subprocess.run(between, cwd=HERE.parent.parent, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    executed = next(line for line in done.stderr.splitlines() if "number_of_executed_units" in line)
    assert int(executed.split()[-1]) > 20, done.stderr


def _fails(target: Target, data: bytes, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check(target, data)


def test_the_oracle_can_fail() -> None:
    def raising(error: Exception) -> Target:
        def read(folder: Path, data: bytes) -> None:
            raise error

        return Target(list, lambda folder, data: None, read)

    assert check(raising(InputError("fine")), b"") == 3
    assert check(raising(IntegrityError("fine")), b"") == 4
    _fails(raising(ValueError("a bug")), b"", ValueError, "a bug")
    _fails(raising(MemoryError("a bomb")), b"", MemoryError, "a bomb")
    _fails(raising(InputError("two\nlines")), b"", AssertionError, "not one printable line")
    nothing = Target(list, lambda folder, data: None, lambda folder, data: None, refuses=True)
    _fails(nothing, b"", AssertionError, "accepted")
    writer = Target(list, lambda folder, data: None, lambda folder, data: (folder / "left").write_bytes(data))
    try:
        _fails(writer, b"x", AssertionError, "something was written")
    finally:
        from tests.fuzz.harness import scratch

        (scratch() / "left").unlink()


def test_json_is_changed_as_json() -> None:
    good = json.dumps({"a": [1, 2], "b": {"c": "d"}}).encode()
    made = [mutated_json(good, seed) for seed in range(200)]
    assert all(json.loads(data or b"null") is not None for data in made)
    assert len({data for data in made if data != good}) > 30
    assert mutated_json(b"no json", 0) is None
