"""`data:` entries and label tables are read strictly; splits never tear a photo apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gamma_runtime.errors import InputError
from gamma_training.data import DataSpec, open_data, read_pixels, spec_from_mapping
from gamma_training.data.specs import specs_of_file
from gamma_training.data.splits import split_exactly, split_of
from gamma_training.train import read_config
from tests.training.photos import folder_of, save

TABLE = "path,mos,split,scene,content\n"


def table_of(tmp_path: Path, text: str, photos: int = 3) -> Path:
    folder_of(tmp_path, photos)
    path = tmp_path / "mos.csv"
    path.write_bytes(text.encode())
    return path


def spec_of(table: Path, **changes: Any) -> DataSpec:
    return DataSpec(**{"table": table, "range": (0.0, 10.0), **changes})


def test_a_mapping_becomes_a_spec(tmp_path: Path) -> None:
    given = {"table": "mine/mos.csv", "range": [1, 5], "lower_better": True, "scene": "plain", "limit": 3}
    spec = spec_from_mapping(given, tmp_path)
    assert spec == DataSpec(
        table=tmp_path / "mine/mos.csv", range=(1.0, 5.0), lower_better=True, scene="plain", limit=3
    )
    assert spec_from_mapping({**given, "root": "/elsewhere", "seed": None}, tmp_path).root == Path("/elsewhere")
    assert spec_from_mapping(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ([], "a mapping was expected"),
        ({}, "no source"),
        ({"set": "koniq10k"}, "no root"),
        ({"set": "koniq10k", "root": "x", "range": [0, 1]}, "its own range"),
        ({"set": "koniq10k", "table": "a.csv", "range": [0, 1]}, "set and table"),
        ({"table": "a.csv"}, "no range"),
        ({"table": "a.csv", "range": [5, 1]}, "not .lowest, highest"),
        ({"table": "a.csv", "range": [0, float("nan")]}, "not .lowest, highest"),
        ({"table": "a.csv", "range": "0-1"}, "a list of two numbers"),
        ({"table": "a.csv", "range": [0, True]}, "a list of two numbers"),
        ({"table": "a.csv", "range": [0, 1], "kinds": ["jpeg"]}, "for synthetic sources"),
        ({"synthetic": "x", "range": [0, 1]}, "0 to 1"),
        ({"synthetic": "x", "kinds": ["smear"]}, "a list of distortions"),
        ({"synthetic": "x", "labels": "mos"}, "metric or level"),
        ({"synthetic": 7}, "a path"),
        ({"synthetic": "x", "limit": 0}, "1 or more"),
        ({"synthetic": "x", "limit": "many"}, "1 or more"),
        ({"synthetic": "x", "short_side": 100}, "224 to 4096"),
        ({"synthetic": "x", "lower_better": "yes"}, "true or false"),
        ({"synthetic": "x", 3: 4}, "unknown key"),
    ],
)
def test_a_wrong_mapping_is_refused(mapping: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        spec_from_mapping(mapping, where="mine.yaml: data[0]")
    assert str(caught.value).startswith("mine.yaml: data[0]: ")


SOURCES = "[{table: mos.csv, range: [0, 1]}, {synthetic: clean}]"


def test_a_file_names_its_sources(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(f"epochs: {{what: ever}}\ndata: {SOURCES}\n")
    table = DataSpec(table=tmp_path / "mos.csv", range=(0.0, 1.0))
    assert specs_of_file(path) == [table, DataSpec(synthetic=tmp_path / "clean")]
    path.write_text("data: {table: mos.csv, range: [0, 1]}\n")
    assert specs_of_file(path) == [table]


def test_training_reads_the_same_sources(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(f"out: run\nbase: base.pt\ndata: {SOURCES}\n")
    assert read_config(path).data == tuple(specs_of_file(path))
    path.write_text(f"out: run\nbase: base.pt\ndata: {SOURCES.replace('synthetic', 'sett')}\n")
    for read in (read_config, specs_of_file):
        with pytest.raises(InputError, match=r"train\.yaml: data\[1\]: unknown key 'sett'"):
            read(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no list `data:` in it"),
        (b"epochs: 3", "no list `data:` in it"),
        (b"data:", "no list `data:` in it"),
        (b"[{synthetic: clean}]", "no list `data:` in it"),
        (b"data: photos", "data: 'photos' is not a list of sources"),
        (b"data: []", "data: [] is not a list of sources"),
        (b"data: [7]", "data[0]: found 7 where a mapping was expected"),
        (b"data: {", "cannot be read as YAML"),
        (b"data: 2001-99-99", "cannot be read as YAML"),
        (b"data: " + b"[" * 20_000, "cannot be read as YAML"),
        (b"\xff", "cannot be read as YAML"),
        (b"#" * (2**18 + 1), "at most 262144 bytes"),
    ],
)
def test_a_file_without_sources(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        specs_of_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_key_with_a_slip_gets_the_right_one_as_hint() -> None:
    with pytest.raises(InputError, match="did you mean lower_better"):
        spec_from_mapping({"synthetic": "x", "lower_beter": True})


def test_a_table_is_read(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, blank lines and quoted cells are what spreadsheets write."""
    text = '\ufeffpath,mos,note\r\nphoto0.png,2.5,"a, b"\r\n\r\nphoto1.png,10,\r\n'
    data = open_data(spec_of(table_of(tmp_path, text), lower_better=True, short_side=224))
    assert data.name == "mos"
    assert [sample.mos for sample in data.samples] == [2.5, 10.0]
    assert [sample.target for sample in data.samples] == [0.75, 0.0]
    assert {sample.scene for sample in data.samples} == {"natural-quality"}
    assert read_pixels(data.samples[0]).shape == (224, 239, 3)


