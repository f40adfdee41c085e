"""Writing files so that a crash leaves the old one or the new one, never a mix (hostile_inputs.md rows 42 to 45)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gamma_runtime.errors import OutputError

__all__ = ["hash_file", "locked", "sweep_temporaries", "sync_directory", "temporary_beside", "write_atomically"]

_CHUNK = 1 << 20
_TEMPORARY_PREFIX = ".gamma-tmp-"
_TEMPORARY_MAX_AGE = 3600.0  # seconds


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync_directory(folder: Path) -> None:
    """Make renames inside the folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A temporary path in the target's folder; removed at the end unless the caller renamed it away."""
    handle, name = tempfile.mkstemp(prefix=f"{_TEMPORARY_PREFIX}{os.getpid()}-", dir=target.parent)
    os.close(handle)
    path = Path(name)
    path.chmod(0o644)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def write_atomically(target: Path, content: bytes) -> None:
    """Write, fsync, rename, fsync the folder.

    Raises:
        OutputError: the disk is full, or the folder is not writable; the old file is untouched.
    """
    try:
        with temporary_beside(target) as temporary:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        sync_directory(target.parent)
    except OSError as error:
        hint = "check the free space and the permissions"
        raise OutputError(f"{target}: cannot be written ({error})", hint=hint) from error


def sweep_temporaries(folder: Path) -> None:
    """Remove our own temporary files and folders that are over an hour old and whose process is gone."""
    for path in folder.glob(f"{_TEMPORARY_PREFIX}*"):
        pid = path.name.removeprefix(_TEMPORARY_PREFIX).split("-")[0]
        with contextlib.suppress(OSError):
            old = time.time() - path.stat().st_mtime > _TEMPORARY_MAX_AGE
            if old and not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def locked(folder: Path, timeout: float) -> Iterator[None]:
    """Keep other writers out of a folder while the block runs.

    Raises:
        OutputError: another process holds the lock for longer than ``timeout`` seconds.
    """
    import fcntl

    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + timeout
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise OutputError(
                        f"{folder}: another process is writing there (waited {timeout:g} s)",
                        hint="wait for it, or raise --lock-timeout",
                    ) from error
                time.sleep(0.1)
        yield
    finally:
        os.close(lock)
