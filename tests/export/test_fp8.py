"""gamma-export --precision fp8: E4M3 around the linear layers and inside attention; emulated, and compiled for Ada."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from gamma_calib.rounding import LEVELS, quantise_weight
from gamma_export.exporter import ExportReport, export
from gamma_export.photos import packaged_photos
from gamma_export.verify import verify
from gamma_runtime.bundle import Bundle, open_bundle
from gamma_runtime.errors import InputError, UsageError
from tests import tiny_export
from tests.runtime.engine_bundle import needs_rtx


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photos.txt"
    path.write_text("\n".join(str(photo) for photo in packaged_photos()[2:]))
    return path


def options(**changes: Any) -> Any:
    return tiny_export.options(**({"precision": ("fp8",), "calib_min": 8} | changes))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> tuple[ExportReport, Bundle]:
    out = tmp_path_factory.mktemp("fp8") / "x.gamma"
    report = export(tiny_export.checkpoint(), out, options(calib=(photos,)))
    assert report.published
    return report, open_bundle(out)


def test_weights_round_to_the_nearest_number() -> None:
    """Three bits of mantissa: at most a sixteenth off where the numbers are normal."""
    weight = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    codes, scale = quantise_weight(weight, "fp8")
    assert (str(codes.dtype), scale.dtype) == ("float8_e4m3fn", np.float16)
    steps = weight / scale.astype(np.float32)
    assert np.abs(steps).max() <= LEVELS["fp8"]
    normal = np.abs(steps) >= 2**-6
    assert normal.mean() > 0.99
    gap = np.abs(codes.astype(np.float32) - steps)
    assert (gap <= np.abs(steps) / 16 * 1.0001)[normal].all()
    assert gap.max() > 0


def test_one_form_with_attention_in_8_bits(exported: tuple[ExportReport, Bundle]) -> None:
    manifest = exported[1].manifest
    assert {(g.precision, g.target) for g in manifest.graphs} == {("fp8", "any")}
    recipe = manifest.quantisation
    assert recipe is not None
    assert (recipe.kind, recipe.method) == ("fp8", "max")
    assert {"blocks.0/attn/products", "blocks.1/attn/products"} <= {*recipe.groups, *recipe.kept}
    assert recipe.ranges["blocks.0/attn/softmax"] == 1.0
    model = onnx.load(exported[1].folder / manifest.graphs[0].onnx, load_external_data=False)
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.name.endswith(("/attn/scores", "/attn/mix")):
            wanted = f"{node.name.partition('/')[0]}/attn/products" in recipe.groups
            assert [makers[name].op_type == "DequantizeLinear" for name in node.input] == [wanted] * 2


def test_parity_is_emulated(exported: tuple[ExportReport, Bundle]) -> None:
    """ONNX Runtime has no fp8 for what lies between; OpenVINO computes the numbers in floating point."""
    report = verify(exported[1], against=tiny_export.checkpoint(), photos=tiny_export.photos(), threads=1)
    assert report.passed
    assert {row.backend for row in report.parity} == {"openvino"}
    assert all(row.note and "emulated" in row.note and row.gate_mean == 5e-3 for row in report.parity)
    with pytest.raises(InputError, match="onnxruntime has no CPU kernels for fp8"):
        verify(exported[1], backend_names=("onnxruntime",))


def test_the_recipe_replays_exactly(exported: tuple[ExportReport, Bundle], tmp_path: Path) -> None:
    again = export(tiny_export.checkpoint(), tmp_path / "y.gamma", options(recipe=exported[1].folder))
    assert again.published
    files = open_bundle(tmp_path / "y.gamma").manifest.files
    assert {e.name: e.sha256 for e in files} == {e.name: e.sha256 for e in exported[1].manifest.files}
    int8 = options(precision=("int8",), recipe=exported[1].folder)
    with pytest.raises(InputError, match="no int8 recipe in it"):
        export(tiny_export.checkpoint(), tmp_path / "z.gamma", int8)


@needs_rtx
def test_an_engine_for_ada(exported: tuple[ExportReport, Bundle], tmp_path: Path) -> None:
    """A real plan; what TensorRT parsed has its weights in fp8. Older GPUs are refused before anything is built."""
    from gamma_runtime.engines import EngineOptions, build_engines

    bundle = open_bundle(shutil.copytree(exported[1].folder, tmp_path / "x.gamma"))
    (engine,) = build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.9",)))
    assert engine.precision == "fp8"
    assert engine.proof["network"]["weight_bytes"]["fp8"] > 0
    for capabilities, named in (((), r"8\.0\+"), (("8.6", "8.9"), r"8\.6")):
        with pytest.raises(UsageError, match=f"fp8 needs compute capability 8.9 or newer, not {named}\n"):
            build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", compute_capabilities=capabilities))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision", "fp8"], "--precision fp8 takes its ranges from photos or from an earlier bundle"),
        (["--precision", "fp8,int8", "--calib", "a"], "a bundle has one"),
        (["--precision", "fp8", "--calib", "a", "--attention", "both"], "needs --attention decomposed"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert tiny_export.export_command("-o", tmp_path / "x.gamma", *flags) == 2
    assert message in capsys.readouterr().err


def test_the_report_says_where_it_runs(exported: tuple[ExportReport, Bundle]) -> None:
    from gamma_export.int8_report import int8_text

    report = exported[0]
    assert report.int8 is not None
    text = int8_text(report.int8, True)
    assert text.startswith("fp8: ")
    assert "fp8 needs Ada, Hopper, Blackwell or Thor; a CPU only emulates it" in text.splitlines()[-1]
