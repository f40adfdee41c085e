"""Opening a source with OpenCV: the one backend that is meant for its kind, and never silently another."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

from gamma_runtime.cli import printable, require
from gamma_runtime.contract import Limits
from gamma_runtime.errors import EnvironmentFault, InputError, UsageError
from gamma_runtime.quiet import silent
from gamma_runtime.sniff import check_size
from gamma_runtime.sources.containers import check_video
from gamma_runtime.sources.grammar import Kind, Source

__all__ = ["BACKENDS", "HINTS", "check_source", "has_backend", "opened"]

BACKENDS: dict[Kind, str] = {
    "video": "FFMPEG",
    "http": "FFMPEG",
    "rtsp": "FFMPEG",
    "v4l2": "V4L2",
    "csi": "GSTREAMER",
    "gst": "GSTREAMER",
}
_LONGER = 0.5  # seconds: who waits for a frame gives up first, and says so; then FFmpeg lets its thread go
_NAMES = {"FFMPEG": "FFmpeg", "V4L2": "V4L2", "GSTREAMER": "GStreamer"}
HINTS = {
    "video": "a codec that this cv2 does not have, or a damaged file",
    "http": "is the address right, does it answer, and is it a video stream (MJPEG)?",
    "rtsp": "is the address right, does it answer, and are user and password right?",
    "v4l2": "does another program use the camera?",
    "csi": "is the sensor connected and nvargus-daemon running? gst-launch-1.0 says more",
    "gst": "gst-launch-1.0 says more: is an element not installed? Before appsink comes videoconvert",
}


def has_backend(cv2: Any, name: str) -> bool:
    """Whether this cv2 can really open sources with FFMPEG, V4L2 or GSTREAMER."""
    registry: Any = getattr(cv2, "videoio_registry", None)
    if hasattr(registry, "hasBackend"):  # a plugin is listed by the registry even where its file is missing
        return bool(registry.hasBackend(getattr(cv2, f"CAP_{name}")))
    label = {"FFMPEG": "FFMPEG", "V4L2": "v4l/v4l2", "GSTREAMER": "GStreamer"}[name]
    return re.search(rf"^\s*{label}:\s+YES", cv2.getBuildInformation(), re.MULTILINE) is not None


def check_source(source: Source) -> None:
    """Say what can be said before anything is opened.

    Raises:
        UsageError: images, which have no frames. InputError: the file or device is missing, or is not what it should
        be. EnvironmentFault: no OpenCV, or one without the backend that this kind of source needs.
    """
    if source.kind == "image":
        raise UsageError(f"{printable(source.name)}: not a video", hint="video:PATH reads it as one, whatever its name")
    if source.kind == "video":
        check_video(source.target)
    if source.kind == "v4l2":
        _check_device(source.target)
    cv2 = require("cv2", "cpu")
    backend = BACKENDS[source.kind]
    if not has_backend(cv2, backend):
        hint = "gamma-doctor shows this cv2"
        if backend == "GSTREAMER":
            hint = (
                "PyPI's wheels of OpenCV have none. JetPack's own cv2 has: python3 -m venv --system-site-packages, "
                "pip install 'gamma-edge[jetson]', and no opencv-python from pip"
            )
        raise EnvironmentFault(f"cv2 {cv2.__version__} has no {_NAMES[backend]}: {source.kind} cannot open", hint=hint)


def _check_device(path: str) -> None:
    where = printable(path)
    hint = "ls /dev/video*; v4l2-ctl --list-devices"
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{where}: no such camera ({why})", hint=hint) from error
    if not stat.S_ISCHR(status.st_mode):
        raise InputError(f"{where}: not a camera (no character device)", hint=hint)
    if not os.access(path, os.R_OK | os.W_OK):
        raise InputError(f"{where}: this user may not use it", hint="sudo usermod -aG video $USER, then log in again")


@contextlib.contextmanager
def opened(source: Source, timeout: float, limits: Limits) -> Iterator[Any]:
    """The open ``cv2.VideoCapture``; OpenCV and FFmpeg are kept silent while it is.

    Args:
        source: checked by `check_source`.
        timeout: seconds that FFmpeg waits for a server.
        limits: of the contract; the frame's size is held against them where it is known before the first frame.

    Raises:
        InputError: it does not open, or its frames are too large. EnvironmentFault: no OpenCV.
    """
    cv2 = require("cv2", "cpu")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet; it reads that once
    backend = getattr(cv2, f"CAP_{BACKENDS[source.kind]}")
    # An absolute path: FFmpeg would take a colon in a relative one for a protocol.
    target = os.path.abspath(source.target) if source.kind == "video" else source.target
    parameters = []
    if source.kind in ("http", "rtsp"):
        wait = round((timeout + _LONGER) * 1000)
        parameters = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, wait, cv2.CAP_PROP_READ_TIMEOUT_MSEC, wait]
    with silent(cv2):
        capture = cv2.VideoCapture()
        try:
            if not capture.open(target, backend, parameters):
                raise InputError(f"{printable(source.name)}: cannot be opened", hint=HINTS[source.kind])
            _ask_size(cv2, capture, source)
            width, height = (int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
            if width > 0 and height > 0:
                check_size(width, height, limits, printable(source.name))
            yield capture
        except UnicodeEncodeError as error:
            raise InputError(f"{printable(source.name)}: a path that is not UTF-8", hint="rename it") from error
        finally:
            capture.release()


def _ask_size(cv2: Any, capture: Any, source: Source) -> None:
    """V4L2 drivers take the nearest size they have, without a word."""
    if source.kind != "v4l2":
        return
    asked = {"FRAME_WIDTH": source.width, "FRAME_HEIGHT": source.height, "FPS": source.fps}
    for key, value in asked.items():
        if value:
            capture.set(getattr(cv2, f"CAP_PROP_{key}"), value)
    got = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if source.width and got != (source.width, source.height):
        raise InputError(
            f"{printable(source.name)}: the camera gives {got[0]}x{got[1]}",
            hint="v4l2-ctl --list-formats-ext shows the sizes it has",
        )
