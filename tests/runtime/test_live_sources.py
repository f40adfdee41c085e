"""Live sources: a camera over loopback, and what happens when one is late, gone, silent or not there.

Not run here: real cameras. RTSP is a small camera made by the test; GStreamer pipelines run where cv2 has GStreamer.
"""

from __future__ import annotations

import base64
import http.server
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import cv2
import pytest

from gamma_runtime.errors import EnvironmentFault, InputError
from gamma_runtime.sources import frames
from gamma_runtime.sources.capture import has_backend
from gamma_runtime.sources.frames import THREAD_NAME, Late, Slot
from tests.runtime.rtsp import rtsp_camera
from tests.runtime.streams import HEIGHT, WIDTH, Send, camera, colours, jpeg, plain, serving

GSTREAMER = has_backend(cv2, "GSTREAMER")
TRY = """
import sys
from gamma_runtime.sources import frames
for name in sys.argv[1:]:
    try:
        next(frames(name, timeout=2))
    except Exception as error:
        print(type(error).__name__)
"""


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def test_a_slot_keeps_the_newest_and_counts_the_rest() -> None:
    slot: Slot[int] = Slot()
    never = threading.Event()
    for number in range(1000):
        slot.put(number)
    assert (slot.take(0.01, never), slot.dropped) == (999, 999)
    with pytest.raises(Late):
        slot.take(0.01, never)
    slot.put(1)
    slot.end(OSError("gone"))
    assert slot.take(0.01, never) == 1  # what came before the end is still handed out
    with pytest.raises(OSError, match="gone"):
        slot.take(0.01, never)


def test_a_slot_wakes_whoever_waits() -> None:
    slot: Slot[int] = Slot()
    taken: list[int | None] = []
    stopped = threading.Event()
    for act in (lambda: slot.put(7), stopped.set):
        waiter = threading.Thread(target=lambda: taken.append(slot.take(60, stopped)))
        waiter.start()
        act()
        waiter.join()
    assert taken == [7, None]


def test_a_late_reader_gets_the_newest_frame_and_none_waits() -> None:
    go = threading.Event()

    def script(send: Send) -> None:
        for index, colour in enumerate(colours(50)):
            if index == 5:
                assert go.wait(60)
            send(jpeg(plain(colour)))

    with camera(script) as address, frames(address) as stream:
        first = next(stream)
        assert first.index < 5
        go.set()  # now the camera sends 45 frames and hangs up, and nobody asks
        (thread,) = readers()
        thread.join()
        last = next(stream)
        assert last.index == 49
        assert abs(int(last.pixels[0, 0, 0]) - 240) < 8
        assert (stream.read, stream.given, stream.dropped) == (50, 2, 48)
        with pytest.raises(InputError, match="the stream ended after 50 frames"):
            next(stream)
        assert list(stream) == []
    assert readers() == []


def test_every_nth_frame_of_a_stream() -> None:
    step = threading.Semaphore(5)

    def script(send: Send) -> None:
        for colour in colours(31):
            assert step.acquire(timeout=60)
            send(jpeg(plain(colour)))

    found = []
    with camera(script) as address, frames(address, every=10, limit=3) as stream:
        for frame in stream:
            found.append(frame.index)
            step.release(10)
    assert (found, stream.dropped) == ([0, 10, 20], 0)
    assert readers() == []


def test_leaving_early_ends_the_thread_and_frees_the_camera() -> None:
    over = threading.Event()

    def script(send: Send) -> None:
        try:
            while True:
                send(jpeg(plain((200, 40, 10))))
        finally:
            over.set()

    with camera(script) as address:
        for close in (lambda stream: stream.close(), lambda stream: stream.stop()):
            over.clear()
            with frames(address) as stream:
                next(stream)
                close(stream)
                assert list(stream) == []
            assert over.wait(60)
            assert readers() == []
        stream = frames(address)
        next(stream)
        del stream  # nobody has it any more
        assert readers() == []


def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://me:hunter2@127.0.0.1:{server.getsockname()[1]}/x"
        with frames(address, timeout=0.3) as stream, pytest.raises(InputError) as caught:
            next(stream)
    assert "me:***@127.0.0.1" in str(caught.value)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert readers() == []


def test_a_camera_that_falls_silent_is_given_up() -> None:
    over = threading.Event()

    def script(send: Send) -> None:
        for colour in colours(5):
            send(jpeg(plain(colour)))
        over.wait(60)

    with camera(script) as address:
        with frames(address, timeout=0.5) as stream, pytest.raises(InputError, match=r"no frame for 0.5 seconds"):
            list(stream)
        over.set()
    assert stream.given >= 1
    assert readers() == []


