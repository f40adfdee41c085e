"""Who imports whom, read from the source: gamma_export -> gamma_training, gamma_calib -> gamma_runtime, never back."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

HOMES = {"gamma_export": ".", "gamma_runtime": "runtime", "gamma_calib": "calib", "gamma_training": "training"}
ALLOWED = {
    "gamma_runtime": set[str](),
    "gamma_calib": {"gamma_runtime"},
    "gamma_training": {"gamma_runtime"},
    "gamma_export": {"gamma_training", "gamma_calib", "gamma_runtime"},
}
# Libraries that a leaf's import must not pay for, or that an edge device need not have.
HEAVY = {
    *("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "cv2", "pydantic", "tyro", "scipy"),
    *("simplejpeg", "tensorrt", "tensorrt_rtx", "polygraphy", "safetensors", "matplotlib", "PIL", "cuda", "pycuda"),
    *("skimage", "openpyxl"),
}
EXPORTER_ONLY = {"torch", "onnx", "onnx_ir", "onnxscript"}
MANIFEST = "gamma_runtime.manifest"  # a pydantic model; imported inside functions by everyone else
DYNAMIC_IMPORTS = {"require", "import_module", "__import__"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One import: the importing module, what it names, and whether merely importing the module runs it."""

    module: str
    target: str
    at_import: bool


def _targets(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
        return [f"{base if node.level else node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return [str(node.args[0].value)] if name in DYNAMIC_IMPORTS else []
    return []


def _walk(node: ast.AST, package: str, at_import: bool) -> Iterator[tuple[str, bool]]:
    for target in _targets(node, package):
        yield target, at_import
    lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, package, at_import and not lazy and not typing_only)


def _module_name(path: Path, home: Path) -> str:
    parts = path.relative_to(home).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def scan(home: Path, package: str) -> list[Import]:
    """Every import of a package's source files, also those inside functions and behind TYPE_CHECKING."""
    found = []
    for path in sorted((home / package).rglob("*.py")):
        module = _module_name(path, home)
        inside = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for target, at_import in _walk(ast.parse(path.read_text()), inside, True):
            found.append(Import(module, target, at_import))
    return found


def back_edges(imports: list[Import]) -> list[Import]:
    """The imports of another gamma package that the design does not allow."""
    return [
        item
        for item in imports
        if (top := item.target.split(".")[0]) in ALLOWED
        and top != (own := item.module.split(".")[0])
        and top not in ALLOWED[own]
    ]


def heavy_at_import(imports: list[Import]) -> list[Import]:
    """The imports of a heavy library that already `import module` runs."""
    return [
        item
        for item in imports
        if item.at_import
        and (top := item.target.split(".")[0]) in HEAVY
        and not (top == "pydantic" and item.module == MANIFEST)
    ]


def cycle(imports: list[Import]) -> list[str] | None:
    """A ring of modules that import each other while being imported, or None."""
    modules = {item.module for item in imports}
    graph: dict[str, set[str]] = {}
    for item in imports:
        for target in (item.target, item.target.rpartition(".")[0]):
            if item.at_import and target in modules and target != item.module:
                graph.setdefault(item.module, set()).add(target)
                break
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


@pytest.fixture(scope="module")
def imports(root: Path) -> list[Import]:
    return [item for package, home in HOMES.items() for item in scan(root / home, package)]


def test_packages_import_one_way(imports: list[Import]) -> None:
    assert back_edges(imports) == []
    assert {item.module.split(".")[0] for item in imports} >= {"gamma_export", "gamma_runtime", "gamma_training"}


def test_no_module_cycles(imports: list[Import]) -> None:
    assert cycle(imports) is None


def test_runtime_never_imports_the_exporters_libraries(imports: list[Import]) -> None:
    runtime = [item for item in imports if item.module.startswith("gamma_runtime")]
    assert [item for item in runtime if item.target.split(".")[0] in EXPORTER_ONLY] == []


def test_runtime_and_commands_import_light(imports: list[Import]) -> None:
    light = [item for item in imports if item.module.startswith("gamma_runtime") or ".commands" in item.module]
    assert heavy_at_import(light) == []


def _package(home: Path, package: str, **sources: str) -> list[Import]:
    folder = home / package
    folder.mkdir(parents=True)
    for name, source in {"__init__": "", **sources}.items():
        (folder / f"{name}.py").write_text(source)
    return scan(home, package)


@pytest.mark.parametrize(
    "source",
    [
        "import gamma_export.fold",
        "def f():\n    from gamma_export import fold",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import gamma_export",
        "import importlib\ndef f():\n    return importlib.import_module('gamma_export.fold')",
    ],
)
def test_a_back_edge_is_caught(tmp_path: Path, source: str) -> None:
    assert len(back_edges(_package(tmp_path, "gamma_runtime", bad=source))) == 1


def test_siblings_may_not_import_each_other(tmp_path: Path) -> None:
    assert len(back_edges(_package(tmp_path, "gamma_calib", bad="import gamma_training"))) == 1


def test_a_heavy_import_is_caught(tmp_path: Path) -> None:
    source = "try:\n    import cv2.dnn\nexcept ImportError:\n    pass\ndef f():\n    import torch"
    found = heavy_at_import(_package(tmp_path, "gamma_runtime", bad=source, manifest="import pydantic"))
    assert [item.target for item in found] == ["cv2.dnn"]


def test_a_cycle_is_caught(tmp_path: Path) -> None:
    ring = {"a": "from gamma_calib import b", "b": "from .c import x", "c": "from . import a"}
    assert set(cycle(_package(tmp_path / "ring", "gamma_calib", **ring)) or []) == {f"gamma_calib.{m}" for m in "abc"}
    broken = {**ring, "c": "def f():\n    from . import a"}
    assert cycle(_package(tmp_path / "lazy", "gamma_calib", **broken)) is None
