"""Opening checkpoint files from strangers: never run code, never allocate what a header merely promises.

hostile_inputs.md rows 1 to 3 and 5 to 7. What comes out is a flat dict of plain float32 CPU tensors; which model they
make up is `gamma_training.checkpoint`'s question.
"""

from __future__ import annotations

import json
import math
import pickletools
import stat
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_runtime.errors import InputError, IntegrityError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["clean_tensors", "read_safetensors", "read_torch"]

MAX_BYTES = 16 * 2**30
_MAX_HEADER = 100 * 2**20  # safetensors' own limit
_SLACK = 1.1  # a file may promise this much more than its size (padding, zip records)
_GIT_LFS = b"version https://git-lfs"
_ABSURD = 1e6


def check_file(path: Path) -> bytes:
    """Refuse what cannot be a checkpoint by its first bytes, which are returned (16).

    Raises:
        InputError: missing, not a regular file, empty, over 16 GiB, a web page or a Git LFS pointer.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a regular file")
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise InputError(f"{path}: the file is empty", hint="the download or copy failed; fetch it again")
    if status.st_size > MAX_BYTES:
        raise InputError(f"{path}: {status.st_size} bytes; the limit is {MAX_BYTES}")
    if head.startswith(_GIT_LFS):
        raise InputError(f"{path}: a Git LFS pointer, not the checkpoint itself", hint="run `git lfs pull`")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(
            f"{path}: a web page, not a checkpoint", hint="the download link answered with HTML; fetch it again"
        )
    return head[:16]


def read_torch(path: Path) -> Any:
    """The object in a torch.save file (zip format), tensors memory-mapped; no code in it is ever run.

    Raises:
        InputError: truncated or damaged. IntegrityError: holds code, or expands to more than the file's size.
    """
    import torch

    head = check_file(path)
    if not head.startswith(b"PK"):
        _refuse_bare_pickle(path, head)
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for damaged files
        text = " ".join(str(error).split())
        raise InputError(f"{path}: damaged checkpoint ({text:.200})", hint="fetch the file again") from error


def _refuse_bare_pickle(path: Path, head: bytes) -> None:
    if head[:1] == b"\x80":
        raise IntegrityError(
            f"{path}: a bare pickle (or a pre-1.6 torch file), which can run code when opened; refused",
            hint="in a sandbox: torch.save(torch.load(old, weights_only=True), new)",
        )
    raise InputError(
        f"{path}: not a checkpoint (starts with {head[:8]!r})",
        hint="expected a .pth made by torch.save, or .safetensors",
    )


def _check_archive(path: Path) -> None:
    """Zip directory: no bombs, no TorchScript, and no pickle that names anything but tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            promised = sum(entry.file_size for entry in entries)
            pickles = [entry.filename for entry in entries if entry.filename.endswith("data.pkl")]
            if promised > path.stat().st_size * _SLACK:
                raise IntegrityError(f"{path}: expands to {promised} bytes from {path.stat().st_size}; refused")
            if any("/code/" in entry.filename for entry in entries):
                raise IntegrityError(
                    f"{path}: a TorchScript archive, which is a program; refused",
                    hint="in a sandbox: torch.save(torch.jit.load(old).state_dict(), new)",
                )
            code = sorted({name for pkl in pickles for name in _globals(archive.read(pkl)) if not _harmless(name)})
    except (zipfile.BadZipFile, EOFError, ValueError, OSError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: truncated or damaged ({error})", hint="fetch the file again") from error
    if not pickles:
        raise InputError(f"{path}: a zip file, but not one made by torch.save")
    if code:
        raise IntegrityError(
            f"{path}: the pickle inside names {', '.join(code[:5])}; that is code, not weights; refused",
            hint="convert it once in a sandbox: keep only the tensors and torch.save them",
        )


def _globals(pickle: bytes) -> list[str]:
    """Every module.name that a pickle imports, by reading its opcodes; nothing is executed."""
    found: list[str] = []
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name == "GLOBAL":
            found.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.append(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    return found


def _harmless(name: str) -> bool:
    return name in (
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.Size",
    ) or (name.startswith("torch.") and name.endswith("Storage"))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, memory-mapped.

    Raises:
        InputError: the header or the length is wrong, or a name occurs twice.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    head = check_file(path)
    length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or length > _MAX_HEADER or length + 8 > path.stat().st_size:
        raise InputError(f"{path}: damaged safetensors header (length {length})", hint="fetch the file again")
    with path.open("rb") as stream:
        header = stream.read(8 + length)[8:]
    try:
        json.loads(header, object_pairs_hook=_unique)
        return load_file(path)
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: damaged safetensors file ({error})", hint="fetch the file again") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a tensor name occurs twice")
    return made


def clean_tensors(path: Path, raw: dict[str, Any], *, skip: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """Plain float32 tensors from what a file held; float16 and bfloat16 are converted, everything else is refused.

    Raises:
        InputError: not a tensor, sparse, quantised, meta, complex or integer; promises more elements than its storage
            holds; or contains NaN or Inf.
    """
    import torch

    allowed = (torch.float16, torch.bfloat16, torch.float32)
    made: dict[str, Tensor] = {}
    for name, value in raw.items():
        if name in skip:
            continue
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            raise InputError(f"{path}: {name} is {value.layout} on {value.device}; expected a plain dense tensor")
        if value.dtype not in allowed:
            raise InputError(f"{path}: {name} has dtype {value.dtype}; expected float32, float16 or bfloat16")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes() * _SLACK:
            raise InputError(f"{path}: {name} promises {math.prod(value.shape)} values, its storage holds fewer")
        made[name] = value.detach().to(torch.float32).contiguous()
    _refuse_non_finite(path, made)
    return made


def _refuse_non_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    import torch

    # One pass: the extremes of a tensor are finite only if all its values are.
    bad: dict[str, int] = {}
    for name, tensor in tensors.items():
        if tensor.numel() and not all(math.isfinite(v) for v in (float(tensor.min()), float(tensor.max()))):
            bad[name] = int((~torch.isfinite(tensor)).sum())
    if bad:
        listed = ", ".join(f"{name} ({count})" for name, count in list(bad.items())[:10])
        raise InputError(
            f"{path}: NaN or Inf in {len(bad)} tensors: {listed}",
            hint="the training run diverged; use an earlier checkpoint",
        )


def odd_tensors(tensors: dict[str, Tensor]) -> list[str]:
    """Warnings about finite but suspicious weights: all zero (a scale of 0 means untrained experts) or beyond 1e6."""
    warnings = []
    for name, tensor in tensors.items():
        peak = float(tensor.abs().max()) if tensor.numel() else 0.0
        if peak == 0.0 and name.endswith(("weight", "proj", "projection", ".scale")):
            warnings.append(f"{name} is all zero")
        elif peak > _ABSURD:
            warnings.append(f"{name} reaches {peak:.3g}")
    return warnings
