"""A small RTSP camera over loopback: motion JPEG in RTP (RFC 2435) through the RTSP connection itself (RFC 2326)."""

from __future__ import annotations

import contextlib
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator

from tests.runtime.streams import HEIGHT, WIDTH, Send

_SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:track0\r\n"
_REFUSED = 'RTSP/1.0 401 Unauthorized\r\nCSeq: {}\r\nWWW-Authenticate: Basic realm="x"\r\n\r\n'
_PIECE = 1200
_TICKS = 9000  # a tenth of a second at 90 kHz


def packets(jpeg: bytes, number: int, first: int) -> list[bytes]:
    """A 4:2:0 baseline JPEG of WIDTH x HEIGHT as RTP packets: without its header, which the reader makes anew."""
    tables, at = b"", 2
    while jpeg[at + 1] != 0xDA:
        length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] == 0xDB:
            tables += jpeg[at + 5 : at + 2 + length]
        at += 2 + length
    scan = jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") : -2]
    assert len(tables) == 128
    made = []
    for offset in range(0, len(scan), _PIECE):
        last = offset + _PIECE >= len(scan)
        rtp = struct.pack(">BBHII", 0x80, 26 | last << 7, first + len(made) & 0xFFFF, number * _TICKS, 1)
        body = struct.pack(">IBBBB", offset, 1, 255, WIDTH // 8, HEIGHT // 8)
        if offset == 0:
            body += struct.pack(">BBH", 0, 0, 128) + tables
        made.append(rtp + body + scan[offset : offset + _PIECE])
    return made


class _Handler(socketserver.StreamRequestHandler):
    script: Callable[[Send], None]
    asked: list[str]

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the reader went away
            while (line := self.rfile.readline()) not in (b"", b"\r\n"):
                verb = line.split()[0].decode()
                head = {}
                while (more := self.rfile.readline()) not in (b"", b"\r\n"):
                    name, _, value = more.decode().partition(":")
                    head[name.lower()] = value.strip()
                given = head.get("authorization", "")
                self.asked.append(f"{verb} {given}".strip())
                if verb == "DESCRIBE" and not given:
                    self.wfile.write(_REFUSED.format(head["cseq"]).encode())
                    continue
                self._answer(verb, line.split()[1].decode(), head["cseq"])
                if verb == "PLAY":
                    self._play()
                    return

    def _answer(self, verb: str, url: str, number: str) -> None:
        body = _SDP if verb == "DESCRIBE" else ""
        more = {
            "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
            "DESCRIBE": f"Content-Base: {url}/\r\nContent-Type: application/sdp\r\nContent-Length: {len(body)}\r\n",
            "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
            "PLAY": "Session: 1\r\n",
        }
        text = f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{more.get(verb, '')}\r\n{body}"
        self.wfile.write(text.encode())

    def _play(self) -> None:
        sent = [0, 0]  # frames, packets

        def send(jpeg: bytes) -> None:
            made = packets(jpeg, *sent)
            self.wfile.write(b"".join(b"$\0" + struct.pack(">H", len(packet)) + packet for packet in made))
            sent[0] += 1
            sent[1] += len(made)

        type(self).script(send)


@contextlib.contextmanager
def rtsp_camera(script: Callable[[Send], None], asked: list[str]) -> Iterator[str]:
    """The camera's address, with the user and password that it asks for; ``asked`` gets verbs and credentials."""
    handler = type("Handler", (_Handler,), {"script": staticmethod(script), "asked": asked})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"rtsp://me:hunter2@127.0.0.1:{server.server_address[1]}/live"
        finally:
            server.shutdown()
            thread.join()
