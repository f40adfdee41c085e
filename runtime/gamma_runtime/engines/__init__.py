"""TensorRT engines: built in a child process, stored beside the bundle's graphs, loaded only after checks.

``build`` chooses graphs and publishes plans, ``child`` builds one, ``worker`` watches it, ``store`` keeps plans and
engines.json, ``load`` finds the plan that fits a device. Nothing here imports TensorRT until it is needed, and whoever
scores on a CPU imports none of this.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gamma_runtime.engines.build import build_engines, require_flavour, select_graphs
    from gamma_runtime.engines.host import Device, this_device
    from gamma_runtime.engines.load import LoadedEngine, fitting_engine, load_engine, why_not, why_stale
    from gamma_runtime.engines.options import BuildProgress, EngineOptions, parse_capabilities
    from gamma_runtime.engines.store import read_plan
    from gamma_runtime.engines.use import EngineUse

_HOMES = {
    "build": ("build_engines", "require_flavour", "select_graphs"),
    "host": ("Device", "this_device"),
    "load": ("LoadedEngine", "fitting_engine", "load_engine", "why_not", "why_stale"),
    "options": ("BuildProgress", "EngineOptions", "parse_capabilities"),
    "store": ("read_plan",),
    "use": ("EngineUse",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BuildProgress",
    "Device",
    "EngineOptions",
    "EngineUse",
    "LoadedEngine",
    "build_engines",
    "fitting_engine",
    "load_engine",
    "parse_capabilities",
    "read_plan",
    "require_flavour",
    "select_graphs",
    "this_device",
    "why_not",
    "why_stale",
]


def __getattr__(name: str) -> object:
    """Import a name's module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'gamma_runtime.engines' has no attribute {name!r}")
    return getattr(import_module(f"gamma_runtime.engines.{_HOME[name]}"), name)
