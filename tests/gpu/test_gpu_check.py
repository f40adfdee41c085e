"""What `make gpu-check` keeps: measurements out of a report of pytest's own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests import gpu_check

_TESTS = """
import json
import pytest

def test_measures(request):
    request.node.user_properties += [("max_abs", json.dumps(1.5e-4)), ("words", json.dumps("no\\nway"))]

def test_skips():
    pytest.skip("refused: no kernel")

def test_fails():
    assert 1 == 2
"""


def test_checks_are_read_from_pytests_report(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--junitxml=report.xml", "--rootdir=.", "test_it.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    fails, measures, skips = gpu_check.checks(tmp_path / "report.xml")  # by name
    assert measures["outcome"] == "passed"
    assert measures["measured"] == {"max_abs": 1.5e-4, "words": "no\nway"}
    assert measures["test"].endswith("::test_measures")
    assert (skips["outcome"], skips["reason"]) == ("skipped", "refused: no kernel")
    assert fails["outcome"] == "failed"
    assert "1 == 2" in fails["reason"]


def test_a_published_file_names_no_folder_of_this_machine() -> None:
    text = f"{tempfile.gettempdir()}/x.plan: refused; see {gpu_check.ROOT}/tests/a.py and {Path.home()}/.cache/b"
    found = gpu_check.without_places({"a": [text, 1.5, None]})
    assert found == {"a": ["TMP/x.plan: refused; see CHECKOUT/tests/a.py and HOME/.cache/b", 1.5, None]}
