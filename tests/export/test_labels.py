"""gamma-export --labels: correlations with people's opinions before and after, and what a drop of them stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

import gamma_runtime
from gamma_export.commands.export import ExportCommand, export_command
from gamma_export.exporter import ExportReport, export
from gamma_runtime.bundle import open_bundle
from gamma_runtime.errors import EXIT_GATE, GammaError, InputError, UsageError
from gamma_training.judges import open_judge
from tests import tiny_export
from tests.training import photos

COUNT = 24
SCENE = tiny_export.SCENES[0]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos.folder_of(tmp_path_factory.mktemp("labelled"), COUNT)


def by_pytorch(pictures: list[photos.Pixels]) -> list[float]:
    """The checkpoint's own scores of the pictures' centre crops."""
    crops = [picture[8:232, 16:240] for picture in pictures]
    with open_judge(tiny_export.checkpoint(), (SCENE,)) as judge:
        return [float(score) for score in judge.score(np.stack(crops), SCENE)]


def nearly_alike(seed: int) -> photos.Pixels:
    """One picture with one spot a little brighter, elsewhere for each seed."""
    made = photos.picture(0)
    spot = made[20 + 8 * seed : 28 + 8 * seed, 40:200]
    spot += np.minimum(255 - spot, 9)
    return made


@pytest.fixture(scope="module")
def mixed(pictures: Path) -> Path:
    """Labels that have little to do with the scores; every fourth photo was trained on."""
    numbers = np.random.default_rng(5).permutation(COUNT) / COUNT
    return labels(pictures, "mixed", [float(number) for number in numbers])


def labels(folder: Path, name: str, values: list[float], scene: str = SCENE) -> Path:
    splits = ["train" if number % 4 == 3 else "test" for number in range(COUNT)]
    rows = [
        f"photo{number}.png,{value!r},{split}" for number, (value, split) in enumerate(zip(values, splits, strict=True))
    ]
    (folder / f"{name}.csv").write_text("\n".join(["path,mos,split", *rows]) + "\n")
    path = folder / f"{name}.yaml"
    path.write_text(f"data:\n  - {{table: {name}.csv, range: [0, 1], scene: {scene}}}\n")
    return path


def exported(out: Path, file: Path, **changes: Any) -> ExportReport:
    return export(tiny_export.checkpoint(), out, tiny_export.options(native=True, labels=file, **changes))


def test_correlations_of_the_bundles_own_scores(tmp_path: Path, pictures: Path, mixed: Path) -> None:
    report = exported(tmp_path / "x.gamma", mixed, precision=("fp32", "fp16"), gate_srcc=0.5)
    assert report.published
    assert [(row.name, row.photos, row.precision) for row in report.labels] == [
        ("mixed", 18, "fp32"),
        ("mixed", 18, "fp16"),
    ]
    assert tuple(open_bundle(tmp_path / "x.gamma").manifest.labels) == report.labels
    chosen = [number for number in range(COUNT) if number % 4 != 3]
    wanted = [float(line.split(",")[1]) for line in mixed.with_suffix(".csv").read_text().splitlines()[1:]]
    wanted = [wanted[number] for number in chosen]
    before = by_pytorch([photos.picture(number) for number in chosen])
    for row in report.labels:
        with gamma_runtime.load(tmp_path / "x.gamma", scene=SCENE, precision=row.precision) as scorer:
            after = [scorer.score(pictures / f"photo{number}.png").value for number in chosen]
        for name, statistic in (("srcc", spearmanr), ("plcc", pearsonr)):
            assert getattr(row, name) == pytest.approx(statistic(after, wanted).statistic, abs=1e-6)
            drop = statistic(before, wanted).statistic - statistic(after, wanted).statistic
            assert getattr(row, f"{name}_drop") == pytest.approx(drop, abs=1e-6)
            low, high = getattr(row, f"{name}_interval")
            assert low <= getattr(row, f"{name}_drop") <= high


def test_a_drop_stops_the_publication(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The labels are PyTorch's ranks, a score apart by less than bf16 can tell: the order breaks, the gate holds."""
    pictures = [nearly_alike(number) for number in range(COUNT)]
    for number, picture in enumerate(pictures):
        photos.save(tmp_path / f"photo{number}.png", picture)
    ranks = np.argsort(np.argsort(by_pytorch(pictures))) / COUNT
    file = labels(tmp_path, "ranks", [float(rank) for rank in ranks])
    flags = dict(checkpoint=tiny_export.checkpoint(), out=tmp_path / "x.gamma", crops="centre", native=True)
    flags |= {"photos": tiny_export.photos(), "scene": (SCENE,), "precision": ("bf16",), "labels": file}
    assert export_command(ExportCommand(**flags, json=True, gate_srcc=1e-4)) == EXIT_GATE  # type: ignore[arg-type]
    told = capsys.readouterr()
    assert "few labelled photos say little" in told.err
    report = json.loads(told.out)
    assert not (tmp_path / "x.gamma").exists()
    assert all(row["passed"] for row in report["parity"])
    (row,) = report["labels"]
    assert (row["srcc_drop"] > 1e-4, row["passed"], row["gate_srcc"]) == (True, False, 1e-4)
    assert export_command(ExportCommand(**flags, gate_srcc=0.9)) == 0  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "drop of SRCC" in said
    assert "pass <= 0.9" in said


def test_labelled_photos_do_not_calibrate(tmp_path: Path, pictures: Path, mixed: Path) -> None:
    report = exported(
        tmp_path / "x.gamma",
        mixed,
        precision=("int8",),
        calib=(pictures,),
        calib_min=4,
        calib_method="max",
        skip_speed=True,
        gate_srcc=0.9,
    )
    assert report.int8 is not None
    assert report.int8.quantisation.images == COUNT // 4  # those of the split train
    (row,) = report.labels
    assert (row.precision, row.photos) == ("int8", COUNT - COUNT // 4)


def test_without_correlation_nothing_is_proved(tmp_path: Path, pictures: Path) -> None:
    report = exported(tmp_path / "x.gamma", labels(pictures, "equal", [0.5] * COUNT), precision=("fp32",))
    (row,) = report.labels
    assert (row.srcc, row.srcc_drop, row.passed, report.published) == (None, None, False, False)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"crops": "frame640x480:centre"}, UsageError, "frames"),
        ({"scene": ("face-quality",)}, UsageError, "no scene 'natural-quality'"),
        ({"gate_srcc": 1.5}, UsageError, "--gate-srcc 1.5"),
        ({"labels": None, "gate_srcc": 0.1}, UsageError, "for --labels"),
        ({"labels": Path("nowhere.yaml")}, InputError, "nowhere.yaml"),
    ],
)
def test_refused_before_anything_is_written(
    tmp_path: Path, mixed: Path, changes: dict[str, Any], error: type[GammaError], said: str
) -> None:
    options = {"labels": mixed, "precision": ("fp32",)} | changes
    with pytest.raises(error, match=said):
        export(tiny_export.checkpoint(), tmp_path / "x.gamma", tiny_export.options(native=True, **options))
    assert not (tmp_path / "x.gamma").exists()
