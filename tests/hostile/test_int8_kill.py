"""An int8 export that is killed in the middle goes on where it was, and makes the same bundle."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gamma_export.photos import packaged_photos
from tests import tiny_export

START = "import sys; from gamma_export.commands.export import main; sys.exit(main())"


def command(out: Path, photos: Path) -> list[str]:
    flags = tiny_export.arguments(precision="int8", calib=str(photos), gate="0.004")
    more = ["--calib-min", "8", "--calib-method", "mse", "--skip-speed"]
    return [sys.executable, "-c", START, *flags, *more, "-o", str(out)]


def digests(bundle: Path) -> dict[str, str]:
    return {entry["name"]: entry["sha256"] for entry in tiny_export.manifest(bundle)["files"]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list: the two photos that verify are not in it."""
    path = tmp_path_factory.mktemp("kill") / "photos.txt"
    path.write_text("\n".join(str(photo) for photo in packaged_photos()[2:]))
    return path


@pytest.fixture(scope="module")
def whole(photos: Path) -> Path:
    """Never interrupted; the gate is so narrow that groups have to go back."""
    out = photos.parent / "whole.gamma"
    subprocess.run(command(out, photos), check=True, capture_output=True, timeout=300)
    assert len(tiny_export.manifest(out)["quantisation"]["trials"]) > 1
    return out


@pytest.mark.parametrize("after", ["record", "trials.json"])
def test_a_kill_costs_little(whole: Path, photos: Path, tmp_path: Path, after: str) -> None:
    out = tmp_path / "x.gamma"
    child = subprocess.Popen(command(out, photos), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "x.calib" / after).exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    done = subprocess.run(command(out, photos), capture_output=True, text=True, check=True, timeout=300)
    assert "14 were done before" in done.stderr
    assert digests(out) == digests(whole)


def test_broken_caches_count_as_none(whole: Path, photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "x.calib"
    cache.mkdir()
    (cache / "record").write_bytes(b"gamma-calibration 1 " + b"0" * 64 + b"\n{}")
    (cache / "trials.json").write_bytes(b"{")
    done = subprocess.run(
        command(tmp_path / "x.gamma", photos), capture_output=True, text=True, check=True, timeout=300
    )
    assert "not a calibration record" in done.stderr
    assert "trials.json: not usable" in done.stderr
    assert digests(tmp_path / "x.gamma") == digests(whole)
