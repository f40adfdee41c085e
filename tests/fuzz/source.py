"""What names a source, and a file that says it is a video: FFmpeg is not reached, only what decides about it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from gamma_runtime.errors import UsageError
from gamma_runtime.sources import hide, parse_source
from gamma_runtime.sources.containers import check_video
from tests.fuzz.harness import HERE, Target

_CASES = json.loads((HERE.parent / "data" / "sources.json").read_text(encoding="utf-8"))
_CSI = re.compile(
    r"nvarguscamerasrc sensor-id=[0-9]{1,2} ! video/x-raw\(memory:NVMM\)(,width=[0-9]{1,4},height=[0-9]{1,4})?"
    r"(,framerate=[0-9]{1,4}/1)? ! nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR"
    r" ! appsink drop=1 max-buffers=1 sync=false"
)


def _seeds() -> list[bytes]:
    texts = [case["text"] for case in _CASES["good"]] + _CASES["bad"]
    box = (24).to_bytes(4, "big") + b"ftypisom" + bytes(12) + (8).to_bytes(4, "big") + b"free"
    large = b"\0\0\0\1mdat" + (24).to_bytes(8, "big") + bytes(8)
    avi = b"RIFF" + (20).to_bytes(4, "little") + b"AVI " + bytes(16)
    ebml = b"\x1a\x45\xdf\xa3\x84" + bytes(4) + b"\x18\x53\x80\x67"
    files = [box, box[:-1], large, avi, avi[:-3], ebml + b"\x84" + bytes(4), ebml + b"\x01" + b"\xff" * 7]
    return (
        [text.encode() for text in texts] + files + [(b"\x47" + bytes(187)) * 3, b"\xff\xd8\xff\xe0", b"\0\0\x01\xba"]
    )


def _read(folder: Path, data: bytes) -> None:
    try:
        source = parse_source(os.fsdecode(data))
    except UsageError as error:
        if not error.message.isprintable():
            raise
    else:
        if source.kind == "csi" and not _CSI.fullmatch(source.target):
            raise AssertionError(source.target)
        if source.kind in ("rtsp", "http") and (
            not source.name.isascii() or re.search(r"://[^/?]*:(?!\*\*\*)[^/?]*@", source.name)
        ):
            raise AssertionError(source.name)
        if hide(source.name) != source.name and source.kind == "gst":
            raise AssertionError(source.name)
    check_video(str(folder / "a.mp4"))


TARGET = Target(_seeds, lambda folder, data: (folder / "a.mp4").write_bytes(data), _read, codes=(3,))
