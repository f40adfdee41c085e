"""The dependencies resolve to wheels for the Pythons that are not run here: resolved, not run.

pip evaluates environment markers for the interpreter that runs it, whatever ``--python-version`` says. So the markers
are evaluated here, for the target: of our own requirements, of constraints.txt, and of every resolved package
(`_missing` finds those that only the target needs, and they are resolved in the next round).

Two things are not resolved as the rest is. torch and TensorRT-RTX weigh gigabytes and pip would download them just to
read their requirements: their wheels are looked up in the index listing instead, and torch's own light requirements
are added by name. TensorRT-RTX itself (``tensorrt-rtx`` and ``tensorrt-rtx-cu13``) is published as two small source
archives of pure Python only; the compiled parts behind them are wheels, and those are what is checked.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

EXTRAS = ("cpu", "export", "train", "rtx", "dev", "fuzz")  # what `make` installs
PYTHONS = ("3.10", "3.12")
LISTED = {"torch": ("torch",), "tensorrt-rtx": ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings")}

asks_registry = pytest.mark.usefixtures("registry")


def _environment(python: str) -> dict[str, str]:
    return {"python_version": python, "python_full_version": f"{python}.12", "extra": ""}


def _applies(requirement: Requirement, python: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(_environment(python))


def _wanted(project: dict[str, Any], python: str) -> dict[str, Requirement]:
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    wanted = {canonicalize_name(line.name): line for line in map(Requirement, lines) if _applies(line, python)}
    for line in importlib.metadata.requires("torch") or []:
        light = Requirement(line)
        if _applies(light, python) and not light.name.startswith(("nvidia", "cuda", "triton")):
            wanted.setdefault(canonicalize_name(light.name), light)
    return wanted


def _pins(root: Path, python: str) -> dict[str, Requirement]:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = [pin for pin in map(Requirement, lines) if _applies(pin, python)]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(names) == len(set(names)), "two pins of one package apply"
    return dict(zip(names, pins, strict=True))


def _bare(requirement: Requirement) -> str:
    """The requirement without its marker, which pip would evaluate for the wrong Python."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _pip(arguments: Iterable[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _resolve(wanted: Iterable[Requirement], pins: Iterable[Requirement], python: str, folder: Path) -> dict[str, Any]:
    (folder / "constraints.txt").write_text("\n".join(map(_bare, pins)))
    (folder / "requirements.txt").write_text("\n".join(map(_bare, wanted)))
    report = folder / "report.json"
    target = ["--python-version", python, "--only-binary=:all:", "--target", str(folder / "target")]
    files = ["-r", str(folder / "requirements.txt"), "-c", str(folder / "constraints.txt"), "--report", str(report)]
    _pip(["install", "-q", "--dry-run", "--ignore-installed", *target, *files])
    installed = json.loads(report.read_text())["install"]
    return {canonicalize_name(item["metadata"]["name"]): item for item in installed}


def _missing(resolved: dict[str, Any], python: str) -> dict[str, Requirement]:
    """What the resolved packages need on the target and the running interpreter's markers left out."""
    missing: dict[str, Requirement] = {}
    for item in resolved.values():
        for line in map(Requirement, item["metadata"].get("requires_dist", [])):
            name = canonicalize_name(line.name)
            if _applies(line, python) and name not in resolved:
                missing[name] = line
    return missing


@asks_registry
@pytest.mark.parametrize("python", PYTHONS)
def test_requirements_resolve_to_pinned_wheels(
    project: dict[str, Any], root: Path, tmp_path: Path, python: str
) -> None:
    pins = _pins(root, python)
    wanted = _wanted(project, python)
    for name in LISTED:
        wanted.pop(name, None)
    resolved: dict[str, Any] = {}
    for _ in range(4):
        resolved = _resolve(wanted.values(), pins.values(), python, tmp_path)
        missing = _missing(resolved, python)
        if not missing:
            break
        wanted |= missing
    assert not missing
    assert all(item["download_info"]["url"].endswith(".whl") for item in resolved.values())
    assert set(resolved) - set(pins) == set(), "not pinned in constraints.txt"
    assert all(pins[name].specifier.contains(item["metadata"]["version"]) for name, item in resolved.items())


@asks_registry
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("requirement", "wheels"), LISTED.items())
def test_heavy_wheels_are_listed(
    project: dict[str, Any], root: Path, python: str, requirement: str, wheels: tuple[str, ...]
) -> None:
    asked = _wanted(project, python).get(requirement)
    if asked is None:
        pytest.skip(f"{requirement} is not for {platform.machine()}")
    pins = _pins(root, python)
    for name in wheels:
        listing = _pip(["index", "versions", name, "--json", "--only-binary=:all:", "--python-version", python])
        versions = {Version(version) for version in json.loads(listing)["versions"]}
        assert any(pins[name].specifier.contains(version) for version in versions), f"{name}: {sorted(versions)}"
        assert all(asked.specifier.contains(pin.version) for pin in pins[requirement].specifier)


def test_pins_fit_the_ranges(project: dict[str, Any], root: Path) -> None:
    for python in ("3.10", "3.11", "3.12"):
        pins = _pins(root, python)
        for name, wanted in _wanted(project, python).items():
            (pin,) = pins[name].specifier
            assert wanted.specifier.contains(pin.version), f"{name}: {pin} on Python {python}"


def test_pins_are_what_runs_here(root: Path) -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name, pin in _pins(root, here).items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # TensorRT-RTX off x86-64
        assert pin.specifier.contains(Version(version).public), f"{name} {version} is installed, {pin} is pinned"


@asks_registry
def test_a_wrong_pin_is_caught(project: dict[str, Any], root: Path, tmp_path: Path) -> None:
    pins = _pins(root, "3.10") | {"numpy": Requirement("numpy==2.4.6")}  # no wheel for Python 3.10
    with pytest.raises(AssertionError, match="numpy"):
        _resolve([_wanted(project, "3.10")["numpy"]], pins.values(), "3.10", tmp_path)
