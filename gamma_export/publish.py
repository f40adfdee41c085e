"""Putting a finished bundle in place: content-named files first, the manifest last, old or new but never a mix."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_runtime.bundle import ENGINES, MANIFEST, check_file, parse_manifest, seal
from gamma_runtime.errors import IntegrityError, OutputError
from gamma_runtime.files import (
    LOCK,
    TEMPORARY_PREFIX,
    check_path,
    locked,
    sweep_temporaries,
    sync_directory,
    write_atomically,
)

if TYPE_CHECKING:
    from gamma_runtime.manifest import FileEntry, Manifest

__all__ = ["add_file", "check_output", "check_space", "publish", "staging"]

# Only what we write ourselves is ever swept: holiday-20240131.jpg is somebody's photo.
_GENERATED = re.compile(
    r"([a-z0-9][a-z0-9_-]*-(fp32|fp16|bf16|int8|fp8)-[0-9a-f]{8}\.onnx"
    r"|weights-(fp32|fp16|bf16|int8|fp8)-[0-9a-f]{8}\.bin"
    r"|golden-[0-9]{2}-[0-9a-f]{8}\.(png|jpg|webp))"
)
_ENGINE_FILES = re.compile(r"[a-z0-9_-]+-(fp32|fp16|bf16|int8|fp8)-trt[a-z0-9._-]*\.(plan|log)")
_HINT = "choose another -o NAME.gamma"
_TRIES = 3


def check_output(out: Path, checkpoint: Path | None) -> None:
    """Refuse before any heavy work what cannot be a bundle's place (hostile_inputs.md row 43).

    Raises:
        OutputError: ``out`` is a file, a folder with other things in it, or the checkpoint; its parent is missing or
            not writable; or no file system takes such a name.
        UsageError: the name is not UTF-8, or has a NUL in it.
    """
    check_path(out)
    try:
        if checkpoint is not None and (out == checkpoint.absolute() or _same(out, checkpoint)):
            raise OutputError(f"{out}: output and checkpoint are the same path", hint=_HINT)
        if os.path.lexists(out) and not out.is_dir():
            raise OutputError(f"{out}: exists and is not a folder", hint=_HINT)
        if out.is_dir() and (stranger := _stranger(out)):
            raise OutputError(f"{out}: holds other things ({stranger}); it is not a bundle", hint=_HINT)
        parent = out if out.is_dir() else out.parent
        if not parent.is_dir():
            raise OutputError(f"{parent}: no such folder", hint=f"mkdir -p {shlex.quote(str(parent))}")
    except OSError as error:  # too long
        raise OutputError(f"{out}: cannot be used ({error})", hint=_HINT) from error
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent}: not writable", hint="check the permissions, or choose another place")


def _same(out: Path, checkpoint: Path) -> bool:
    return out.exists() and checkpoint.exists() and out.samefile(checkpoint)


def _stranger(folder: Path) -> str | None:
    """The first name that keeps a folder from being a bundle, or a bundle to be.

    Our manifest makes it one, whatever lies beside it. A broken manifest does so if all else looks like ours: many
    projects have a manifest.json of their own, and files with eight hex digits beside it.
    """
    manifest = folder / MANIFEST
    if os.path.lexists(manifest):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            return None if _is_ours(json.loads(manifest.read_bytes())) else MANIFEST
    known = (MANIFEST, ENGINES, LOCK) if os.path.lexists(manifest) else (LOCK,)
    for name in sorted(os.listdir(folder)):
        ours = _GENERATED.fullmatch(name) or _ENGINE_FILES.fullmatch(name)
        if not (name in known or name.startswith(TEMPORARY_PREFIX) or ours):
            return name
    return None


def _is_ours(manifest: Any) -> bool:
    return isinstance(manifest, dict) and {"schema_version", "graphs", "files"} <= set(manifest)


def check_space(folder: Path, needed: int) -> None:
    """Refuse what will not fit.

    Raises:
        OutputError: fewer than ``needed`` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(f"{folder}: {free >> 20} MiB free, about {needed >> 20} MiB needed", hint="free some space")


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder inside ``out`` for files under construction; gone afterwards, and so is ``out`` if nothing came of it.

    What exporters that were killed left there more than an hour ago is swept.

    Raises:
        OutputError: it cannot be made.
    """
    existed = out.is_dir()
    # Named before it exists: a signal may come between the making and the next line.
    stage = out / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        try:
            _make(out, stage)
        except OSError as error:
            raise OutputError(
                f"{out}: cannot be made ({error.strerror})", hint="check the path and the permissions"
            ) from error
        try:
            yield stage
        except Exception as error:
            if stage.is_dir():
                raise
            raise OutputError(
                f"{out}: removed while the bundle was being made there ({stage.name} is gone)", hint="export again"
            ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not existed:
            _remove_if_empty(out)


def _make(out: Path, stage: Path) -> None:
    for attempt in range(_TRIES):
        out.mkdir(exist_ok=True)
        sweep_temporaries(out)
        try:
            stage.mkdir(mode=0o700)
        except FileNotFoundError:  # another exporter failed just now and took its empty folder away
            if attempt == _TRIES - 1:
                raise
        else:
            return


def _remove_if_empty(out: Path) -> None:
    """Undo our own mkdir, unless another exporter is at work there."""
    with contextlib.suppress(OSError, OutputError):
        if os.listdir(out) == [LOCK]:
            with locked(out, 0):
                (out / LOCK).unlink()  # who waits for it sees that it is gone
                out.rmdir()
        else:
            out.rmdir()


def add_file(stage: Path, stem: str, suffix: str, content: bytes) -> FileEntry:
    """Write ``STEM-DIGEST.SUFFIX`` into the staging folder.

    Raises:
        OutputError: the disk is full.
    """
    import hashlib

    from gamma_runtime.manifest import FileEntry

    digest = hashlib.sha256(content).hexdigest()
    name = f"{stem}-{digest[:8]}{suffix}"
    write_atomically(stage / name, content)
    return FileEntry(name=name, size=len(content), sha256=digest)


def publish(stage: Path, out: Path, manifest: Manifest, lock_timeout: float) -> None:
    """Move the staged files in, replace the manifest, then remove what neither it nor the one before it names.

    Raises:
        OutputError: another writer holds the lock, or the disk failed; the old bundle still stands.
    """
    content = seal(manifest.model_dump(mode="json"))
    parse_manifest(out / MANIFEST, json.loads(content))  # what no reader would take is not published
    with locked(out, lock_timeout):
        before = _names(out / MANIFEST)
        moved: set[str] = set()
        try:
            for entry in manifest.files:
                if not _in_place(out, entry):
                    moved.add(entry.name)
                    (stage / entry.name).replace(out / entry.name)
            sync_directory(out)
            write_atomically(out / MANIFEST, content)
        except BaseException as error:
            _remove(out, moved - before - _names(out / MANIFEST))  # the manifest may be the new one already
            if isinstance(error, OSError):
                raise OutputError(
                    f"{out}: cannot be written ({error})", hint="the old bundle is untouched; check the disk"
                ) from error
            raise
        with contextlib.suppress(OSError):
            sync_directory(out.parent)
        _remove(out, _generated(out) - before - {entry.name for entry in manifest.files})


def _in_place(out: Path, entry: FileEntry) -> bool:
    """Whether a reader would take the file that is there already."""
    try:
        check_file(out, entry)
    except IntegrityError:
        return False
    return True


def _generated(out: Path) -> set[str]:
    """Names of the graphs, weights and golden images of all generations."""
    with contextlib.suppress(OSError):
        return {name for name in os.listdir(out) if _GENERATED.fullmatch(name)}
    return set()


def _remove(out: Path, names: set[str]) -> None:
    """A leftover is no reason to call a publication failed."""
    for name in names:
        with contextlib.suppress(OSError):
            (out / name).unlink()


def _names(manifest: Path) -> set[str]:
    """Files of the generation that is being replaced: a reader may still be opening them."""
    try:
        return {entry["name"] for entry in json.loads(manifest.read_bytes())["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()  # none, or broken: the new bundle takes its place
