"""The timing cache on its way through a run of builds: found, handed to each child, and merged at the end."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from gamma_runtime.bundle import read_engines
from gamma_runtime.engines.host import installed_version
from gamma_runtime.engines.options import EngineOptions
from gamma_runtime.engines.timing import TimingCache, cache_name, read_cache
from gamma_runtime.engines.worker import Limits, combine_caches
from gamma_runtime.errors import GammaError

if TYPE_CHECKING:
    from gamma_runtime.manifest import Engines

__all__ = ["Timings", "find_cache"]

_MERGE = Limits(total=120.0, stall=120.0)  # seconds; starting TensorRT takes most of it


def find_cache(folder: Path, options: EngineOptions, targets: list[str]) -> TimingCache:
    """The timing cache that a build would start from; TensorRT is not imported for it, since that can crash."""
    if options.flavour == "tensorrt-rtx":
        return TimingCache(None, "none")
    if not options.timing_cache:
        return TimingCache(None, "off")
    version = installed_version(options.flavour)
    if version is None:
        warning = "timing cache not used: the installed TensorRT's package does not say its version"
        return TimingCache(None, "ignored", warning=warning)
    return read_cache(folder, cache_name(version, targets[0]), read_engines(folder))


class Timings:
    """What the builds of one run know: each starts from the cache that the one before left."""

    def __init__(self, folder: Path, options: EngineOptions, targets: list[str]) -> None:
        self._folder = folder
        self._flavour = options.flavour
        self._start = find_cache(folder, options, targets)
        self._now = self._start
        self._scratch = tempfile.TemporaryDirectory(prefix="gamma-timing-")

    def __enter__(self) -> Timings:
        """Nothing to do; the scratch folder already exists."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Remove the scratch folder."""
        self._scratch.cleanup()

    def files(self, scratch: Path) -> tuple[Path | None, Path | None]:
        """The file a child starts from, of checked bytes, and the one it writes; None where there is no cache."""
        if self._now.name is None:
            return None, None
        source = None
        if self._now.content is not None:
            source = scratch / "timing.in"
            source.write_bytes(self._now.content)
        return source, scratch / "timing.out"

    def take(self, written: Path | None, refused: str | None) -> TimingCache:
        """Remember what a child wrote; returns the cache that this build started from, or why it did without."""
        used = self._now
        if refused is not None:
            used = TimingCache(used.name, "ignored", warning=f"timing cache not used: {refused}")
        if written is not None and written.is_file() and (content := written.read_bytes()):
            self._now = TimingCache(self._now.name, "usable", content)
        return used

    def merge(self, engines: Engines) -> tuple[str, bytes] | None:
        """Name and content to keep, asked under the lock: ours, and what another build wrote in the meantime.

        Where they cannot be combined ours stays: a cache is worth minutes, never a failed build.
        """
        if self._now.name is None or self._now.content is None or self._now is self._start:
            return None
        name, content = self._now.name, self._now.content
        theirs = read_cache(self._folder, name, engines)
        if theirs.content is None or theirs.content == self._start.content:
            return name, content
        first, second, both = (Path(self._scratch.name) / part for part in ("ours", "theirs", "both"))
        first.write_bytes(content)
        second.write_bytes(theirs.content)
        try:
            combine_caches(self._flavour, first, second, both, _MERGE)
            return name, both.read_bytes()
        except (GammaError, OSError):
            return name, content
