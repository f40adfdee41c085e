"""Bundles whose crops the graph does not simply receive: `cover` takes turns in the batch, `frameWxH` is cut inside."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import gamma_runtime
from gamma_export.exporter import export
from gamma_export.verify import verify
from gamma_runtime.bundle import Bundle, open_bundle
from gamma_runtime.engines import EngineOptions, build_engines
from gamma_runtime.errors import InputError
from tests import tiny_export
from tests.gpu.interpreter import Interpreter
from tests.runtime.engine_bundle import needs_rtx
from tests.runtime.images import encode, photo

SCENE = tiny_export.SCENES[0]
FRAME = (464, 336)  # width, height: five crops overlap in it
BACKENDS = ("onnxruntime", "openvino")


def frame_text(inner: str) -> str:
    return f"frame{FRAME[0]}x{FRAME[1]}:{inner}"


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """A tiny bundle exported with these options, once a module."""
    made: dict[str, Bundle] = {}

    def run(crops: str, **options: Any) -> Bundle:
        key = f"{crops} {options}"
        if key not in made:
            out = tmp_path_factory.mktemp("policies") / "x.gamma"
            precision = ("fp32", "fp16") if crops == frame_text("five") else ("fp32",)
            chosen = {
                "precision": precision,
                "joint": True,
                "batch": "1:4:8" if crops == "cover" else "1:1:2",
            } | options
            assert export(tiny_export.checkpoint(), out, tiny_export.options(crops=crops, **chosen)).published
            made[key] = open_bundle(out)
        return made[key]

    return run


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inner", ["five", "cover", "grid2x3"])
def test_a_frame_scores_as_its_crops_do(make: Callable[..., Bundle], inner: str, backend: str) -> None:
    """The same positions cut inside the graph and outside of it; `cover` outside goes through the batch."""
    frame = photo(*FRAME, seed=3)
    frames, crops = make(frame_text(inner)), make(inner, native=True)
    with (
        gamma_runtime.load(frames, backend=backend, threads=1) as inside,
        gamma_runtime.load(crops, backend=backend, threads=1) as outside,
    ):
        found, wanted = inside.score(frame), outside.score(frame)
        [other] = inside.score_many([np.ascontiguousarray(frame[::-1])])
    assert np.abs(np.subtract(found.crop_scores, wanted.crop_scores)).max() <= 1e-6
    assert abs(found.value - wanted.value) <= 1e-6
    assert abs(other.value - wanted.value) > 1e-6, "the control: another frame must not pass"
    assert (found.working_size, found.flags) == (FRAME, ("untrained", "native"))


def test_cover_has_one_score_a_crop_and_takes_the_mean_in_float64(make: Callable[..., Bundle]) -> None:
    bundle = make("cover")
    assert {(g.crops, g.batch) for g in bundle.manifest.graphs} == {(1, (1, 4, 8))}
    with gamma_runtime.load(bundle, scene=SCENE, threads=1) as scorer:
        calls: list[int] = []
        (graph,) = scorer.panel._graphs
        infer = graph.backend.infer
        graph.backend.infer = lambda crops: calls.append(len(crops)) or infer(crops)  # type: ignore[method-assign,func-returns-value]
        scores = list(scorer.score_many([photo(1000, 384), photo(300, 224), photo(500, 500)]))
    assert [len(score.crop_scores) for score in scores] == [10, 2, 4]
    assert calls == [8, 8]  # sixteen crops of three photos
    for score in scores:
        assert score.value == float(np.float32(np.mean(score.crop_scores, dtype=np.float64)))


@pytest.mark.parametrize("crops", ["cover", frame_text("five")])
def test_verify_passes_on_every_backend_and_precision(make: Callable[..., Bundle], crops: str) -> None:
    bundle = make(crops)
    precisions = {graph.precision for graph in bundle.manifest.graphs}
    report = verify(bundle, against=tiny_export.checkpoint(), photos=tiny_export.photos(), threads=1)
    assert report.passed
    assert {(c.backend, c.precision) for c in report.golden} == set(itertools.product(BACKENDS, precisions))
    assert {(p.backend, p.precision) for p in report.parity} == set(itertools.product(BACKENDS, precisions))
    assert all(check.crops_match for check in report.golden)


def test_verify_notices_a_frame_graph_that_cuts_elsewhere(make: Callable[..., Bundle], tmp_path: Path) -> None:
    """The manifest vouches for a graph whose corner crop is 16 pixels off: only scores can tell."""
    import shutil

    import onnx
    from onnx import numpy_helper

    folder = tmp_path / "x.gamma"
    shutil.copytree(make(frame_text("five")).folder, folder)
    name = tiny_export.manifest(folder)["graphs"][0]["onnx"]
    model = onnx.load(folder / name, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name in ("frame.start_1", "frame.end_1"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 16, tensor.name))
    tiny_export.vouch(folder, name, model.SerializeToString())
    found = verify(open_bundle(folder), against=tiny_export.checkpoint(), photos=tiny_export.photos(), threads=1)
    assert not any(check.passed for check in found.golden if check.precision == "fp32")
    assert not any(row.passed for row in found.parity if row.precision == "fp32")


def test_the_manifest_of_a_frame_bundle(make: Callable[..., Bundle]) -> None:
    bundle = make(frame_text("five"))
    for graph in bundle.manifest.graphs:
        assert graph.inputs == {"frames": ("uint8", ["N", FRAME[1], FRAME[0], 3])}
        assert graph.outputs["crop_scores"] == ("float32", ["N", 5, 2])
    contract = bundle.contract()
    assert (contract.version, str(contract.crop)) == (2, frame_text("five"))
    assert set(contract.short_sides.values()) == {None}
    for golden in bundle.manifest.golden:
        assert golden.file.endswith(".png")
        assert cv2.imread(str(bundle.file(golden.file))).shape == (FRAME[1], FRAME[0], 3)
    assert not bundle.manifest.warnings, "336 rows are fewer than either scene was trained on"


def test_a_frame_larger_than_the_scenes_were_trained_on_is_warned_about(make: Callable[..., Bundle]) -> None:
    warnings = make("frame640x480:centre").manifest.warnings
    assert [w for w in warnings if "natural-quality" in w and "640x480" in w and "384" in w]
    assert not [w for w in warnings if "face-quality" in w], "trained on 512"


@pytest.mark.parametrize("size", [(FRAME[1], FRAME[0]), (FRAME[0] - 1, FRAME[1]), (100, 100)])
def test_an_image_of_another_size_is_refused_with_both_sizes(
    make: Callable[..., Bundle], size: tuple[int, int]
) -> None:
    with (
        gamma_runtime.load(make(frame_text("five")), small="resize", threads=1) as scorer,
        pytest.raises(InputError, match=f"{size[0]}x{size[1]}; .* takes frames of {FRAME[0]}x{FRAME[1]}") as caught,
    ):
        scorer.score(photo(*size))
    assert "set the camera" in (caught.value.hint or "")


def test_gamma_run_scores_frames(
    make: Callable[..., Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(frame_text("five")).folder
    for name, size in (("right.png", FRAME), ("wrong.png", (300, 300))):
        (tmp_path / name).write_bytes(encode(photo(*size), "PNG"))
    assert tiny_export.command("run", folder, str(tmp_path / "right.png")) == 0
    assert tiny_export.command("run", folder, str(tmp_path / "wrong.png")) == 3
    assert "300x300; this bundle's graph takes frames" in capsys.readouterr().out


def test_an_independent_interpreter_cuts_the_same(make: Callable[..., Bundle]) -> None:
    """The GPU checks' own reading of the graph, here on the CPU: frames with their batch of two."""
    from gamma_runtime import backends

    bundle = make(frame_text("five"))
    path = bundle.graph_file(bundle.manifest.graphs[0])
    frames = np.stack([photo(*FRAME, seed=seed) for seed in range(2)])
    with backends.create("onnxruntime", path, threads=1) as backend:
        wanted = backend.infer(frames).crop_scores
    assert np.abs(Interpreter(path).run(frames)["crop_scores"] - wanted).max() <= 1e-6


@needs_rtx
def test_frame_graphs_compile_with_tensorrt_rtx(make: Callable[..., Bundle], tmp_path: Path) -> None:
    """Slices of constants behind the Cast, in both precisions; compiled, not run on a GPU."""
    bundle = make(frame_text("five"))
    entries = build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", engine_dir=tmp_path / "e"))
    assert {entry.precision for entry in entries} == {"fp32", "fp16"}
    for entry in entries:
        log = (tmp_path / "e" / entry.log).read_text()
        assert f"max=(2, {FRAME[1]}, {FRAME[0]}, 3)" in log
