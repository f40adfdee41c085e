"""The photos of a calibration: which are taken, which are refused, and that they go through the contract."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from gamma_calib.images import CalibrationSet, SetOptions, find_images, graph_inputs
from gamma_runtime.contract import Contract, CropPolicy, Limits
from gamma_runtime.crops import prepare
from gamma_runtime.decode import decode
from gamma_runtime.errors import InputError, UsageError
from gamma_runtime.files import hash_file
from gamma_runtime.steps import Steps, Tick
from tests.runtime.images import encode, photo

LIMITS = Limits(max_bytes=2**20)
ONE = Contract({"natural": 232}, CropPolicy("centre"), LIMITS)
TWO = Contract({"natural": 232, "plain": 232, "face": 224}, CropPolicy("centre"), LIMITS)  # two working sizes
FEW = SetOptions(count=40, minimum=2)
broken = b"no photo %d".__mod__  # different ones by number


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 different photos of 256x240."""
    folder = tmp_path_factory.mktemp("pool")
    for number in range(64):
        (folder / f"{number:02}.jpg").write_bytes(encode(photo(256, 240, number), "JPEG"))
    return folder


def some(pool: Path, folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        shutil.copyfile(pool / f"{number:02}.jpg", folder / f"{number:02}.jpg")
    return folder


def table(path: Path, pool: Path, scenes: Sequence[str]) -> Path:
    rows = (f"{pool}/{number:02}.jpg,{scene}" for number, scene in enumerate(scenes))
    path.write_text("\n".join(["path,scene", *rows]))
    return path


def one_colour(number: int) -> bytes:
    return encode(np.full((240, 256, 3), (number % 256, number // 256 % 256, 7), np.uint8), "PNG", compress_level=0)


def first_of_all(folder: Path, make: Callable[[int], bytes]) -> Path:
    """A file whose digest comes before those of the folder's photos, so that it is surely tried."""
    least, path = min(map(hash_file, folder.iterdir())), folder / "first.png"
    path.write_bytes(next(data for n in range(10**5) if hashlib.sha256(data := make(n)).hexdigest() < least))
    return path


def refusal(*sources: Path, contract: Contract = ONE, options: SetOptions = FEW) -> InputError:
    with pytest.raises(InputError) as caught:
        find_images(sources, contract, options)
    return caught.value


def names(chosen: CalibrationSet) -> set[str]:
    return {image.path.name for image in chosen.images}


def scenes(chosen: CalibrationSet) -> dict[str, int]:
    return dict(Counter(image.scene for image in chosen.images))


def what(chosen: CalibrationSet) -> list[tuple[str, str]]:
    return [(image.sha256, image.scene) for image in chosen.images]


def test_folders_files_and_globs(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = some(pool, tmp_path / "a/photos", 3)
    some(pool, folder / "more", 5)
    (folder / "notes.md").write_text("no photo")
    chosen = find_images([tmp_path / "a"], ONE, FEW)
    assert names(chosen) == {"00.jpg", "01.jpg", "02.jpg", "03.jpg", "04.jpg"}
    assert all(image.sha256 == hash_file(image.path) and image.path.is_absolute() for image in chosen.images)
    monkeypatch.setenv("HOME", str(pool))
    chosen = find_images([Path("~/00.jpg"), pool / "01.jpg", pool / "1*.jpg"], ONE, FEW)
    assert names(chosen) == {"00.jpg", "01.jpg", *(f"{number}.jpg" for number in range(10, 20))}


def test_a_list_is_relative_to_its_folder(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some(pool, tmp_path / "set/photos", 2)
    lines = [b"\xef\xbb\xbf# mine", b"", b"photos/00.jpg  ", b"  ", b" photos/01.jpg", bytes(pool / "02.jpg"), b"#end"]
    for ends in (b"\n", b"\r\n"):
        (tmp_path / "set/list.TXT").write_bytes(ends.join(lines))
        monkeypatch.chdir(tmp_path)
        chosen = find_images([Path("set/list.TXT")], ONE, FEW)
        assert names(chosen) == {"00.jpg", "01.jpg", "02.jpg"}
        monkeypatch.chdir(tmp_path / "set")  # where the program stands no longer matters
        assert len(list(graph_inputs(chosen, ONE))) == 3


def test_a_table_names_scenes(pool: Path, tmp_path: Path) -> None:
    listed = some(pool, tmp_path, 3) / "photos.csv"
    listed.write_text('mos, path, scene\n1,"00.jpg",plain\n\n2,01.jpg, face\n3,02.jpg,natural\n')
    found = {image.path.name: image.scene for image in find_images([listed], TWO, FEW).images}
    assert found == {"00.jpg": "plain", "01.jpg": "face", "02.jpg": "natural"}
    listed.write_text("path\n00.jpg\n\n01.jpg\n")
    assert scenes(find_images([listed], TWO, FEW)) == {"natural": 1, "face": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,scene\n00.jpg,natural\n01.jpg,portrait\n", "list.csv:3: unknown scene 'portrait'"),
        (b"name,scene\n00.jpg,natural\n", "list.csv: columns 'name, scene'; needed is one 'path'"),
        (b"", "columns ''"),
        (b"path,scene\n00.jpg\n", "list.csv:2: no path, or not as many cells"),
        (b"path,scene\n00.jpg,natural,face\n", "list.csv:2: no path, or not as many cells"),
        (b"path,scene\n ,natural\n", "list.csv:2: no path"),
        (b'path,scene\n00.jpg,natural\n"01.jpg"x,natural\n', "list.csv:3: not comma-separated values"),
        (b"path\n\xff.jpg\n", "list.csv: not UTF-8 text (byte 5)"),
        (b"path,scene\n00.npy,natural\n", "00.npy: an array"),
        (b"path\n00.jpg\0\n", ""),  # in Python 3.10 the reader's error, later that of the file
    ],
)
def test_a_wrong_table_is_refused(pool: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (some(pool, tmp_path, 3) / "list.csv").write_bytes(content)
    error = refusal(tmp_path / "list.csv", contract=TWO)
    assert message in error.message
    assert error.message.isprintable()
    assert ("portrait" in message) == (error.hint == "one of natural, plain, face")


@pytest.mark.parametrize("kind", ["npy", "npz", "NPY"])
def test_arrays_are_refused(pool: Path, tmp_path: Path, kind: str) -> None:
    array = tmp_path / f"crops.{kind}"
    array.write_bytes(b"\x93NUMPY")
    (tmp_path / "list.txt").write_text(f"{pool}/00.jpg\n{array.name}\n")
    for source in (array, tmp_path / "list.txt", tmp_path / f"*.{kind}"):
        error = refusal(pool, source)
        assert f"{array}: an array; calibration takes photos" in error.message
        assert "through the bundle's contract" in str(error.hint)


def test_a_source_with_nothing_in_it_is_refused(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("# nothing\n")
    assert refusal().message == refusal(tmp_path / "list.txt").message == "no photos to calibrate with"
    assert "no images in this folder" in refusal(pool, tmp_path / "empty").message
    assert "no such file or folder" in refusal(pool, tmp_path / "missing").message
    assert "no file matches" in refusal(pool, tmp_path / "*.jpg").message
    assert "cannot be read" in refusal(pool, tmp_path / "missing.txt").message


def test_the_thinning_is_even(pool: Path) -> None:
    everything = find_images([pool], ONE)
    assert (len(everything.images), everything.warnings) == (64, ())
    for count in (16, 20, 63):
        chosen = find_images([pool], ONE, SetOptions(count=count))
        assert what(chosen) == [what(everything)[number * 64 // count] for number in range(count)]
        (warning,) = chosen.warnings
        assert warning.startswith(f"only {count} photos: ranges from few photos are narrow")


def test_order_names_and_places_do_not_matter(pool: Path, tmp_path: Path) -> None:
    options = SetOptions(count=30)
    listed = table(tmp_path / "list.csv", pool, ["face", "", "plain", "", "", "natural", "face", ""])
    sources = [listed, pool / "03.jpg", *sorted(pool.glob("2?.jpg")), pool]
    chosen = find_images(sources, TWO, options)
    assert find_images(sources[::-1], TWO, options) == chosen
    here = find_images([pool], TWO, options)
    assert what(here) != what(chosen)  # the negative control: without the table
    for number, path in enumerate(sorted(pool.iterdir(), key=hash_file)):
        (tmp_path / f"{number % 3}").mkdir(exist_ok=True)
        shutil.copyfile(path, tmp_path / f"{number % 3}/{number}.png")  # the content decides, not the suffix
    there = find_images([tmp_path], TWO, options)
    assert (what(there), there.sha256) == (what(here), here.sha256)
    rows = [["face", "natural"], ["natural", "face"], ["face", "natural", "natural"]]
    lists = [table(tmp_path / f"{number}.csv", pool, row) for number, row in enumerate(rows)]
    assert len({find_images([path], TWO, FEW).sha256 for path in lists}) == 3


def test_every_working_size_is_seen(pool: Path, tmp_path: Path) -> None:
    chosen = find_images([pool], TWO, SetOptions(count=21))
    assert scenes(chosen) == {"natural": 11, "face": 10}  # plain has the size of natural
    dealt = sorted(map(hash_file, pool.iterdir()))[1::2]
    assert [i.sha256 for i in chosen.images if i.scene == "face"] == [dealt[n * 32 // 10] for n in range(10)]
    listed = table(tmp_path / "list.csv", pool, [*["plain"] * 10, *[""] * 14])  # those without go where there are few
    assert scenes(find_images([listed], TWO, FEW)) == {"plain": 10, "natural": 2, "face": 12}


@pytest.mark.parametrize(
    ("have", "count", "taken"),
    [
        ((20, 20, 20), 32, (11, 11, 10)),
        ((3, 20, 20), 30, (3, 14, 13)),
        ((20, 3, 5), 16, (8, 3, 5)),
        ((0, 20, 1), 8, (0, 7, 1)),
        ((2, 3, 4), 40, (2, 3, 4)),
    ],
)
def test_thinning_is_fair(pool: Path, tmp_path: Path, have: Sequence[int], count: int, taken: Sequence[int]) -> None:
    rows = [scene for scene, number in zip(TWO.short_sides, have, strict=True) for _ in range(number)]
    found = scenes(find_images([table(tmp_path / "list.csv", pool, rows)], TWO, SetOptions(count=count, minimum=2)))
    assert tuple(found.get(scene, 0) for scene in TWO.short_sides) == taken


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_bytes(broken(0)), "not an image"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "cut": (lambda path: path.write_bytes(encode(photo(256, 240, 99), "PNG")[:-20]), "png: "),
    "small": (lambda path: path.write_bytes(encode(photo(256, 200, 99), "PNG")), "256x200 leaves no room"),
    "huge": (lambda path: path.write_bytes(bytes(2**20 + 1)), "1048577 bytes; the limit is 1048576"),
    "missing": (lambda path: None, "No such file"),
    "folder": (Path.mkdir, "Is a directory"),
    "pipe": (os.mkfifo, "not a regular file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_twentieth_may_be_unusable(pool: Path, tmp_path: Path, fault: str) -> None:
    make, reason = FAULTS[fault]
    make(tmp_path / "a\tb.png")
    photos = [f"{pool}/{number:02}.jpg" for number in range(19)]
    (tmp_path / "list.txt").write_text("\n".join([*photos, "a\tb.png"]))
    chosen = find_images([tmp_path / "list.txt"], ONE, FEW)
    assert len(chosen.images) == 19
    warning = chosen.warnings[0]
    assert warning.startswith("1 of 20 photos left out: they cannot be used: ")
    assert warning.count(r"a\tb.png: ") == 1
    assert reason in warning
    (tmp_path / "list.txt").write_text("\n".join([*photos[:18], "a\tb.png"]))
    message = refusal(tmp_path / "list.txt").message
    assert message.startswith("1 of 19 photos cannot be used; the limit is 5 %: ")
    assert reason in message


def test_a_broken_folder_is_not_read_to_its_end(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"bad{number}.png").write_bytes(broken(number))
    message = refusal(tmp_path, options=SetOptions(count=20)).message
    assert message.startswith("20 of 20 photos cannot be used")
    assert (message.count("not an image"), message[-1]) == (5, "…")


class Counted(Steps):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int | None, int]] = []  # each step, its total and the sum of its ticks

    @contextlib.contextmanager
    def step(self, text: str, total: int | None = None) -> Iterator[Tick]:
        ticks: list[int] = []
        yield ticks.append
        self.seen.append((text, total, sum(ticks)))


@pytest.mark.parametrize("make", [broken, one_colour])
def test_others_take_the_place_of_what_is_left_out(pool: Path, tmp_path: Path, make: Callable[[int], bytes]) -> None:
    some(pool, tmp_path, 40)
    bad = first_of_all(tmp_path, make)
    ordered = sorted(tmp_path.iterdir(), key=hash_file)
    steps = Counted()
    chosen = find_images([tmp_path], ONE, SetOptions(count=20), steps=steps)
    assert what(chosen) == sorted(what(chosen))
    assert bad.name not in names(chosen)
    assert chosen.warnings[0].startswith("1 of 21 photos left out")
    planned = {ordered[number * 41 // 20].name for number in range(20)}
    assert len(names(chosen) - planned) == 1
    assert steps.seen == [("reading 41 files", 41, 41), ("decoding 20 photos", 20, 20)]
    assert scenes(find_images([tmp_path], TWO, SetOptions(count=20))) == {"natural": 10, "face": 10}


def test_copies_are_left_out(pool: Path, tmp_path: Path) -> None:
    some(pool, tmp_path / "b", 6)
    some(pool, tmp_path / "a", 3)
    chosen = find_images([tmp_path], ONE, FEW)
    assert "3 of 9 files left out: copies of others" in chosen.warnings
    kept = sorted(str(image.path.relative_to(tmp_path)) for image in chosen.images)
    assert kept == ["a/00.jpg", "a/01.jpg", "a/02.jpg", "b/03.jpg", "b/04.jpg", "b/05.jpg"]
    assert not any("copies" in text for text in find_images([tmp_path / "b"], ONE, FEW).warnings)
    listed = table(tmp_path / "list.csv", pool, ["face"] * 6)  # of copies the one with a scene is kept
    assert scenes(find_images([tmp_path, listed], TWO, FEW)) == {"face": 6}


def test_photos_of_one_colour_are_left_out(pool: Path, tmp_path: Path) -> None:
    (some(pool, tmp_path, 4) / "red.png").write_bytes(one_colour(255))
    spot = np.full((240, 256, 3), 90, np.uint8)
    spot[0, 0] = 0  # outside the crop in the middle
    (tmp_path / "spot.png").write_bytes(encode(spot, "PNG"))
    chosen = find_images([tmp_path], Contract({"natural": None}, CropPolicy("centre")), FEW)
    assert names(chosen) == {"00.jpg", "01.jpg", "02.jpg", "03.jpg"}
    assert chosen.warnings[0].startswith("2 of 6 photos left out: they have one colour")
    corners = find_images([tmp_path], Contract({"natural": None}, CropPolicy("five")), FEW)
    assert names(corners) == {*names(chosen), "spot.png"}


@pytest.mark.parametrize("minimum", [1, 16])
def test_photos_that_are_all_alike_are_refused(pool: Path, tmp_path: Path, minimum: int) -> None:
    options = SetOptions(minimum=minimum)
    for name in ("a", "b", "c"):
        shutil.copyfile(pool / "00.jpg", tmp_path / f"{name}.jpg")
    assert "all 3 photos are copies" in refusal(tmp_path, options=options).message
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(one_colour(number))
    assert "all 6 photos are copies of one picture or have one colour" in refusal(tmp_path, options=options).message
    assert "all 1 photos" in refusal(tmp_path / "0.png", options=options).message
    assert len(find_images([pool / "00.jpg"], ONE, SetOptions(minimum=1)).images) == 1


def test_too_few_are_refused_with_both_numbers_and_the_reasons(pool: Path, tmp_path: Path) -> None:
    (some(pool, tmp_path, 15) / "red.png").write_bytes(one_colour(255))
    shutil.copyfile(pool / "00.jpg", tmp_path / "copy.jpg")
    error = refusal(tmp_path, options=SetOptions())
    assert error.message.startswith("15 usable photos; at least 16 are needed; 1 of 17 files left out: copies")
    assert "1 of 16 photos left out: they have one colour" in error.message
    assert len(find_images([some(pool, tmp_path, 16)], ONE).images) == 16


def test_photos_of_the_verification_are_left_out(pool: Path) -> None:
    avoid = [hash_file(pool / f"{number:02}.jpg") for number in range(10)] + ["0" * 64]
    chosen = find_images([pool], ONE, avoid=avoid)
    assert names(chosen) == {f"{number}.jpg" for number in range(10, 64)}
    assert chosen.warnings[0].startswith("10 of 64 files left out: the result is verified with them")
    with pytest.raises(InputError, match=r"0 usable photos; at least 16 are needed; 64 of 64 files left out"):
        find_images([pool], ONE, avoid={hash_file(path) for path in pool.iterdir()})


def test_impossible_numbers_are_refused() -> None:
    for count, minimum in ((15, 16), (256, 0), (-1, -1), (256, 257)):
        with pytest.raises(UsageError, match="at least"):
            SetOptions(count=count, minimum=minimum)


def test_photos_go_through_the_contract(pool: Path) -> None:
    options = SetOptions(count=6, minimum=2)
    chosen = find_images([pool], TWO, options)
    for image, pixels in zip(chosen.images, graph_inputs(chosen, TWO), strict=True):
        assert (pixels.shape, str(pixels.dtype)) == ((1, 224, 224, 3), "uint8")
        np.testing.assert_array_equal(pixels, prepare(image.path, TWO, image.scene).crops)
        other = "face" if image.scene == "natural" else "natural"
        assert not np.array_equal(pixels, prepare(image.path, TWO, other).crops)
    frames = Contract({"natural": None}, CropPolicy.parse("frame256x240:five"))
    chosen = find_images([pool], frames, options)
    for image, pixels in zip(chosen.images, graph_inputs(chosen, frames), strict=True):
        np.testing.assert_array_equal(pixels, decode(image.path, frames.limits).pixels)
    wider = Contract({"natural": None}, CropPolicy.parse("frame320x240:five"))  # photos are mirrored at their edges
    assert [pixels.shape for pixels in graph_inputs(find_images([pool], wider, options), wider)] == [(240, 320, 3)] * 6


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda path: path.unlink(), "cannot be read"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 100), "changed since"),
    "other": (lambda path: path.write_bytes(encode(photo(256, 240, 1000), "JPEG")), "changed since"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_is_named_when_its_turn_comes(pool: Path, tmp_path: Path, change: str) -> None:
    chosen = find_images([some(pool, tmp_path, 4)], ONE, FEW)
    inputs = graph_inputs(chosen, ONE)
    CHANGES[change][0](chosen.images[1].path)
    assert next(inputs).shape == (1, 224, 224, 3)
    with pytest.raises(InputError, match=rf"/{chosen.images[1].path.name}: {CHANGES[change][1]}"):
        next(inputs)
    assert len(list(graph_inputs(chosen, ONE, start=2))) == 2


def test_who_resumes_gets_exactly_the_rest(pool: Path) -> None:
    chosen = find_images([pool], TWO, SetOptions(count=6, minimum=2))
    everything = [pixels.tobytes() for pixels in graph_inputs(chosen, TWO)]
    assert len(set(everything)) == 6
    for start in range(7):
        assert [pixels.tobytes() for pixels in graph_inputs(chosen, TWO, start)] == everything[start:]
    for start in (-1, 7):
        with pytest.raises(UsageError, match=f"image {start} of 6"):
            graph_inputs(chosen, TWO, start)


def peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    work()
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return held


def test_memory_is_bounded(pool: Path) -> None:
    contract = Contract({"natural": 232}, CropPolicy("five"), LIMITS)
    size = 5 * 224 * 224 * 3
    chosen = find_images([pool], contract, SetOptions(count=32))
    assert peak(lambda: [pixels.shape for pixels in graph_inputs(chosen, contract)]) < 6 * size
    assert peak(lambda: find_images([pool], contract, SetOptions(count=32))) < 6 * size
    assert peak(lambda: list(graph_inputs(chosen, contract))) > 32 * size  # the negative control
