"""Pages opened in a headless Chromium: what its scripts see, and what it draws."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

__all__ = ["asked", "drawn", "needs_browser"]

_FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(_FOUND is None, reason="no Chromium here (Debian's package is chromium)")
_ANSWER = re.compile(r"<title>answer: (.*?)</title>", re.DOTALL)


def _chromium(*arguments: str) -> str:
    assert _FOUND is not None
    with tempfile.TemporaryDirectory() as profile:
        # Root has no sandbox of its own; the pages are ours.
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        done = subprocess.run([_FOUND, *flags, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def asked(page: Path, question: str, width: int = 1200) -> str:
    """What a JavaScript expression says once the page and its pictures are loaded."""
    asking = page.with_name(f"asking-{page.name}")
    script = f"<script>addEventListener('load', () => {{ document.title = 'answer: ' + ({question}) }})</script>"
    asking.write_text(page.read_text(encoding="utf-8") + script, encoding="utf-8")
    said = _chromium(f"--window-size={width},900", "--virtual-time-budget=10000", "--dump-dom", asking.as_uri())
    answer = _ANSWER.search(said)
    assert answer, said[:500]
    return answer[1]


def drawn(page: Path, picture: Path, width: int = 1200, height: int = 1600) -> Path:
    """A PNG of the page's first ``height`` pixels, in a window ``width`` pixels wide."""
    _chromium(f"--window-size={width},{height}", f"--screenshot={picture}", page.as_uri())
    return picture
