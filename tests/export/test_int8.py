"""gamma-export --precision int8 from photos to a published bundle, and what keeps a bad one from being published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import gamma_runtime
from gamma_calib import calibrate as calibrate_module
from gamma_calib.trials import Trials
from gamma_export.exporter import ExportReport, export
from gamma_export.int8_report import int8_text
from gamma_export.photos import packaged_photos
from gamma_export.verify import verify
from gamma_runtime.bundle import Bundle, open_bundle
from gamma_runtime.errors import InputError, IntegrityError
from tests import tiny_export
from tests.calib import loud

CODES = 48 * 64 * 64  # two blocks of width 64: attention 4 and 4, MLP 8, MoAE 4 times that


@pytest.fixture(scope="module")
def calibration_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen of the packaged photos; the two others are those that exports are verified with."""
    folder = tmp_path_factory.mktemp("calibration")
    for photo in packaged_photos()[2:]:
        shutil.copy(photo, folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, calibration_photos: Path) -> tuple[ExportReport, Bundle]:
    out = tmp_path_factory.mktemp("int8") / "x.gamma"
    report = export(tiny_export.checkpoint(), out, options(calibration_photos))
    return report, open_bundle(out)


def options(calibration: Path, /, **changes: Any) -> Any:
    quick: dict[str, Any] = {"precision": ("int8",), "calib": (calibration,), "calib_min": 8, "calib_method": "mse"}
    quick["skip_speed"] = True
    return tiny_export.options(**(quick | changes))


def test_two_forms_of_each_graph_over_one_file(exported: tuple[ExportReport, Bundle]) -> None:
    report, bundle = exported
    manifest = bundle.manifest
    assert report.published
    names = ["joint", *tiny_export.SCENES]
    assert [(g.name, g.target) for g in manifest.graphs] == [(n, t) for t in ("cpu", "tensorrt") for n in names]
    assert {g.precision for g in manifest.graphs} == {"int8"}
    (weights,) = {g.weights for g in manifest.graphs}
    assert weights.startswith("weights-int8-")
    assert {entry.name for entry in manifest.files} == {
        path.name for path in bundle.folder.iterdir() if path.name not in ("manifest.json", ".lock")
    }
    model = onnx.load(bundle.folder / manifest.graphs[0].onnx, load_external_data=False)
    codes = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert sum(int(np.prod(tensor.dims)) for tensor in codes if tensor.dims) == CODES


def test_the_manifest_says_how(exported: tuple[ExportReport, Bundle]) -> None:
    quantisation = exported[1].manifest.quantisation
    assert quantisation is not None
    assert (quantisation.method, quantisation.images) == ("mse", 14)
    assert quantisation.trials[-1].passed
    assert len(quantisation.groups) + len(quantisation.kept) == 10
    assert 0.5 < quantisation.int8_share < 1
    assert {graph.int8_share for graph in exported[1].manifest.graphs} == {quantisation.int8_share}
    assert any("14 photos" in warning or "14 images" in warning for warning in exported[1].manifest.warnings)
    text = (exported[1].folder / "manifest.json").read_text()
    assert "calib_cache" not in text
    assert str(exported[1].folder) not in text


def test_parity_of_both_forms(exported: tuple[ExportReport, Bundle]) -> None:
    rows = exported[0].parity
    assert {row.target for row in rows} == {"cpu", "tensorrt"}
    for row in rows:
        assert (row.gate_max, row.gate_mean) == (2e-2, 5e-3)
        assert row.passed
        assert 0 < row.mean_abs <= (row.p99_abs or 0) <= row.max_abs
        assert (row.note is None) == (row.target == "cpu")
        assert max(row.worst.values()) == row.max_abs


def test_it_scores_like_the_checkpoint_on_every_backend(exported: tuple[ExportReport, Bundle]) -> None:
    report = verify(exported[1], against=tiny_export.checkpoint(), photos=tiny_export.photos(), threads=1)
    assert report.passed
    assert {row.backend for row in report.parity} == {"onnxruntime", "openvino"}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_runtime_takes_the_form_for_cpus(exported: tuple[ExportReport, Bundle], backend: str) -> None:
    photo = packaged_photos()[0]
    with gamma_runtime.load(exported[1].folder, backend=backend, threads=1) as scorer:
        value = scorer.score(photo).value
    with gamma_runtime.load(tiny_export.exported(), threads=1) as scorer:
        assert abs(scorer.score(photo).value - value) < 2e-2
    assert gamma_runtime.graphs.pick(exported[1], tiny_export.SCENES[:1], None)[0].target == "cpu"


