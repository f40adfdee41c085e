"""TensorBoard, where its writer is installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__all__ = ["Board"]


class Board:
    """Writes scalars into ``FOLDER/tensorboard``; does nothing without a folder or without tensorboardX."""

    def __init__(self, folder: Path | None) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            self._writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder / "tensorboard"))
        except ImportError:
            return

    def scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve."""
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
