"""Bad checkpoint files, made by code: each function writes one into a folder and returns its path."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gamma_training.checkpoint import write_authors, write_safetensors
from gamma_training.tokens import compact_tokens
from tests.training.tiny import TINY, dims, save, state, tower

Maker = Callable[[Path], Path]
EXPERT = "clip_model.visual.transformer.resblocks.0.mlp.experts.expert_1.c_fc.weight"
MARKER = "code-has-run"


class Evil:
    """Unpickled by a careless loader, it leaves a file behind."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch '{folder / MARKER}'"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def content(data: bytes, name: str = "bad.pth") -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def changed(changes: dict[str, Any], keep: Callable[[str], bool] = lambda name: True) -> Maker:
    """A whole tiny checkpoint with some entries replaced; ``None`` leaves the entry out."""

    def make(folder: Path) -> Path:
        merged = {name: value for name, value in {**state(), **changes}.items() if value is not None and keep(name)}
        return save(folder / "bad.pth", {"params": merged})

    return make


def renamed(old: str, new: str) -> Maker:
    def make(folder: Path) -> Path:
        return save(folder / "bad.pth", {name.replace(old, new): tensor for name, tensor in state().items()})

    return make


def saved(value: Any) -> Maker:
    return lambda folder: save(folder / "bad.pth", value)


def rezipped(
    folder: Path,
    pkl: Callable[[bytes], bytes] = bytes,
    *,
    compress: bool = False,
    extra: dict[str, bytes] | None = None,
    source: dict[str, Any] | None = None,
) -> Path:
    """A torch file packed anew with another pickle, compressed records, or more of them."""
    buffer = io.BytesIO()
    torch.save(source or {"params": state()}, buffer)
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    path = folder / "bad.pth"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", method) as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, pkl(data) if entry.filename.endswith("data.pkl") else data)
        for name, data in (extra or {}).items():
            new.writestr(name, data)
    return path


def quantised(name: str) -> Maker:
    def make(folder: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated; the files are still about
            tensor = torch.quantize_per_tensor(torch.ones(64, 64), 0.1, 0, torch.quint8)
            return changed({name: tensor})(folder)

    return make


def sparse_rows(name: str) -> Maker:
    def make(folder: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # beta, says torch
            return changed({name: torch.eye(64).to_sparse_csr()})(folder)

    return make


# Code


def bare_pickle(protocol: int, name: str = "bad.pth") -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(pickle.dumps({"params": Evil(folder)}, protocol))
        return folder / name

    return make


def pickle_in_torch_zip(folder: Path) -> Path:
    return save(folder / "bad.pth", {"params": {**state(), "x": Evil(folder)}})


def opcode_in_torch_zip(opcodes: bytes) -> Maker:
    """A pickle whose import is not a plain GLOBAL; ``{}`` is the command."""

    def make(folder: Path) -> Path:
        command = f"touch '{folder / MARKER}'".encode()
        return rezipped(folder, lambda _: opcodes.replace(b"{}", command), source={"x": torch.ones(1)})

    return make


def protocol_4_in_torch_zip(folder: Path) -> Path:
    return rezipped(folder, lambda _: pickle.dumps(Evil(folder), 4), source={"x": torch.ones(1)})


def second_pickle(name: str) -> Maker:
    return lambda folder: rezipped(folder, extra={name: pickle.dumps(Evil(folder), 2)})


def legacy_torch(folder: Path) -> Path:
    torch.save({"params": state()}, folder / "bad.pth", _use_new_zipfile_serialization=False)
    return folder / "bad.pth"


def torchscript(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the files are still about
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "bad.pth")
    return folder / "bad.pth"


# More promised than there is


def stride_zero(folder: Path) -> Path:
    return changed({EXPERT: torch.ones(1).expand(10**6, 10**6)})(folder)


def many_on_one_storage(folder: Path) -> Path:
    shared = torch.ones(2**20)
    return save(folder / "bad.pth", {f"t{i}": shared[: 2**20 - i] for i in range(1000)})


def promised_storage(folder: Path) -> Path:
    """One storage is said to be longer than its record, and a tensor reaches beyond the end of it."""
    old = b"M\xe8\x03tq"  # 1000 values, in the storage's tuple
    size = b"M\xe8\x03\x85q"  # and in the tensor's shape

    def longer(data: bytes) -> bytes:
        assert old in data
        assert size in data
        return data.replace(old, b"M\xf0\x03tq").replace(size, b"M\xf0\x03\x85q")

    return rezipped(folder, longer, source={"a": torch.ones(1000), "b": torch.zeros(5000)})


def zip_bomb(folder: Path) -> Path:
    return rezipped(folder, compress=True, source={"x": torch.zeros(10**7)})


def compressed_records(folder: Path) -> Path:
    return rezipped(folder, compress=True)


def npz(folder: Path, compress: bool = False) -> Path:
    (np.savez_compressed if compress else np.savez)(folder / "bad.npz", x=np.zeros(10**6))
    return folder / "bad.npz"


def hash_bomb(folder: Path, depth: int = 64) -> Path:
    """A dictionary whose key is a tuple of twice the same tuple of twice the same …: 2^depth steps to hash."""
    key = b"K\x01\x85q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(depth))
    return rezipped(folder, lambda _: b"\x80\x02}" + key + b"K\x01s.", source={"x": torch.ones(1)})


def big_pickle(folder: Path) -> Path:
    return rezipped(folder, lambda _: b"\x80\x02" + b"N0" * 2**22 + b"N.", source={"x": torch.ones(1)})


# safetensors


def safetensors(header: Any, data: bytes = b"", name: str = "bad.safetensors") -> Maker:
    def make(folder: Path) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + data)
        config = {"format": "gamma-edge checkpoint", "version": 1, "prompts": "sdp"}
        (folder / name).with_suffix(".json").write_text(json.dumps(config))
        return folder / name

    return make


def entry(dtype: str = "F32", shape: tuple[int, ...] = (1,), start: int = 0, end: int = 4) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def config(change: Callable[[dict[str, Any]], Any] | bytes | None, experts: int = 5) -> Maker:
    """A good safetensors file whose config is changed, replaced by bytes, or (None) missing."""

    def make(folder: Path) -> Path:
        path = folder / "bad.safetensors"
        write_safetensors(path, state(dims(tower(layers=1, experts=experts))), prompts="sdp")
        beside = path.with_suffix(".json")
        data = json.loads(beside.read_text())
        if change is None:
            beside.unlink()
        elif isinstance(change, bytes):
            beside.write_bytes(change)
        else:
            new = change(data)
            beside.write_text(json.dumps(data if new is None else new))
        return path

    return make


def compact(change: Callable[[dict[str, Any]], Any]) -> Maker:
    """A good file whose token table has the rows of two words and the two ends, and then its config is changed."""

    def make(folder: Path) -> Path:
        path = folder / "bad.safetensors"
        small, of_small = compact_tokens(state(), TINY, ["bad image"])
        write_safetensors(path, small, dims=of_small, prompts="sdp")
        beside = path.with_suffix(".json")
        data = json.loads(beside.read_text())
        change(data)
        beside.write_text(json.dumps(data))
        return path

    return make


def experts_in_config(count: int) -> Maker:
    return config(lambda data: data["dims"]["vision"].update(experts=count))


def good_authors(folder: Path) -> Path:
    write_authors(folder / "good.pth", state())
    return folder / "good.pth"


def good_safetensors(folder: Path) -> Path:
    write_safetensors(folder / "good.safetensors", state(), prompts="sdp")
    return folder / "good.safetensors"
