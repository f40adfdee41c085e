"""check-data: every kind of fault is found and named, and a sound set passes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from gamma_runtime.cli import run_command
from gamma_training.commands.check_data import CheckDataOptions, check_data_command
from gamma_training.data import DataSpec
from gamma_training.data.check import check
from tests.training.photos import folder_of, picture, save


def run(*arguments: str) -> int:
    return run_command("gamma-train check-data", check_data_command, CheckDataOptions, [*arguments, "--quiet"])


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A table with one sound photo and one of every fault."""
    folder_of(tmp_path, 2)
    save(tmp_path / "small.png", picture(5, 200, 300))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "copy.png").write_bytes((tmp_path / "photo0.png").read_bytes())
    names = ("photo0", "photo1", "small", "text", "copy", "gone")
    splits = ("train", "train", "train", "val", "test", "test")
    rows = "".join(f"{name}.png,{n},{split}\n" for n, (name, split) in enumerate(zip(names, splits, strict=True)))
    (tmp_path / "mos.csv").write_text("path,mos,split\n" + rows)
    return tmp_path / "mos.csv"


def test_a_sound_set_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path, 3)
    (tmp_path / "mos.csv").write_text("path,mos\n" + "".join(f"photo{n}.png,{n}\n" for n in range(3)))
    assert run("--table", str(tmp_path / "mos.csv"), "--range", "0", "5", "--decode", "--json") == 0
    (report,) = json.loads(capsys.readouterr().out)["sources"]
    assert report["usable"]
    assert report["labels"] == {"low": 0, "high": 5, "lowest": 0, "highest": 2}
    assert sum(report["samples"].values()) == report["contents"] == 3
    faults = ("missing", "unreadable", "small", "outside", "copies", "straddling")
    assert all(report[fault]["count"] == 0 for fault in faults)


def test_every_fault_is_found(faulty: Path) -> None:
    report = check(DataSpec(table=faulty, range=(0, 9)))
    assert not report.usable
    assert [Path(path).name for path in report.missing.first] == ["gone.png"]
    assert "text.png" in report.unreadable.first[0]
    assert report.small.first == (f"{faulty.parent}/small.png: 200x300",)
    assert report.copies.count == report.straddling.count == 1
    assert "photo0.png (train)" in report.straddling.first[0]
    assert report.unreadable.count == report.small.count == 1


def test_missing_photos_that_may_be_left_out_are_listed_and_no_fault(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    (tmp_path / "mos.csv").write_text("path,mos\nphoto0.png,1\nphoto1.png,2\ngone.png,3\n")
    spec = DataSpec(table=tmp_path / "mos.csv", range=(0, 5))
    strict, lenient = check(spec), check(dataclasses.replace(spec, skip_missing=True))
    assert (strict.usable, strict.missing.count) == (False, 1)
    assert (lenient.usable, lenient.missing.count) == (True, 1)
    for number in range(2):
        (tmp_path / f"photo{number}.png").unlink()
    assert not check(dataclasses.replace(spec, skip_missing=True)).usable


def test_the_report_is_text_and_code_3(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--table", str(faulty), "--range", "0", "9") == 3
    text = capsys.readouterr().out
    assert "1 photos are missing:" in text
    assert "NOT usable as it is" in text


def test_labels_only_reads_no_photo(faulty: Path) -> None:
    report = check(DataSpec(table=faulty, range=(0, 9)), read=False)
    assert (report.missing.count, report.unreadable.count, report.small.count) == (1, 0, 0)


def test_damage_inside_the_data_needs_decoding(tmp_path: Path) -> None:
    """The file is whole from outside: only its compressed data is not."""
    save(tmp_path / "photo.jpg")
    whole = bytearray((tmp_path / "photo.jpg").read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 40] = b"\x55" * 40
    (tmp_path / "photo.jpg").write_bytes(bytes(whole))
    (tmp_path / "mos.csv").write_text("path,mos\nphoto.jpg,1\n")
    spec = DataSpec(table=tmp_path / "mos.csv", range=(0, 5))
    assert check(spec).unreadable.count == 0
    assert check(spec, decode_all=True).unreadable.count == 1


def test_labels_outside_the_range_are_told(tmp_path: Path) -> None:
    """LIVE's are, and are taken; a table's are a wrong range."""
    from tests.training.test_data_sets import live

    live(tmp_path)
    report = check(DataSpec(set="live", root=tmp_path), read=False)
    assert report.usable
    assert report.outside.count > 0
    assert report.complete == 779
    assert len(report.outside.first) == 10


def test_many_missing_photos_are_counted_and_ten_named(tmp_path: Path) -> None:
    (tmp_path / "mos.csv").write_text("path,mos\n" + "".join(f"photo{n}.png,1\n" for n in range(25)))
    report = check(DataSpec(table=tmp_path / "mos.csv", range=(0, 5)))
    assert (report.missing.count, len(report.missing.first)) == (25, 10)


def test_a_configuration_is_checked_source_by_source(
    tmp_path: Path, faulty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(tmp_path / "clean", 2)
    config = tmp_path / "train.yaml"
    config.write_text(
        "base: base.pt\nepochs: 3\ndata:\n  - {table: mos.csv, range: [0, 9]}\n"
        "  - {synthetic: clean, kinds: [jpeg]}\n  - {set: ava, root: nowhere}\n"
    )
    assert run(str(config), "--json") == 3
    reports = json.loads(capsys.readouterr().out)["sources"]
    assert [report["usable"] for report in reports] == [False, True, False]
    assert "not a folder" in reports[2]["error"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "exactly one source"),
        (("--set", "ava", "--table", "x.csv"), 2, "exactly one source"),
        (("--set", "ava"), 3, "no root"),
        (("--table", "x.csv", "--range", "5", "1"), 3, "range [5.0, 1.0] is not [lowest, highest]"),
        (("--set", "ava", "--root", "x", "--range", "0", "1"), 3, "its own range"),
        (("--table", "x.csv"), 3, "no range"),
        (("absent.yaml",), 3, "cannot be read"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "base: x\n", "data: 3\n", "data: []\n", "[1", "data: [{sett: ava}]\n"])
def test_a_configuration_without_data(tmp_path: Path, text: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    assert run(str(path)) == 3


def test_a_set_with_too_few_labels_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.training.test_data_sets import kadid10k

    kadid10k(tmp_path)
    assert run("--set", "kadid10k", "--root", str(tmp_path), "--labels-only") == 0
    assert "labels of 12 photos; the whole set has 10125" in capsys.readouterr().out


def test_the_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--set", "list") == 0
    assert "KADID-10k" in capsys.readouterr().out


def test_a_name_cannot_write_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mos.csv").write_text("path,mos\na\x1b[31m.png,1\n")
    assert run("--table", str(tmp_path / "mos.csv"), "--range", "0", "9") == 3
    assert "\x1b" not in capsys.readouterr().out


def test_a_grey_photo_is_a_photo(tmp_path: Path) -> None:
    save(tmp_path / "grey.png", np.repeat(picture()[:, :, :1], 3, axis=2))
    (tmp_path / "mos.csv").write_text("path,mos\ngrey.png,1\n")
    assert check(DataSpec(table=tmp_path / "mos.csv", range=(0, 5)), decode_all=True).usable
