"""Ways in which a file of a bundle is not the file that was exported."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path


def flip(where: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(where * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return damage


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def missing(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _away(path: Path) -> Path:
    """The good file, outside the bundle."""
    target = path.parent.parent / f"away-{path.name}"
    shutil.move(path, target)
    return target


def _symlink(path: Path) -> None:
    path.symlink_to(_away(path))


def _symlink_inside(path: Path) -> None:
    path.rename(path.with_name("inside"))
    path.symlink_to("inside")


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _hard_link(path: Path) -> None:
    os.link(_away(path), path)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _socket(path: Path) -> None:
    path.unlink()
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path ends at 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as endpoint:
            endpoint.bind(path.name)
    finally:
        os.chdir(here)


FAULTS = {
    "first byte": flip(0),
    "middle byte": flip(0.5),
    "last byte": flip(1),
    "cut": cut,
    "empty": _empty,
    "longer": _longer,
    "missing": missing,
    "folder": _folder,
    "symlink": _symlink,
    "symlink inside": _symlink_inside,
    "symlink loop": _loop,
    "device": _device,
    "hard link": _hard_link,
    "pipe": _pipe,
    "socket": _socket,
}
