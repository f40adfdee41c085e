"""The timing cache file: what TensorRT measured in earlier builds, kept beside the engines (design.md section 4).

Written by the build's child, which has TensorRT; checked here, which has not. A cache that is not exactly the one that
engines.json records is never given to TensorRT: it holds compiled kernels, and a wrong one costs more than none.
TensorRT-RTX has no timing cache (the calls exist and do nothing), so nothing of this concerns it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gamma_runtime.bundle import ENGINES
from gamma_runtime.engines.store import read_recorded
from gamma_runtime.errors import IntegrityError

if TYPE_CHECKING:
    from gamma_runtime.manifest import Engines

__all__ = ["TimingCache", "cache_name", "read_cache"]

State = Literal["none", "off", "absent", "usable", "ignored"]


@dataclasses.dataclass(frozen=True)
class TimingCache:
    """The cache file as a build finds it.

    ``state`` is ``none`` (this flavour has none), ``off`` (--no-timing-cache), ``absent``, ``usable`` or ``ignored``,
    and ``warning`` says why it is ignored.
    """

    name: str | None
    state: State
    content: bytes | None = None
    warning: str | None = None

    @property
    def sha256(self) -> str | None:
        """Of the usable content."""
        return None if self.content is None else hashlib.sha256(self.content).hexdigest()


def cache_name(version: str, capability: str) -> str:
    """``timing-trt10.3.0-sm87.cache``: one for each TensorRT version and GPU, since neither takes another's."""
    return f"timing-trt{'.'.join(version.split('.')[:3])}-sm{capability.replace('.', '')}.cache"


def read_cache(folder: Path, name: str, engines: Engines) -> TimingCache:
    """The cache in a folder, if it is the very one that engines.json records; never raises."""
    recorded = {entry.name: entry for entry in engines.timing_caches}.get(name)
    if recorded is None:
        if not os.path.lexists(folder / name):
            return TimingCache(name, "absent")
        return TimingCache(name, "ignored", warning=f"timing cache not used: {ENGINES} does not record {name}")
    try:
        return TimingCache(name, "usable", read_recorded(folder, name, recorded.size, recorded.sha256))
    except (OSError, IntegrityError) as error:
        text = error.message if isinstance(error, IntegrityError) else str(error)
        return TimingCache(name, "ignored", warning=f"timing cache not used: {text}")
