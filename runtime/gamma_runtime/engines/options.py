"""What an engine is built with: one frozen dataclass, checked before anything heavy starts."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

from gamma_runtime.errors import UsageError

__all__ = ["AMPERE_AND_NEWER", "LABELS", "BuildProgress", "EngineOptions", "Flavour", "PlanSpec", "parse_capabilities"]

Flavour = Literal["tensorrt", "tensorrt-rtx"]
LABELS: dict[str, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
MAX_LEVEL = 5  # of builder_optimization_level, TensorRT 10.3 to 11.4
AMPERE_AND_NEWER = "8.0+"  # what TensorRT-RTX compiles for when no compute capability is named


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How `build_engines` builds.

    Attributes:
        flavour: ``tensorrt`` builds for the GPU of this machine; ``tensorrt-rtx`` builds without a GPU.
        compute_capabilities: TensorRT-RTX only, such as ``("8.6", "8.9")``; empty means its default, Ampere and newer.
        scene: a scene's own graph; None means the joint graph, or the only one.
        precision: one of the bundle's precisions; None means a plan for each.
        workspace_mib: limit of TensorRT's scratch memory in MiB; None leaves TensorRT's own.
        optimization_level: 0 to 5, how long TensorRT searches; None leaves its own (3).
        low_memory: the options that lower the peak of a build, at the price of a search that is less thorough.
        timing_cache: ``tensorrt`` only: reuse measured tactics of earlier builds, and keep those of this one.
        force: build although the predicted memory does not fit.
        engine_dir: where plans and engines.json go, one folder for one bundle; None means into the bundle.
        lock_timeout: seconds to wait for another process that writes there.
        build_timeout: seconds after which a build is stopped.
        stall_timeout: seconds without any sign of life (progress or log) after which it counts as hung.
    """

    flavour: Flavour = "tensorrt"
    compute_capabilities: tuple[str, ...] = ()
    scene: str | None = None
    precision: str | None = None
    workspace_mib: int | None = None
    optimization_level: int | None = None
    low_memory: bool = False
    timing_cache: bool = True
    force: bool = False
    engine_dir: Path | None = None
    lock_timeout: float = 60.0
    build_timeout: float = 7200.0
    stall_timeout: float = 1200.0

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            UsageError: naming the option.
        """
        if self.flavour not in LABELS:
            raise UsageError(f"unknown engine {self.flavour!r}", hint=f"one of {', '.join(LABELS)}")
        if self.compute_capabilities and self.flavour != "tensorrt-rtx":
            raise UsageError(
                "--compute-capability is for tensorrt-rtx; TensorRT always builds for the GPU it runs on",
                hint="leave it out, or use --engine tensorrt-rtx",
            )
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise UsageError(f"compute capability {capability!r}", hint="written as 8.6 or 8.6,8.9")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"--workspace-mib {self.workspace_mib} is below 1")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= MAX_LEVEL:
            raise UsageError(f"--optimization-level {self.optimization_level} is not 0 to {MAX_LEVEL}")
        if not (self.build_timeout > 0 and self.lock_timeout >= 0):
            raise UsageError("--build-timeout must be above 0 and --lock-timeout at least 0 seconds")
        if not self.stall_timeout > 0:
            raise UsageError("--stall-timeout must be above 0 seconds")


def parse_capabilities(text: str | None) -> tuple[str, ...]:
    """``"8.9,8.6"`` as ``("8.6", "8.9")``: sorted, each once; None and the empty text as none.

    Raises:
        UsageError: a part is not of the form 8.6.
    """
    parts = {part.strip() for part in (text or "").split(",") if part.strip()}
    EngineOptions(flavour="tensorrt-rtx", compute_capabilities=tuple(parts)).check()
    return tuple(sorted(parts, key=lambda part: [int(number) for number in part.split(".")]))


@dataclasses.dataclass(frozen=True)
class BuildProgress:
    """A build under way: ``fraction`` is 0 to 1, or None where the builder does not say; ``elapsed`` in seconds.

    ``remaining`` is an estimate in seconds, None while there is none.
    """

    graph: str
    precision: str
    phase: str
    fraction: float | None
    elapsed: float
    pid: int
    remaining: float | None = None


@dataclasses.dataclass(frozen=True)
class PlanSpec:
    """One plan to build; crosses the process border as JSON.

    ``int8_share``: of the multiply-adds of an int8 graph, those in 8 bits.
    ``inputs`` holds a name, a dtype and the least, optimal and most shape; ``outputs`` a name and a dtype.
    ``timing_cache`` is a file of already checked bytes to start from, ``timing_cache_out`` receives the new ones.
    """

    flavour: Flavour
    onnx: str
    plan: str
    inputs: list[tuple[str, str, list[int], list[int], list[int]]]
    outputs: list[tuple[str, str]]
    precision: str
    int8_share: float | None
    compute_capabilities: list[str]
    workspace_mib: int | None
    optimization_level: int | None = None
    low_memory: bool = False
    timing_cache: str | None = None
    timing_cache_out: str | None = None
