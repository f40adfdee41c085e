"""What a text names: images, a video file, a camera or a stream. Text only: nothing is looked up or opened.

The C++ runtime has the same grammar; tests/data/sources.json holds the cases that both must agree on.
"""

from __future__ import annotations

import dataclasses
import os
import re
import urllib.parse
from typing import Literal, NoReturn, TypeAlias

from gamma_runtime.contract import MAX_FRAME
from gamma_runtime.errors import UsageError

__all__ = ["VIDEO_EXTENSIONS", "Kind", "Source", "hide", "parse_source"]

Kind: TypeAlias = Literal["image", "video", "v4l2", "csi", "rtsp", "http", "gst"]
VIDEO_EXTENSIONS = (".avi", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm")
_URLS: dict[str, Kind] = {"rtsp": "rtsp", "rtsps": "rtsp", "http": "http", "https": "http"}
_SCHEMES = ("file", "v4l2", "csi", *_URLS)
_MAX_TEXT = 4096
_MAX_SENSOR = 99
_MAX_FPS = 1000
_SINK = "appsink drop=1 max-buffers=1 sync=false"
# No \d and no $ here: they take other scripts' digits and a line feed at the end.
_NUMBER = re.compile(r"[0-9]{1,5}")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_URL = re.compile(r"[!$-;=?-\[\]_a-z~]+")  # printable ASCII without " # < > \ ^ ` { | }
_NAMED = r"(?i)((?:pass|passwd|password|pwd|pw|token|secret|key|auth|sig|signature)"
_URL_SECRETS = re.compile(_NAMED + r"=)[^&]+")
_SECRETS = re.compile(_NAMED + r"""\s*=\s*)(?:"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s"'])+""")
_CREDENTIALS = re.compile(r"""://(?:([^\s"':/?#@]*):)?\S*@""")


@dataclasses.dataclass(frozen=True)
class Source:
    """What a text names.

    Attributes:
        kind: ``image`` (a file, folder or glob), ``video`` (a file), or a live source.
        target: what is opened: a path, a URL, or a GStreamer pipeline; may hold a password, so it is never shown.
        name: for people, logs and records; passwords are hidden.
        live: frames come when they come; one that is late is dropped.
        width: pixels asked of a V4L2 camera; 0 for its own choice. Those of a CSI camera are in its pipeline.
        height: likewise.
        fps: frames per second asked of a V4L2 camera; 0 for its own choice.
    """

    kind: Kind
    target: str = dataclasses.field(repr=False)
    name: str
    live: bool
    width: int = 0
    height: int = 0
    fps: int = 0


def parse_source(text: str) -> Source:
    """Read a path or a source: file:/// video: v4l2:/// csi:// rtsp:// http:// gst: and what follows.

    A file whose name looks like one of these is ``./NAME``.

    Raises:
        UsageError: an unknown scheme, or one that is not followed by what it needs.

    Example:
        >>> parse_source("rtsp://admin:1234@camera/live").name
        'rtsp://admin:***@camera/live'
    """
    if not text or "\0" in text or len(text) > _MAX_TEXT:
        raise UsageError("a source is empty, has a NUL in it, or is longer than 4096 characters")
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if colon and scheme == "gst":
        return _pipeline(rest)
    if colon and scheme == "video":
        if not rest:
            raise UsageError("video: without a path", hint="video:PATH reads PATH as a video, whatever its name")
        return Source("video", rest, rest, False)
    if colon and scheme in _SCHEMES:
        if not rest.startswith("//"):
            _refuse(scheme, f"two slashes must follow {scheme}:", f"./{scheme}:… for a file of that name")
        return _located(scheme, rest[2:])
    if rest.startswith("//") and re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        known = " ".join(f"{name}://" for name in _SCHEMES)
        _refuse(scheme, "an unknown kind of source", f"known are {known} video: gst:; ./{scheme}:… for a file")
    return _file(text)


def hide(text: str) -> str:
    """A pipeline without passwords: those of URLs, and the values of properties that are named like secrets.

    Where it is not clear where a password ends, more is hidden.

    Example:
        >>> hide("rtspsrc location=rtsp://me:1234@camera user-pw=1234")
        'rtspsrc location=rtsp://me:***@camera user-pw=***'
    """
    shown = _CREDENTIALS.sub(lambda match: f"://{match[1]}:***@" if match[1] else "://***@", text)
    return _SECRETS.sub(r"\1***", shown)


def _refuse(scheme: str, why: str, hint: str | None = None) -> NoReturn:
    """The rest of the text is never shown: a password may be in it, and where it ends is what was not understood."""
    raise UsageError(f"{scheme}://…: {why}", hint=hint)


def _file(path: str) -> Source:
    kind: Kind = "video" if path.lower().endswith(VIDEO_EXTENSIONS) else "image"
    return Source(kind, path, path, False)


def _located(scheme: str, rest: str) -> Source:
    if scheme in _URLS:
        return _url(scheme, rest)
    if scheme == "file":
        return _file(_path(scheme, rest))
    where, mark, query = rest.partition("?")
    numbers = _query(scheme, query) if mark else {}
    width, height, fps = (numbers.get(key, 0) for key in ("width", "height", "fps"))
    if scheme == "v4l2":
        device = _path(scheme, where)
        return Source("v4l2", device, f"v4l2://{rest}", True, width, height, fps)
    if not _NUMBER.fullmatch(where) or int(where) > _MAX_SENSOR:
        _refuse(scheme, f"a sensor's number is 0 to {_MAX_SENSOR}", "csi://0 is the first camera")
    return Source("csi", _csi_pipeline(int(where), width, height, fps), f"csi://{rest}", True)


def _path(scheme: str, rest: str) -> str:
    """An absolute path with its %XX decoded; what belongs to other parts of a URI must be written as %XX."""
    if not rest.startswith("/"):
        _refuse(scheme, "an absolute path must follow: three slashes", f"{scheme}:///… ; no host is asked")
    if "?" in rest or "#" in rest:
        _refuse(scheme, "? and # are not part of a path", "write them as %3F and %23")
    if re.search(r"%(?![0-9A-Fa-f]{2})", rest):
        _refuse(scheme, "a % that two hexadecimal digits do not follow", "write % itself as %25")
    data = urllib.parse.unquote_to_bytes(os.fsencode(rest))
    if b"\0" in data:
        _refuse(scheme, "a path with a NUL in it")
    return os.fsdecode(data)


def _query(scheme: str, query: str) -> dict[str, int]:
    most = {"width": MAX_FRAME, "height": MAX_FRAME, "fps": _MAX_FPS}
    found: dict[str, int] = {}
    for part in query.split("&"):
        key, _, value = part.partition("=")
        if key not in most or key in found:
            _refuse(scheme, "after ? only width, height and fps are known, each once", "?width=1280&height=720&fps=30")
        if not _NUMBER.fullmatch(value) or not 1 <= int(value) <= most[key]:
            _refuse(scheme, f"{key} is a whole number from 1 to {most[key]}")
        found[key] = int(value)
    if ("width" in found) != ("height" in found):
        _refuse(scheme, "width and height are asked for together")
    return found


def _csi_pipeline(sensor: int, width: int, height: int, fps: int) -> str:
    """Of whole numbers and fixed text only: nothing that a user wrote gets into it."""
    size = f",width={width},height={height}" if width else ""
    rate = f",framerate={fps}/1" if fps else ""
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM){size}{rate} ! nvvidconv ! "
        f"video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! {_SINK}"
    )


