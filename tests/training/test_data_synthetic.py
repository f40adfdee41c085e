"""Synthetic sets, on the fly and on disk: the same samples, labels computed once, nothing lost on the way."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from gamma_runtime.cli import run_command
from gamma_runtime.errors import InputError, OutputError, UsageError
from gamma_training.commands.make_data import MakeDataOptions, make_data_command
from gamma_training.data import DataSpec, open_data, read_pixels
from gamma_training.data import synthetic as synthetic_module
from gamma_training.data.make import COLUMNS, make_set
from gamma_training.data.metric import quality
from tests.training.photos import folder_of, save

KINDS = ("gaussian-blur", "jpeg")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Never the user's own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/gamma-edge/labels"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "photos", 3)


def spec_of(photos: Path, **changes: Any) -> DataSpec:
    return DataSpec(**{"synthetic": photos, "kinds": KINDS, "short_side": 224, **changes})


def test_a_folder_is_a_set(photos: Path) -> None:
    data = open_data(spec_of(photos))
    assert len(data.samples) == 3 * (1 + 5 * len(KINDS))
    assert (data.name, data.low, data.high, data.lower_better) == ("photos", 0.0, 1.0, False)
    clean, worse = data.samples[0], data.samples[3]
    assert (clean.distortion, clean.target) == (None, 1.0)
    assert worse.distortion is not None
    assert worse.target == pytest.approx(quality(read_pixels(clean), read_pixels(worse)), abs=1e-6)
    assert len({(s.content, s.split) for s in data.samples}) == 3
    assert open_data(spec_of(photos)) == data


def test_labels_are_computed_once(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_data(spec_of(photos))
    assert len(list(cache.glob("*.json"))) == 3
    monkeypatch.setattr(synthetic_module, "quality", lambda *_: pytest.fail("computed again"))
    assert open_data(spec_of(photos)) == first
    with pytest.raises(pytest.fail.Exception):  # the negative control: another size is another label
        open_data(spec_of(photos, short_side=230))


def test_a_damaged_cache_is_computed_again(photos: Path, cache: Path) -> None:
    first = open_data(spec_of(photos, kinds=("jpeg",)))
    file = sorted(cache.glob("*.json"))[0]
    whole = json.loads(file.read_bytes())
    for damage in (b"", b"{", b"[]", b'{"clean": "1"}', b'{"clean": 7.0}', b'{"clean": NaN}'):
        file.write_bytes(damage)
        assert open_data(spec_of(photos, kinds=("jpeg",))) == first
        assert json.loads(file.read_bytes()) == whole


def test_copies_of_a_photo_are_one_content(photos: Path) -> None:
    (photos / "deep").mkdir()
    (photos / "deep/again.png").write_bytes((photos / "photo0.png").read_bytes())
    assert len({sample.content for sample in open_data(spec_of(photos, labels="level")).samples}) == 3


def test_levels_are_labels_too(photos: Path, cache: Path) -> None:
    data = open_data(spec_of(photos, labels="level", scene="face-quality", short_side=None))
    assert [sample.target for sample in data.samples[:6]] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    assert {(sample.scene, sample.short_side) for sample in data.samples} == {("face-quality", 512)}
    assert not cache.exists()


def test_a_limit_takes_every_kind_and_level_alike(photos: Path) -> None:
    data = open_data(spec_of(photos, labels="level", kinds=None, limit=40))
    train = [sample.distortion for sample in data.split("train")]
    assert len(train) == 40
    assert len({one.kind for one in train if one}) >= 12
    assert {one.level for one in train if one} == {1, 2, 3, 4, 5}


def test_a_folder_that_cannot_be_used(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(InputError, match="no images"):
        open_data(spec_of(folder_of(tmp_path / "none", 0) if (tmp_path / "none").mkdir() else tmp_path / "none"))
    with pytest.raises(InputError, match="cannot be read"):
        open_data(spec_of(tmp_path / "absent"))
    os.mkfifo(photos / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png: not a regular file"):
        open_data(spec_of(photos))
    (photos / "pipe.png").unlink()
    save(photos / "small.png", np.zeros((100, 300, 3), np.uint8))
    with pytest.raises(InputError, match=r"small\.png: 300x100 leaves no room"):
        open_data(spec_of(photos))


def run(photos: Path, out: Path, *more: str) -> int:
    kinds = [part for kind in KINDS for part in ("--kind", kind)]
    command = [str(photos), str(out), *kinds, "--short-side", "224", "--quiet", *more]
    return run_command("gamma-train make-data", make_data_command, MakeDataOptions, command)


def test_the_set_on_disk_is_the_set_on_the_fly(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    assert run(photos, out, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert sum(report["samples"].values()) == 33
    assert all(values == sorted(values, reverse=True) for values in report["labels"].values())
    flying = open_data(spec_of(photos))
    made = open_data(DataSpec(synthetic=out / "table.csv"))
    assert [(s.split, s.content) for s in made.samples] == [(s.split, s.content) for s in flying.samples]
    assert [s.target for s in made.samples] == pytest.approx([s.target for s in flying.samples], abs=1e-6)
    assert [s.distorted_by and (s.distorted_by.kind, s.distorted_by.level) for s in made.samples] == [
        s.distortion and (s.distortion.kind, s.distortion.level) for s in flying.samples
    ]
    for number in (0, 5, 10):
        assert np.array_equal(read_pixels(made.samples[number]), read_pixels(flying.samples[number]))
    levels = open_data(DataSpec(synthetic=out / "table.csv", labels="level"))
    assert [s.target for s in levels.samples[:6]] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    with (out / "table.csv").open(newline="") as stream:
        assert tuple(next(csv.reader(stream))) == COLUMNS
    assert open_data(DataSpec(table=out / "table.csv", range=(0, 1))).samples[3].mos == made.samples[3].mos
    sheet = cv2.imread(str(out / "sheet.jpg"))
    assert sheet.shape == (2 * 194, 6 * 176, 3)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("rain,3", "table.csv:2: distortion 'rain' is unknown"),
        ("jpeg,9", "table.csv:2: jpeg: level 9 is not 1 to 5"),
        ("jpeg,2.5", "table.csv:2: level 2.5 is not a whole number"),
    ],
)
def test_a_made_table_that_was_edited_wrongly_is_refused(tmp_path: Path, row: str, said: str) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "table.csv").write_text(f"path,mos,kind,level,metric\na.png,0.5,{row},0.5\n")
    with pytest.raises(InputError, match=said):
        open_data(DataSpec(synthetic=tmp_path / "table.csv"))


def test_make_data_goes_on_where_it_was_stopped(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after some photos: no table; the second call makes only the rest."""
    out, calls = tmp_path / "set", []

    def counted(*pixels: Any) -> float:
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return quality(*pixels)

    monkeypatch.setattr(synthetic_module, "quality", counted)
    monkeypatch.setattr("gamma_training.data.make._THREADS", 1)  # photos one after the other
    assert run(photos, out) == 130
    assert not (out / "table.csv").exists()
    first = len(calls)
    assert run(photos, out) == 0
    assert (out / "table.csv").is_file()
    assert 11 <= len(calls) - first <= 22  # 33 in all; the finished photo is not made again
    assert not list(out.rglob(".gamma-tmp-*"))


def test_make_data_refuses_what_would_mix_sets(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    make_set(spec_of(photos), out)
    table = (out / "table.csv").read_bytes()
    for changes in ({"seed": 9}, {"short_side": 230}):
        with pytest.raises(UsageError, match="another seed"):
            make_set(spec_of(photos, **changes), out)
    for inside in (photos, photos / "set", tmp_path):
        with pytest.raises(UsageError, match="lie in each other"):
            make_set(spec_of(photos), inside)
    assert (out / "table.csv").read_bytes() == table
    next(iter((out / "photos").iterdir())).unlink()
    with pytest.raises(OutputError, match="are gone"):
        make_set(spec_of(photos), out)


def test_make_data_looks_at_the_free_space_first(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("gamma_training.data.make.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="33 photos take about"):
        make_set(spec_of(photos), tmp_path / "set")
    assert not (tmp_path / "set/table.csv").exists()


def test_make_data_on_the_command_line_refuses_a_wrong_kind(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, tmp_path / "set", "--kind", "smear") == 3
    assert "a list of distortions" in capsys.readouterr().err
