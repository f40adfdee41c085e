"""Seeded mutations of checkpoints: whatever is changed, reading answers with a checkpoint or a GammaError, and soon."""

from __future__ import annotations

import json
import pickle
import random
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gamma_runtime.errors import GammaError
from gamma_training.checkpoint import read_checkpoint
from gamma_training.pickles import scan
from tests.hostile.checkpoint_files import good_authors, good_safetensors, rezipped
from tests.training.tiny import save

LIMIT = 5.0  # seconds a file; the usual is a few milliseconds
FEW = {
    "a.weight": torch.ones(3, 4),
    "b": torch.zeros(()),
    "c": torch.ones(5).half(),
    "d": torch.nn.Parameter(torch.ones(2)),
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four small changes: a bit, a byte, a cut, a repeated or a moved piece, or a telling number."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out)) if out else 0
        length = rng.randrange(1, 9)
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at] = rng.randrange(256)
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + length]
        elif kind == 4:
            source = rng.randrange(len(out) + 1)
            out[at : at + length] = out[source : source + length]
        else:
            number = rng.choice((0, 1, -1, 2**15, 2**31 - 1, -(2**31), 2**62))
            out[at : at + 8] = struct.pack("<q", number)[: rng.choice((1, 2, 4, 8))]
    return bytes(out)


def answers(path: Path) -> str:
    start = time.monotonic()
    code, message = 0, "read"
    try:
        read_checkpoint(path)
    except GammaError as error:
        code, message = error.exit_code, error.message.replace(str(path), "")
    assert code in (0, 3, 4), message
    assert "\n" not in message
    assert time.monotonic() - start < LIMIT
    return f"{code}: {message}"


def fuzz(seed: int, rounds: int, write: Callable[[random.Random], Path]) -> set[str]:
    found = set()
    for i in range(rounds):
        try:
            found.add(answers(write(random.Random(f"{seed}-{i}"))))  # noqa: S311 - no secret
        except Exception as error:
            raise AssertionError(f"round {seed}-{i} raised {type(error).__name__}: {error}") from error
    return found


@pytest.mark.parametrize("seed", range(2))
def test_bytes_of_a_small_torch_file(tmp_path: Path, seed: int) -> None:
    original = save(tmp_path / "good.pth", {"params": FEW}).read_bytes()

    def write(rng: random.Random) -> Path:
        (tmp_path / "bad.pth").write_bytes(mutated(original, rng))
        return tmp_path / "bad.pth"

    assert len(fuzz(seed, 1200, write)) > 10


@pytest.mark.parametrize("seed", range(2))
def test_the_pickle_of_a_torch_file(tmp_path: Path, seed: int) -> None:
    """Packed anew, as zip's checksum would stop each change before the pickle is looked at."""

    def write(rng: random.Random) -> Path:
        return rezipped(tmp_path, lambda data: mutated(data, rng), source={"params": FEW})

    found = fuzz(seed, 1500, write)
    assert len(found) > 30
    assert any(verdict.startswith("4: ") for verdict in found)


def test_the_pickle_scanner_itself() -> None:
    """Every mutation ends in findings or ValueError, so that nothing else need be caught."""
    original = pickle.dumps([FEW["b"].shape, {"x": (1, 2.5, "y", b"z", None, True, 2**70)}], 2)
    whole = 0
    for i in range(10_000):
        try:
            scan(mutated(original, random.Random(i)))  # noqa: S311 - no secret
            whole += 1
        except ValueError:
            continue
    assert 0 < whole < 10_000


@pytest.mark.parametrize("seed", range(2))
def test_the_header_of_a_small_safetensors_file(tmp_path: Path, seed: int) -> None:
    entries = {"a": ([3, 4], 0, 48), "b": ([], 48, 52), "c": ([5], 52, 72)}
    header = {name: {"dtype": "F32", "shape": s, "data_offsets": [i, j]} for name, (s, i, j) in entries.items()}
    original = json.dumps({**header, "__metadata__": {"format": "pt"}}).encode()
    beside = {"format": "gamma-edge checkpoint", "version": 1, "prompts": "sdp"}
    (tmp_path / "bad.json").write_text(json.dumps(beside))

    def write(rng: random.Random) -> Path:
        text = mutated(original, rng)
        length = struct.pack("<Q", len(text)) if rng.random() < 0.9 else mutated(struct.pack("<Q", len(text)), rng)
        (tmp_path / "bad.safetensors").write_bytes(length + text + bytes(72))
        return tmp_path / "bad.safetensors"

    assert len(fuzz(seed, 1500, write)) > 30


def test_the_config_beside_the_weights(tmp_path: Path) -> None:
    path = good_safetensors(tmp_path)
    beside = path.with_suffix(".json")
    original = beside.read_bytes()

    def write(rng: random.Random) -> Path:
        beside.write_bytes(mutated(original, rng))
        return path

    assert len(fuzz(0, 100, write)) > 10


@pytest.mark.parametrize("part", ["directory", "pickle", "anywhere"])
def test_a_whole_checkpoint(tmp_path: Path, part: str) -> None:
    path = good_authors(tmp_path)
    original = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("data.pkl"))
        ranges = {
            "directory": (archive.start_dir, len(original)),
            "pickle": (entry.header_offset, entry.header_offset + entry.file_size + 64),
            "anywhere": (0, len(original)),
        }
    first, end = ranges[part]

    def write(rng: random.Random) -> Path:
        data = bytearray(original)
        for _ in range(rng.choice((1, 1, 2))):
            data[rng.randrange(first, end)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        return path

    assert fuzz(0, 40, write)
