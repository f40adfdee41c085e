"""gamma_export: a Gamma checkpoint in, a verified bundle out.

Example:
    >>> import gamma_export
    >>> report = gamma_export.export("gamma_weight.pth", "photo.gamma")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gamma_export.exporter import ExportOptions, ExportReport, export

__all__ = ["ExportOptions", "ExportReport", "export"]


def __getattr__(name: str) -> object:
    """Import the exporter (torch, onnx) on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'gamma_export' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("gamma_export.exporter"), name)
