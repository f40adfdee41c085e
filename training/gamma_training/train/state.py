"""The state of a run: everything that the next step depends on, in one safetensors file that is replaced as a whole."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_runtime.errors import InputError, IntegrityError, OutputError
from gamma_runtime.files import sync_directory, temporary_beside

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Progress", "load_state", "save_state"]

_FORMAT = "gamma-edge training state 1"
_MOMENTS = ("exp_avg", "exp_avg_sq")


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
        keys: digests of configuration, photos and base; a run is resumed only with the same.
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
    count = 0.0
    for name, value in weights.items():
        moments = optimizer.state.get(value, {})
        count = float(moments.get("step", 0.0))
        tensors |= {f"{moment}.{name}": moments[moment].cpu() for moment in _MOMENTS if moment in moments}
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

    Raises:
        InputError: the state of another run. IntegrityError: not a whole state file.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            note = json.loads((stream.metadata() or {})["state"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        hint = "begin anew in another folder"
        raise IntegrityError(f"{path}: not a whole training state ({error})", hint=hint) from error
    for what, digest in keys.items():
        if note["keys"].get(what) != digest:
            raise InputError(
                f"{path}: was begun with another {what}", hint="resume with the same one, or begin anew in another out"
            )
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(tensors[f"w.{name}"])
            if f"exp_avg.{name}" in tensors:
                moments = {moment: tensors[f"{moment}.{name}"].to(value.device) for moment in _MOMENTS}
                optimizer.state[value] = {"step": torch.tensor(note["adam_steps"]), **moments}
        for name, mean in (average or {}).items():
            mean.copy_(tensors[f"average.{name}"])
    if note["scaler"]:
        scaler.load_state_dict(note["scaler"])
    return Progress(**(note["progress"] | {"losses": tensors["losses"].tolist()}))
