"""What every data source gives: photos with a target between 0 (worst) and 1 (best), a scene and a split."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from gamma_training.data.distortions import Distortion

__all__ = ["SPLITS", "DataSpec", "Dataset", "Labels", "Sample", "Split"]

Split = Literal["train", "val", "test"]
Labels = Literal["metric", "level"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One labelled photo.

    ``mos`` is the label as the set gives it; ``target`` is (mos - low) / (high - low), turned round where lower is
    better, and not clamped (model.md section 3: LIVE may leave 0 to 1). ``short_side`` is the set's own resize rule in
    pixels (None: the photo's pixels), before any crop is cut. ``distortion`` is applied to the decoded photo after it.
    ``content`` names the photo that it was made from: samples of one content never lie in two splits. ``baked`` is a
    distortion that the file's pixels have already.
    """

    path: Path
    mos: float
    target: float
    scene: str
    split: Split
    dataset: str
    content: str
    short_side: int | None = None
    distortion: Distortion | None = None
    baked: Distortion | None = None

    @property
    def distorted_by(self) -> Distortion | None:
        """What was done to the clean photo, here or when the file was made; None where nothing was, or is known."""
        return self.distortion or self.baked


@dataclasses.dataclass(frozen=True)
class Dataset:
    """All samples of one source, in the order of its table."""

    name: str
    samples: tuple[Sample, ...]
    low: float
    high: float
    lower_better: bool

    def split(self, name: Split) -> tuple[Sample, ...]:
        """The samples of one split."""
        return tuple(sample for sample in self.samples if sample.split == name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where labelled photos come from: exactly one of ``set``, ``table`` and ``synthetic``; one entry of `data:`.

    Attributes:
        set: one of the paper's twelve (``koniq10k``, …; `registry.SETS`), unpacked in ``root``.
        table: a CSV with columns path, mos and optionally split, scene and content (what is on the photo: rows of one
            content stay in one split); paths are relative to ``root``.
        path_column, mos_column: what these two are called in the table.
        synthetic: a folder of clean photos, distorted on the fly, or a table that ``gamma-train make-data`` wrote.
        name: in reports; by default the set's name, or the table's or the folder's.
        root: the photos' folder; of a table, the table's own folder when left out.
        range: lowest and highest possible label; of a table, required.
        lower_better: whether a low label means a good photo.
        scene: of all samples; a ``scene`` column wins. By default a set's own, else natural-quality.
        short_side: photos whose short side is longer are reduced to it (pixels); a set's own rule when left out.
        kinds: of a synthetic folder, the distortions to use; all when left out.
        labels: of a synthetic source, the ``metric`` (`metric.quality`) or the ``level`` (1 for the clean photo, 0 for
            level 5, in even steps).
        skip_missing: leave photos out that are not there, instead of refusing the set.
        limit: at most so many samples of each split, chosen by a hash of their names.
        seed: of splits that the source does not give, of ``limit``, and of synthetic distortions.
    """

    set: str | None = None
    table: Path | None = None
    path_column: str = "path"
    mos_column: str = "mos"
    synthetic: Path | None = None
    name: str | None = None
    root: Path | None = None
    range: tuple[float, float] | None = None
    lower_better: bool = False
    scene: str | None = None
    short_side: int | None = None
    kinds: tuple[str, ...] | None = None
    labels: Labels = "metric"
    skip_missing: bool = False
    limit: int | None = None
    seed: int = 123

    def to_json(self) -> dict[str, Any]:
        """Plain values; None left out."""
        plain = {key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(self).items()}
        return {key: value for key, value in plain.items() if value is not None}
