"""TensorRT engines: built in a child process, stored beside the bundle's graphs, loaded only after checks.

``build`` chooses graphs and publishes plans, ``child`` builds one, ``worker`` watches it, ``store`` keeps plans and
engines.json, ``load`` finds the plan that fits a device. Nothing here imports TensorRT until it is needed.
"""

from gamma_runtime.engines.build import build_engines, require_flavour, select_graphs
from gamma_runtime.engines.host import Device, this_device
from gamma_runtime.engines.load import LoadedEngine, fitting_engine, load_engine, why_not, why_stale
from gamma_runtime.engines.options import BuildProgress, EngineOptions, parse_capabilities
from gamma_runtime.engines.store import read_plan
from gamma_runtime.engines.use import EngineUse

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
