"""Reading a bundle: nothing is handed to a parser before its size and SHA-256 were compared with the manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from gamma_runtime.cli import printable
from gamma_runtime.errors import EnvironmentFault, GammaError, InputError, IntegrityError
from gamma_runtime.files import check_path

if TYPE_CHECKING:
    from gamma_runtime.contract import Contract
    from gamma_runtime.manifest import Engines, FileEntry, GraphEntry, Manifest

__all__ = [
    "ENGINES",
    "MANIFEST",
    "Bundle",
    "open_bundle",
    "open_plain",
    "parse_json",
    "parse_manifest",
    "read_engines",
    "seal",
]

MANIFEST = "manifest.json"
ENGINES = "engines.json"
_SEAL = "manifest_sha256"
_NO_SEAL = "0" * 64
_MAX_JSON = 16 * 2**20  # bytes; a manifest is a few kilobytes
_MAX_DEPTH = 32  # objects and lists inside each other; a manifest has five
_MAX_WORDS = 200  # characters of a foreign text in a message
_CHUNK = 1 << 20
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

    def graph_file(self, graph: GraphEntry) -> Path:
        """The path of a graph's ONNX file, after it and its weights were checked; it refers to these weights only.

        Raises:
            IntegrityError: a file changed, or the graph refers to another one. InputError: not an ONNX graph, or
                operators outside the standard.
        """
        from gamma_runtime.onnx_scan import check_graph_file

        self.file(graph.weights)
        onnx = self.file(graph.onnx)
        check_graph_file(onnx, graph.weights, next(e.size for e in self.manifest.files if e.name == graph.weights))
        return onnx

    def check_files(self) -> None:
        """Check every file that the manifest names.

        Raises:
            IntegrityError: some are missing or changed; all of them are listed.
        """
        faults: list[IntegrityError] = []
        for entry in self.manifest.files:
            try:
                check_file(self.folder, entry)
            except IntegrityError as error:
                faults.append(error)
        if len(faults) > 1:
            listed = "; ".join(fault.message for fault in faults)
            raise IntegrityError(f"{len(faults)} of {len(self.manifest.files)} files: {listed}", hint=_RESTORE)
        if faults:
            raise faults[0]

    def contract(self) -> Contract:
        """The contract that every image goes through.

        Raises:
            InputError: a contract of a newer version: it has rules that this one would not carry out.
            IntegrityError: it does not cover every scene.
        """
        from gamma_runtime.contract import Contract

        try:
            contract = Contract.from_json(self.manifest.contract)
        except (TypeError, KeyError, ValueError, AttributeError, GammaError) as error:
            raise InputError(
                f"{self.folder / MANIFEST}: this contract is not understood ({_words(error)})",
                hint="it needs a newer gamma-edge: update",
            ) from error
        if missing := {scene.name for scene in self.manifest.scenes} - set(contract.short_sides):
            raise IntegrityError(f"{self.folder / MANIFEST}: the contract lacks scenes: {sorted(missing)}")
        return contract

    def graph(self, scene: str, precision: str | None = None) -> GraphEntry:
        """The graph with which a CPU scores a scene: its own one if there is one, else the joint one.

        Raises:
            InputError: no graph of this bundle scores that scene, or not in that precision.
        """
        runnable = [g for g in self.manifest.graphs if g.target != "tensorrt"]
        fitting = [g for g in runnable if scene in g.scenes and precision in (None, g.precision)]
        if not fitting:
            have = sorted({f"{s} ({g.precision})" for g in self.manifest.graphs for s in g.scenes})
            wanted = f"{scene} ({precision})" if precision else scene
            raise InputError(f"{self.folder}: no graph for scene {wanted}", hint=f"this bundle has {', '.join(have)}")
        return min(fitting, key=lambda g: len(g.scenes))


@contextlib.contextmanager
def open_plain(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is nothing but a file: links could change under us, pipes and devices never end.

    Raises:
        IntegrityError: missing, unreadable, a link, a folder, a device or a pipe.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # 0: replaced since it was opened, and whole
            os.close(handle)
            _refuse_odd(path)
        with os.fdopen(handle, "rb") as stream:
            yield stream
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise EnvironmentFault(f"{path}: {error.strerror}", hint="raise ulimit -n, or close other files") from error
        if error.errno in (errno.ELOOP, errno.ENXIO):
            _refuse_odd(path)
        raise IntegrityError(f"{path}: cannot be read: {error.strerror}", hint=_RESTORE) from error


def _refuse_odd(path: Path) -> NoReturn:
    raise IntegrityError(
        f"{path}: not a plain file of its own (link, folder, device or pipe)", hint="copy the real file here"
    )


def check_file(folder: Path, entry: FileEntry) -> Path:
    """Compare one file with its entry (size first, then SHA-256).

    Raises:
        IntegrityError: anything differs, or the file is a link, a device or a pipe.
    """
    path = folder / entry.name
    digest = hashlib.sha256()
    with open_plain(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != entry.size:
            raise IntegrityError(f"{path}: {size} bytes, the manifest says {entry.size}", hint=_RESTORE)
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()
    if found != entry.sha256:
        raise IntegrityError(
            f"{path}: sha256 {found[:12]}… does not match the manifest's {entry.sha256[:12]}…", hint=_RESTORE
        )
    return path


def read_json(path: Path) -> tuple[dict[str, Any], bytes]:
    """A JSON object and its bytes.

    Raises:
        IntegrityError: missing, a link, too large, not JSON, NaN or infinity, nested too deep, or duplicate keys.
    """
    with open_plain(path) as stream:
        content = stream.read(_MAX_JSON + 1)
    if len(content) > _MAX_JSON:
        raise IntegrityError(f"{path}: larger than {_MAX_JSON} bytes", hint=_RESTORE)
    return parse_json(path, content), content


def parse_json(path: Path, content: bytes, hint: str = _RESTORE) -> dict[str, Any]:
    """A JSON object in bytes that were read from ``path``; ``hint`` says what to do when it is none.

    Raises:
        IntegrityError: not JSON, NaN or infinity, nested too deep, or duplicate keys.
    """
    try:
        data = json.loads(content, object_pairs_hook=_unique, parse_constant=_number, parse_float=_number)
        _check_depth(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: cannot be read ({_words(error)})", hint=hint) from error
    if not isinstance(data, dict):
        raise IntegrityError(f"{path}: not a JSON object", hint=hint)
    return data


def _words(error: object) -> str:
    """Foreign text for a message: short, and harmless on a terminal."""
    return printable(str(error)[:_MAX_WORDS])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("duplicate keys")
    return made


def _number(text: str) -> float:
    """JSON has no NaN and no infinity; Python reads both, and 1e999 as infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_MAX_WORDS]} is not a finite number")
    return value


