"""A checkpoint from a stranger. The first byte says what the rest is: a file, a pickle, a header, a configuration."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import torch

from gamma_training.checkpoint import read_checkpoint
from tests.fuzz.harness import Target
from tests.hostile.checkpoint_files import entry

FILE, PICKLE, HEADER, CONFIG = b"0123"
WEIGHTS = {"a.weight": torch.ones(3, 4), "b": torch.zeros(()), "c": torch.ones(5).half()}
BESIDE = json.dumps({"format": "gamma-edge checkpoint", "version": 1, "prompts": "sdp"}).encode()
UNSEEN = {
    "vision": {"activation": "gelu", "epsilon": 1e-6},
    "text": {"activation": "quick_gelu", "epsilon": 1e-5},
    **{"ln_pre": False, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "kept_tokens": [2103, 49406, 49407]},
}
FULL = json.dumps({**json.loads(BESIDE), "dims": UNSEEN, "fresh": ["a", "b"], "label": "x", "licence": "y"}).encode()
HEAD = json.dumps({"a": entry(shape=(3, 4), end=48), "b": entry(shape=(), start=48, end=52)}).encode()


def _saved() -> bytes:
    buffer = io.BytesIO()
    torch.save({"params": WEIGHTS}, buffer)
    return buffer.getvalue()


SAVED = _saved()


def _pickle() -> bytes:
    with zipfile.ZipFile(io.BytesIO(SAVED)) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))


def _seeds() -> list[bytes]:
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    parts = ((FILE, SAVED), (FILE, lfs), (PICKLE, _pickle()), (HEADER, HEAD), (CONFIG, BESIDE), (CONFIG, FULL))
    return [bytes([kind]) + data for kind, data in parts]


def _write(folder: Path, data: bytes) -> None:
    kind, rest = data[:1], data[1:]
    if kind in (b"2", b"3"):
        header = rest if kind == b"2" else HEAD
        (folder / "bad.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(52))
        (folder / "bad.json").write_bytes(BESIDE if kind == b"2" else rest)
    elif kind == b"1":
        with zipfile.ZipFile(io.BytesIO(SAVED)) as old, zipfile.ZipFile(folder / "bad.pth", "w") as new:
            for name in old.namelist():
                new.writestr(name, rest if name.endswith("data.pkl") else old.read(name))
    else:
        (folder / "bad.pth").write_bytes(rest)


def _read(folder: Path, data: bytes) -> None:
    read_checkpoint(folder / ("bad.safetensors" if data[:1] in (b"2", b"3") else "bad.pth"))


TARGET = Target(_seeds, _write, _read)