def test_an_engine_takes_the_form_for_tensorrt(exported: tuple[ExportReport, Bundle], tmp_path: Path) -> None:
    """A real plan, compiled for Ampere; the proof counts what is 8 bits in the network that TensorRT parsed."""
    pytest.importorskip("tensorrt_rtx")
    from gamma_runtime.engines import EngineOptions, build_engines

    shutil.copytree(exported[1].folder, tmp_path / "x.gamma")
    bundle = open_bundle(tmp_path / "x.gamma")
    (engine,) = build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6",)))
    assert (engine.precision, engine.graph) == ("int8", "joint")
    (graph,) = (g for g in bundle.manifest.graphs if g.name == "joint" and g.target == "tensorrt")
    hashes = {entry.name: entry.sha256 for entry in bundle.manifest.files}
    assert engine.onnx_sha256 == hashes[graph.onnx]
    assert engine.proof["network"]["weight_bytes"]["int8"] == CODES


def test_an_engine_that_lost_its_8_bits_is_refused() -> None:
    from gamma_runtime.engines.proof import check_products
    from gamma_runtime.errors import EnvironmentFault

    good = {"weight_bytes": {"int8": 80, "fp16": 40}}  # 80 of 100 weights
    check_products(good, "int8", 0.85)
    with pytest.raises(EnvironmentFault, match="asked for int8, got 20% fp16, 80% int8"):
        check_products(good, "int8", 0.95)
    with pytest.raises(EnvironmentFault, match="got 100% fp16"):
        check_products({"weight_bytes": {"fp16": 40}}, "int8", 0.5)


@pytest.mark.long
def test_the_recipe_replays_exactly(exported: tuple[ExportReport, Bundle], tmp_path: Path) -> None:
    """On another machine, without photos and without a calibration: the same files, byte for byte."""
    replayed = export(
        tiny_export.checkpoint(),
        tmp_path / "y.gamma",
        tiny_export.options(precision=("int8",), recipe=exported[1].folder),
    )
    assert replayed.published
    again = open_bundle(tmp_path / "y.gamma").manifest
    assert {e.name: e.sha256 for e in again.files} == {e.name: e.sha256 for e in exported[1].manifest.files}
    assert again.quantisation == exported[1].manifest.quantisation
    assert not (tmp_path / "y.calib").exists()


@pytest.mark.long
def test_experts_with_weights_in_4_bits(calibration_photos: Path, tmp_path: Path) -> None:
    """An experiment: smaller, compiled by TensorRT-RTX, scored by every backend, replayed byte for byte."""
    pytest.importorskip("tensorrt_rtx")
    from gamma_runtime.engines import EngineOptions, build_engines

    report = export(tiny_export.checkpoint(), tmp_path / "x.gamma", options(calibration_photos, experts="int4"))
    assert report.published
    assert report.int8 is not None
    assert "2 groups with weights in 4 bits" in int8_text(report.int8, True)
    bundle = open_bundle(tmp_path / "x.gamma")
    quantisation = bundle.manifest.quantisation
    assert quantisation is not None
    assert quantisation.int4 == ["blocks.1/moae/adaptive_in", "blocks.1/moae/adaptive_out"]
    assert {graph.opset for graph in bundle.manifest.graphs} == {21}
    adaptive = 2 * 3 * 4 * 64 * 64
    assert report.int8.quantisation.int8_share < (CODES - adaptive) / CODES
    assert verify(bundle, against=tiny_export.checkpoint(), photos=tiny_export.photos(), threads=1).passed
    (engine,) = build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6",)))
    counted = engine.proof["network"]["weight_bytes"]
    assert (counted["int8"], counted["int4"]) == (CODES - adaptive, adaptive / 2)
    again = export(
        tiny_export.checkpoint(),
        tmp_path / "y.gamma",
        tiny_export.options(precision=("int8",), recipe=tmp_path / "x.gamma"),
    )
    assert again.published
    first, second = (open_bundle(tmp_path / f"{name}.gamma").manifest for name in "xy")
    assert {e.name: e.sha256 for e in first.files} == {e.name: e.sha256 for e in second.files}


