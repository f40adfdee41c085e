"""gamma_export: a Gamma checkpoint in, a verified bundle out.

Example:
    >>> import gamma_export
    >>> report = gamma_export.export("gamma_weight.pth", "photo.gamma")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gamma_export.export import ExportOptions, ExportReport, export

__all__ = ["ExportOptions", "ExportReport", "export"]


def __getattr__(name: str) -> object:
    """Import the exporter (torch, onnx) on first use."""
    if name in __all__:
        from gamma_export import export as module

        return getattr(module, name)
    raise AttributeError(f"module 'gamma_export' has no attribute {name!r}")
