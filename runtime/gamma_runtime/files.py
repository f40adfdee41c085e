"""Writing files so that a crash leaves the old one or the new one, never a mix (hostile_inputs.md rows 42 to 45)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gamma_runtime.errors import OutputError, UsageError

__all__ = [
    "LOCK",
    "TEMPORARY_PREFIX",
    "check_path",
    "duplicate",
    "hash_file",
    "lock_file",
    "locked",
    "sweep_temporaries",
    "sync_directory",
    "temporary_beside",
    "write_atomically",
]

_CHUNK = 1 << 20
LOCK = ".lock"
TEMPORARY_PREFIX = ".gamma-tmp-"
_TEMPORARY_MAX_AGE = 3600.0  # seconds


def check_path(path: Path) -> None:
    """Refuse a path that no file system, or none of the ONNX libraries, can be given.

    Raises:
        UsageError: a NUL in it, or its bytes are not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{os.fsencode(path)!r}: this path is not UTF-8, and ONNX libraries take no other", hint="rename it"
        ) from error
    if "\0" in str(path):
        raise UsageError(f"{str(path)!r}: a path with a NUL in it")


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
    handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY_PREFIX}{os.getpid()}-", dir=target.parent)
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


def duplicate(source: Path, target: Path) -> None:
    """Give a file that is only ever replaced as a whole a second name, a hard link; a copy where there are none.

    Raises:
        OutputError: it cannot be written; an old target is untouched.
    """
    try:
        with temporary_beside(target) as temporary:
            temporary.unlink()
            try:
                os.link(source, temporary)
            except OSError:  # file systems of cameras, clouds and networks
                shutil.copyfile(source, temporary)
                with temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
            temporary.replace(target)
        sync_directory(target.parent)
    except OSError as error:
        hint = "check the free space and the permissions"
        raise OutputError(f"{target}: cannot be written ({error})", hint=hint) from error


def sweep_temporaries(folder: Path, age: float = _TEMPORARY_MAX_AGE) -> None:
    """Remove our own temporary files and folders that are older (seconds; an hour) and whose process is gone.

    The age is for processes that cannot be seen from here; who holds the folder's lock may give 0.
    """
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        pid = path.name.removeprefix(TEMPORARY_PREFIX).split("-")[0]
        with contextlib.suppress(OSError):
            status = path.lstat()
            old = time.time() - status.st_mtime >= age
            if old and not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
                shutil.rmtree(path) if stat.S_ISDIR(status.st_mode) else path.unlink()


@contextlib.contextmanager
def locked(folder: Path, timeout: float) -> Iterator[None]:
    """Keep other writers out of a folder while the block runs.

    Raises:
        OutputError: another process holds the lock for longer than ``timeout`` seconds, or there can be no lock.
    """
    with lock_file(folder / LOCK, timeout, f"{folder}: another process is writing there"):
        yield


@contextlib.contextmanager
def lock_file(
    path: Path, timeout: float, busy: str, hint: str = "wait for it, or raise --lock-timeout"
) -> Iterator[None]:
    """Hold the lock that a file stands for; the file stays, the lock ends with the process at the latest.

    Args:
        path: made when it does not exist.
        timeout: seconds to wait for who holds it.
        busy: the error's words when that was not enough.
        hint: its hint then.

    Raises:
        OutputError: it was not, or there can be no lock.
    """
    deadline = time.monotonic() + timeout
    while (lock := _try_lock(path)) is None:
        if time.monotonic() >= deadline:
            raise OutputError(f"{busy} (waited {timeout:g} s)", hint=hint)
        time.sleep(0.1)
    try:
        yield
    finally:
        os.close(lock)


def _try_lock(path: Path) -> int | None:
    """The open and locked file; None while somebody else holds it."""
    import fcntl

    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, lock)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _still_there(lock, path):
                    stack.pop_all()
                    return lock
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be locked ({error.strerror})", hint="check the permissions and the file system"
        ) from error
    return None


def _still_there(lock: int, path: Path) -> bool:
    """Its last holder may have removed it together with a folder that came to nothing."""
    try:
        return os.path.samestat(os.fstat(lock), os.lstat(path))
    except FileNotFoundError:
        return False
