"""The README and the folder READMEs: every link leads somewhere, every command and flag shown exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BIN = Path(sys.executable).parent
SHELL_LANGUAGES = {"", "sh", "bash", "shell", "console"}
MAX_FOLDER_README_LINES = 40
FOLDERS = ("gamma_export", "runtime", "calib", "training", "tests", "benchmarks")
FENCE = re.compile(r"^```(\w*)\s*$")
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^(?:\$ |\.venv/bin/|[A-Z_]+=\S+ )*(?:\S*/bin/)?(make|gamma-[a-z]+)\b(.*)$")
FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z-]*|-[a-z])(?![\w-])")


def documents(root: Path) -> list[Path]:
    top = [root / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    folders = [root / name / "README.md" for name in FOLDERS]
    return [path for path in [*top, *folders, *sorted((root / "docs").glob("*.md"))] if path.exists()]


def blocks(text: str) -> Iterator[str]:
    """The lines of shell code blocks, fenced or indented by four, with continued lines joined."""
    language: str | None = None
    for line in text.replace("\\\n", " ").splitlines():
        fence = FENCE.match(line)
        if fence:
            language = None if language is not None else fence.group(1)
        elif language in SHELL_LANGUAGES or (language is None and line.startswith("    ")):
            yield line.strip()


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each `make` or `gamma-*` call of a text's code blocks: the name and its arguments, without the comment."""
    for line in blocks(text):
        for part in re.split(r"&&|\||;", line.split(" #")[0]):
            if match := COMMAND.match(part.strip()):
                yield match.group(1), match.group(2).strip()


def broken_links(path: Path, root: Path) -> list[str]:
    """Relative links of a Markdown file that lead nowhere, or out of the repository."""
    broken = []
    for target in LINK.findall(path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue  # another site: not checked without a network
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        inside = place.exists() and root in (place, *place.parents)
        if not inside or (anchor and anchor not in _anchors(place.read_text())):
            broken.append(target)
    return broken


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ +(.+?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def unknown_flags(arguments: str, help_text: str) -> list[str]:
    known = set(FLAG.findall(help_text))
    return [flag for flag in FLAG.findall(arguments) if flag not in known]


@pytest.fixture(scope="module")
def make_targets(root: Path) -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (root / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def help_texts(project: dict[str, Any]) -> dict[str, str]:
    """What `--help` of each command prints, wide enough that no flag is broken over two lines."""
    environment = {**os.environ, "COLUMNS": "250", "NO_COLOR": "1"}
    texts = {}
    for name in project["scripts"]:
        command = [str(BIN / name), "--help"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        texts[name] = done.stdout
    return texts


def test_links_lead_somewhere(root: Path) -> None:
    assert {path.name: broken for path in documents(root) if (broken := broken_links(path, root))} == {}


def test_every_top_folder_explains_itself(root: Path) -> None:
    for folder in FOLDERS:
        lines = (root / folder / "README.md").read_text().splitlines()
        assert 3 <= len(lines) <= MAX_FOLDER_README_LINES, folder


def test_readme_shows_the_two_commands(root: Path) -> None:
    shown = set(commands((root / "README.md").read_text()))
    assert {("make", "demo"), ("make", "test")} <= shown


def test_make_targets_exist(root: Path, make_targets: set[str]) -> None:
    for path in documents(root):
        for name, arguments in commands(path.read_text()):
            if name == "make":
                asked = {word for word in arguments.split() if "=" not in word and word[0] != "-"}
                assert asked <= make_targets, f"{path.name}: make {arguments}"


def test_commands_and_flags_exist(root: Path, help_texts: dict[str, str]) -> None:
    for path in documents(root):
        for name, arguments in commands(path.read_text()):
            if name != "make":
                assert name in help_texts, f"{path.name}: {name}"
                assert unknown_flags(arguments, help_texts[name]) == [], f"{path.name}: {name} {arguments}"


def test_makefile_uses_existing_flags(root: Path, help_texts: dict[str, str]) -> None:
    calls = re.findall(r"^\t\$\(BIN\)/(gamma-\w+)(.*)$", (root / "Makefile").read_text(), re.MULTILINE)
    assert {name for name, _ in calls} == {"gamma-export", "gamma-run", "gamma-verify", "gamma-order"}
    for name, arguments in calls:
        assert unknown_flags(arguments, help_texts[name]) == [], f"{name} {arguments}"


def test_a_broken_link_is_caught(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One title\n[a](gone.md) [b](#one-title) [c](#other) [d](page.md) [e](../out.md) [f](https://x)")
    (tmp_path.parent / "out.md").write_text("")
    assert broken_links(page, tmp_path) == ["gone.md", "#other", "../out.md"]


def test_commands_are_found_in_code_blocks_only() -> None:
    shell = "```sh\n$ gamma-run x \\\n  --csv y # note\n```\n"
    text = f"gamma-run no\n{shell}```python\nmake no\n```\n    make test && make demo\n"
    assert list(commands(text)) == [("gamma-run", "x    --csv y"), ("make", "test"), ("make", "demo")]


def test_an_unknown_flag_is_caught() -> None:
    assert unknown_flags("a.jpg --fast -o x --json", "-o PATH, --out PATH  --json  --faster") == ["--fast"]


def test_the_security_page_names_tests_that_exist(root: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (root / "docs" / "security.md").read_text())
    assert len(named) > 10
    missing = [
        (file, test)
        for file, test in named
        if not (root / file).is_file() or (test and f"def {test}(" not in (root / file).read_text())
    ]
    assert missing == []
