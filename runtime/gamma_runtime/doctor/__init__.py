"""gamma-doctor: what this machine has, what disturbs here and what to do about it, which bundles and engines fit."""

from __future__ import annotations

from gamma_runtime.doctor.bundles import BundleFacts, EngineFacts
from gamma_runtime.doctor.facts import Facts, diagnose
from gamma_runtime.doctor.findings import Finding
from gamma_runtime.doctor.render import render

__all__ = ["BundleFacts", "EngineFacts", "Facts", "Finding", "diagnose", "render"]
