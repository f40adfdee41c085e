"""The first things a new user types: `make demo`, and the README's Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from gamma_export.photos import packaged_photos
from tests import tiny_export


def test_make_demo_from_nothing(root: Path, tmp_path: Path) -> None:
    """No build folder, an empty cache; every command of the recipe must succeed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "demo", f"DEMO={tmp_path}/new/demo.gamma"],
        cwd=root,
        env=inherited | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "checkpoint: demo" in done.stdout
    assert "its scores say nothing" not in done.stdout
    assert done.stdout.count("as it should be") == 4
    assert (tmp_path / "new/order.png").is_file()
    scored = re.findall(r"data/photos/\d\d-\S+\.jpg +natural-quality +0\.\d{4}", done.stdout)
    assert len(scored) == len(packaged_photos())
    assert "FAIL" not in done.stdout
    assert done.stdout.count("pass <= ") >= 40
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        assert "1 engine compiled, not run on a GPU" in done.stdout


def test_readme_python_runs(root: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    shutil.copy(tiny_export.checkpoint(), tmp_path / "gamma_weight.pth")
    for name, photo in zip(("photo.jpg", "a.jpg", "b.jpg"), packaged_photos(), strict=False):
        shutil.copy(photo, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["a.jpg", "b.jpg"]
