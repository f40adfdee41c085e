"""Putting a finished bundle in place: content-named files first, the manifest last, old or new but never a mix."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_runtime.bundle import MANIFEST
from gamma_runtime.errors import OutputError
from gamma_runtime.files import hash_file, locked, sweep_temporaries, sync_directory, write_atomically

if TYPE_CHECKING:
    from gamma_runtime.manifest import FileEntry, Manifest

__all__ = ["add_file", "check_output", "publish", "staging"]

_CONTENT_NAMED = re.compile(r"[a-z0-9][a-z0-9._-]*-[0-9a-f]{8}\.(onnx|bin|png|jpg|webp)")


def check_output(out: Path, needed: int, checkpoint: Path | None) -> None:
    """Refuse before any heavy work what cannot be written (hostile_inputs.md row 43).

    Raises:
        OutputError: ``out`` is a file, a folder with other things in it, its parent is missing or not writable, or
            fewer than ``needed`` bytes are free. Also if ``out`` is the checkpoint.
    """
    hint = "choose another -o NAME.gamma"
    if checkpoint is not None and out == checkpoint.absolute():
        raise OutputError(f"{out}: output and checkpoint are the same path", hint=hint)
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: exists and is not a folder", hint=hint)
    if out.is_dir() and not (out / MANIFEST).exists():
        strangers = [p.name for p in out.iterdir() if not p.name.startswith(".")]
        if strangers:
            raise OutputError(f"{out}: holds other things ({strangers[0]}, …) and no {MANIFEST}", hint=hint)
    parent = out if out.is_dir() else out.parent
    if not parent.is_dir():
        raise OutputError(f"{parent}: no such folder", hint=f"mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent}: not writable", hint="check the permissions, or choose another place")
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(f"{parent}: {free >> 20} MiB free, about {needed >> 20} MiB needed", hint="free some space")


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder inside ``out`` for files under construction; gone afterwards, and so is ``out`` if nothing came of it.

    Raises:
        OutputError: it cannot be made.
    """
    existed = out.is_dir()
    try:
        out.mkdir(exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".gamma-tmp-{os.getpid()}-", dir=out))
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be made ({error.strerror})", hint="check the path and the permissions"
        ) from error
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not existed and not (out / MANIFEST).exists():
            shutil.rmtree(out, ignore_errors=True)


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
    with locked(out, lock_timeout):
        sweep_temporaries(out)
        before = _names(out / MANIFEST)
        try:
            for entry in manifest.files:
                target = out / entry.name
                if not (target.is_file() and not target.is_symlink() and hash_file(target) == entry.sha256):
                    (stage / entry.name).replace(target)
            sync_directory(out)
        except OSError as error:
            raise OutputError(
                f"{out}: cannot be written ({error})", hint="the old bundle is untouched; check the disk"
            ) from error
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(out / MANIFEST, (text + "\n").encode())
        keep = before | {entry.name for entry in manifest.files}
        for path in out.iterdir():
            if path.name not in keep and _CONTENT_NAMED.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _names(manifest: Path) -> set[str]:
    """Files of the generation that is being replaced: a reader may still be opening them."""
    try:
        return {entry["name"] for entry in json.loads(manifest.read_bytes())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()  # none, or broken: the new bundle takes its place
