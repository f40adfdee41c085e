"""Every number in the README's tables comes from a committed result file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from benchmarks import tables


@pytest.mark.parametrize("path", tables.FILES, ids=lambda path: path.name)
def test_texts_say_what_the_result_files_say(path: Path) -> None:
    text = path.read_text()
    assert tables.fill(text, tables.FILES[path]) == text, "run: python benchmarks/tables.py"


def test_the_card_is_of_the_checkpoint_that_was_measured() -> None:
    from gamma_export.demo import demo_checkpoint

    result = json.loads((tables.RESULTS / "accuracy-demo.json").read_text())
    assert result["checkpoint_sha256"] == hashlib.sha256(demo_checkpoint().read_bytes()).hexdigest()


def test_a_changed_number_is_noticed(root: Path) -> None:
    readme = (root / "README.md").read_text()
    changed = readme.replace("5e-06", "6e-06")
    assert changed != readme
    assert tables.fill(changed) != changed


def test_gates_are_the_products() -> None:
    from gamma_runtime.selftest import GATES

    assert tables.GATES == GATES


@pytest.mark.parametrize("name", BLOCKS := tables.BLOCKS | tables.CARD_BLOCKS | tables.INT8_BLOCKS)
def test_blocks_are_measured(name: str) -> None:
    assert BLOCKS[name]() != "not measured"
