"""Reading a bundle: nothing is handed to a parser before its size and SHA-256 were compared with the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_runtime.errors import InputError, IntegrityError
from gamma_runtime.files import hash_file

if TYPE_CHECKING:
    from gamma_runtime.contract import Contract
    from gamma_runtime.manifest import Engines, FileEntry, GraphEntry, Manifest

__all__ = ["ENGINES", "MANIFEST", "Bundle", "open_bundle", "read_engines"]

MANIFEST = "manifest.json"
ENGINES = "engines.json"
_MAX_JSON = 16 * 2**20  # bytes; a manifest is a few kilobytes
_RESTORE = "re-run gamma-export, or restore the file"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle: the folder, its checked manifest, and the SHA-256 of manifest.json."""

    folder: Path
    manifest: Manifest
    sha256: str

    def file(self, name: str) -> Path:
        """The path of a file that the manifest names, after its size and SHA-256 were checked.

        Raises:
            IntegrityError: missing, changed, a link or not a regular file, or not named by the manifest.
        """
        entries = {entry.name: entry for entry in self.manifest.files}
        if name not in entries:
            raise IntegrityError(f"{self.folder / name}: the manifest does not name this file")
        return check_file(self.folder, entries[name])

    def contract(self) -> Contract:
        """The contract that every image goes through.

        Raises:
            IntegrityError: the contract's digest does not match. InputError: a contract of a newer version.
        """
        from gamma_runtime.contract import Contract

        try:
            contract = Contract.from_json(self.manifest.contract)
        except (TypeError, KeyError) as error:
            raise InputError(
                f"{self.folder / MANIFEST}: this contract is not understood ({error})", hint="update gamma-edge"
            ) from error
        if contract.sha256() != self.manifest.contract_sha256:
            raise IntegrityError(f"{self.folder / MANIFEST}: contract does not match its own sha256")
        return contract

    def graph(self, scene: str, precision: str | None = None) -> GraphEntry:
        """The graph that scores a scene: its own one if there is one, else the joint one.

        Raises:
            InputError: no graph of this bundle scores that scene, or not in that precision.
        """
        fitting = [g for g in self.manifest.graphs if scene in g.scenes and precision in (None, g.precision)]
        if not fitting:
            have = sorted({f"{s} ({g.precision})" for g in self.manifest.graphs for s in g.scenes})
            wanted = f"{scene} ({precision})" if precision else scene
            raise InputError(f"{self.folder}: no graph for scene {wanted}", hint=f"this bundle has {', '.join(have)}")
        return min(fitting, key=lambda g: len(g.scenes))


def check_file(folder: Path, entry: FileEntry) -> Path:
    """Compare one file with its entry (size first, then SHA-256).

    Raises:
        IntegrityError: anything differs, or the file is a link, a device or a pipe.
    """
    path = folder / entry.name
    try:
        status = os.lstat(path)
    except OSError as error:
        raise IntegrityError(
            f"{path}: named by the manifest, but {error.strerror}", hint="re-run gamma-export"
        ) from error
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise IntegrityError(
            f"{path}: not a plain file of its own (link, device or pipe)", hint="copy the real file here"
        )
    if status.st_size != entry.size:
        raise IntegrityError(
            f"{path}: {status.st_size} bytes, the manifest says {entry.size}",
            hint=_RESTORE,
        )
    found = hash_file(path)
    if found != entry.sha256:
        raise IntegrityError(
            f"{path}: sha256 {found[:12]}… does not match the manifest's {entry.sha256[:12]}…",
            hint=_RESTORE,
        )
    return path


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object and the SHA-256 of its bytes.

    Raises:
        IntegrityError: missing, too large, not JSON, or duplicate keys.
    """
    try:
        if not path.is_file() or path.stat().st_size > _MAX_JSON:
            raise IntegrityError(f"{path}: missing, not a file, or larger than {_MAX_JSON} bytes")
        content = path.read_bytes()
        data = json.loads(content, object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: cannot be read ({error})", hint=_RESTORE) from error
    if not isinstance(data, dict):
        raise IntegrityError(f"{path}: not a JSON object")
    return data, hashlib.sha256(content).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("duplicate keys")
    return made


def open_bundle(folder: Path | str) -> Bundle:
    """Read and check a bundle's manifest. Files are checked when they are asked for (`Bundle.file`).

    Raises:
        InputError: no such folder, or a newer schema. IntegrityError: the manifest is missing, broken or contradictory.

    Example:
        >>> bundle = open_bundle("photo.gamma")
        >>> bundle.manifest.default_scene
    """
    folder = Path(os.path.abspath(Path(folder).expanduser()))
    if not folder.is_dir():
        raise InputError(f"{folder}: no such bundle folder", hint="gamma-export CHECKPOINT -o NAME.gamma makes one")
    data, digest = read_json(folder / MANIFEST)
    from pydantic import ValidationError

    from gamma_runtime.manifest import SCHEMA_VERSION, Manifest

    version = data.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"{folder / MANIFEST}: schema {version}, newer than {SCHEMA_VERSION}",
            hint="update gamma-edge",
        )
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(f"{folder / MANIFEST}: {where}: {first['msg']} ({error.error_count()} faults)") from error
    _check_names(folder, manifest)
    return Bundle(folder, manifest, digest)


def _check_names(folder: Path, manifest: Manifest) -> None:
    """Every name exists once, also where the file system ignores case, and every reference resolves."""
    names = [entry.name for entry in manifest.files]
    if len({name.lower() for name in names}) != len(names):
        raise IntegrityError(f"{folder / MANIFEST}: file names collide")
    scenes = {scene.name for scene in manifest.scenes}
    used = {n for g in manifest.graphs for n in (g.onnx, g.weights)} | {g.file for g in manifest.golden}
    if missing := used - set(names):
        raise IntegrityError(f"{folder / MANIFEST}: refers to files it does not list: {sorted(missing)}")
    asked = {s for g in manifest.graphs for s in g.scenes} | {manifest.default_scene}
    if unknown := asked - scenes:
        raise IntegrityError(f"{folder / MANIFEST}: refers to scenes it does not list: {sorted(unknown)}")


def read_engines(folder: Path) -> Engines:
    """The engines built so far; none when engines.json does not exist.

    Raises:
        IntegrityError: engines.json is broken.
    """
    from pydantic import ValidationError

    from gamma_runtime.manifest import SCHEMA_VERSION, Engines

    if not (folder / ENGINES).exists():
        return Engines(schema_version=SCHEMA_VERSION, engines=[])
    data, _ = read_json(folder / ENGINES)
    try:
        return Engines.model_validate(data)
    except ValidationError as error:
        raise IntegrityError(
            f"{folder / ENGINES}: {error.error_count()} faults ({error.errors()[0]['msg']})",
            hint="delete it and run gamma-build",
        ) from error