def test_columns_win_and_copies_stay_together(tmp_path: Path) -> None:
    text = TABLE + "photo0.png,1,test,face-quality,a\nphoto1.png,2,test,,a\nphoto2.png,3,train,,b\n"
    data = open_data(spec_of(table_of(tmp_path, text), scene="plain"))
    assert [sample.scene for sample in data.samples] == ["face-quality", "plain", "plain"]
    assert [sample.split for sample in data.samples] == ["test", "test", "train"]
    rows = "".join(f"photo{n}.png,1,,,c{n % 2}\n" for n in range(8))
    (tmp_path / "more").mkdir()
    made = open_data(spec_of(table_of(tmp_path / "more", TABLE + rows, 8)))
    by_content = {(sample.content, sample.split) for sample in made.samples}
    assert len(by_content) == 2


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = table_of(tmp_path, "file,path,score\nphoto0.png,elsewhere,4\n")
    (sample,) = open_data(spec_of(path, path_column="file", mos_column="score")).samples
    assert (sample.path, sample.mos) == (tmp_path / "photo0.png", 4.0)
    with pytest.raises(InputError, match="no column 'scores'") as caught:
        open_data(spec_of(path, path_column="file", mos_column="scores"))
    assert caught.value.hint == "did you mean score?"
    with pytest.raises(InputError, match="are for tables"):
        open_data(DataSpec(synthetic=tmp_path, mos_column="score"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("path,mos\n", "no rows"),
        ("path,score\na.png,1\n", "no column 'mos'"),
        ("path;mos\na.png;1\n", "separated by semicolons"),
        ("path\tmos\na.png\t1\n", "separated by tabs"),
        ("path,mos,mos\na.png,1,2\n", "there twice"),
        ("path,mos\nphoto0.png,1,2\n", "mos.csv:2: 3 cells"),
        ("path,mos\nphoto0.png\n", "mos.csv:2: 1 cells"),
        ("path,mos\nphoto0.png,nan\n", "mos.csv:2: mos: 'nan' is not a number"),
        ("path,mos\nphoto0.png,inf\n", "'inf' is not a number"),
        ("path,mos\nphoto0.png,\n", "'' is not a number"),
        ("path,mos\nphoto0.png,2,5\n", "3 cells"),
        ("path,mos\nphoto0.png,11\n", "1 of 1 labels lie outside 0 to 10"),
        ("path,mos\nphoto0.png,1\nphoto0.png,2\n", "mos.csv:3: photo0.png is also on line 2"),
        ("path,mos\n../secret.png,1\n", "leads out of"),
        ("path,mos\na/../../secret.png,1\n", "leads out of"),
        ("path,mos\n/etc/passwd,1\n", "leads out of"),
        ("path,mos\n.,1\n", "leads out of"),
        ("path,mos\n,1\n", "not a path"),
        ("path,mos\na\0b.png,1\n", "not a path|NUL"),
        ("path,mos,split\nphoto0.png,1,training\n", "split 'training'"),
        ("path,mos,split\nphoto0.png,1,train\nphoto1.png,1,\n", "some rows have a split"),
        (TABLE + "photo0.png,1,train,,a\nphoto1.png,1,test,,a\n", "content a is in split"),
        ('path,mos\n"photo0.png,1\n', "not comma-separated"),
    ],
)
def test_a_hostile_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_data(spec_of(table_of(tmp_path, text)))


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = table_of(tmp_path, "")
    path.write_bytes(b"path,mos\n\xff\xfe,1\n")
    with pytest.raises(InputError, match="not UTF-8"):
        open_data(spec_of(path))
    with pytest.raises(InputError, match="cannot be read"):
        open_data(spec_of(tmp_path))
    with pytest.raises(InputError, match="cannot be read"):
        open_data(spec_of(tmp_path / "absent.csv"))