@pytest.mark.long
def test_a_smoothed_recipe_replays_exactly(calibration_photos: Path, tmp_path: Path) -> None:
    """Its factors are in the manifest; a loud channel makes them matter."""
    made = export(loud.checkpoint(), tmp_path / "x.gamma", options(calibration_photos, smooth=0.5, gate=0.5))
    again = export(
        loud.checkpoint(),
        tmp_path / "y.gamma",
        tiny_export.options(precision=("int8",), recipe=tmp_path / "x.gamma", gate=0.5),
    )
    assert made.published
    assert again.published
    first, second = (open_bundle(tmp_path / f"{name}.gamma").manifest for name in "xy")
    assert {e.name: e.sha256 for e in first.files} == {e.name: e.sha256 for e in second.files}
    assert first.quantisation is not None
    assert first.quantisation.smooth["blocks.0.ln_1"][loud.LOUD] > 3 * np.median(
        first.quantisation.smooth["blocks.0.ln_1"]
    )


def test_smoothing_helps_where_a_channel_is_loud(calibration_photos: Path, tmp_path: Path) -> None:
    shifts = {}
    for smooth in (None, 0.5):
        chosen = options(calibration_photos, smooth=smooth, gate=0.9, calib_method="max")
        report = export(loud.checkpoint(), tmp_path / f"{smooth}.gamma", chosen)
        shifts[smooth] = np.mean(
            [row.mean_abs for row in report.parity if row.target == "cpu" and row.graph == "joint"]
        )
    assert shifts[0.5] < shifts[None]


def test_a_recipe_of_another_model_is_refused(exported: tuple[ExportReport, Bundle], tmp_path: Path) -> None:
    bundle = shutil.copytree(exported[1].folder, tmp_path / "x.gamma")
    tiny_export.rewrite(bundle, lambda data: data["quantisation"]["groups"].append("blocks.7/attn/qkv"))
    with pytest.raises(InputError, match=r"its recipe is for another model \(it has no blocks\.7/attn/qkv\)"):
        export(tiny_export.checkpoint(), tmp_path / "y.gamma", tiny_export.options(precision=("int8",), recipe=bundle))
    plain = tiny_export.exported()
    with pytest.raises(InputError, match="no int8 recipe in it"):
        export(tiny_export.checkpoint(), tmp_path / "y.gamma", tiny_export.options(precision=("int8",), recipe=plain))
    assert not (tmp_path / "y.gamma").exists()


