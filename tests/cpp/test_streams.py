"""gamma-run-cpp on folders, videos and an MJPEG camera over loopback, against gamma-run."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from gamma_export.photos import packaged_photos
from gamma_runtime.bundle import Bundle
from gamma_runtime.scorer import load
from gamma_runtime.sources import frames
from tests import tiny_export
from tests.cpp.test_cpp import run
from tests.runtime.images import encode, photo
from tests.runtime.streams import Send, camera, colours, jpeg, plain, serving, write_video
from tests.runtime.tiny_bundle import make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("streams") / "b.gamma")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "film.avi", [photo(seed=index) for index in range(9)])


def records(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_fourth_frame_scores_as_in_python(tools: Path, bundle: Bundle, video: Path) -> None:
    """Both decode motion JPEG with their own FFmpeg: the same frames, and pixels at most a step or two apart."""
    done = run(tools, "gamma-run-cpp", bundle.folder, video, "--every", "4", "--json")
    assert (done.returncode, "9 frames read, 3 scored, 0 dropped" in done.stderr) == (0, True), done.stderr
    with load(bundle, backend="openvino", threads=1) as scorer, frames(str(video), every=4) as stream:
        wanted = [(frame.index, frame.seconds, scorer.score(frame.pixels)) for frame in stream]
    found = records(done)
    assert [(record["frame"], record["seconds"]) for record in found] == [(one[0], one[1]) for one in wanted]
    assert found[0].keys() == {*wanted[0][2].to_dict(), "frame", "seconds"}
    assert [record["score"] for record in found] == pytest.approx([one[2].value for one in wanted], abs=1e-4)
    assert len({record["score"] for record in found}) == 3


@pytest.mark.long
def test_frames_ends_the_video(tools: Path, bundle: Bundle, video: Path) -> None:
    done = run(tools, "gamma-run-cpp", bundle.folder, f"video:{video}", "--frames", "2", "--json", "--quiet")
    assert ([record["frame"] for record in records(done)], done.stderr) == ([0, 1], "")


@pytest.mark.long
def test_red_is_red(tools: Path, tmp_path: Path) -> None:
    """The graph by hand scores brightness, in which blue for red would not show; an exported one sees colours."""
    folder = tiny_export.exported(precision="fp32")
    pixels = photo(320, 240) // 2
    pixels[:, :, 0] += 120
    scores = []
    for order in (slice(None), slice(None, None, -1)):
        film = write_video(tmp_path / "film.avi", [pixels[:, :, order]] * 2, codec="FFV1")
        (tmp_path / "frame.png").write_bytes(encode(pixels[:, :, order], "PNG"))
        done = [run(tools, "gamma-run-cpp", folder, name, "--json") for name in (film, tmp_path / "frame.png")]
        scores.append([records(one)[0]["score"] for one in done])
        assert scores[-1][0] == pytest.approx(scores[-1][1], abs=1e-3)
    assert abs(scores[0][0] - scores[1][0]) > 0.01


@pytest.mark.long
def test_a_camera_over_loopback(tools: Path, bundle: Bundle) -> None:
    """It goes away after twelve frames: exit code 3, after the records."""

    def script(send: Send) -> None:
        for colour in colours(12):
            send(jpeg(plain(colour)))

    with camera(script) as address:
        done = run(tools, "gamma-run-cpp", bundle.folder, address, "--json", "--frame-timeout", "5")
    found = records(done)
    assert (done.returncode, "the stream ended after 12 frames" in done.stderr) == (3, True), done.stderr
    assert found
    assert all(record["path"] == address and record["error"] is None for record in found)
    assert [record["frame"] for record in found] == sorted({record["frame"] for record in found})
    assert f"12 frames read, {len(found)} scored, {12 - len(found)} dropped" in done.stderr


@pytest.mark.long
def test_a_signal_ends_a_camera_with_its_summary(tools: Path, bundle: Bundle) -> None:
    gone = threading.Event()

    def script(send: Send) -> None:
        while not gone.wait(0.02):
            send(jpeg(plain((90, 90, 90))))

    with camera(script) as address:
        command = [tools / "gamma-run-cpp", bundle.folder, address, "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["score"] > 0
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
        gone.set()
    assert (process.returncode, "frames read" in said) == (0, True), said


@pytest.mark.long
def test_a_camera_that_says_nothing(tools: Path, bundle: Bundle) -> None:
    done_waiting = threading.Event()
    with serving(lambda _: done_waiting.wait(60)) as address:
        done = run(tools, "gamma-run-cpp", bundle.folder, address, "--frame-timeout", "1")
        done_waiting.set()
    assert (done.returncode, "no frame for 1 seconds" in done.stderr) == (3, True), done.stderr


@pytest.mark.long
def test_nobody_there(tools: Path, bundle: Bundle) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        done = run(tools, "gamma-run-cpp", bundle.folder, f"http://u:hidden@127.0.0.1:{port}/x", "--frame-timeout", "2")
    assert (done.returncode, "http://u:***@127.0.0.1" in done.stderr, "hidden" in done.stderr) == (3, True, False)


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("v4l2:///dev/video99", 3, "no such camera"),
        ("v4l2:///etc/passwd", 3, "not a camera"),
        ("nothing.mp4", 3, "cannot be read"),
        ("foo://bar", 2, "an unknown kind of source"),
        ("csi://none", 2, "a sensor's number"),
    ],
)
def test_what_is_no_source(tools: Path, bundle: Bundle, source: str, code: int, said: str) -> None:
    done = run(tools, "gamma-run-cpp", bundle.folder, source)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


@pytest.mark.long
def test_videos_that_are_none(tools: Path, bundle: Bundle, video: Path, tmp_path: Path) -> None:
    (tmp_path / "playlist.mp4").write_text("#EXTM3U\nfile:///etc/passwd\n")
    (tmp_path / "cut.avi").write_bytes(video.read_bytes()[:-5000])
    (tmp_path / "empty.mkv").write_bytes(b"")
    for name, said in (("playlist.mp4", "not a video"), ("cut.avi", "it was cut off"), ("empty.mkv", "empty")):
        done = run(tools, "gamma-run-cpp", bundle.folder, tmp_path / name)
        assert (done.returncode, said in done.stderr) == (3, True), done.stderr


@pytest.mark.long
def test_one_stream_at_a_time(tools: Path, bundle: Bundle, video: Path) -> None:
    assert run(tools, "gamma-run-cpp", bundle.folder, video, video).returncode == 2
    assert run(tools, "gamma-run-cpp", bundle.folder, packaged_photos()[0], "--every", "2").returncode == 2


@pytest.mark.long
def test_a_bad_frame_is_a_record(tools: Path, bundle: Bundle, tmp_path: Path) -> None:
    small = write_video(tmp_path / "small.avi", [photo(96, 64)] * 2)
    done = run(tools, "gamma-run-cpp", bundle.folder, small, "--json")
    assert done.returncode == 3
    assert [record["score"] for record in records(done)] == [None, None]
    assert all("224" in record["error"] for record in records(done))


@pytest.mark.long
def test_folders_in_the_order_of_python(tools: Path, bundle: Bundle, tmp_path: Path) -> None:
    for name in ("b/z.jpg", "b/a/x.png", "b.jpg", "a.JPG", "c/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(packaged_photos()[0].read_bytes())
    (tmp_path / "link").symlink_to(tmp_path / "b")
    from gamma_runtime.commands.run import expand

    wanted = [path for path, _ in expand([str(tmp_path)])]
    done = run(tools, "gamma-run-cpp", bundle.folder, tmp_path, "--json")
    assert [record["path"] for record in records(done)] == wanted
    assert len(wanted) == 4
    done = run(tools, "gamma-run-cpp", bundle.folder, tmp_path / "c", "--json")
    assert (done.returncode, records(done)[0]["error"] is not None) == (3, True)


@pytest.mark.long
def test_another_scale(tools: Path, bundle: Bundle) -> None:
    picture = packaged_photos()[0]
    with load(bundle, backend="openvino", threads=1, scale="0-100") as scorer:
        wanted = scorer.score(picture).to_dict()
    found = records(run(tools, "gamma-run-cpp", bundle.folder, picture, "--json", "--scale", "0-100"))[0]
    assert found["crop_scores"] == pytest.approx(wanted["crop_scores"], abs=1e-4)
    assert found["crop_std"] == pytest.approx(wanted["crop_std"], abs=1e-4)
    assert (found["range"], found["scale"]) == (wanted["range"], "0-100")
    assert run(tools, "gamma-run-cpp", bundle.folder, picture, "--scale", "1-5").returncode == 2


@pytest.mark.long
def test_frames_of_a_bundle_that_cuts_its_own_crops(tools: Path, tmp_path: Path) -> None:
    from gamma_export.exporter import export

    changes = {"crops": "frame320x240:five", "scene": (tiny_export.SCENES[0],), "precision": ("fp32",)}
    folder = tmp_path / "b.gamma"
    assert export(tiny_export.checkpoint(), folder, tiny_export.options(**changes)).published
    film = write_video(tmp_path / "film.avi", [photo(320, 240, seed=index) for index in range(2)], codec="FFV1")
    done = run(tools, "gamma-run-cpp", folder, film, "--json")
    with load(folder, backend="openvino", threads=1) as scorer, frames(str(film)) as stream:
        wanted = [scorer.score(frame.pixels).value for frame in stream]
    assert [record["score"] for record in records(done)] == pytest.approx(wanted, abs=1e-3)
    done = run(tools, "gamma-run-cpp", folder, packaged_photos()[0], "--json")
    assert (done.returncode, "takes frames of 320x240" in done.stderr) == (3, True), done.stderr


def test_the_grammar(tools: Path) -> None:
    table = Path(__file__).parent.parent / "data" / "sources.json"
    done = run(tools / "tests", "sources", table)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(" bad, 0 wrong\n")
