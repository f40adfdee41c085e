"""Which cameras, streams and videos this Python's cv2 can open."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

__all__ = ["VideoIO", "read_video"]


@dataclasses.dataclass(frozen=True)
class VideoIO:
    """What cv2 says of itself.

    Attributes:
        cv2: its version; None where it cannot be imported.
        folder: where it was imported from.
        ffmpeg: opens video files, http:// and rtsp://.
        v4l2: opens v4l2:///dev/video0.
        gstreamer: opens csi:// and gst: pipelines.
        problem: why it cannot be imported.
    """

    cv2: str | None = None
    folder: str | None = None
    ffmpeg: bool = False
    v4l2: bool = False
    gstreamer: bool = False
    problem: str | None = None


def read_video() -> VideoIO:
    """Import cv2 and ask it; never raises for what it finds."""
    from gamma_runtime.sources.capture import has_backend

    try:
        import cv2
    except Exception as error:  # one built for another numpy raises more than ImportError
        return VideoIO(problem=" ".join(str(error).split())[:300] or type(error).__name__)
    module: Any = cv2
    can = dict.fromkeys(("FFMPEG", "V4L2", "GSTREAMER"), False)
    for name in can:
        with contextlib.suppress(Exception):  # cv2.error, or a build without video at all
            can[name] = has_backend(module, name)
    folder = str(Path(str(module.__file__)).parent)
    return VideoIO(str(module.__version__), folder, can["FFMPEG"], can["V4L2"], can["GSTREAMER"])
