"""gamma-export and gamma-verify from the outside: options, bundle, report, exit codes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gamma_runtime
from gamma_export.commands import export as export_command
from gamma_export.commands import verify as verify_command
from gamma_export.exporter import ExportOptions, ExportReport, export
from gamma_export.verify import verify
from gamma_runtime.bundle import Bundle, open_bundle, seal
from gamma_runtime.errors import GammaError, InputError, IntegrityError, UsageError

SDP = ["natural-quality", "aigc-quality", "underwater-quality", "face-quality", "natural-aesthetics"]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, two_photos: Path) -> Any:
    """Export the tiny checkpoint once for each set of options."""
    made: dict[str, tuple[ExportReport, Bundle]] = {}

    def run(**options: Any) -> tuple[ExportReport, Bundle]:
        key = repr(options)
        if key not in made:
            out = tmp_path_factory.mktemp("bundles") / "x.gamma"
            report = export(tiny_checkpoint, out, ExportOptions(photos=two_photos, crops="centre", **options))
            made[key] = report, open_bundle(out)
        return made[key]

    return run


def test_default_is_the_five_sdp_scenes_and_the_joint_graph_in_fp16(make: Any) -> None:
    report, bundle = make()
    manifest = bundle.manifest
    assert report.published
    assert [scene.name for scene in manifest.scenes] == SDP
    assert manifest.default_scene == "natural-quality"
    assert [graph.name for graph in manifest.graphs] == ["joint", *SDP]
    assert {graph.precision for graph in manifest.graphs} == {"fp16"}
    assert len({graph.weights for graph in manifest.graphs}) == 1
    assert manifest.contract["short_sides"] == dict(zip(SDP, [384, 384, 224, 512, 224], strict=True))
    assert manifest.checkpoint.label == "untrained"
    assert {entry.name for entry in manifest.files} == {
        path.name for path in bundle.folder.iterdir() if path.name not in ("manifest.json", ".lock")
    }


def test_parity_is_in_the_manifest_and_honest_about_emulation(make: Any) -> None:
    report, bundle = make()
    rows = bundle.manifest.parity
    assert tuple(rows) == report.parity
    assert [(row.graph, row.scene) for row in rows] == [("joint", s) for s in SDP] + [(s, s) for s in SDP]
    assert [row.crops for row in rows] == [6] * 5 + [4] * 5
    assert all(row.passed and row.max_abs <= row.gate_max == 5e-3 for row in rows)
    assert all(row.note and "emulated" in row.note for row in rows)


def test_the_bundle_scores_what_pytorch_scores(make: Any, tiny_checkpoint: Path) -> None:
    """From encoded photo to score, against crops and features computed apart from the exporter."""
    import torch

    from gamma_export.photos import packaged_photos
    from gamma_training.checkpoint import build_model, read_checkpoint
    from gamma_training.scenes import SCENES
    from gamma_training.tokens import tokenize

    _, bundle = make(precision=("fp32",))
    model = build_model(read_checkpoint(tiny_checkpoint))
    for scene in ("natural-quality", "face-quality"):
        with gamma_runtime.load(bundle.folder, scene=scene, threads=1) as scorer, torch.inference_mode():
            for photo in packaged_photos()[3:5]:
                crops = scorer.prepare(photo).crops
                text = model.text_features(tokenize(SCENES[scene].prompts, 77))
                wanted = float(model.score(torch.from_numpy(crops), text).mean())
                assert scorer.score(photo).value == pytest.approx(wanted, abs=5e-6)


@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        ({"scene": ("face-quality",)}, ["face-quality"]),
        ({"scene": ("face-quality,natural-quality",)}, ["joint", "face-quality", "natural-quality"]),
        ({"scene": ("face-quality", "natural-quality"), "joint": True}, ["joint"]),
        ({"scene": ("face-quality",), "joint": True}, ["joint"]),
    ],
)
def test_scene_and_joint(make: Any, options: dict[str, Any], graphs: list[str]) -> None:
    _, bundle = make(**options)
    assert [graph.name for graph in bundle.manifest.graphs] == graphs
    assert bundle.manifest.default_scene == "face-quality"


def test_several_precisions_share_nothing_but_the_folder(make: Any) -> None:
    _, bundle = make(precision=("fp16,fp32", "bf16"), scene=("face-quality",))
    assert [graph.precision for graph in bundle.manifest.graphs] == ["fp16", "fp32", "bf16"]
    assert len({graph.weights for graph in bundle.manifest.graphs}) == 3
    assert {row.precision: row.backend for row in bundle.manifest.parity} == {
        "fp16": "onnxruntime",
        "fp32": "onnxruntime",
        "bf16": "openvino",
    }
    assert verify(bundle).passed


def test_attention_op_and_ranged_batch(make: Any) -> None:
    _, bundle = make(attention="op", batch="1:2:4", scene=("face-quality",))
    graph = bundle.manifest.graphs[0]
    assert (graph.opset, graph.batch, graph.inputs["crops"]) == (23, (1, 2, 4), ("uint8", ["N", 1, 224, 224, 3]))
    assert verify(bundle, backend_names=("onnxruntime",)).passed


def test_both_spellings_of_attention_in_one_bundle(make: Any) -> None:
    _, bundle = make(attention="both", precision=("fp16", "fp32"), scene=("face-quality",))
    assert [(g.precision, g.attention) for g in bundle.manifest.graphs] == [
        ("fp16", "decomposed"),
        ("fp16", "op"),
        ("fp32", "decomposed"),
    ]
    assert len({graph.onnx for graph in bundle.manifest.graphs}) == 3
    assert [row.crops for row in bundle.manifest.parity] == [6, 6, 6]
    assert verify(bundle, backend_names=("onnxruntime",)).passed


def test_plain_checkpoint_exports_the_plain_scene_and_warns_about_others(make: Any) -> None:
    _, plain = make(prompts="plain")
    assert [scene.name for scene in plain.manifest.scenes] == ["plain"]
    assert not any("scene" in warning for warning in plain.manifest.warnings)
    _, other = make(prompts="plain", scene=("face-quality",))
    assert any("face-quality" in warning and "plain" in warning for warning in other.manifest.warnings)


def test_assumed_prompts_are_said_aloud(tmp_path: Path, tiny_checkpoint: Path, two_photos: Path) -> None:
    import torch

    bare = tmp_path / "bare.pth"
    torch.save({"params": torch.load(tiny_checkpoint, weights_only=True)["params"]}, bare)
    options = ExportOptions(photos=two_photos, crops="centre", scene=("face-quality",))
    report = export(bare, tmp_path / "x.gamma", options)
    assert any("sdp assumed" in warning for warning in report.warnings)
    assert open_bundle(tmp_path / "x.gamma").manifest.checkpoint.prompts_assumed


def test_user_scene_from_yaml(make: Any, tmp_path: Path) -> None:
    scenes = tmp_path / "scenes.yaml"
    prompts = [f"{level} product photo" for level in ("bad", "poor", "fair", "good", "perfect")]
    scenes.write_text(json.dumps({"name": "product", "prompts": prompts, "short_side": None}))  # JSON is YAML
    _, bundle = make(scene_file=scenes)
    scene = bundle.manifest.scenes[0]
    assert (scene.name, scene.prompts, scene.kind) == ("product", prompts, "user")
    assert bundle.manifest.contract["short_sides"] == {"product": None}
    assert any("product" in warning for warning in bundle.manifest.warnings)


def test_native_keeps_the_pixels(make: Any) -> None:
    _, bundle = make(native=True, scene=("face-quality",))
    assert bundle.manifest.contract["short_sides"] == {"face-quality": None}


def test_licence_and_digest_are_recorded(make: Any, tiny_checkpoint: Path) -> None:
    import hashlib

    import torch

    digest = hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    _, bundle = make(licence="CC0-1.0", expect_sha256=digest.upper(), scene=("face-quality",))
    info = bundle.manifest.checkpoint
    state = torch.load(tiny_checkpoint, weights_only=True)["params"]
    assert (info.licence, info.sha256) == ("CC0-1.0", digest)
    assert info.parameters == sum(tensor.numel() for tensor in state.values())
    assert bundle.manifest.options["licence"] == "CC0-1.0"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"precision": ("fp4",)}, "--precision"),
        ({"precision": ()}, "--precision"),
        ({"attention": "op", "precision": ("fp32",)}, "no fp32 kernel"),
        ({"residual": "bf16"}, "--residual"),
        ({"gate": 0.0}, "--gate"),
        ({"batch": "0"}, "LEAST"),
        ({"batch": "4:2:8"}, "LEAST"),
        ({"batch": "many"}, "--batch"),
        ({"batch": "1:2"}, "--batch"),
        ({"crops": "grid0x3"}, "crops"),
        ({"crops": "grid9x9"}, "limit is 1 to 64"),
        ({"crops": "middle"}, "unknown crop policy"),
        ({"scene": ("nature",)}, "unknown scene"),
        ({"backend": "cuda"}, "unknown backend"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(
    tmp_path: Path, tiny_checkpoint: Path, two_photos: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        export(tiny_checkpoint, tmp_path / "x.gamma", ExportOptions(photos=two_photos, **options))
    assert list(tmp_path.iterdir()) == []


def test_empty_photo_folder(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError):
        export(tiny_checkpoint, tmp_path / "x.gamma", ExportOptions(photos=tmp_path / "none"))
    assert not (tmp_path / "x.gamma").exists()


def test_gate_not_met_publishes_nothing(tmp_path: Path, tiny_checkpoint: Path, two_photos: Path) -> None:
    options = ExportOptions(photos=two_photos, crops="centre", scene=("face-quality",), gate=1e-9)
    report = export(tiny_checkpoint, tmp_path / "x.gamma", options)
    assert not report.published
    assert not (tmp_path / "x.gamma").exists()


def test_flags_are_the_fields_of_the_options() -> None:
    for command in (export_command.ExportCommand, verify_command.VerifyOptions):
        for field in dataclasses.fields(command):
            assert field.metadata.get("help"), f"{command.__name__}.{field.name} has no help"
    names = {field.name for field in dataclasses.fields(export_command.ExportCommand)}
    assert names > {field.name for field in dataclasses.fields(ExportOptions)}


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from gamma_export.commands.{} import main; sys.exit(main())"
    name, *rest = arguments
    return subprocess.run(
        [sys.executable, "-c", program.format(name), *rest], capture_output=True, text=True, timeout=300, check=False
    )


def test_command_line_json_and_next_command(tmp_path: Path, tiny_checkpoint: Path, two_photos: Path) -> None:
    out = tmp_path / "x.gamma"
    shared = ["--photos", str(two_photos)]
    done = _command(
        "export", str(tiny_checkpoint), "-o", str(out), "--crops", "centre", "--scene", "plain", "--json", *shared
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["published"], report["scenes"], report["label"]) == (True, ["plain"], "untrained")
    assert "warning: scene plain" in done.stderr
    assert done.stderr.splitlines()[-1] == f"next: gamma-run {out} PHOTOS"
    done = _command("verify", str(out), "--against", str(tiny_checkpoint), "--json", *shared)
    assert done.returncode == 0, done.stderr
    proof = json.loads(done.stdout)
    assert proof["passed"]
    assert {row["backend"] for row in proof["parity"]} == {"onnxruntime", "openvino"}
    assert {row["backend"] for row in proof["golden"]} == {"onnxruntime", "openvino"}
    done = _command("verify", str(out), "--against", str(tiny_checkpoint), "--gate", "1e-9", *shared)
    assert done.returncode == 7
    assert "FAIL" in done.stdout
    assert "gate not met" in done.stderr


def test_command_line_gate_exit_code(tmp_path: Path, tiny_checkpoint: Path, two_photos: Path) -> None:
    out = tmp_path / "x.gamma"
    done = _command(
        "export",
        str(tiny_checkpoint),
        "-o",
        str(out),
        "--scene",
        "plain",
        "--gate",
        "1e-9",
        "--crops",
        "centre",
        "--photos",
        str(two_photos),
    )
    assert done.returncode == 7
    assert "nothing was published" in done.stderr
    assert not out.exists()


def test_verify_refuses_another_checkpoint(make: Any, tmp_path: Path) -> None:
    from gamma_training.checkpoint import write_authors
    from gamma_training.dims import FULL_SIZE
    from gamma_training.initialise import random_state, smaller

    _, bundle = make(scene=("face-quality",))
    other = tmp_path / "other.pth"
    write_authors(other, random_state(smaller(FULL_SIZE, width=64, layers=2, first_moae=1), 8))
    with pytest.raises(IntegrityError, match="not this bundle's checkpoint"):
        verify(bundle, against=other)


def test_verify_notices_a_bundle_of_another_model(
    tmp_path: Path, make: Any, tiny_checkpoint: Path, two_photos: Path
) -> None:
    """A manifest that vouches for wrong weights passes every hash; golden images and parity must not."""
    import hashlib
    import shutil

    _, bundle = make(scene=("face-quality",))
    folder = tmp_path / "x.gamma"
    shutil.copytree(bundle.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    weights = folder / manifest["graphs"][0]["weights"]
    content = np.frombuffer(weights.read_bytes(), np.uint16).copy()
    content[: len(content) // 2] = np.roll(content[: len(content) // 2], 64)
    weights.write_bytes(content.tobytes())
    entry = next(e for e in manifest["files"] if e["name"] == weights.name)
    entry["sha256"] = hashlib.sha256(content.tobytes()).hexdigest()
    (folder / "manifest.json").write_bytes(seal(manifest))
    try:
        report = verify(open_bundle(folder), against=tiny_checkpoint, photos=two_photos)
    except GammaError as error:  # the shuffled weights may also give NaN
        assert "non-finite" in str(error)  # noqa: PT017
    else:
        assert not all(check.passed for check in report.golden)
        assert not all(row.passed for row in report.parity)


def test_the_packaged_demo_is_a_trained_gamma_with_a_card() -> None:
    from gamma_export.demo import PACKAGED, demo_checkpoint
    from gamma_training.checkpoint import build_model, read_checkpoint
    from gamma_training.scenes import SCENES, encode_scenes, scenes_of

    read = read_checkpoint(demo_checkpoint())
    assert (read.label, read.licence, read.prompts) == ("demo", "Apache-2.0", "sdp")
    assert PACKAGED.stat().st_size <= 12e6
    assert "not Gamma's published weights" in PACKAGED.with_name("CARD.md").read_text()
    model = build_model(read)
    features = encode_scenes(model, scenes_of("sdp"))
    assert features.shape[0] == 5 * (len(SCENES) - 1)
    for name, value in model.named_parameters():
        if name.endswith(".scale"):
            assert value.abs().max() > 1e-3, f"{name}: the experts take no part"