def test_an_absolute_path_inside_the_folder_is_fine(tmp_path: Path) -> None:
    path = table_of(tmp_path, f"path,mos\n{tmp_path}/photo0.png,1\n")
    assert open_data(spec_of(path)).samples[0].path == tmp_path / "photo0.png"


def test_missing_photos_are_named_or_left_out(tmp_path: Path) -> None:
    rows = "".join(f"gone{n:02}.png,1\n" for n in range(12))
    path = table_of(tmp_path, f"path,mos\nphoto0.png,1\n{rows}")
    with pytest.raises(InputError, match="12 photos are missing") as caught:
        open_data(spec_of(path))
    assert "gone09.png" in caught.value.message
    assert "gone10.png" not in caught.value.message  # ten are named
    assert len(open_data(spec_of(path, skip_missing=True)).samples) == 1
    path.write_text(f"path,mos\n{rows}")
    with pytest.raises(InputError, match="none of its 12 photos"):
        open_data(spec_of(path, skip_missing=True))


def test_limit_takes_the_same_photos_wherever_they_lie(tmp_path: Path) -> None:
    chosen = []
    for place in ("here", "there"):
        folder = tmp_path / place
        folder.mkdir()
        rows = "".join(f"photo{n}.png,{n},{'test' if n % 2 else 'train'}\n" for n in range(10))
        spec = spec_of(table_of(folder, "path,mos,split\n" + rows, 10), limit=2)
        chosen.append([(sample.path.name, sample.split) for sample in open_data(spec).samples])
    assert chosen[0] == chosen[1]
    assert sorted(split for _, split in chosen[0]) == ["test", "test", "train", "train"]


def test_pixels_are_checked_as_the_runtime_checks_them(tmp_path: Path) -> None:
    path = table_of(tmp_path, "path,mos\nphoto0.png,1\n")
    sample = open_data(spec_of(path)).samples[0]
    save(tmp_path / "photo0.png")
    whole = (tmp_path / "photo0.png").read_bytes()
    (tmp_path / "photo0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"photo0\.png"):
        read_pixels(sample)


def test_splits_are_kept_when_photos_join() -> None:
    few = {name: split_of(5, name) for name in map(str, range(200))}
    assert {name: split_of(5, name) for name in map(str, range(400))}.items() >= few.items()
    shares = [list(few.values()).count(split) / 200 for split in ("train", "val", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.08)
    assert {split_of(6, name) for name in few} == {"train", "val", "test"}


def test_exact_splits_of_few_contents() -> None:
    splits = list(split_exactly(1, [f"i{n:02}" for n in range(25)] * 120).values())
    assert [splits.count(name) for name in ("train", "val", "test")] == [18, 2, 5]
    assert sorted(split_exactly(1, "abc").values()) == ["test", "train", "val"]
    assert split_exactly(1, "abc") == split_exactly(1, "cba")
