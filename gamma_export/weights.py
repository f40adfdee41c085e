"""The weights of one precision as an external file that all graphs of a bundle share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_calib.external import Entry, WeightsFile, write_external

if TYPE_CHECKING:
    from gamma_export.fold import Folded

__all__ = ["WeightsFile", "write_weights"]


def write_weights(folder: Path, weights: Sequence[Folded], precision: str) -> WeightsFile:
    """Stream the weights into ``weights-PRECISION-DIGEST.bin``; one tensor is in memory at a time.

    Raises:
        InputError: a weight does not fit fp16. OutputError: the file cannot be written; nothing is left behind.
    """
    entries = (Entry(w.name, precision if w.role == "product" else "fp32", w.shape, w.make) for w in weights)
    return write_external(folder, f"weights-{precision}", entries)
