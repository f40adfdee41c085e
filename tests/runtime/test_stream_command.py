"""gamma-run on a video file and on an MJPEG camera over loopback, as a user types it."""

from __future__ import annotations

import csv
import io
import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from gamma_runtime.commands.run import main
from gamma_runtime.scorer import load
from gamma_runtime.sources import frames
from tests.runtime.images import encode, photo
from tests.runtime.streams import Send, camera, colours, jpeg, plain, write_video
from tests.runtime.tiny_bundle import Tiny, make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return str(make_bundle(tmp_path / "b.gamma").folder)


@pytest.fixture
def video(tmp_path: Path) -> str:
    return str(write_video(tmp_path / "film.avi", [photo(seed=index) for index in range(9)]))


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_of_a_video(bundle: str, video: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([bundle, video, "--every", "4", "--json", "--threads", "1"]) == 0
    captured = capsys.readouterr()
    records = lines(captured.out)
    assert [(r["path"], r["frame"], r["seconds"]) for r in records] == [
        (video, 0, 0.0),
        (video, 4, 0.4),
        (video, 8, 0.8),
    ]
    with load(bundle, threads=1) as scorer, frames(video, every=4) as stream:
        direct = [scorer.score(frame.pixels) for frame in stream]
    assert [r["score"] for r in records] == [score.value for score in direct]
    assert len(set(r["score"] for r in records)) == 3
    assert records[0].keys() == {*direct[0].to_dict(), "frame", "seconds"}
    assert "9 frames read, 3 scored, 0 dropped" in captured.err


def test_frames_batches_and_threads_change_nothing(
    tmp_path: Path, video: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(make_bundle(tmp_path / "batch.gamma", Tiny(batch=(1, 4, 8))).folder)
    texts = []
    for extra in (["--batch", "1", "--decode-threads", "0"], ["--batch", "4", "--decode-threads", "2"]):
        assert main([bundle, video, "--frames", "5", "--json", "--quiet", "--threads", "1", *extra]) == 0
        texts.append(lines(capsys.readouterr().out))
    assert [record["frame"] for record in texts[0]] == [0, 1, 2, 3, 4]
    for one, other in zip(*texts, strict=True):
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-6)
        assert one.pop("crop_scores") == pytest.approx(other.pop("crop_scores"), abs=1e-6)
        assert one.pop("crop_std") == pytest.approx(other.pop("crop_std"), abs=1e-6)
        assert one == other


def test_csv_has_two_more_columns(bundle: str, video: str, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = ["--scene", "natural-quality,face-quality"]
    assert main([bundle, video, "--frames", "2", "--csv", "--quiet", "--threads", "1", *scenes]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0])[:4] == ["path", "frame", "seconds", "scene"]
    assert [(row["frame"], row["seconds"], row["scene"]) for row in rows] == [
        ("0", "0.0", "natural-quality"),
        ("0", "0.0", "face-quality"),
        ("1", "0.1", "natural-quality"),
        ("1", "0.1", "face-quality"),
    ]


def test_text_is_a_line_a_frame(bundle: str, video: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([bundle, f"video:{video}", "--frames", "2", "--threads", "1"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("checkpoint: untrained")
    assert [line.split()[:5] for line in rest] == [
        ["frame", "0", "0.000", "s", "natural-quality"],
        ["frame", "1", "0.100", "s", "natural-quality"],
    ]


def test_a_file_uri_is_the_file(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a b.png").write_bytes(encode(photo(), "PNG"))
    texts = []
    for path in (f"file://{tmp_path}/a%20b.png", str(tmp_path / "a b.png")):
        assert main([bundle, path, "--json", "--quiet", "--threads", "1"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_a_camera_over_http(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each frame is scored before the camera sends on: nothing is dropped, and the scores are those of the colours."""
    sent = colours(6)
    step = threading.Semaphore(0)

    def script(send: Send) -> None:
        for index in range(200):
            send(jpeg(plain(sent[min(index // 8, 5)])))
            if index % 8 == 7:
                assert step.acquire(timeout=60)

    found: list[dict] = []

    class Reader(io.StringIO):
        def write(self, text: str) -> int:
            if text.startswith("{"):
                found.append(json.loads(text))
                step.release()
            return len(text)

    with camera(script) as address, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Reader())
        assert main([bundle, address, "--every", "8", "--frames", "4", "--json", "--threads", "1"]) == 0
        step.release(200)
    assert [(r["path"], r["frame"]) for r in found] == [(address, index) for index in (0, 8, 16, 24)]
    for index, record in enumerate(found):
        assert record["score"] == pytest.approx(np.mean(sent[index]) / 255, abs=0.005)
        assert record["error"] is None
    assert found[0]["seconds"] == 0.0 < found[1]["seconds"] < found[3]["seconds"]
    assert "4 scored, 0 dropped" in capsys.readouterr().err


def test_a_camera_that_goes_away_is_an_error_after_its_frames(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    def script(send: Send) -> None:
        for colour in colours(5):
            send(jpeg(plain(colour)))

    with camera(script) as address:
        assert main([bundle, address, "--json", "--threads", "1"]) == 3
    captured = capsys.readouterr()
    assert lines(captured.out)[-1]["frame"] == 4
    assert "5 frames read" in captured.err
    assert "the stream ended after 5 frames" in captured.err


def test_a_frame_that_cannot_be_scored_is_a_record_and_the_rest_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(make_bundle(tmp_path / "nan.gamma", Tiny(dark_is_nan=True)).folder)
    film = [plain((0, 0, 0) if index == 1 else (200, 200, 200)) for index in range(3)]
    video = str(write_video(tmp_path / "a.avi", film))
    assert main([bundle, video, "--json", "--threads", "1"]) == 7
    captured = capsys.readouterr()
    assert [record["error"] is None for record in lines(captured.out)] == [True, False, True]
    assert "1 of 3 frames could not be scored" in captured.err
    assert "3 frames read, 2 scored, 0 dropped" in captured.err


def test_frames_that_are_too_small(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = str(write_video(tmp_path / "small.avi", [photo(160, 120)] * 2))
    assert main([bundle, video, "--json", "--threads", "1"]) == 3
    records = lines(capsys.readouterr().out)
    assert [record["error"][:31] for record in records] == ["160x120 leaves no room for a cr"] * 2
    assert main([bundle, video, "--json", "--threads", "1", "--small", "pad"]) == 0
    assert lines(capsys.readouterr().out)[1]["flags"] == ["untrained", "padded"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_camera_with_the_summary(bundle: str, number: int) -> None:
    over = threading.Event()

    def script(send: Send) -> None:
        while not over.wait(0.005):
            send(jpeg(plain((200, 40, 10))))

    with camera(script) as address:
        command = [sys.executable, "-m", "gamma_runtime.commands.run", bundle, address, "--json", "--threads", "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            first = json.loads(run.stdout.readline())
            run.send_signal(number)
            rest, said = run.communicate(timeout=60)
        over.set()
    assert run.returncode == 0
    assert first["error"] is None
    assert all(json.loads(line)["error"] is None for line in rest.splitlines())
    assert " frames read, " in said
    assert "Traceback" not in said


def test_a_server_that_says_nothing(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://me:hunter2@127.0.0.1:{server.getsockname()[1]}/x"
        assert main([bundle, address, "--json", "--threads", "1", "--frame-timeout", "0.2"]) == 3
    captured = capsys.readouterr()
    assert (captured.out, "no frame for 0.2 seconds" in captured.err) == ("", True)
    assert "hunter2" not in captured.err


def test_a_password_is_in_no_record(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    with camera(lambda send: [send(jpeg(plain((200, 40, 10)))) for _ in range(4)] and None) as address:
        address = address.replace("//", "//me:hunter2@")
        assert main([bundle, address, "--json", "--threads", "1", "--frames", "1"]) == 0
    captured = capsys.readouterr()
    assert "//me:***@127.0.0.1" in lines(captured.out)[0]["path"]
    assert "hunter2" not in captured.out + captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["v4l2:///dev/video97"], 3, "no such camera"),
        (["missing.mp4"], 3, "cannot be read"),
        (["TEXT"], 3, "not a video, by its content"),
        (["CUT"], 3, "it was cut off"),
        (["VIDEO", "VIDEO"], 2, "at a time"),
        (["VIDEO", "a.jpg"], 2, "at a time"),
        (["a.jpg", "rtsp://me:hunter2@camera/x"], 2, "at a time"),
        (["foo://me:hunter2@camera/x"], 2, "unknown kind"),
        (["a.jpg", "--every", "2"], 2, "are for a video"),
        (["a.jpg", "--frames", "2"], 2, "are for a video"),
        (["VIDEO", "--every", "0"], 2, "at least 1"),
        (["VIDEO", "--frames", "0"], 2, "at least 1"),
        (["VIDEO", "--frame-timeout", "-1"], 2, "more than 0"),
        (["csi://0;reboot"], 2, "sensor's number"),
    ],
)
def test_what_is_refused_before_the_bundle_is_opened(
    tmp_path: Path, video: str, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, cut = tmp_path / "text.mp4", tmp_path / "cut.avi"
    text.write_text("not a video\n" * 100)
    cut.write_bytes(Path(video).read_bytes()[:-100])
    given = {"VIDEO": video, "TEXT": str(text), "CUT": str(cut)}
    assert main(["none.gamma", *(given.get(word, word) for word in arguments)]) == code
    captured = capsys.readouterr()
    assert (captured.out, words in captured.err, "hunter2" in captured.err) == ("", True, False)
