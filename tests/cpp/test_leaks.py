"""2,000 scored and 2,000 refused images through the C interface: memory stays, and the check would see it grow."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from gamma_export.photos import packaged_photos
from tests.runtime.tiny_bundle import make_bundle

pytestmark = pytest.mark.long  # compiling takes most of a minute

LINE = re.compile(r"(scored|refused), 2000 times: (malloc|RssAnon) ([+-]\d+) bytes, limit (\d+): (grew|steady)")
STEADY, GREW = 0, 9


def measured(tools: Path, folder: Path, *flags: str) -> tuple[int, dict[tuple[str, str], tuple[int, bool]]]:
    """The exit code, and of each run and measure the growth in bytes and whether it was over the limit."""
    bundle = make_bundle(folder / "five.gamma").folder
    env = {**os.environ, "GAMMA_TEST_BUNDLE": str(bundle)}
    command = [str(tools / "tests" / "leak"), str(packaged_photos()[0]), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=env)
    found = LINE.findall(done.stdout)
    assert len(found) == 4, done.stdout + done.stderr
    for _, _, growth, limit, verdict in found:
        assert int(limit) < 1024 * 2000 / 3
        assert (verdict == "grew") == (int(growth) > int(limit))
    return done.returncode, {(run, measure): (int(growth), said == "grew") for run, measure, growth, _, said in found}


def test_memory_stays(tools: Path, tmp_path: Path) -> None:
    code, found = measured(tools, tmp_path)
    assert [key for key, (_, grew) in found.items() if grew] == []
    assert code == STEADY


@pytest.mark.parametrize(("flag", "measure", "lost"), [("--leak", "malloc", 1024), ("--leak-pages", "RssAnon", 4096)])
def test_a_leak_is_seen(tools: Path, tmp_path: Path, flag: str, measure: str, lost: int) -> None:
    """Both runs, each by the measure that is made for it; a leak of the other kind would pass it by."""
    code, found = measured(tools, tmp_path, flag)
    assert code == GREW
    for run in ("scored", "refused"):
        growth, grew = found[run, measure]
        assert grew
        assert growth == pytest.approx(2000 * lost, rel=0.1)
