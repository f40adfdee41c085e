"""Every number in the README's tables comes from a committed result file."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import tables


def test_readme_says_what_the_result_files_say(root: Path) -> None:
    readme = (root / "README.md").read_text()
    assert tables.fill(readme) == readme, "run: python benchmarks/tables.py"


def test_a_changed_number_is_noticed(root: Path) -> None:
    readme = (root / "README.md").read_text()
    changed = readme.replace("5e-06", "6e-06")
    assert changed != readme
    assert tables.fill(changed) != changed


def test_gates_are_the_products() -> None:
    from gamma_runtime.selftest import GATES

    assert tables.GATES == GATES


@pytest.mark.parametrize("name", tables.BLOCKS)
def test_blocks_are_measured(name: str) -> None:
    assert tables.BLOCKS[name]() != "not measured"