def _check_depth(data: Any) -> None:
    level = [data]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    if level:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")


def open_bundle(folder: Path | str) -> Bundle:
    """Read and check a bundle's manifest. Files are checked when they are asked for (`Bundle.file`).

    Raises:
        InputError: no such folder, or a newer schema. IntegrityError: the manifest is missing, broken or contradictory.
        UsageError: the folder's path is not UTF-8, or has a NUL in it.

    Example:
        >>> bundle = open_bundle("photo.gamma")
        >>> bundle.manifest.default_scene
    """
    folder = Path(os.path.abspath(os.path.expanduser(folder)))
    check_path(folder)
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such bundle folder", hint="gamma-export CHECKPOINT -o NAME.gamma makes one")
    path = folder / MANIFEST
    data, content = read_json(path)
    _check_schema(path, data)
    _check_seal(path, data, content)
    return Bundle(folder, parse_manifest(path, data), hashlib.sha256(content).hexdigest())


def seal(data: dict[str, Any]) -> bytes:
    """The bytes of a manifest that says its own SHA-256: of the same bytes with 64 zeros in that place.

    A manifest holds the digests of all files; nothing else would notice a digit that changed in it.
    """
    text = json.dumps(data | {_SEAL: _NO_SEAL}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return text.replace(_NO_SEAL, hashlib.sha256(text.encode()).hexdigest(), 1).encode()


def _check_seal(path: Path, data: dict[str, Any], content: bytes) -> None:
    said = data.get(_SEAL)
    if said is None:  # made by hand
        return
    bare = content.replace(str(said).encode(), _NO_SEAL.encode(), 1)
    if hashlib.sha256(bare).hexdigest() != said:
        raise IntegrityError(f"{path}: changed since it was written ({_SEAL} does not match)", hint=_RESTORE)


def parse_manifest(path: Path, data: dict[str, Any]) -> Manifest:
    """The manifest in a JSON object, checked for everything that can be checked without opening another file.

    Raises:
        IntegrityError: broken or contradictory.
    """
    from pydantic import ValidationError

    from gamma_runtime.manifest import Manifest

    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(
            f"{path}: {_words(where)}: {_words(first['msg'])} ({error.error_count()} faults)", hint=_RESTORE
        ) from error
    if fault := _contradiction(manifest):
        raise IntegrityError(f"{path}: {_words(fault)}", hint=_RESTORE)
    return manifest


def _check_schema(path: Path, data: dict[str, Any]) -> None:
    from gamma_runtime.manifest import SCHEMA_VERSION

    version = data.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema {version} needs a newer gamma-edge; this one reads up to {SCHEMA_VERSION}",
            hint="update gamma-edge: pip install -U gamma-edge",
        )


