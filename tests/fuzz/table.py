"""A label table from a stranger: a user's CSV, or a label file of a public set; read whole, or refused."""

from __future__ import annotations

import math
from pathlib import Path

from gamma_runtime.errors import InputError
from gamma_training.data import labels
from gamma_training.data.opening import open_labels
from gamma_training.data.samples import DataSpec
from tests.fuzz.harness import Target

READERS: dict[str, labels.Reader] = {
    "mos_with_names.txt": labels.tid2013,
    "AVA.txt": labels.ava,
    "koniq10k_distributions_sets.csv": labels.koniq,
    "data.csv": labels.csv_columns(("data.csv",), "name", "mos_quality"),
}


def _seeds() -> list[bytes]:
    return [
        b"path,mos,split,scene,content\na.png,0.5,train,plain,a\nb/c.png,0.25,test,,b\n",
        b'\xef\xbb\xbfpath,mos\r\n"a ""b"".png",1\r\n',
        b"path;mos\na.png;1\n",
        b"path,mos\n../a.png,1\n",
        b"path,mos\na.png,nan\n",
        b"5.5 I01_01_1.bmp\n4.9 I02_01_2.bmp\n",
        b"1 953619 0 1 5 17 38 36 15 6 5 1 1 22 1396\n",
        b"image_name,MOS,set\n1.jpg,77.4,training\n2.jpg,3,test\n",
        b'name,prompt,mos_quality\na.jpg,"a, b",2.5\n',
    ]


def _write(folder: Path, data: bytes) -> None:
    for name in ("mos.csv", *READERS):
        (folder / name).write_bytes(data)


def _read(folder: Path, _: bytes) -> None:
    """Every reader has a look; the input counts as refused when all refuse it."""
    refusals = []
    try:
        for sample in open_labels(DataSpec(table=folder / "mos.csv", range=(0, 1))).samples:
            if folder not in sample.path.parents or not 0 <= sample.target <= 1:
                raise AssertionError(f"{sample}")
    except InputError as error:
        refusals.append(error)
    for reader in READERS.values():
        try:
            rows = reader(folder)
        except InputError as error:
            refusals.append(error)
        else:
            if rows is None or not all(math.isfinite(row.mos) for row in rows):
                raise AssertionError(f"{reader}: {rows}")
    if unprintable := [error for error in refusals if not error.message.isprintable()]:
        raise unprintable[0]
    if len(refusals) > len(READERS):
        raise refusals[0]


TARGET = Target(_seeds, _write, _read, codes=(3,), longest=4096)
