"""Rows 29 to 31 of the hostile list: a calibration record of something else, a broken one, two calibrators, pickles."""

from __future__ import annotations

import dataclasses
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gamma_calib.calibrate import record_key
from gamma_calib.images import CalibrationImage, CalibrationSet
from gamma_calib.record import Key, Record, calibrating, find_record, read_record, write_record
from gamma_runtime.contract import Contract
from gamma_runtime.errors import EnvironmentFault, GammaError, InputError, IntegrityError, OutputError
from tests.calib.records import KEY, record, rewrite, same, sealed
from tests.hostile.file_faults import FAULTS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "photos.calibration"
    write_record(file, record())
    return file


def absent(path: Path, key: Key = KEY) -> str:
    """The record counts as absent; the warning."""
    said: list[str] = []
    assert find_record(path, key, said.append) is None
    (warning,) = said
    assert warning.isprintable()
    return warning


def test_what_was_written_is_read(path: Path) -> None:
    assert same(read_record(path), record())
    found = find_record(path, KEY, pytest.fail)
    assert found is not None
    assert same(found, record())
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert not same(found, record(seed=1))  # the comparison itself can fail
    assert not same(found, dataclasses.replace(record(), channels={**found.channels, "a": np.zeros(5, np.float32)}))


def test_an_unfinished_record_is_resumed(path: Path) -> None:
    found = find_record(path, KEY)
    assert found is not None
    assert (found.done, found.complete) == (3, False)
    write_record(path, dataclasses.replace(found, done=4))
    assert read_record(path).complete


def test_a_calibration_begins_without_a_record(tmp_path: Path) -> None:
    assert find_record(tmp_path / "none", KEY, pytest.fail) is None
    write_record(tmp_path / "first", Record(KEY, 0, 4))
    assert same(read_record(tmp_path / "first"), Record(KEY, 0, 4))


# Row 29


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Key)])
def test_a_record_of_something_else_is_never_used(path: Path, field: str) -> None:
    value: Any = (("onnxruntime", "1.0"),) if field == "versions" else "f" * 64
    other = dataclasses.replace(KEY, **{field: value})
    assert other.sha256() != KEY.sha256()
    assert f"made for other {field}; calibrating anew" in absent(path, other)


