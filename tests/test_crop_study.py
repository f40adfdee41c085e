"""crop_study's numbers, computed here a second time; its costs, counted in a graph; a run on a tiny model."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.common import RESULTS, ROOT
from benchmarks.judge import Judge, macs_per_crop
from gamma_export.photos import packaged_photos
from gamma_runtime.errors import InputError, UsageError
from gamma_training.dims import FULL_SIZE
from gamma_training.initialise import smaller
from tests import tiny_export
from tests.runtime.images import encode, photo

DIMS = smaller(FULL_SIZE, width=64, layers=2, first_moae=1)
BRIGHTNESS = Judge({"file": "none", "scene": "none"}, None, DIMS, 240, lambda crops: crops.mean(axis=(1, 2, 3)))


@pytest.fixture
def crop_study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("crop_study")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Sixteen packaged photos with opinions, one that cannot be read, and one of another part."""
    rows = [f"{path.name},{(7 * index) % 16},test" for index, path in enumerate(packaged_photos())]
    path = tmp_path / "mos.csv"
    path.write_text("\n".join(["file,quality,part", *rows, "missing.jpg,3,test", "01-astronaut.jpg,9,train"]) + "\n")
    return path


def options(module: ModuleType, table: Path, source: Path, **changes: Any) -> Any:
    quick = {
        "photos": packaged_photos()[0].parent,
        "path_column": "file",
        "mos_column": "quality",
        "only": "part=test",
        "sizes": "native,224",
        "stride": 64,
        "seeds": 2,
        "threads": 1,
        "tiny": True,
        "work": table.parent,
    }
    return module.Options(source=source, mos=table, **(quick | changes))


def run(module: ModuleType, chosen: Any) -> dict[str, Any]:
    recorded = sorted((path.name, path.stat().st_mtime_ns) for path in RESULTS.iterdir())
    assert module.report(chosen) == 0
    assert sorted((path.name, path.stat().st_mtime_ns) for path in RESULTS.iterdir()) == recorded
    target = chosen.work / f"tiny-crop_study-{chosen.source.stem}.json"
    assert target.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    result: dict[str, Any] = json.loads(target.read_text())
    return result


def test_a_checkpoint_and_its_bundle_give_the_same_study(
    crop_study: ModuleType, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(crop_study, options(crop_study, table, tiny_export.checkpoint()))
    assert (result["photos"], result["left_out"]) == (16, 1)
    assert result["warning"] == "random weights: says nothing about which policy is better"
    said = capsys.readouterr()
    assert "random weights: says nothing" in said.out
    assert "missing.jpg" in said.err
    assert result["policies"]["dense"]["rms_to_dense"] == 0
    assert all(row["rms_to_dense"] > 0 for name, row in result["policies"].items() if name != "dense")
    authors = result["authors"]
    assert authors["rms_to_dense"]["least"] < authors["rms_to_dense"]["mean"] < authors["rms_to_dense"]["most"]
    assert set(authors["srcc"]) == {"native", "224"}
    bundle = run(crop_study, options(crop_study, table, tiny_export.exported(precision="fp32"), backend="openvino"))
    for name, row in result["policies"].items():
        assert bundle["policies"][name]["gmac"] == row["gmac"]
        assert bundle["policies"][name]["rms_to_dense"] == pytest.approx(row["rms_to_dense"], abs=1e-5)


def test_numbers_by_hand(crop_study: ModuleType, tmp_path: Path) -> None:
    """Sixteen photos and a judge of brightness: distance to the dense mean, correlation, cost."""
    pictures = [photo(300 + 8 * index, 240, seed=index) for index in range(16)]
    for index, picture in enumerate(pictures):
        (tmp_path / f"{index}.png").write_bytes(encode(picture, "PNG"))
    opinions = [float((5 * index) % 16) for index in range(16)]
    rows = "".join(f"{index}.png,{opinion}\n" for index, opinion in enumerate(opinions))
    (tmp_path / "mos.csv").write_text("path,mos\n" + rows)
    chosen = crop_study.Options(source=tmp_path, photos=tmp_path, mos=tmp_path / "mos.csv", sizes="native", stride=16)
    row = crop_study.study(BRIGHTNESS, chosen)["policies"]["centre"]

    def window(picture: np.ndarray, top: int, left: int) -> float:
        return float(picture[top : top + 224, left : left + 224].mean())

    centres = [window(p, 8, (p.shape[1] - 224) // 2) for p in pictures]
    dense = []
    for p in pictures:
        rest = (p.shape[1] - 224) % 16 // 2
        lefts = range(rest, p.shape[1] - 223, 16)
        dense.append(np.mean([window(p, top, left) for top in (0, 16) for left in lefts]))
    assert row["rms_to_dense"] == pytest.approx(np.sqrt(np.mean((np.array(centres) - dense) ** 2)), rel=1e-9)
    assert row["srcc"]["native"] == pytest.approx(spearmanr(centres, opinions).statistic)
    assert row["gmac"] == macs_per_crop(DIMS) / 1e9


def test_dense_positions_stay_inside_and_are_centred(crop_study: ModuleType) -> None:
    places = crop_study.dense(250, 224, 16)
    assert places == [(0, 5), (0, 21)]
    assert len(crop_study.dense(384, 384, 16)) == 11 * 11


def test_multiplications_are_those_of_an_exported_graph() -> None:
    """Every product of a graph of one crop, by the shapes that ONNX infers."""
    import onnx

    bundle = tiny_export.exported(precision="fp32")
    model = onnx.load(bundle / tiny_export.graph(bundle)["onnx"], load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {t.name: tuple(t.dims) for t in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    products = [node for node in inferred.node if node.op_type == "MatMul"]
    counted = sum(int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1] for node in products)
    assert macs_per_crop(DIMS) == counted
    assert macs_per_crop(FULL_SIZE) / 1e9 == pytest.approx(34.30, abs=0.01)  # design.md section 3
    more = dataclasses.replace(FULL_SIZE, vision=dataclasses.replace(FULL_SIZE.vision, experts=4))
    assert macs_per_crop(more) > macs_per_crop(FULL_SIZE)


def test_what_cannot_work_is_said(crop_study: ModuleType, table: Path, tmp_path: Path) -> None:
    source = tiny_export.checkpoint()
    for change in ({"mos_column": "mos"}, {"only": "part=none"}, {"only": "half=test"}):
        with pytest.raises(InputError, match=r"mos\.csv"):
            crop_study.report(options(crop_study, table, source, **change))
    for change in ({"sizes": "100"}, {"sizes": "big"}, {"seeds": 0}, {"only": "test"}):
        with pytest.raises(UsageError):
            options(crop_study, table, source, **change)
    with pytest.raises(InputError, match="none of 2 photos"):
        crop_study.report(options(crop_study, table, source, photos=tmp_path, limit=2))
    with pytest.raises(UsageError, match="--device"):
        crop_study.report(options(crop_study, table, tiny_export.exported(precision="fp32"), device="cuda"))


def test_too_few_photos_have_no_correlation(crop_study: ModuleType, table: Path, tmp_path: Path) -> None:
    shutil.copy(table, tmp_path / "few.csv")
    result = run(crop_study, options(crop_study, table, tiny_export.checkpoint(), limit=3, sizes="224"))
    assert result["authors"]["srcc"] == {"224": None}
