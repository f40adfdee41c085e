"""What must not be in the repository: places of one machine, huge files, long files and functions, loose ends."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MAX_FILE_BYTES = 25 * 1024 * 1024
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
SOURCE_SUFFIXES = {".py", ".cpp", ".h", ".hpp", ".cu"}
# Put together from pieces, so that this file does not find itself.
LOOSE_ENDS = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|raise NotImplemented" + r"Error)\b")
MACHINE_PATHS = re.compile(r"(?<![\w.~/$}-])/(" + r"work|root|opt/pypi|opt/wheels|tmp/[\w.]+" + r")(?=[/\s'\"`]|$)")
REGISTRY_HOSTS = re.compile(
    r"(py"
    + r"pi\.org|python"
    + r"hosted\.org|deb\."
    + r"debian\.org|npm"
    + r"js\.(org|com)|download\.py"
    + r"torch\.org)"
)


def tracked(root: Path) -> list[Path]:
    """The files that are, or on the next commit would be, in the repository."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("not a git checkout: what is tracked is unknown")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    return [path for name in names if name and (path := root / name).is_file()]


@pytest.fixture(scope="module")
def files(root: Path) -> list[Path]:
    return tracked(root)


@pytest.fixture(scope="module")
def texts(files: list[Path]) -> dict[Path, str]:
    found = {}
    for path in files:
        try:
            found[path] = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # an image or a checkpoint
    return found


def hits(texts: dict[Path, str], pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{number}: {match.group()}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := pattern.search(line))
    ]


def long_functions(path: Path, text: str) -> list[str]:
    functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    spans = ((node, (node.end_lineno or node.lineno) - node.lineno + 1) for node in functions)
    return [f"{path}:{node.lineno}: {node.name} has {span} lines" for node, span in spans if span > MAX_FUNCTION_LINES]


def test_files_are_found(texts: dict[Path, str], root: Path) -> None:
    assert root / "pyproject.toml" in texts
    assert root / "runtime/gamma_runtime/errors.py" in texts


def test_no_place_of_one_machine(texts: dict[Path, str]) -> None:
    assert hits(texts, MACHINE_PATHS) == []


def test_no_registry_host(texts: dict[Path, str]) -> None:
    assert hits(texts, REGISTRY_HOSTS) == []


def test_no_loose_ends(texts: dict[Path, str]) -> None:
    assert hits(texts, LOOSE_ENDS) == []


def test_no_huge_file(files: list[Path]) -> None:
    assert [path for path in files if path.stat().st_size > MAX_FILE_BYTES] == []


def test_source_files_are_short(texts: dict[Path, str]) -> None:
    lengths = {path: len(text.splitlines()) for path, text in texts.items() if path.suffix in SOURCE_SUFFIXES}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_functions_are_short(texts: dict[Path, str]) -> None:
    assert [line for path, text in texts.items() if path.suffix == ".py" for line in long_functions(path, text)] == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (MACHINE_PATHS, 'open("/' + 'work/main/x")'),
        (MACHINE_PATHS, "see /" + "root/.cache"),
        (MACHINE_PATHS, "cp a /tm" + "p/out.json"),
        (REGISTRY_HOSTS, "https://py" + "pi.org/simple"),
        (LOOSE_ENDS, "# TO" + "DO later"),
        (LOOSE_ENDS, "raise NotImplemented" + "Error"),
    ],
)
def test_the_patterns_catch(pattern: re.Pattern[str], line: str) -> None:
    assert len(hits({Path("x"): line}, pattern)) == 1


@pytest.mark.parametrize("line", ["https://example.org/" + "work/x", "a/" + "root/b", "work/main", "/dev/null"])
def test_the_paths_pattern_spares(line: str) -> None:
    assert hits({Path("x"): line}, MACHINE_PATHS) == []


def test_a_long_function_is_caught() -> None:
    body = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    assert len(long_functions(Path("x"), body)) == 1
    assert long_functions(Path("x"), "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)) == []
