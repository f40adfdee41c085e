"""A calibration record, with a first line that fits it: nothing but the parser stands between."""

from __future__ import annotations

import tempfile
from pathlib import Path

from gamma_calib.record import read_record, write_record
from tests.calib.records import record, sealed
from tests.fuzz.harness import Target


def _seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_record(Path(folder) / "seed", record())
        good = (Path(folder) / "seed").read_bytes()
    return [good.split(b"\n", 1)[1], good, b"", b"{}\n"]


def _write(folder: Path, data: bytes) -> None:
    (folder / "record").write_bytes(data if data.startswith(b"gamma-") else sealed(data))


TARGET = Target(_seeds, _write, lambda folder, _: read_record(folder / "record"))
