"""Video files written by the test, and an MJPEG stream over loopback: what a network camera sends."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.runtime.images import encode

WIDTH, HEIGHT = 320, 240
Send = Callable[[bytes], None]


def colours(count: int) -> list[tuple[int, int, int]]:
    """A colour a frame, red and blue far apart, so that a swap of channels shows; each frame brighter than the last."""
    return [(60 + 180 * index // max(1, count - 1), 40, 10) for index in range(count)]


def plain(colour: tuple[int, int, int], width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    return np.full((height, width, 3), colour, np.uint8)


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    return encode(Image.fromarray(pixels), "JPEG", quality=95)


def write_video(path: Path, frames: Sequence[NDArray[np.uint8]], codec: str = "MJPG", fps: int = 10) -> Path:
    import cv2

    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), fps, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
    writer.release()
    return path


@contextlib.contextmanager
def serving(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """An HTTP server on loopback that answers every GET with ``answer``; its address. Threads end with it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):  # the reader went away
                answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/video"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()  # waits for the handlers


@contextlib.contextmanager
def camera(script: Callable[[Send], None]) -> Iterator[str]:
    """An MJPEG camera: ``script`` is called for each visitor and sends JPEG files; when it returns the stream ends."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()

        def send(data: bytes) -> None:
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data)
            request.wfile.write(head + data + b"\r\n")

        script(send)

    with serving(answer) as address:
        yield address