def test_what_was_measured_is_not_measured_again(
    exported: tuple[ExportReport, Bundle], calibration_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second export finds the record and every trial; its files are the same."""
    out = exported[1].folder
    before = {entry.name for entry in exported[1].manifest.files}

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Trials, "_run", forbidden)
    monkeypatch.setattr(calibrate_module, "with_ranges", forbidden)
    assert export(tiny_export.checkpoint(), out, options(calibration_photos)).published
    assert {entry.name for entry in open_bundle(out).manifest.files} == before


def test_other_photos_are_measured_again(
    exported: tuple[ExportReport, Bundle], calibration_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = shutil.copytree(exported[1].folder.with_suffix(".calib"), tmp_path / "cache")
    fewer = tmp_path / "photos.txt"
    fewer.write_text("\n".join(str(path) for path in sorted(calibration_photos.iterdir())[:10]))
    chosen = options(fewer, calib_cache=cache)
    assert export(tiny_export.checkpoint(), tmp_path / "x.gamma", chosen).published
    assert "made for other images; calibrating anew" in capsys.readouterr().err


def test_a_gate_that_cannot_be_met(
    calibration_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 7, nothing published, an older bundle as it was, and the worst images named."""
    old = tiny_export.copy(tmp_path / "x.gamma")
    before = tiny_export.snapshot(old)
    flags = ("-o", old, "--precision", "int8", "--calib", calibration_photos, "--calib-min", "8", "--gate", "1e-7")
    code = tiny_export.export_command(*flags, "--calib-method", "max", "--skip-speed", "--quiet")
    said = capsys.readouterr()
    assert code == 7
    assert "NOT published" in said.out
    assert "worst 0" in said.out
    assert "nothing was published" in said.err
    assert tiny_export.snapshot(old) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision", "int8"], "takes its ranges from photos or from an earlier bundle"),
        (["--precision", "int8", "--calib", "a", "--recipe", "b"], "either --calib FOLDER or --recipe BUNDLE"),
        (["--precision", "fp16", "--calib", "a"], "are for --precision int8"),
        (["--precision", "int8", "--calib", "a", "--residual", "bf16"], "--residual bf16 does not go with"),
        (["--precision", "int8", "--calib", "a", "--calib-count", "0"], "--calib-count 0"),
        (["--precision", "int8", "--calib", "a", "--smooth", "1.5"], "--smooth 1.5 is a number from 0 to 1"),
        (["--precision", "fp16", "--smooth", "0.5"], "for 8 bits with --calib"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert tiny_export.export_command("-o", tmp_path / "x.gamma", *flags) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_too_few_photos(tmp_path: Path, calibration_photos: Path) -> None:
    with pytest.raises(InputError, match="14"):
        export(tiny_export.checkpoint(), tmp_path / "x.gamma", options(calibration_photos, calib_min=20))
    assert list(tmp_path.iterdir()) == []


def test_photos_that_the_result_is_verified_with_are_left_out(tmp_path: Path) -> None:
    everything = tmp_path / "photos"
    everything.mkdir()
    for photo in packaged_photos():
        shutil.copy(photo, everything)
    export(tiny_export.checkpoint(), tmp_path / "x.gamma", options(everything, scene=("plain",)))
    quantisation = open_bundle(tmp_path / "x.gamma").manifest.quantisation
    assert quantisation is not None
    assert quantisation.images == 14


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": "1:2:3"},
        {"batch": "2"},
        {"crops": "cover", "batch": "1:4:8"},
        {"crops": "frame640x480:five"},
        {"attention": "both"},
        {"smooth": 0.5},
        {"precision": ("fp32", "int8", "fp16"), "residual": "fp16"},
    ],
)
def test_every_kind_of_graph(tmp_path: Path, calibration_photos: Path, changes: dict[str, Any]) -> None:
    chosen = options(calibration_photos, scene=("natural-quality",), calib_count=8, **changes)
    report = export(tiny_export.checkpoint(), tmp_path / "x.gamma", chosen)
    assert report.published
    graphs = open_bundle(tmp_path / "x.gamma").manifest.graphs
    precisions = changes.get("precision", ("int8",))
    assert list(dict.fromkeys(graph.precision for graph in graphs)) == list(precisions)
    forms = [(graph.target, graph.attention) for graph in graphs if graph.precision == "int8"]
    expected = [("cpu", "decomposed"), ("tensorrt", "decomposed")]
    assert forms == expected + ([("tensorrt", "op")] if changes.get("attention") == "both" else [])


def test_a_manifest_with_two_graphs_of_one_form_is_refused(
    exported: tuple[ExportReport, Bundle], tmp_path: Path
) -> None:
    bundle = shutil.copytree(exported[1].folder, tmp_path / "x.gamma")
    tiny_export.rewrite(bundle, lambda data: data["graphs"][3].update(target="cpu"))
    with pytest.raises(IntegrityError, match="a graph is listed twice"):
        open_bundle(bundle)


def test_json_has_the_recipe_and_the_worst_images(
    calibration_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("-o", tmp_path / "x.gamma", "--precision", "int8", "--calib", calibration_photos, "--calib-min", "8")
    assert tiny_export.export_command(*flags, "--calib-method", "mse", "--skip-speed", "--json", "--quiet") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["int8"]["quantisation"]["method"] == "mse"
    assert data["int8"]["weights_bytes"]["int8"] < data["int8"]["weights_bytes"]["fp16"]
    assert data["int8"]["speed"] == []
    assert all(np.isfinite(list(row["worst"].values())).all() for row in data["parity"])


def test_layers_are_not_for_int8(exported: tuple[ExportReport, Bundle]) -> None:
    from gamma_export.layers import LayerOptions, verify_layers

    with pytest.raises(InputError, match="no graph"):
        verify_layers(exported[1], tiny_export.checkpoint(), LayerOptions(photos=tiny_export.photos()))


def test_of_two_photos_with_one_name_the_worse_is_named() -> None:
    from gamma_export import parity

    crops = np.zeros((3, 1, 1, 3), np.uint8)
    wanted = parity.Reference(parity.Subjects(crops, names=("a.jpg", "b.jpg", "a.jpg")), np.zeros((3, 1)), ("plain",))
    assert parity._worst(wanted, np.array([0.3, 0.2, 0.1])) == {"a.jpg": 0.3, "b.jpg": 0.2}