def _contradiction(manifest: Manifest) -> str | None:
    """Names are unique, also where the file system ignores case, every reference resolves, the contract is whole."""
    names = {entry.name for entry in manifest.files}
    if len({name.lower() for name in names} | {MANIFEST, ENGINES}) != len(manifest.files) + 2:
        return "file names collide"
    scenes = {scene.name for scene in manifest.scenes}
    if len(scenes) != len(manifest.scenes) or any(len(set(g.scenes)) != len(g.scenes) for g in manifest.graphs):
        return "a scene is listed twice"
    if len({(g.name, g.precision, g.attention, g.target) for g in manifest.graphs}) != len(manifest.graphs):
        return "a graph is listed twice"
    used = {n for g in manifest.graphs for n in (g.onnx, g.weights)} | {g.file for g in manifest.golden}
    if missing := used - names:
        return f"refers to files it does not list: {sorted(missing)}"
    asked = {s for g in manifest.graphs for s in g.scenes} | {manifest.default_scene}
    asked |= {s for g in manifest.golden for s in (*g.scores, *g.crops_sha256)}
    if unknown := asked - scenes:
        return f"refers to scenes it does not list: {sorted(unknown)}"
    canonical = json.dumps(manifest.contract, sort_keys=True, separators=(",", ":")).encode()
    if hashlib.sha256(canonical).hexdigest() != manifest.contract_sha256:
        return "contract does not match its own sha256"
    return None


def read_engines(folder: Path) -> Engines:
    """The engines built so far; none when engines.json does not exist.

    Raises:
        InputError: a newer schema. IntegrityError: engines.json is broken.
    """
    from pydantic import ValidationError

    from gamma_runtime.manifest import SCHEMA_VERSION, Engines

    if not os.path.lexists(folder / ENGINES):
        return Engines(schema_version=SCHEMA_VERSION, engines=[])
    data, _ = read_json(folder / ENGINES)
    _check_schema(folder / ENGINES, data)
    try:
        return Engines.model_validate(data)
    except ValidationError as error:
        raise IntegrityError(
            f"{folder / ENGINES}: {error.error_count()} faults ({_words(error.errors()[0]['msg'])})",
            hint="delete it and run gamma-build",
        ) from error
