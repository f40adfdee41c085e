"""The C++ runtime, built once a session into a temporary folder, from this tree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = "its Debian packages are CPP_PACKAGES in the Makefile: make cpp-packages"


def build(folder: Path, *flags: str) -> Path:
    """Configure and compile; the folder with the tools. Skips where a tool or a library is missing."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here; {PACKAGES}")
    pytest.importorskip("openvino")
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DPython3_EXECUTABLE={sys.executable}", *flags]
    done = subprocess.run(configure, capture_output=True, text=True, check=False)
    if done.returncode != 0 and re.search(r"could not find", done.stderr, re.IGNORECASE):
        pytest.skip(f"a library of the C++ runtime is missing; {PACKAGES}")
    assert done.returncode == 0, done.stderr
    assert "no OpenVINO" not in done.stdout
    done = subprocess.run(["cmake", "--build", str(folder), "-j2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "runtime" / "cpp"


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cpp"))
