"""Every library that code or tests import is named in pyproject.toml; the tests', in extras that `make` installs."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

MADE = ("cpu", "export", "train", "rtx", "dev", "fuzz")
PACKAGES = ("gamma_export", "runtime/gamma_runtime", "calib/gamma_calib", "training/gamma_training")
OWN = {"gamma_export", "gamma_runtime", "gamma_calib", "gamma_training"}


def third_party(paths: Iterable[Path]) -> set[str]:
    """The top-level names of all absolute imports that neither Python nor this project brings."""
    names: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.split(".")[0])
    return names - OWN - sys.stdlib_module_names


def declared(project: dict[str, Any], extras: Iterable[str]) -> set[str]:
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return {canonicalize_name(Requirement(line).name) for group in groups for line in group}


def undeclared(names: Iterable[str], known: set[str]) -> set[str]:
    """Import names that are installed, but by no distribution that is declared."""
    brought_by = importlib.metadata.packages_distributions()
    return {
        name
        for name in names
        if name in brought_by and not known & {canonicalize_name(dist) for dist in brought_by[name]}
    }


def test_packages_use_declared_libraries(project: dict[str, Any], root: Path) -> None:
    sources = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    known = declared(project, project["optional-dependencies"])
    assert undeclared(third_party(sources), known | {"tensorrt-rtx-cu13"}) == set()


def test_tests_use_what_make_installs(project: dict[str, Any], root: Path) -> None:
    known = declared(project, MADE) | {"tensorrt-rtx-cu13"}  # tensorrt-rtx is a name that only brings this one
    names = third_party((root / "tests").rglob("*.py")) - {"conftest", "tomli"}  # tomli: pytest's, on Python 3.10
    assert undeclared(names, known) == set()


def test_cpu_and_gpu_extras_exclude_each_other(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    for name in extras:
        runtimes = declared(project, [name]) & {"onnxruntime", "onnxruntime-gpu"}
        assert len(runtimes) <= 1, name
    assert "onnxruntime" not in declared(project, ["export", "rtx", "dev", "train", "jetson"])


def test_an_undeclared_library_is_caught() -> None:
    assert undeclared({"torch", "pytest"}, {"pytest"}) == {"torch"}
