"""The built wheel: the four packages and nothing else at top level, with their data."""

from __future__ import annotations

import configparser
import email
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HOMES = {"gamma_export": ".", "gamma_runtime": "runtime", "gamma_calib": "calib", "gamma_training": "training"}


@pytest.fixture
def archive(wheel: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(wheel) as opened:
        yield opened


@pytest.fixture
def info(project: dict[str, Any]) -> str:
    return f"gamma_edge-{project['version']}.dist-info"


def test_top_level_is_the_four_packages(archive: zipfile.ZipFile, info: str) -> None:
    assert {name.split("/")[0] for name in archive.namelist()} == {*HOMES, info}


@pytest.mark.parametrize("package", HOMES)
def test_holds_every_source_file(archive: zipfile.ZipFile, root: Path, package: str) -> None:
    home = root / HOMES[package]
    expected = {
        path.relative_to(home).as_posix()
        for path in (home / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
        if path.suffix == ".py" or "data" in path.relative_to(home).parts  # the checkout may lie in a folder `data`
    }
    held = {name for name in archive.namelist() if name.startswith(f"{package}/")}
    assert held == expected | {f"{package}/py.typed"}


def test_compiled_files_stay_outside(archive: zipfile.ZipFile) -> None:
    """The copy that is built from has some in gamma_training.data, as a used checkout does."""
    assert [name for name in archive.namelist() if name.endswith(".pyc")] == []


def test_photos_and_golden_images_are_inside(archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    photos = [name for name in names if name.startswith("gamma_export/data/photos/") and name.endswith(".jpg")]
    golden = [name for name in names if name.startswith("gamma_export/data/golden/golden-")]
    assert len(photos) == 16
    assert len(golden) == 3


def test_pure_python_and_licensed(archive: zipfile.ZipFile, info: str, wheel: Path, root: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert archive.read(f"{info}/licenses/LICENSE") == (root / "LICENSE").read_bytes()
    metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"


def test_base_install_brings_no_heavy_library(archive: zipfile.ZipFile, info: str) -> None:
    metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    base = {line.split(">=")[0] for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert base == {"numpy", "pydantic", "rich", "typing-extensions", "tyro"}


def test_entry_points_are_those_of_pyproject(archive: zipfile.ZipFile, info: str, project: dict[str, Any]) -> None:
    parser = configparser.ConfigParser(delimiters="=")
    parser.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert dict(parser["console_scripts"]) == project["scripts"]


def test_runtime_and_package_agree_on_the_version(project: dict[str, Any]) -> None:
    import gamma_runtime

    assert gamma_runtime.__version__ == project["version"]
