"""gamma-run as a user types it."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from gamma_runtime.commands.run import RunOptions, expand, main
from gamma_runtime.scorer import load
from tests.runtime.images import encode, photo
from tests.runtime.tiny_bundle import Tiny, make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return str(make_bundle(tmp_path / "my bundle.gamma").folder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    (folder / "b.jpg").write_bytes(encode(photo(500, 400), "JPEG"))
    (folder / "A.PNG").write_bytes(encode(photo(seed=1), "PNG"))
    (folder / "inner" / "c.webp").write_bytes(encode(photo(seed=2), "WEBP"))
    (folder / "notes.txt").write_text("no image")
    return folder


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_for_a_folder(bundle: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([bundle, str(photos), "--json", "--threads", "1"]) == 0
    captured = capsys.readouterr()
    records = lines(captured.out)
    assert [Path(r["path"]).name for r in records] == ["A.PNG", "b.jpg", "c.webp"]
    with load(bundle, threads=1) as scorer:
        assert [r["score"] for r in records] == [scorer.score(r["path"]).value for r in records]
    assert {r["scene"] for r in records} == {"natural-quality"}
    assert all(r["error"] is None and r["flags"] == ["untrained"] and len(r["crop_scores"]) == 5 for r in records)
    assert captured.err.splitlines()[0].endswith("untrained")
    assert captured.err.splitlines()[-1] == f"next: gamma-verify '{bundle}'"


def test_bad_images_are_reported_and_the_rest_go_on(
    bundle: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a-cut.jpg").write_bytes((photos / "b.jpg").read_bytes()[:2000])
    args = [bundle, str(photos), "missing.jpg", "nothing-*.png", "--json", "--threads", "1", "--batch", "2"]
    assert main(args) == 3
    captured = capsys.readouterr()
    records = lines(captured.out)
    assert [(Path(r["path"]).name, r["error"] is None) for r in records] == [
        ("A.PNG", True),
        ("a-cut.jpg", False),
        ("b.jpg", True),
        ("c.webp", True),
        ("missing.jpg", False),
        ("nothing-*.png", False),
    ]
    assert records[0].keys() == records[1].keys()
    assert "3 of 6 images could not be scored" in captured.err


@pytest.mark.parametrize(
    "spelling",
    [["--scene", "underwater-quality,face-quality"], ["--scene", "underwater-quality", "--scene", "face-quality"]],
)
def test_several_scenes(bundle: str, photos: Path, spelling: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([bundle, str(photos / "b.jpg"), *spelling, "--json", "--threads", "1"]) == 0
    records = lines(capsys.readouterr().out)
    assert [r["scene"] for r in records] == ["underwater-quality", "face-quality"]
    for record in records:
        with load(bundle, record["scene"], threads=1) as scorer:
            assert record["score"] == pytest.approx(scorer.score(photos / "b.jpg").value, abs=1e-6)


def test_decoding_threads_change_nothing(bundle: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "a-cut.jpg").write_bytes((photos / "b.jpg").read_bytes()[:2000])
    paths = ["nothing-1-*.png", str(photos), "nothing-2-*.png", str(photos / "b.jpg"), "nothing-3-*.png"]
    texts = []
    for threads in ("0", "1", "3"):
        assert main([bundle, *paths, "--json", "--threads", "1", "--decode-threads", threads, "--batch", "2"]) == 3
        texts.append(capsys.readouterr().out)
    assert texts[1:] == texts[:1] * 2
    names = [Path(record["path"]).name for record in lines(texts[0])]
    assert names[:1] + names[5:6] + names[7:] == ["nothing-1-*.png", "nothing-2-*.png", "nothing-3-*.png"]
    assert names[1:5] + names[6:7] == ["A.PNG", "a-cut.jpg", "b.jpg", "c.webp", "b.jpg"]


def test_csv(bundle: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / 'comma, "quote".jpg').write_bytes(b"nothing")
    assert main([bundle, str(photos), "--csv", "--quiet", "--threads", "1"]) == 3
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert len(rows) == 4
    assert [row["error"] != "" for row in rows] == [False, False, True, False]
    assert rows[2]["path"].endswith('comma, "quote".jpg')
    assert len(rows[0]["crop_scores"].split()) == 5
    assert captured.err == "1 of 4 images could not be scored\n"


def test_table_shows_the_label_in_words(bundle: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "zero.jpg").write_bytes(b"")
    assert main([bundle, str(photos), "--threads", "1"]) == 3
    text = capsys.readouterr().out
    assert text.startswith("checkpoint: untrained; its scores say nothing about images")
    assert "score 0.2 to 1" in text
    assert "the file is empty" in text


def test_scale_and_small(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.png").write_bytes(encode(photo(100, 90), "PNG"))
    args = [bundle, str(tmp_path / "small.png"), "--json", "--threads", "1"]
    assert main(args) == 3
    assert "100x90" in lines(capsys.readouterr().out)[0]["error"]
    assert main([*args, "--small", "resize", "--scale", "0-100", "--backend", "openvino"]) == 0
    (record,) = lines(capsys.readouterr().out)
    assert record["flags"] == ["untrained", "enlarged"]
    assert (record["range"], record["backend"]) == ([0, 100], "openvino")


def test_a_score_that_is_not_finite_is_an_error_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "t.gamma", Tiny(dark_is_nan=True))
    (tmp_path / "dark.png").write_bytes(encode(photo() // 100, "PNG"))
    assert main([str(bundle.folder), str(tmp_path / "dark.png"), "--json", "--threads", "1"]) == 7
    text = capsys.readouterr().out
    assert "NaN" not in text.replace("values are NaN", "")
    assert lines(text)[0]["score"] is None


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        (["--json", "--csv"], 2),
        (["--backend", "tensorflow"], 2),
        (["--batch", "0"], 2),
        (["--decode-threads", "-1"], 2),
        (["--scene", "nonsense"], 3),
        (["--no-such-flag"], 2),
    ],
)
def test_exit_codes(bundle: str, photos: Path, extra: list[str], code: int) -> None:
    try:
        found = main([bundle, str(photos), *extra])
    except SystemExit as error:  # the flag parser's own
        found = error.code
    assert found == code


def test_no_paths_is_a_usage_error(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([bundle]) == 2
    assert "no images" in capsys.readouterr().err


def test_no_such_bundle(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["none.gamma", str(photos)]) == 3
    assert "no such bundle" in capsys.readouterr().err


def test_odd_names(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = encode(photo(), "PNG")
    folder = os.fsencode(tmp_path / "odd")
    os.mkdir(folder)
    for name in (b"new\nline.png", b"not-utf8-\xff.png", "ünï.png".encode(), b"-dash.png", b" space .png"):
        with open(os.path.join(folder, name), "wb") as stream:
            stream.write(data)
    for flag in ("--json", "--csv", "--quiet"):
        assert main([bundle, os.fsdecode(folder), flag, "--threads", "1"]) == 0
        text = capsys.readouterr().out
        assert text.isprintable() or all(line.isprintable() for line in text.splitlines())
    assert main([bundle, os.fsdecode(folder), "--json", "--threads", "1"]) == 0
    found = {os.fsencode(Path(r["path"]).name) for r in lines(capsys.readouterr().out)}
    assert found == set(os.listdir(folder))


def test_globs_files_and_order(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    found = [path for path, error in expand(["**/*.webp", "notes.txt", "*.jpg", "."]) if error is None]
    assert found == ["inner/c.webp", "notes.txt", "b.jpg", "./A.PNG", "./b.jpg", "./inner/c.webp"]
    (photos / "[1].jpg").write_bytes(b"")
    assert [path for path, _ in expand(["[1].jpg"])] == ["[1].jpg"]


def test_an_empty_folder_is_an_error_of_its_own(tmp_path: Path) -> None:
    ((path, error),) = list(expand([str(tmp_path)]))
    assert path == str(tmp_path)
    assert error is not None
    assert "no images" in error.message


def test_flags_are_the_options() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "gamma_runtime.commands.run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for name in RunOptions.__dataclass_fields__:
        if name not in ("bundle", "paths"):
            assert f"--{name.replace('_', '-')}" in help_text


def test_progress_only_where_someone_watches(bundle: str, photos: Path) -> None:
    """stderr on a terminal shows the counter, with --quiet it does not."""
    for extra, expected in (([], True), (["--quiet"], False)):
        terminal, end = pty.openpty()
        command = [sys.executable, "-m", "gamma_runtime.commands.run", bundle, str(photos), "--threads", "1", *extra]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=end, check=True, env=os.environ | {"TERM": "xterm"}
        )
        os.close(end)
        shown = b""
        try:
            while chunk := os.read(terminal, 4096):
                shown += chunk
        except OSError:  # the other end is closed
            pass
        os.close(terminal)
        assert (b"images" in shown) == expected
        assert b"A.PNG" in done.stdout


GROWTH = """
import gc, io, resource, sys
from pathlib import Path
from gamma_runtime.commands.run import main
class Counting(io.StringIO):
    lines, seen, kept = 0, {}, []
    def write(self, text):
        self.lines += text.count("\\n")
        if self.lines in (1000, 8000) and self.lines not in self.seen:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.seen[self.lines] = pages * resource.getpagesize()
        if keep:
            self.kept.append(text)
        return len(text)
