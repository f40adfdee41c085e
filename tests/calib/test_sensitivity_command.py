"""gamma-calib from the outside."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from gamma_calib.commands.calib import main
from gamma_export.photos import packaged_photos
from tests import tiny_export
from tests.calib.bundles import BOTH


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_export.exported(precision=BOTH), tmp_path_factory.mktemp("s") / "x.gamma"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for photo in packaged_photos()[:6]:
        shutil.copy(photo, folder)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["gamma-calib", *map(str, arguments)])
    return main()


def test_each_group_is_measured(
    bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--calib", photos, "--calib-min", "4", "--crops", "8", "--threads", "1")
    assert run(monkeypatch, "sensitivity", bundle, *flags, "--json", "--quiet") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["group"] for row in rows} >= {"patch/product", "blocks.0/attn/qkv", "blocks.1/moae/adaptive_out"}
    assert len(rows) == 14
    shifts = [row["mean_abs"] for row in rows]
    assert shifts == sorted(shifts, reverse=True)
    assert shifts[-1] > 0
    assert sorted(path.name for path in bundle.with_suffix(".calib").iterdir()) == [
        "record", "record.lock", "trials.json"
    ]  # fmt: skip
    assert run(monkeypatch, "sensitivity", bundle, *flags) == 0
    said = capsys.readouterr()
    assert "next: gamma-export" in said.err
    assert "6 were done before" in said.err
    first, second = (line for line in said.out.splitlines() if rows[0]["group"] in line or rows[1]["group"] in line)
    assert first.count("█") == 30 >= second.count("█")


def test_what_it_cannot_work_with(
    bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "sensitivity", bundle) == 2
    assert "--calib PHOTOS is needed" in capsys.readouterr().err
    assert run(monkeypatch, "sensitivity", tiny_export.exported(), "--calib", photos) == 3
    assert "no fp32 graph in it" in capsys.readouterr().err
    assert run(monkeypatch, "sensitivity", bundle, "--calib", photos, "--crops", "0") == 2
    assert run(monkeypatch, "sensitivity", bundle, "--calib", photos) == 3
    assert "6 usable photos; at least 16 are needed" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--version"], 0), ([], 2), (["quantise"], 2)])
def test_the_command_itself(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *arguments) == code
    said = capsys.readouterr()
    assert "gamma-calib" in (said.out if code == 0 else said.err)