def _url(scheme: str, rest: str) -> Source:
    if not _URL.fullmatch(rest):
        _refuse(scheme, "a character that a URL cannot have", "write it as %XX, also in a password")
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    if "@" in rest[len(authority) :]:
        # Else the beginning of a password with a slash in it would be taken for a host, and be shown.
        _refuse(scheme, "an @ after the host", "in a password write / as %2F and ? as %3F; elsewhere @ as %40")
    match = _HOST.fullmatch(authority.rpartition("@")[2])
    if not match or (match["port"] and not 1 <= int(match["port"]) <= 65535):
        _refuse(scheme, "HOST or HOST:PORT must follow", "in a password write / as %2F, : as %3A and @ as %40")
    who, at, host = authority.rpartition("@")
    user, colon, _ = who.partition(":")
    hidden = (f"{user}:***@" if user and colon else "***@") if at else ""
    shown = _URL_SECRETS.sub(r"\1***", rest[len(authority) :])
    return Source(_URLS[scheme], f"{scheme}://{rest}", f"{scheme}://{hidden}{host}{shown}", True)


def _pipeline(text: str) -> Source:
    body = text.strip(" ")
    if any(ord(character) < 32 or ord(character) == 127 for character in body):
        raise UsageError("gst:…: a control character in the pipeline", hint="write it on one line")
    before, mark, last = body.rpartition("!")
    words = last.split()
    if not words or (mark and not before.strip()):
        raise UsageError("gst:…: the pipeline is empty, or an element is missing at a !", hint="gst:videotestsrc")
    if words[0] != "appsink":
        body = f"{body} ! {_SINK}"
    elif not mark:
        raise UsageError("gst:…: nothing comes before appsink", hint="gst:videotestsrc ! videoconvert ! appsink")
    return Source("gst", body, hide(f"gst:{text.strip(' ')}"), True)