def test_a_password_reaches_the_server_and_nobody_else() -> None:
    seen: list[str] = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        given = request.headers.get("Authorization")
        if given is None:
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="x"')
            request.end_headers()
            return
        seen.append(base64.b64decode(given.split()[1]).decode())
        request.send_response(404)
        request.end_headers()

    with serving(answer) as address:
        stream = frames(address.replace("//", "//me:hunter2@"))
        with pytest.raises(InputError) as caught:
            next(stream)
    assert seen == ["me:hunter2"]
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_an_rtsp_camera() -> None:
    """Motion JPEG in RTP through the RTSP connection. FFmpeg looks at about 25 frames before it gives the first."""
    sent, asked = colours(60), list[str]()

    def script(send: Send) -> None:
        for colour in sent:
            send(jpeg(plain(colour)))

    found = []
    with rtsp_camera(script, asked) as address, frames(address, every=3) as stream:
        with pytest.raises(InputError, match="the stream ended after 60 frames") as caught:
            found.extend(stream)
        assert stream.given + stream.dropped == 20
    assert found[-1].index == 57
    for frame in found:
        assert frame.index % 3 == 0
        assert abs(frame.pixels[100, 100].astype(int) - sent[frame.index]).max() < 8
    assert asked[-2:] == [f"{verb} Basic bWU6aHVudGVyMg==" for verb in ("SETUP", "PLAY")]
    assert "hunter2" not in str(caught.value)


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for scheme in ("http", "rtsp"):
        with frames(f"{scheme}://127.0.0.1:{port}/x", timeout=5) as stream, pytest.raises(InputError, match="opened"):
            next(stream)


def test_a_stream_that_is_no_video() -> None:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"<html>log in first</html>" * 50)

    with serving(answer) as address, frames(address) as stream, pytest.raises(InputError, match="cannot be opened"):
        next(stream)


def test_opencv_and_ffmpeg_write_nothing(tmp_path: Path) -> None:
    """In a process of its own: FFmpeg's level is read once, and this one has used cv2 without us."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(500)
        request.end_headers()

    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0")
    with serving(answer) as address:
        command = [sys.executable, "-c", TRY, str(tmp_path / "a.mp4"), address, "v4l2:///dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["InputError"] * 3, "")


@pytest.mark.skipif(GSTREAMER, reason="this cv2 has GStreamer")
@pytest.mark.parametrize("text", ["csi://0", "gst:videotestsrc ! videoconvert"])
def test_without_gstreamer_the_error_says_where_there_is_one(text: str) -> None:
    with pytest.raises(EnvironmentFault, match="has no GStreamer") as caught:
        frames(text)
    assert "JetPack's own cv2" in (caught.value.hint or "")


@pytest.mark.skipif(not GSTREAMER, reason="this cv2 has no GStreamer: pipelines are not run")
def test_a_gstreamer_pipeline() -> None:
    size = f"video/x-raw,width={WIDTH},height={HEIGHT}"
    with frames(f"gst:videotestsrc is-live=true pattern=red ! {size} ! videoconvert", limit=3) as stream:
        found = list(stream)
    assert [frame.pixels[0, 0].tolist() for frame in found] == [[255, 0, 0]] * 3
    stream = frames("gst:videotestsrc num-buffers=5 ! videoconvert ! appsink")
    with pytest.raises(InputError, match="the stream ended after 5 frames"):
        list(stream)


@pytest.mark.skipif(not GSTREAMER, reason="this cv2 has no GStreamer: pipelines are not run")
@pytest.mark.parametrize("text", ["csi://0?width=1280&height=720&fps=30", "gst:nosuchelement ! videoconvert"])
def test_an_element_that_is_missing(text: str) -> None:
    """Jetsons alone have nvarguscamerasrc. OpenCV 4.6 waits for it for ever, so this is a process of its own."""
    done = subprocess.run([sys.executable, "-c", TRY, text], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["InputError"]


@pytest.mark.skip(reason="no camera here: V4L2, CSI and real RTSP cameras are not run")
@pytest.mark.parametrize("text", ["v4l2:///dev/video0", "csi://0", "rtsp://camera/live"])
def test_real_cameras(text: str) -> None:
    with frames(text, limit=3) as stream:
        assert len(list(stream)) == 3
