"""One changed byte of a published bundle, in any of its files and in the manifest itself, is refused.

Four bytes say where, the fifth what is changed.
"""

from __future__ import annotations

import functools
import random
import shutil
from pathlib import Path

from gamma_runtime.bundle import MANIFEST, open_bundle
from tests.fuzz.harness import Target, scratch
from tests.tiny_export import exported


@functools.cache
def _files() -> tuple[tuple[Path, bytes], ...]:
    folder = Path(shutil.copytree(exported(), scratch() / "b.gamma"))
    names = [MANIFEST, *sorted(entry.name for entry in open_bundle(folder).manifest.files)]
    return tuple((folder / name, (folder / name).read_bytes()) for name in names)


def _seeds() -> list[bytes]:
    numbers = random.Random(1)  # noqa: S311 - a repeatable choice, no secret
    return [numbers.randbytes(6) for _ in range(200)]


def _write(_: Path, data: bytes) -> None:
    for path, good in _files():
        if path.stat().st_size != len(good) or path.read_bytes() != good:
            path.write_bytes(good)
    where, change, which = int.from_bytes(data[:4], "big"), data[4:5] or b"\1", data[5:6] or b"\0"
    path, good = _files()[which[0] % len(_files())]
    at = where % len(good)
    path.write_bytes(good[:at] + bytes([good[at] ^ (change[0] or 1)]) + good[at + 1 :])


def _read(_: Path, data: bytes) -> None:
    folder = _files()[0][0].parent
    open_bundle(folder).check_files()


TARGET = Target(_seeds, _write, _read, refuses=True, longest=6)
