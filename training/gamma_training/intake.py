"""Opening checkpoint files from strangers: never run code, never allocate what a header merely promises.

hostile_inputs.md rows 1 to 3 and 5 to 7. What comes out is a flat dict of plain float32 CPU tensors; which model they
make up is `gamma_training.checkpoint`'s question.
"""

from __future__ import annotations

import json
import lzma
import math
import stat
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_runtime.cli import printable
from gamma_runtime.errors import EnvironmentFault, InputError, IntegrityError
from gamma_training.pickles import Findings, is_pickle, scan

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_file", "clean_tensors", "is_safetensors", "odd_tensors", "read_safetensors", "read_torch", "shown"]

MAX_BYTES = 16 * 2**30
MAX_HEADER = 4 * 2**20  # names and shapes of 30,000 tensors; Gamma has 485. Bounds the time to read a hostile one
_SLACK = 1.1  # a file may promise this much more than its size (padding, zip records)
_GIT_LFS = b"version https://git-lfs"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_SAFETENSORS_TYPES = ("F32", "F16", "BF16")
_ABSURD = 1e6
_LISTED = 10
_FETCH = "fetch the file again"
_WEIGHTS_ONLY = "save only the weights again, as dense float32 tensors"
# What zipfile, zlib and pickletools raise on damaged input.
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, OSError,
    NotImplementedError, RuntimeError, LookupError, OverflowError,
)  # fmt: skip


