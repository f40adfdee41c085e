"""The state of a run: everything that the next step depends on, in one safetensors file that is replaced as a whole."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gamma_runtime.cli import printable
from gamma_runtime.errors import InputError, IntegrityError, OutputError
from gamma_runtime.files import sync_directory, temporary_beside

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Progress", "load_state", "save_state"]

_FORMAT = "gamma-edge training state 1"
_MOMENTS = ("exp_avg", "exp_avg_sq")


_Count = Annotated[int, Field(ge=0)]
_Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclasses.dataclass
class Progress:
    """Where a run stands: ``step`` steps of ``epoch`` are done.

    ``losses`` has one value a step of the whole run; ``history`` one row an epoch; ``best`` the best validation row.
    """

    epoch: int = 0
    step: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: dict[str, Any] | None = None
    since_best: int = 0
    seconds: float = 0.0
    finished: bool = False


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Judged(_Strict):
    """What validation found of a set; three photos have no correlation (NaN)."""

    srcc: float
    plcc: float
    rmse: float
    photos: _Count


class _Row(_Strict):
    epoch: _Count
    loss: float
    validation: dict[str, _Judged] = {}  # absent where nothing was judged


class _Place(_Strict):
    """`Progress` as it stands in the file; the losses are a tensor of their own."""

    epoch: _Count
    step: _Count
    losses: None
    history: list[_Row]
    best: _Row | None
    since_best: _Count
    seconds: _Finite
    finished: bool

    def fault(self, losses: int) -> str | None:
        """A contradiction, with so many losses."""
        earlier = losses - self.step
        if self.epoch != len(self.history) or (earlier % self.epoch or earlier <= 0 if self.epoch else earlier):
            return f"{losses} losses and {len(self.history)} rows of history after epoch {self.epoch}, step {self.step}"
        judged = [row.validation for row in (*self.history, self.best) if row is not None and row.validation]
        if any("mean" not in one for one in judged) or (judged and not (self.best and self.best.validation)):
            return "validations without a mean, or without a best one"
        return None


class _Note(_Strict):
    """The JSON among the file's metadata."""

    keys: dict[str, str]
    progress: _Place
    adam_steps: _Finite
    scaler: dict[str, _Count | _Finite]


def save_state(
    path: Path,
    keys: dict[str, str],
    progress: Progress,
    weights: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None,
    scaler: torch.amp.GradScaler,
) -> None:
    """Replace the state file.

    Args:
        path: of the file.
        keys: digests of configuration, photos with their scenes, and base; a run is resumed only with the same.
        progress: where the run stands.
        weights: the trained tensors by name.
        optimizer: Adam over exactly these.
        average: their moving averages.
        scaler: of fp16.

    Raises:
        OutputError: it cannot be written; the old one is untouched.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"w.{name}": value.detach().cpu().contiguous() for name, value in weights.items()}
    count = max(
        (float(optimizer.state[value]["step"]) for value in weights.values() if value in optimizer.state), default=0
    )
    if count:  # before a first step that fp16's scaler did not skip, moments are absent or zero
        tensors |= {f"{m}.{name}": optimizer.state[value][m].cpu() for m in _MOMENTS for name, value in weights.items()}
    tensors |= {f"average.{name}": value.cpu().contiguous() for name, value in (average or {}).items()}
    tensors["losses"] = torch.tensor(progress.losses, dtype=torch.float64)
    plain = dataclasses.asdict(progress) | {"losses": None}
    note = {"keys": keys, "progress": plain, "adam_steps": count, "scaler": scaler.state_dict()}
    try:
        with temporary_beside(path) as temporary:
            save_file(tensors, temporary, metadata={"format": _FORMAT, "state": json.dumps(note)})
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        sync_directory(path.parent)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path}: cannot be written ({error})", hint="check the free space") from error


def load_state(
    path: Path,
    keys: dict[str, str],
    weights: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None,
    scaler: torch.amp.GradScaler,
) -> Progress:
    """Put weights, moments and averages back in place, and return where the run stands.

    Everything is checked before anything is put in place.

    Raises:
        InputError: the state of another run. IntegrityError: not a whole state file; nothing was changed.
    """
    import torch

    note, tensors = _read(path)
    for what, digest in keys.items():
        if note.keys.get(what) != digest:
            raise InputError(
                f"{path}: was begun with another {what}", hint="resume with the same one, or begin anew in another out"
            )
    wanted: dict[str, Tensor] = {f"w.{name}": value for name, value in weights.items()}
    wanted |= {f"average.{name}": value for name, value in (average or {}).items()}
    if note.adam_steps:
        wanted |= {f"{moment}.{name}": value for moment in _MOMENTS for name, value in weights.items()}
    fault = _fault(wanted, tensors) or note.progress.fault(len(tensors["losses"]))
    if fault is None and set(note.scaler) != set(scaler.state_dict()):
        fault = f"the scaler of fp16 is {sorted(note.scaler)}, expected {sorted(scaler.state_dict())}"
    if fault is not None:
        raise _not_whole(path, fault)
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(tensors[f"w.{name}"])
            if note.adam_steps:
                # Copies: what was read are views of the file's pages, which other programs may change under Adam.
                moments = {m: tensors[f"{m}.{name}"].to(value.device, copy=True) for m in _MOMENTS}
                optimizer.state[value] = {"step": torch.tensor(note.adam_steps, device=value.device), **moments}
        for name, mean in (average or {}).items():
            mean.copy_(tensors[f"average.{name}"])
    scaler.load_state_dict(note.scaler)
    place = note.progress.model_dump(exclude_unset=True)
    return Progress(**(place | {"losses": tensors["losses"].tolist()}))


def _read(path: Path) -> tuple[_Note, dict[str, Tensor]]:
    """What the file holds.

    Raises:
        IntegrityError: not a state file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise _not_whole(path, str(error)) from error
    if metadata.get("format") != _FORMAT or "state" not in metadata:
        raise _not_whole(path, f"no format {_FORMAT!r} with a state in its metadata")
    try:
        return _Note.model_validate_json(metadata["state"]), tensors
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(("state", *map(str, first["loc"])))
        raise _not_whole(path, f"{where}: {first['msg']}") from error


def _fault(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> str | None:
    """The first tensor that is missing, too many, or not like what it is for."""
    import torch

    if odd := sorted(found.keys() ^ (wanted.keys() | {"losses"})):
        return f"tensor {odd[0]} is {'one too many' if odd[0] in found else 'missing'}"
    losses = found["losses"]
    if losses.dtype != torch.float64 or losses.dim() != 1:
        return f"tensor losses is {_kind(losses)}, expected float64 [steps]"
    for name, value in wanted.items():
        if (found[name].dtype, found[name].shape) != (value.dtype, value.shape):
            return f"tensor {name} is {_kind(found[name])}, expected {_kind(value)}"
    return None


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _not_whole(path: Path, why: str) -> IntegrityError:
    return IntegrityError(
        f"{path}: not a whole training state ({printable(why):.300})", hint="begin anew in another folder"
    )
