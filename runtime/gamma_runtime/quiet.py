"""OpenCV's own log, kept off stderr: our errors say it, and hostile metadata is never logged raw."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["silent"]

_SILENT = 0  # OpenCV's LOG_LEVEL_SILENT
_lock = threading.Lock()
_before: list[int] = []  # one entry for each that is inside; the first is the level to go back to


@contextlib.contextmanager
def silent(cv2: Any) -> Iterator[None]:
    """No log of OpenCV's until the last thread has left; there is one level for the whole process."""
    logging = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging  # 4.x has the former, 5.x the latter
    with _lock:
        _before.append(_before[0] if _before else logging.getLogLevel())
        logging.setLogLevel(_SILENT)
    try:
        yield
    finally:
        with _lock:
            level = _before.pop()
            if not _before:
                logging.setLogLevel(level)
