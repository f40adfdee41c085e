"""The processes that train together: one, or those that torchrun started."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gamma_runtime.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["Group", "process_group"]

_TIMEOUT = datetime.timedelta(hours=12)  # the others wait while one process fills a cache; torchrun ends dead ones
_PAUSE = 0.2  # seconds
_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")  # in plain RuntimeErrors


@dataclasses.dataclass(frozen=True)
class Group:
    """This process among ``size``; rank 0 writes files and speaks."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank, in every process."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def mean(self, value: float) -> float:
        """The mean of every process's value."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return float(shared) / self.size

    def wait(self) -> None:
        """Until all processes are here."""
        self.gather(None)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[Group]:
    """The group that torchrun's variables describe, or this process alone.

    Raises:
        UsageError: a GPU was asked for and there is none. EnvironmentFault: the processes do not find each other, or
            lose each other inside the block.
    """
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UsageError("device: cuda, and PyTorch sees no GPU here", hint="device: cpu, or auto")
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    kind = "cuda" if there and device != "cpu" else "cpu"
    chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Group(0, 1, chosen)
        return
    import torch.distributed as dist

    try:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise EnvironmentFault(f"the {size} processes do not find each other ({error})", hint="torchrun?") from error
    try:
        yield Group(rank, size, chosen)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(words in str(error) for words in _LOST):
            said = f"another process of the run ended; its message is above ({' '.join(str(error).split()):.200})"
            raise EnvironmentFault(said, hint="mend what it says, and --resume") from error
        raise
    finally:
        # Gloo's thread still frees the last exchange's tensors, and wants Python's lock for it. When DDP's reducer is
        # the group's last owner, the group's end waits for that thread while it holds the lock: sleeping is without it.
        time.sleep(_PAUSE)
        dist.destroy_process_group()
