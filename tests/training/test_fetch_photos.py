"""The free photos come out of packages: made here with dpkg-deb, zipfile and a writer of Qt resources."""

from __future__ import annotations

import csv
import json
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from gamma_runtime.cli import run_command
from gamma_runtime.errors import InputError
from tests.training.photos import save
from training.recipes import fetch_photos, qt_rcc

PHOTO = "usr/share/backgrounds/a.png"
RCC = "usr/share/app/pictures.rcc"


def resource(files: dict[str, bytes], compressed: bool = True) -> bytes:
    """A Qt resource of version 1 with one folder `pics`."""
    names, data, nodes = b"", b"", []

    def name(text: str) -> int:
        nonlocal names
        place = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return place

    nodes.append(struct.pack(">IHII", 0, 2, 1, 1))
    nodes.append(struct.pack(">IHII", name("pics"), 2, len(files), 2))
    for text, content in files.items():
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if compressed else content
        nodes.append(struct.pack(">IHHHI", name(text), int(compressed), 0, 0, len(data)))
        data += struct.pack(">I", len(stored)) + stored
    tree = b"".join(nodes)
    head = struct.pack(">4sIIII", b"qres", 1, 20, 20 + len(tree), 20 + len(tree) + len(data))
    return head + tree + data + names


def photo(file: str, registry: str, package: str, path: str) -> fetch_photos.Photo:
    return fetch_photos.Photo(file, registry, package, path, "CC0", "Somebody", "natural")


WANTED = [
    photo("a.png", "apt", "free-photos", PHOTO),
    photo("b.png", "apt", "free-photos", f"{RCC}:pics/b.png"),
    photo("c.png", "pip", "free-wheel", "pkg/data/c.png"),
]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A target folder whose packages were downloaded already."""
    monkeypatch.setattr(fetch_photos, "read_list", lambda _path: list(WANTED))
    downloads = tmp_path / "photos/.packages"
    downloads.mkdir(parents=True)
    content = save(tmp_path / "tree" / PHOTO, seed=1).read_bytes()
    (tmp_path / "tree" / RCC).parent.mkdir(parents=True)
    (tmp_path / "tree" / RCC).write_bytes(resource({"b.png": content}))
    control = tmp_path / "tree/DEBIAN/control"
    control.parent.mkdir()
    control.write_text("Package: free-photos\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n")
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not here")
    command = ["dpkg-deb", "-b", str(tmp_path / "tree"), str(downloads / "free-photos_1_all.deb")]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(downloads / "free_wheel-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pkg/data/c.png", content)
    return tmp_path / "photos"


def run(target: Path, *more: str) -> int:
    return run_command("fetch_photos.py", fetch_photos.fetch, fetch_photos.FetchOptions, [str(target), "--json", *more])


def test_photos_and_credits_are_written_and_packages_removed(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(target) == 0
    assert json.loads(capsys.readouterr().out)["photos"] == 3
    assert sorted(path.name for path in target.iterdir()) == ["a.png", "b.png", "c.png", "credits.csv"]
    with (target / "credits.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["file"], row["licence"]) for row in rows] == [("a.png", "CC0"), ("b.png", "CC0"), ("c.png", "CC0")]


def test_what_is_there_is_kept_and_nothing_is_asked_for(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(target) == 0
    monkeypatch.setenv("PATH", "")
    assert run(target) == 0


def test_without_apt_a_sentence_says_so(
    target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(target / ".packages")
    monkeypatch.setenv("PATH", "")
    assert run(target, "--package", "free-photos") == 3
    captured = capsys.readouterr()
    assert "apt-get is not here, and free-photos comes through it" in captured.err
    assert set(json.loads(captured.out)["failed"]) == {"a.png", "b.png"}


def test_a_package_without_the_photo_is_told(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(target / ".packages/free_wheel-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pkg/other.txt", "")
    assert run(target) == 3
    assert "not in free_wheel-1" in json.loads(capsys.readouterr().out)["failed"]["c.png"]
    assert (target / ".packages").is_dir()  # kept, for another try
    assert (target / "a.png").is_file()


def test_what_is_no_photo_is_not_kept(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(target / ".packages/free_wheel-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pkg/data/c.png", b"<html>")
    assert run(target) == 3
    assert not (target / "c.png").exists()


def test_an_unknown_package_is_refused(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(target, "--package", "gcompris") == 2
    assert "free-photos, free-wheel" in capsys.readouterr().err


@pytest.mark.parametrize("compressed", [True, False])
def test_a_resource_is_read(tmp_path: Path, compressed: bool) -> None:
    files = {"one.png": b"1" * 500, "zwei ä.png": b""}
    (tmp_path / "a.rcc").write_bytes(resource(files, compressed))
    assert dict(qt_rcc.read_rcc(tmp_path / "a.rcc")) == {f"pics/{name}": content for name, content in files.items()}


def _loop(content: bytes) -> bytes:
    """The folder holds itself."""
    return content[:34] + struct.pack(">IHII", 0, 2, 1, 1) + content[48:]


@pytest.mark.parametrize(
    "damage", [lambda c: c[:30], lambda c: b"zres" + c[4:], lambda c: c[:70], _loop, lambda c: c[:60] + b"\xff" * 60]
)
def test_a_damaged_resource_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "a.rcc").write_bytes(damage(resource({"one.png": b"1" * 500})))
    with pytest.raises(InputError):
        list(qt_rcc.read_rcc(tmp_path / "a.rcc"))


@pytest.mark.parametrize(
    ("path", "count", "registries"),
    [(fetch_photos.LIST, 215, {"apt", "pip"}), (fetch_photos.LIST.with_name("more_photos.csv"), 65, {"apt"})],
)
def test_the_list_is_sound(path: Path, count: int, registries: set[str]) -> None:
    photos = fetch_photos.read_list(path)
    assert len(photos) == count
    assert len({one.file for one in photos}) == len(photos)
    assert {one.registry for one in photos} == registries
    assert all(one.licence and "/" not in one.file and not one.path.startswith(("/", "..")) for one in photos)
