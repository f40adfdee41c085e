"""Sources: the grammar, video files, and what is refused before anything is opened."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from gamma_runtime.contract import Limits
from gamma_runtime.errors import GammaError, InputError, UsageError
from gamma_runtime.sources import Source, check_source, frames, hide, parse_source
from gamma_runtime.sources.capture import has_backend
from tests.runtime.streams import HEIGHT, WIDTH, colours, jpeg, plain, write_video

CASES = json.loads((Path(__file__).parent.parent / "data" / "sources.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES["good"], ids=lambda case: case["text"])
def test_grammar(case: dict[str, object]) -> None:
    wanted = dict(case)
    assert dataclasses.asdict(parse_source(str(wanted.pop("text")))) == wanted


@pytest.mark.parametrize("text", CASES["bad"], ids=ascii)
def test_what_is_no_source_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    assert not any(part in str(caught.value) for part in ("secret", "se/cret", "se?cret", "cret@", "12/34"))


def test_a_very_long_text_is_refused() -> None:
    with pytest.raises(UsageError, match="longer than"):
        parse_source("a" * 5000)


def test_only_whole_numbers_get_into_a_pipeline() -> None:
    fixed = parse_source("csi://0").target
    changed = parse_source("csi://3?width=640&height=480&fps=15").target
    assert changed.replace(",width=640,height=480,framerate=15/1", "").replace("sensor-id=3", "sensor-id=0") == fixed


def test_a_password_is_in_no_text_of_a_source() -> None:
    source = parse_source("rtsp://admin:hunter2@camera/live")
    assert "hunter2" in source.target
    assert "hunter2" not in f"{source} {source!r} {source.name}"
    assert (
        hide("gst://a:hunter2@b c://d:hunter2@e PASSWORD = 'hunter2 x' x")
        == "gst://a:***@b c://d:***@e PASSWORD = *** x"
    )


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "MJPG"), ("a.mkv", "MJPG"), ("a.mp4", "mp4v"), ("a.mov", "mp4v"), ("a.ts", "mp4v")]
)
def test_a_video_file_gives_what_cv2_reads_in_rgb(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, [plain(colour) for colour in colours(9)], codec)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    direct = []
    while (read := capture.read())[0]:
        direct.append(read[1])
    capture.release()
    for every in (1, 4):
        with frames(str(path), every=every) as stream:
            found = list(stream)
        assert [frame.index for frame in found] == list(range(0, 9, every))
        for frame in found:
            np.testing.assert_array_equal(frame.pixels, direct[frame.index][:, :, ::-1])
            assert frame.seconds == pytest.approx(frame.index / 10)
        assert (stream.read, stream.given, stream.dropped) == (9, len(found), 0)
    red, green, blue = found[-1].pixels[HEIGHT // 2, WIDTH // 2]
    assert abs(int(red) - 240) < 12
    assert abs(int(green) - 40) < 12
    assert abs(int(blue) - 10) < 12


def test_motion_jpeg_without_a_container(tmp_path: Path) -> None:
    path = tmp_path / "raw.mjpeg"
    path.write_bytes(b"".join(jpeg(plain(colour)) for colour in colours(4)))
    with frames(str(path)) as stream:
        assert [frame.index for frame in stream] == [0, 1, 2, 3]


def test_a_limit_ends_a_file_early(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", [plain(colour) for colour in colours(9)])
    with frames(str(path), every=2, limit=3) as stream:
        assert [frame.index for frame in stream] == [0, 2, 4]
        assert (stream.read, list(stream)) == (5, [])


def test_a_colon_in_a_name_is_no_protocol_of_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.avi", [plain(colour) for colour in colours(3)]).rename("concat:a.avi")
    with frames("concat:a.avi") as stream:
        assert len(list(stream)) == 3


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "MJPG"), ("a.mkv", "MJPG"), ("a.mp4", "mp4v")])
def test_a_cut_video_is_refused(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, [plain(colour) for colour in colours(9)], codec)
    data = path.read_bytes()
    for length in (len(data) - 2, len(data) // 2, 600):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=f"ends {len(data) - length} bytes before|cut off"):
            frames(str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\n" * 100,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile other.avi\n",
        b"v=0\nm=video 5004 RTP/AVP 26\nc=IN IP4 127.0.0.1\n",
        b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    ],
    ids=["empty", "text", "HLS", "concat", "SDP", "DASH"],
)
def test_what_is_no_video_never_reaches_ffmpeg(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"not a video, by its content|the file is empty"):
        frames(str(tmp_path / "a.mp4"))


def test_garbage_behind_a_good_beginning_is_an_error(tmp_path: Path) -> None:
    good = write_video(tmp_path / "a.mp4", [plain(colour) for colour in colours(9)], "mp4v").read_bytes()
    size = int.from_bytes(good[:4], "big")
    (tmp_path / "a.mp4").write_bytes(good[:size] + b"\0\0\0\0mdat" + bytes(2000))
    with pytest.raises(InputError, match="cannot be opened"):
        next(frames(str(tmp_path / "a.mp4")))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "dir.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, words in (("dir.mp4", "Is a directory"), ("pipe.mp4", "not a regular"), ("none.mp4", "cannot be read")):
        with pytest.raises(InputError, match=words):
            frames(str(tmp_path / name))
    with pytest.raises(UsageError, match="not a video"):
        frames("photo.jpg")


def test_frames_over_the_limits_are_refused_before_one_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", [plain(colour) for colour in colours(3)])
    with pytest.raises(InputError, match="320x240"):
        frames(str(path), limits=Limits(max_side=300))


def test_numbers_that_make_no_sense() -> None:
    for given in ({"every": 0}, {"limit": 0}, {"timeout": 0.0}, {"timeout": float("nan")}, {"timeout": float("inf")}):
        with pytest.raises(UsageError, match="is needed"):
            frames("a.mp4", **given)  # type: ignore[arg-type]


def test_a_missing_device_is_said_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="/dev/video97: no such camera") as caught:
        frames("v4l2:///dev/video97")
    assert "v4l2-ctl" in (caught.value.hint or "")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a camera"):
        frames(f"v4l2://{tmp_path}/file")
    with pytest.raises(InputError, match="cannot be opened"):  # a character device, but no camera
        next(frames("v4l2:///dev/null"))


def test_backends_are_found_by_an_older_cv2_too() -> None:
    class Old:
        @staticmethod
        def getBuildInformation() -> str:
            return "  Video I/O:\n    FFMPEG:                      YES\n    GStreamer:                   NO\n"

    assert [has_backend(Old, name) for name in ("FFMPEG", "GSTREAMER", "V4L2")] == [True, False, False]
    assert has_backend(cv2, "FFMPEG")


def test_errors_are_gamma_errors_for_any_source(tmp_path: Path) -> None:
    for kind in ("video", "v4l2"):
        with pytest.raises(GammaError):
            check_source(Source(kind, str(tmp_path / "\udcff"), "x", False))  # type: ignore[arg-type]
