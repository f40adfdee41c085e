"""Plans on disk: named by content, listed in engines.json, which is replaced last and under the lock."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_runtime.bundle import ENGINES, read_engines
from gamma_runtime.engines.options import AMPERE_AND_NEWER
from gamma_runtime.errors import IntegrityError, OutputError
from gamma_runtime.files import locked, sweep_temporaries, sync_directory, write_atomically

if TYPE_CHECKING:
    from gamma_runtime.manifest import EngineEntry, Engines, FileEntry

__all__ = ["plan_stem", "prepare", "publish", "read_plan", "read_recorded", "runtime_cache"]

_OURS = re.compile(
    r"[a-z0-9_-]+-(fp32|fp16|bf16|int8|fp8)-trt(rtx)?[\d.]+-sm[a-z0-9_]+-[0-9a-f]{8}\.(plan|log|rtxcache)"
)
_REBUILD = "gamma-build makes it again"


def plan_stem(graph: str, precision: str, flavour: str, version: str, capabilities: Sequence[str], sha256: str) -> str:
    """``joint-fp16-trtrtx1.7.1-sm86_sm89-1f3c9a2e``; the same content always has the same name."""
    short = ".".join(version.split(".")[:3])
    if list(capabilities) == [AMPERE_AND_NEWER]:
        targets = "sm80up"
    else:
        targets = "_".join(f"sm{capability.replace('.', '')}" for capability in capabilities)
    return f"{graph}-{precision}-trt{'rtx' if flavour == 'tensorrt-rtx' else ''}{short}-{targets}-{sha256[:8]}"


def prepare(folder: Path, needed: int) -> None:
    """Make sure that engines can be written there, before an hour of building.

    Args:
        folder: made if only the last part is missing.
        needed: bytes that the plans will take, about.

    Raises:
        OutputError: not writable, not a folder, or too little space. IntegrityError: engines.json is broken.
    """
    hint = "name another folder with --engine-dir"
    try:
        folder.mkdir(exist_ok=True)
        sweep_temporaries(folder)
        space = os.statvfs(folder)
    except OSError as error:
        raise OutputError(f"{folder}: engines cannot be written there ({error})", hint=hint) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: no permission to write engines there", hint=hint)
    free = space.f_bavail * space.f_frsize
    if free < needed:
        raise OutputError(f"{folder}: {free >> 20} MiB free, the engines need about {needed >> 20} MiB", hint=hint)
    read_engines(folder)


Merge = Callable[["Engines"], "tuple[str, bytes] | None"]


def publish(
    folder: Path, made: Sequence[tuple[Path, str, EngineEntry]], timeout: float, merge: Merge | None = None
) -> None:
    """Give every plan its name, then replace engines.json, then remove what nothing refers to any more.

    Args:
        folder: where the plans' temporary files already lie.
        made: temporary plan, text of the build log, entry.
        timeout: seconds to wait for the lock.
        merge: asked under the lock, with engines.json as it is now, for the name and content of a timing cache to keep.

    Raises:
        OutputError: disk, permission or lock; engines.json and its plans stay as they were.
    """
    try:
        with locked(folder, timeout):
            old = read_engines(folder)
            kept = [entry for entry in old.engines if _key(entry) not in {_key(new) for _, _, new in made}]
            try:
                for plan, log, entry in made:
                    plan.replace(folder / entry.file)
                    write_atomically(folder / entry.log, log.encode())
                sync_directory(folder)
                caches = _keep_cache(folder, old, merge(old) if merge else None)
                engines = old.model_copy(
                    update={"engines": [*kept, *(entry for _, _, entry in made)], "timing_caches": caches}
                )
                write_atomically(folder / ENGINES, (engines.model_dump_json(indent=2) + "\n").encode())
            except BaseException:  # a signal too
                # engines.json may be the new one already: its folder could not be synced.
                for name in {name for _, _, new in made for name in (new.file, new.log)} - _names(read_engines(folder)):
                    (folder / name).unlink(missing_ok=True)
                raise
            _sweep(folder, _names(engines))
    except OSError as error:
        raise OutputError(
            f"{folder}: engines cannot be written ({error})", hint="check space and permissions"
        ) from error


def _names(engines: Engines) -> set[str]:
    return {name for entry in engines.engines for name in (entry.file, entry.log, runtime_cache(entry))}


def runtime_cache(entry: EngineEntry) -> str:
    """Name of the file in which TensorRT-RTX's kernels for a plan are kept; engines.json does not record it."""
    return f"{entry.file.removesuffix('.plan')}.rtxcache"


def _keep_cache(folder: Path, old: Engines, cache: tuple[str, bytes] | None) -> list[FileEntry]:
    """Write a timing cache, and what engines.json then records of all of them.

    It has one name for good, as trtexec and others expect it; a crash between this and engines.json leaves a cache that
    does not match its record, which the next build ignores.
    """
    from gamma_runtime.manifest import FileEntry

    if cache is None:
        return old.timing_caches
    name, content = cache
    write_atomically(folder / name, content)
    new = FileEntry(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return [*(entry for entry in old.timing_caches if entry.name != name), new]


def _key(entry: EngineEntry) -> tuple[object, ...]:
    """Two engines with the same key serve the same purpose: the newer one replaces the older."""
    return entry.graph, entry.precision, entry.flavour, entry.version, tuple(entry.compute_capabilities)


def _sweep(folder: Path, listed: set[str]) -> None:
    """Remove plans, logs and kernels of ours that engines.json does not list: replaced, or left by a crash."""
    for path in folder.iterdir():
        if path.name not in listed and _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)


def read_plan(folder: Path, entry: EngineEntry) -> bytes:
    """A plan's bytes, after size and SHA-256 of these very bytes were compared with engines.json.

    Raises:
        IntegrityError: missing, changed, or not a plain file.
    """
    return read_recorded(folder, entry.file, entry.size, entry.sha256)


def read_recorded(folder: Path, name: str, size: int, sha256: str) -> bytes:
    """The bytes of a file that engines.json records, after size and SHA-256 of these very bytes were compared.

    Raises:
        IntegrityError: missing, changed, or not a plain file.
    """
    path = folder / name
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise IntegrityError(f"{path}: in {ENGINES}, but {error.strerror}", hint=_REBUILD) from error
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # 0: replaced since it was opened, and whole
            raise IntegrityError(f"{path}: not a plain file of its own (link, device or pipe)", hint=_REBUILD)
        if status.st_size != size:
            raise IntegrityError(f"{path}: {status.st_size} bytes, {ENGINES} says {size}", hint=_REBUILD)
        content = stream.read(size + 1)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise IntegrityError(
            f"{path}: sha256 {found[:12]}… does not match {sha256[:12]}… in {ENGINES}; it was not loaded",
            hint=_REBUILD,
        )
    return content
