"""From a `PlanSpec` to TensorRT's builder configuration: profile, limits, low-memory options, targets, timing cache."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from gamma_runtime.engines.options import LABELS, PlanSpec
from gamma_runtime.engines.progress import Emit, monitor
from gamma_runtime.errors import UsageError

__all__ = ["attach_timing_cache", "capability_members", "combined_cache", "configuration", "trim_heap"]

_LOW_LEVEL = 1


def configuration(spec: PlanSpec, trt: Any, builder: Any, network: Any, emit: Emit) -> Any:
    """The IBuilderConfig of a build. Precision is in the graph, so no flag here touches it."""
    from polygraphy.backend.trt import CreateConfig, Profile

    profile = Profile()
    for name, _, least, optimal, most in spec.inputs:
        profile.add(name, tuple(least), tuple(optimal), tuple(most))
    pools = None
    if spec.workspace_mib is not None:
        pools = {trt.MemoryPoolType.WORKSPACE: spec.workspace_mib << 20}
    level = spec.optimization_level
    if level is None and spec.low_memory:
        # Fewer tactics are tried, so fewer kernels are loaded and compiled. Not 0: that one ignores the timing cache.
        level = _LOW_LEVEL
    config = CreateConfig(
        profiles=[profile],
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        memory_pool_limits=pools,
        progress_monitor=monitor(trt, emit),
        builder_optimization_level=level,
    )(builder, network)
    if spec.low_memory:
        _save_memory(config, trt)
    for index, member in enumerate(members := capability_members(spec, trt)):
        if index == 0:
            config.num_compute_capabilities = len(members)
        config.set_compute_capability(member, index)
    return config


def _save_memory(config: Any, trt: Any) -> None:
    """What lowers the peak beside workspace and level; each where this version has it.

    Left alone: `tiling_optimization_level` is off by default, and `max_num_tactics` bounds how long is searched, one
    tactic after the other, not how much memory one of them takes.
    """
    if hasattr(config, "max_aux_streams"):
        config.max_aux_streams = 0  # parallel streams keep activations from sharing memory (TensorRT's own description)
    if hasattr(trt.BuilderFlag, "DISABLE_COMPILATION_CACHE"):
        # Compiled kernels would be held in, and written into, the timing cache, which they make much larger.
        config.set_flag(trt.BuilderFlag.DISABLE_COMPILATION_CACHE)


def trim_heap() -> None:
    """Give freed memory back to the system before the build; glibc only, elsewhere nothing happens.

    Torch-TensorRT's documentation credits it with twice the weights where a parser copies them.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def capability_members(spec: PlanSpec, trt: Any) -> list[Any]:
    """The enum members of the asked compute capabilities, found by name.

    Raises:
        UsageError: this TensorRT cannot compile for one of them.
    """
    known = trt.ComputeCapability.__members__ if hasattr(trt, "ComputeCapability") else {}
    wanted = {capability: f"SM{capability.replace('.', '')}" for capability in spec.compute_capabilities}
    if missing := [capability for capability, name in wanted.items() if name not in known]:
        have = [f"{name[2:-1]}.{name[-1]}" for name in known if name.startswith("SM")]
        raise UsageError(
            f"{LABELS[spec.flavour]} {trt.__version__} cannot compile for compute capability {', '.join(missing)}",
            hint=f"it knows {', '.join(have)}; a Jetson builds its own engine: gamma-build BUNDLE --engine tensorrt",
        )
    return [known[name] for name in wanted.values()]


def attach_timing_cache(config: Any, content: bytes) -> str | None:
    """Give a build the timings of earlier ones; None when TensorRT took them, else why it builds without.

    Polygraphy has already set an empty cache, which the build fills when this one is refused. TensorRT answers a cache
    that it cannot read with an empty one and a line in the log, so the size tells what became of it.
    """
    cache = config.create_timing_cache(content)
    empty = _size(config.create_timing_cache(b""))
    if cache is None or _size(cache) <= empty < len(content):
        return "TensorRT cannot read it"
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        return "TensorRT refused it: made on another device, or with another CUDA or TensorRT version"
    return None


def _size(cache: Any) -> int:
    return 0 if cache is None else len(memoryview(cache.serialize()))


def combined_cache(config: Any, cache: Any, others: list[Path]) -> bytes:
    """A cache's bytes, with what other cache files add to it; what does not fit is left out."""
    for path in others:
        other = config.create_timing_cache(path.read_bytes())
        if other is not None:
            cache.combine(other, ignore_mismatch=False)
    return bytes(memoryview(cache.serialize()))
