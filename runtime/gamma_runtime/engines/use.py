"""How engines are used at run time: one frozen dataclass."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gamma_runtime.errors import UsageError

__all__ = ["EngineUse"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineUse:
    """Options of the backends ``tensorrt`` and ``tensorrt-rtx``; the CPU backends ignore them.

    Attributes:
        engine_dir: where engines.json lies; None means in the bundle.
        rebuild_ok: build an engine when none fits, and use it once it scores the golden images like the checkpoint.
        cuda_graph: replay a captured CUDA graph from the second call of a shape on.
        infer_timeout: seconds after which an inference counts as hung.
        halve_on_oom: when the device has too little memory for a batch, try its two halves, once.
    """

    engine_dir: Path | None = None
    rebuild_ok: bool = False
    cuda_graph: bool = True
    infer_timeout: float = 60.0
    halve_on_oom: bool = False

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            UsageError: naming the option.
        """
        if not self.infer_timeout > 0:
            raise UsageError(f"--infer-timeout {self.infer_timeout:g}; it must be above 0 seconds")