def test_the_key_covers_model_contract_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that calibrations use; the order of the images counts, and so does the scene of each."""
    images = tuple(
        CalibrationImage(Path(name), "natural", digit * 64) for name, digit in (("a.png", "1"), ("b.png", "2"))
    )

    def made(
        graph: str = "3" * 64, weights: str = "4" * 64, side: int = 384, kind: str = "int8", **changed: Any
    ) -> Key:
        chosen = CalibrationSet(changed.get("images", images), ())
        return record_key(graph, weights, Contract({"natural": side}), chosen, kind)

    base = made()
    assert base == made()
    assert (base.graph, base.weights) == ("3" * 64, "4" * 64)
    assert base.differences(made(graph="5" * 64)) == ["graph"]
    assert base.differences(made(weights="5" * 64)) == ["weights"]
    assert base.differences(made(side=512)) == ["contract"]
    assert base.differences(made(kind="fp8")) == ["method"]
    changed = dataclasses.replace(images[1], sha256="6" * 64)
    for others in (images[::-1], (images[0], changed), (images[0], dataclasses.replace(images[1], scene="face"))):
        assert base.differences(made(images=others)) == ["images"]
    monkeypatch.setattr("onnxruntime.__version__", "0")
    assert base.differences(made()) == ["versions"]


# Row 30


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "missing"])
def test_a_broken_record_counts_as_absent(path: Path, fault: str) -> None:
    FAULTS[fault](path)
    assert path.name in absent(path)
    with pytest.raises(IntegrityError):
        read_record(path)


def test_every_changed_byte_and_every_cut_is_noticed(path: Path) -> None:
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(IntegrityError):
            read_record(path)
        path.write_bytes(good[:place])
        with pytest.raises(IntegrityError):
            read_record(path)


def _set(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


CONTRADICTIONS = {
    "more than all": _set("done", value=5),
    "negative": _set("done", value=-1),
    "none of none": _set("total", value=0),
    "upside down": _set("ranges", "minmax", "a", value=[1.0, -1.0]),
    "infinite": _set("ranges", "minmax", "a", value=[0.0, 1e999]),
    "a range of three": _set("ranges", "minmax", "a", value=[0.0, 1.0, 2.0]),
    "bins upside down": _set("histograms", 0, "low", value=5.0),
    "another number of bins": _set("histograms", 0, "bins", value=15),
    "no bins": _set("histograms", 0, "bins", value=0),
    "petabytes": _set("histograms", 0, "bins", value=1 << 50),
    "a tensor twice": lambda data: data["histograms"][1].update(tensor="a"),
    "another width": _set("channels", 1, "width", value=3),
    "no channels": _set("channels", 0, "width", value=0),
    "petabytes of channels": _set("channels", 0, "width", value=1 << 50),
    "a width in words": _set("channels", 0, "width", value="5"),
    "channels twice": lambda data: data["channels"][1].update(tensor="a"),
    "channels of something": _set("channels", 0, "surprise", value=1),
    "a record of before": lambda data: data.pop("channels"),
    "unknown key": _set("surprise", value=1),
    "no key": lambda data: data.pop("key"),
    "digest": _set("key", "graph", value="../x"),
    "method for the terminal": _set("key", "method", value="\x1b[2J"),
    "nested": _set("ranges", value=[[[[]]]]),
}


@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_with_a_matching_digest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    rewrite(path, lambda data: None)
    read_record(path)  # the helper's own file is accepted
    rewrite(path, change)
    assert re.search("not a calibration record: |not a finite number", absent(path))


def test_negative_counts_with_a_matching_digest(path: Path) -> None:
    rewrite(path, lambda data: None, arrays=np.full(23, -1, "<i8").tobytes() + bytes(7 * 4))
    assert "a negative count" in absent(path)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, -np.inf])
def test_channels_that_cannot_be_with_a_matching_digest(path: Path, value: float) -> None:
    maxima = np.zeros(7, "<f4")
    rewrite(path, lambda data: None, arrays=bytes(23 * 8) + maxima.tobytes())
    assert read_record(path).channels["a"].tolist() == [0.0] * 5
    maxima[6] = value
    rewrite(path, lambda data: None, arrays=bytes(23 * 8) + maxima.tobytes())
    assert "a channel whose largest value is not finite, or negative" in absent(path)


@pytest.mark.parametrize(("listed", "sizes"), [("histograms", (7, 7)), ("channels", (23, 2))])
def test_a_tensor_listed_twice_whose_data_comes_once(path: Path, listed: str, sizes: tuple[int, int]) -> None:
    def twice(data: dict[str, Any]) -> None:
        data[listed][0] = data[listed][1]

    counts, channels = sizes
    rewrite(path, twice, arrays=bytes(counts * 8 + channels * 4))
    assert "a tensor is listed twice" in absent(path)


@pytest.mark.parametrize("more", [4, -4, 8, -8])
def test_arrays_of_another_size_with_a_matching_digest(path: Path, more: int) -> None:
    rewrite(path, lambda data: None, arrays=bytes(23 * 8 + 7 * 4 + more))
    assert f"{212 + more} bytes of counts and channels, the header says 212" in absent(path)


def test_the_channels_are_little_endian_float32_behind_the_counts(path: Path) -> None:
    maxima = np.frombuffer(path.read_bytes()[-7 * 4 :], "<f4")
    written = record().channels
    assert maxima.tolist() == [*written["a"].tolist(), *written["b/c"].tolist()]
    read = read_record(path).channels
    assert {name: (array.dtype, array.shape) for name, array in read.items()} == {
        "a": (np.float32, (5,)),
        "b/c": (np.float32, (2,)),
    }


def test_a_channel_that_cannot_be_is_not_written(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match="not finite"):
        write_record(path, dataclasses.replace(record(), channels={"a": np.array([np.nan], np.float32)}))
    assert path.read_bytes() == before


def test_a_contradiction_is_not_written(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(IntegrityError):
        write_record(path, record(done=5))
    assert path.read_bytes() == before


def test_two_calibrators(path: Path) -> None:
    with calibrating(path, 1.0):
        with (
            pytest.raises(OutputError, match="another calibration is writing this record") as caught,
            calibrating(path, 0.2),
        ):
            pytest.fail("two at work")
        assert caught.value.hint
    with calibrating(path, 0.0):
        assert find_record(path, KEY) is not None


def test_the_lock_of_a_killed_calibrator_is_free(path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from gamma_calib.record import calibrating\n"
        "with calibrating(Path(sys.argv[1]), 0): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    with calibrating(path, 0.0):
        pass


def test_a_machine_fault_is_not_taken_for_a_broken_record(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_handles(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("os.open", no_handles)
    with pytest.raises(EnvironmentFault):
        find_record(path, KEY, pytest.fail)


# Row 31


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_arrays_of_objects_and_pickles_are_no_records(tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", tmp_path / "record"
    objects = np.array([Bomb(marker)], dtype=object)
    with file.open("wb") as stream:
        np.save(stream, objects)
    absent(file)
    with file.open("wb") as stream:
        np.savez_compressed(stream, counts=objects, zeros=np.zeros(1 << 22))
    absent(file)
    file.write_bytes(pickle.dumps(Bomb(marker)))
    absent(file)
    file.write_bytes(sealed(pickle.dumps(Bomb(marker))))
    absent(file)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))  # the negative control: another reader would have run it
    assert marker.exists()


@pytest.mark.parametrize(
    "header", [b"", b"{", b"[]", b"{" * 100_000, b'{"a":' * 50_000, b"[" * 200_000, b" " * (17 << 20)]
)
def test_headers_that_are_none(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "record"
    file.write_bytes(sealed(header + b"\n"))
    absent(file)
    file.write_bytes(sealed(header))
    absent(file)


def test_a_file_larger_than_any_record_is_refused_by_its_size(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(1 << 40)
    assert "larger than 256 MiB" in absent(path)


def test_no_record_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such calibration record"):
        read_record(tmp_path / "none")


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(GammaError) as caught:
        write_record(tmp_path / "missing" / "record", record())
    assert caught.value.exit_code == 6