keep = sys.argv.pop() == 'keep'
counting = sys.stdout = Counting()
code = main([sys.argv[1], sys.argv[2], "--threads", "1", "--batch", "64", *sys.argv[3:]])
sys.stdout = sys.__stdout__
print(code, counting.lines, counting.seen[8000] - counting.seen[1000])
"""


def growth(bundle: str, folder: Path, flag: str, keep: str) -> tuple[int, int, int]:
    """Exit code, lines written, and what the process grew by in bytes between lines 1,000 and 8,000."""
    argv = [sys.executable, "-c", GROWTH, bundle, str(folder), flag, "--quiet", keep]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    code, written, grown = map(int, done.stdout.split())
    return code, written, grown


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """8,100 empty files. A folder's names are sorted, so they are a list; there are ten folders."""
    for group in range(10):
        (tmp_path / "many" / str(group)).mkdir(parents=True)
        for index in range(810):
            os.mknod(tmp_path / "many" / str(group) / f"{index}.jpg")
    return tmp_path / "many"


@pytest.mark.parametrize("flag", ["--json", "--csv"])
def test_a_long_list_is_not_kept(bundle: str, many: Path, flag: str) -> None:
    code, written, grown = growth(bundle, many, flag, "drop")
    assert (code, written) == (3, 8100 + (flag == "--csv"))
    assert grown < 500_000


def test_a_kept_list_would_be_noticed(bundle: str, many: Path) -> None:
    assert growth(bundle, many, "--json", "keep")[2] > 1_000_000


def test_small_and_strict_are_recorded_or_refused(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    """44x36 pixels, three frames: padded and flagged; with --strict refused."""
    image = str(Path(__file__).parent.parent / "data" / "images" / "animated.webp")
    assert main([bundle, image, "--small", "pad", "--json", "--threads", "1"]) == 0
    (record,) = lines(capsys.readouterr().out)
    assert record["flags"] == ["untrained", "frames", "padded"]
    assert record["working_size"] == [224, 224]
    assert main([bundle, image, "--small", "pad", "--strict", "--json", "--threads", "1"]) == 3
    (record,) = lines(capsys.readouterr().out)
    assert "more than one picture" in record["error"]
    assert main([bundle, image, "--json", "--threads", "1"]) == 3
    assert "44x36 leaves no room" in lines(capsys.readouterr().out)[0]["error"]