def shown(text: object, limit: int = 100) -> str:
    """A name or message out of a file, safe to print: no control characters, and not longer than ``limit``."""
    line = printable(str(text)[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def check_file(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Refuse what cannot be a checkpoint by its first bytes, which are returned (64, or all of a shorter file).

    Raises:
        InputError: missing, not a regular file, empty, over ``limit`` bytes, a web page or a Git LFS pointer.
    """
    try:
        status = path.stat()  # before opening: a FIFO without a writer blocks
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a regular file", hint="name a .pth or .safetensors file")
        with path.open("rb") as stream:
            head = stream.read(64)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason})", hint="check the path and the permissions") from error
    if not head:
        raise InputError(f"{path}: the file is empty", hint="the download or copy failed; fetch it again")
    if status.st_size > limit:
        raise InputError(f"{path}: {status.st_size} bytes; the limit is {limit}", hint="this is some other file")
    if head.startswith(_GIT_LFS):
        raise InputError(f"{path}: a Git LFS pointer, not the checkpoint itself", hint="run `git lfs pull`")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        raise InputError(
            f"{path}: a web page, not a checkpoint", hint="the download link answered with HTML; fetch it again"
        )
    return head


def is_safetensors(path: Path, head: bytes) -> bool:
    """By content: eight bytes of length, then a JSON object.

    Raises:
        InputError: called .safetensors, and neither that nor anything else that is known.
    """
    if head.startswith(_ZIP):
        return False
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length + 8 <= path.stat().st_size:
        return True
    if path.suffix != ".safetensors" or (head[:1] == b"\x80" and head[8:9] != b"{"):  # the latter is a pickle
        return False
    raise InputError(f"{path}: damaged safetensors header (length {length})", hint=_FETCH)


def read_torch(path: Path) -> Any:
    """The object in a torch.save file (zip format), tensors memory-mapped; no code in it is ever run.

    Raises:
        InputError: truncated, damaged, compressed, or holds tensors that are not plain. IntegrityError: holds code.
        EnvironmentFault: out of memory.
    """
    import torch

    head = check_file(path)
    if not head.startswith(_ZIP):
        _refuse_other_format(path, head)
    if path.suffix == ".safetensors":  # torch.load goes by the name, and would parse the zip as safetensors
        raise InputError(f"{path}: made by torch.save, in spite of its name", hint="rename it to .pth")
    records = _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles: either they are refused here or all is well
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for damaged files
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise EnvironmentFault(
                f"{path}: out of memory ({shown(error, 200)})", hint="close other programs"
            ) from error
        text = " ".join(str(error).split())
        raise InputError(f"{path}: damaged checkpoint ({shown(text, 200)})", hint=_FETCH) from error
    _check_storages(path, loaded, records)
    return loaded


def _refuse_other_format(path: Path, head: bytes) -> None:
    with path.open("rb") as stream:
        beginning = stream.read(MAX_HEADER)
    if head[:1] == b"\x80" or is_pickle(beginning):
        raise IntegrityError(
            f"{path}: a bare pickle (or a pre-1.6 torch file), which can run code when opened; refused",
            hint="in a sandbox: torch.save(torch.load(old, weights_only=True), new)",
        )
    raise InputError(
        f"{path}: not a checkpoint (starts with {head[:8]!r})",
        hint="expected a .pth made by torch.save, or .safetensors",
    )


def _check_archive(path: Path) -> list[int]:
    """Zip directory: no bombs, no TorchScript, no pickle that names more than tensors. Returns the records' sizes."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            pickles = [entry for entry in entries if entry.filename.lower().endswith("data.pkl")]
            findings = [scan(archive.read(entry)) for entry in pickles]
    except _DAMAGED as error:
        raise InputError(f"{path}: truncated or damaged ({shown(error)})", hint=_FETCH) from error
    if not pickles:
        raise InputError(f"{path}: a zip file, but not one made by torch.save", hint="expected a .pth")
    for found in findings:
        _check_pickle(path, found)
    return [entry.file_size for entry in entries]


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    size = path.stat().st_size
    promised = sum(entry.file_size for entry in entries)
    if promised > size * _SLACK:
        raise InputError(f"{path}: a zip bomb; {size} bytes that expand to {promised}; refused", hint=_FETCH)
    names = [entry.filename.lower() for entry in entries]  # torch's reader ignores case
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise IntegrityError(
            f"{path}: a TorchScript archive, which is a program; refused",
            hint="in a sandbox: torch.save(torch.jit.load(old).state_dict(), new)",
        )
    if len(set(names)) != len(names):
        raise InputError(f"{path}: two records of the archive have the same name", hint=_FETCH)
    for entry in entries:
        # Memory-mapped, a compressed record would be taken for the weights themselves.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise InputError(
                f"{path}: record {shown(entry.filename)} is compressed; torch.save never does that",
                hint="unpack it and zip it again with `zip -0`, or fetch the original",
            )
        if entry.filename.lower().endswith("data.pkl") and entry.file_size > MAX_HEADER:
            raise InputError(
                f"{path}: its pickle has {entry.file_size} bytes; the limit is {MAX_HEADER}", hint=_WEIGHTS_ONLY
            )


def _check_pickle(path: Path, found: Findings) -> None:
    if found.code:
        names = ", ".join(shown(name) for name in dict.fromkeys(found.code[:5]))
        raise IntegrityError(
            f"{path}: the pickle inside names {names}; that is code, not weights; refused",
            hint="convert it once in a sandbox: keep only the tensors and torch.save them",
        )
    if found.other:
        name, kind = found.other[0]
        raise InputError(
            f"{path}: {shown(name)} is {kind}; expected a plain dense tensor",
            hint=_WEIGHTS_ONLY,
        )
    if found.shared_tuple:
        raise InputError(f"{path}: damaged checkpoint (its pickle uses one tuple twice)", hint=_FETCH)


def _check_storages(path: Path, loaded: Any, records: list[int]) -> None:
    """Every storage is one whole record: memory-mapped, a longer one would take its neighbours' bytes for weights."""
    storages = (tensor.untyped_storage() for tensor in _plain_tensors(loaded))
    promised = {storage.data_ptr(): storage.nbytes() for storage in storages}  # several tensors may share one
    if wrong := Counter(size for size in promised.values() if size) - Counter(records):
        raise InputError(
            f"{path}: damaged; {wrong.total()} tensors promise other sizes than the file holds,"
            f" such as {next(iter(wrong))} bytes",
            hint=_FETCH,
        )


def _plain_tensors(loaded: Any) -> Iterator[Tensor]:
    """Dense tensors in nested mappings, each mapping once."""
    import torch

    stack, seen = [loaded], set()
    while stack:
        item = stack.pop()
        if isinstance(item, torch.Tensor) and item.layout == torch.strided:
            yield item
        elif isinstance(item, Mapping) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(item.values())


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, memory-mapped.

    Raises:
        InputError: the header or the length is wrong, a name occurs twice, or a type is not float32, float16 or
            bfloat16.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    head = check_file(path)
    length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or length > MAX_HEADER or length + 8 > path.stat().st_size:
        raise InputError(f"{path}: damaged safetensors header (length {length})", hint=_FETCH)
    try:
        with path.open("rb") as stream:
            header = json.loads(stream.read(8 + length)[8:], object_pairs_hook=_unique)
        _check_types(path, header)
        return load_file(path)
    except (SafetensorError, ValueError, TypeError, RecursionError, OSError) as error:
        raise InputError(f"{path}: damaged safetensors file ({shown(error, 200)})", hint=_FETCH) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a tensor name occurs twice")
    return made


def _check_types(path: Path, header: Any) -> None:
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    for name, entry in header.items():
        found = entry.get("dtype") if isinstance(entry, dict) else entry
        if name != "__metadata__" and found not in _SAFETENSORS_TYPES:
            raise InputError(
                f"{path}: {shown(name)} has dtype {shown(found)}; expected {', '.join(_SAFETENSORS_TYPES)}",
                hint=_WEIGHTS_ONLY,
            )


def clean_tensors(path: Path, raw: Mapping[str, Any]) -> dict[str, Tensor]:
    """Plain float32 tensors from what a file held; float16 and bfloat16 are converted, everything else is refused.

    Raises:
        InputError: not a tensor, sparse, quantised, meta, complex or integer; empty; promises more elements than its
            storage, or all together than the file, holds; or contains NaN or Inf.
    """
    import torch

    room = path.stat().st_size * _SLACK
    promised = 0
    made: dict[str, Tensor] = {}
    for name, value in raw.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{path}: {shown(name)} is a {type(value).__name__}, not a tensor", hint=_WEIGHTS_ONLY)
        _check_tensor(path, shown(name), value)
        promised += value.numel() * value.element_size()
        if promised > room:  # many tensors on one storage: each fits, and together they are a bomb
            raise InputError(
                f"{path}: its tensors promise over {promised} bytes, the file holds fewer", hint=_WEIGHTS_ONLY
            )
        made[name] = value.detach().resolve_neg().to(torch.float32).contiguous()
    _refuse_non_finite(path, made)
    return made


def _check_tensor(path: Path, name: str, value: Tensor) -> None:
    import torch

    fault = ""
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        fault = f"is {value.layout} on {value.device}; expected a plain dense tensor"
    elif value.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        fault = f"has dtype {value.dtype}; expected float32, float16 or bfloat16"
    elif value.numel() == 0:
        fault = f"has shape {list(value.shape)}, so no values"
    elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
        fault = f"promises {math.prod(value.shape)} values, its storage holds fewer"
    if fault:
        raise InputError(f"{path}: {name} {fault}", hint=_WEIGHTS_ONLY)


def _refuse_non_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    import torch

    # Without allocating a mask: the extremes of a tensor are finite only if all its values are.
    bad: dict[str, int] = {}
    for name, tensor in tensors.items():
        if not all(math.isfinite(float(value)) for value in torch.aminmax(tensor)):
            bad[name] = int((~torch.isfinite(tensor)).sum())
    if bad:
        listed = ", ".join(f"{shown(name)} ({count})" for name, count in list(bad.items())[:_LISTED])
        raise InputError(
            f"{path}: NaN or Inf in {len(bad)} tensors: {listed}{', …' if len(bad) > _LISTED else ''}",
            hint="the training run diverged; use an earlier checkpoint",
        )


def odd_tensors(tensors: dict[str, Tensor]) -> list[str]:
    """Warnings about finite but suspicious weights: all zero (a scale of 0 means untrained experts) or beyond 1e6."""
    import torch

    zero, absurd = [], []
    for name, tensor in tensors.items():
        peak = max(abs(float(value)) for value in torch.aminmax(tensor))
        if peak == 0.0 and name.endswith(("weight", "proj", "projection", ".scale")):
            zero.append(name)
        elif peak > _ABSURD:
            absurd.append(f"{name} reaches {peak:.3g}")
    return [
        f"{len(found)} tensors {what}: {', '.join(found[:_LISTED])}{', …' if len(found) > _LISTED else ''}"
        for what, found in (("are all zero", zero), (f"have values beyond {_ABSURD:g}", absurd))
        if found
    ]
