"""A real bundle of a tiny Gamma, exported once a session; tests copy the folder and damage the copy."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gamma_runtime.bundle import MANIFEST, seal

SCENES = ("natural-quality", "face-quality")


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="gamma-tests-")  # removed when the interpreter ends


@functools.cache
def checkpoint(seed: int = 7) -> Path:
    """Two blocks, one with experts, width 64; random weights in the authors' layout."""
    from gamma_training.checkpoint import write_authors
    from gamma_training.dims import FULL_SIZE
    from gamma_training.initialise import random_state, smaller

    path = Path(_root().name) / f"tiny-{seed}.pth"
    dims = smaller(FULL_SIZE, width=64, layers=2, first_moae=1)
    write_authors(path, random_state(dims, seed), label="untrained", prompts="sdp")
    return path


@functools.cache
def photos() -> Path:
    """A folder with two of the packaged photos: six verification crops instead of 48."""
    from gamma_export.photos import packaged_photos

    folder = Path(_root().name) / "photos"
    folder.mkdir()
    for photo in packaged_photos()[:2]:
        shutil.copy(photo, folder)
    return folder


def options(**changes: Any) -> Any:
    """The quickest export there is."""
    from gamma_export.exporter import ExportOptions

    quick = {"crops": "centre", "photos": photos(), "scene": SCENES, "threads": 1}
    return ExportOptions(**(quick | changes))


def arguments(**changes: str) -> list[str]:
    """The same as flags of gamma-export."""
    flags = {"crops": "centre", "photos": str(photos()), "scene": ",".join(SCENES), "threads": "1"} | changes
    return [str(checkpoint()), *(part for name, value in flags.items() for part in (f"--{name}", value))]


@functools.cache
def exported(seed: int = 7, precision: str = "fp16") -> Path:
    """A published bundle of two scenes and their joint graph; read-only by agreement: copy it."""
    from gamma_export.exporter import export

    out = Path(_root().name) / f"tiny-{seed}-{precision}.gamma"
    assert export(checkpoint(seed), out, options(precision=(precision,))).published
    return out


def copy(to: Path, seed: int = 7, precision: str = "fp16") -> Path:
    """A bundle of one's own."""
    shutil.copytree(exported(seed, precision), to)
    return to


def publish_again(out: Path, new: Path, lock_timeout: float = 1.0) -> None:
    """Publish the files of another bundle as gamma-export does once it has made and proven them."""
    from gamma_export.publish import add_file, check_output, publish, staging
    from gamma_runtime.bundle import open_bundle

    made = open_bundle(new).manifest
    check_output(out, None)
    with staging(out) as stage:
        for entry in made.files:
            add_file(stage, entry.name.rpartition("-")[0], Path(entry.name).suffix, (new / entry.name).read_bytes())
        publish(stage, out, made, lock_timeout)


def manifest(bundle: Path) -> dict[str, Any]:
    """What manifest.json says."""
    data: dict[str, Any] = json.loads((bundle / MANIFEST).read_bytes())
    return data


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest as somebody would who knows how it is sealed."""
    data = manifest(bundle)
    change(data)
    if data.get("contract") not in (None, manifest(bundle)["contract"]):
        contract = json.dumps(data["contract"], sort_keys=True, separators=(",", ":"))
        data["contract_sha256"] = hashlib.sha256(contract.encode()).hexdigest()
    (bundle / MANIFEST).write_bytes(seal(data))


def vouch(bundle: Path, name: str, content: bytes) -> None:
    """Replace a file, and let the manifest vouch for it."""
    (bundle / name).write_bytes(content)

    def change(data: dict[str, Any]) -> None:
        (entry,) = (entry for entry in data["files"] if entry["name"] == name)
        entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    rewrite(bundle, change)


def graph(bundle: Path, name: str = SCENES[0]) -> dict[str, Any]:
    """A graph's entry."""
    (entry,) = (entry for entry in manifest(bundle)["graphs"] if entry["name"] == name)
    return dict(entry)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path under a folder with its content (None for folders, links by their target), but for the lock."""

    def content(path: Path) -> bytes | None:
        if path.is_symlink():
            return os.fsencode(os.readlink(path))
        return None if path.is_dir() else path.read_bytes()

    return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob("*")) if path.name != ".lock"}


def whole(bundle: Path) -> str:
    """The bundle's digest, after every file of it was checked."""
    from gamma_runtime.bundle import open_bundle

    opened = open_bundle(bundle)
    opened.check_files()
    return opened.sha256


def spawn(command: str, args: Sequence[str | Path], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """One of our commands in a process of its own."""
    home = "gamma_export" if command in ("export", "verify") else "gamma_runtime"
    start = f"import sys; from {home}.commands.{command} import main; sys.exit(main())"
    argv = [sys.executable, "-c", start, *map(str, args)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, **kwargs)


def export_command(*extra: str | Path, **changes: str) -> int:
    """gamma-export in this process, where torch is loaded already; its exit code."""
    from gamma_export.commands import export
    from gamma_runtime.cli import run_command

    argv = [*arguments(**changes), *map(str, extra)]
    return run_command("gamma-export", export.export_command, export.ExportCommand, argv)


COMMANDS = ("run", "verify", "build", "doctor")


def command(name: str, bundle: Path, photo: str) -> int:
    """One of the commands that read a bundle, in this process; its exit code."""
    from gamma_export.commands import verify
    from gamma_runtime.cli import run_command
    from gamma_runtime.commands import build, doctor, run

    known: dict[str, tuple[Any, Any, list[str]]] = {
        "run": (run.run, run.RunOptions, [photo, "--threads", "1", "--json"]),
        "verify": (verify.verify_command, verify.VerifyOptions, ["--threads", "1", "--json"]),
        "build": (build.build, build.BuildOptions, ["--engine", "tensorrt-rtx", "--json"]),
        "doctor": (doctor.doctor, doctor.DoctorOptions, ["--json"]),
    }
    function, options_type, rest = known[name]
    return run_command(f"gamma-{name}", function, options_type, [str(bundle), *rest, "--quiet"])
