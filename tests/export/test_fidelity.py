"""The exported graphs score like PyTorch, and the same check catches every way of breaking them that we know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fidelity
from gamma_export import fold, parity, vision, weights
from gamma_runtime import backends, steps
from gamma_training import dims as model_dims

ORACLE = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> fidelity.Candidate:
    """Full size, seeded random weights, conditioned; 1.1 GB, so one for the whole module."""
    return fidelity.Candidate(model_dims.FULL_SIZE, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> fidelity.Candidate:
    return fidelity.Candidate(fidelity.TINY, tmp_path_factory.mktemp("tiny"))


def _authors_scores(folder: Path, oracle_checkpoint: Path, precision: str, backend: str) -> float:
    """Largest |difference| of the joint graph of the oracle's six scenes to the authors' own classes' scores."""
    from gamma_training.checkpoint import build_model, read_checkpoint
    from gamma_training.scenes import SCENES, encode_scenes

    checkpoint = read_checkpoint(oracle_checkpoint)
    model = build_model(checkpoint)
    authors = json.loads((ORACLE / "authors_tiny_scores.json").read_text())["scores"]
    crops = np.load(ORACLE / "authors_tiny_crops.npy")
    text = fold.fold_text(encode_scenes(model, list(SCENES.values())), model.clip_model.logit_scale)
    file = weights.write_weights(folder, fold.fold_vision(checkpoint.state, checkpoint.dims), precision)
    graph = vision.build_graph("joint", file, checkpoint.dims, text, vision.GraphOptions(precision=precision, crops=3))
    path = folder / "joint.onnx"
    path.write_bytes(graph.SerializeToString())
    with backends.create(backend, path) as runner:
        found = parity.graph_scores(runner, 1, crops, steps.Steps(), "")
    return float(np.abs(found - np.array([authors[name] for name in SCENES]).T).max())


@pytest.mark.parametrize(
    ("precision", "backend"),
    [
        ("fp32", "onnxruntime"),
        ("fp32", "openvino"),
        ("fp16", "onnxruntime"),
        ("fp16", "openvino"),
        ("bf16", "openvino"),
    ],
)
def test_graph_gives_the_authors_scores(tmp_path: Path, oracle_checkpoint: Path, precision: str, backend: str) -> None:
    assert _authors_scores(tmp_path, oracle_checkpoint, precision, backend) <= fidelity.LIMITS[precision]


QUICK = 4  # fp32 and fp16 on both backends; the variants and bf16, which is emulated step by step, are for test-long
CASES = [
    pytest.param(
        case, id=" ".join([case[0], case[1], *case[2].values()]), marks=[] if index < QUICK else [pytest.mark.long]
    )
    for index, case in enumerate(fidelity.CASES)
]


@pytest.mark.full
def test_conditioned_scores_differ_between_photos(full: fidelity.Candidate) -> None:
    assert full.wanted.scores.std(axis=0).min() >= fidelity.MIN_STD


@pytest.mark.full
@pytest.mark.parametrize("case", CASES)
def test_full_size_parity(full: fidelity.Candidate, case: tuple[str, str, dict[str, str]]) -> None:
    precision, backend, options = case
    assert full.difference(full.graph(precision, **options), backend).max_abs <= fidelity.LIMITS[precision]


@pytest.mark.full
@pytest.mark.parametrize(
    "control",
    [
        pytest.param(control, id=" ".join(control), marks=[] if control[1] == "fp32" else [pytest.mark.long])
        for control in fidelity.CONTROLS
    ],
)
def test_full_size_fault_is_caught_by_the_same_limit(full: fidelity.Candidate, control: tuple[str, str]) -> None:
    with fidelity.CONTROLS[control](full, control[1]) as path:
        broken = full.difference(path, "onnxruntime", fidelity.CONTROL_CROPS)
    assert broken.max_abs > fidelity.LIMITS[control[1]]


@pytest.mark.full
def test_full_size_scene_graphs_equal_the_joint_one(full: fidelity.Candidate) -> None:
    assert fidelity.scene_graphs_against_joint(full, 2) <= 1e-6


def test_scene_graphs_equal_the_joint_one(tiny: fidelity.Candidate) -> None:
    assert fidelity.scene_graphs_against_joint(tiny, fidelity.CONTROL_CROPS) <= 1e-6


@pytest.mark.parametrize("control", fidelity.CONTROLS, ids=" ".join)
def test_fault_is_caught(tiny: fidelity.Candidate, control: tuple[str, str]) -> None:
    with fidelity.CONTROLS[control](tiny, control[1]) as path:
        broken = tiny.difference(path, "onnxruntime", fidelity.CONTROL_CROPS)
    assert broken.max_abs > fidelity.LIMITS[control[1]]


def test_patched_weights_are_put_back(tiny: fidelity.Candidate) -> None:
    """A control that stayed in the weights file would make the next test lie."""
    before = tiny.difference(tiny.graph("fp32"), "onnxruntime", 2).max_abs
    with fidelity.expert_left_out(tiny, "fp32"):
        pass
    assert tiny.difference(tiny.graph("fp32"), "onnxruntime", 2).max_abs == before


@pytest.mark.parametrize("crops", ["centre", "five"])
@pytest.mark.parametrize("batch", [(1, 1, 1), (2, 2, 2), (1, 2, 4)])
def test_score_does_not_depend_on_batch_or_crop_count(
    tiny: fidelity.Candidate, tmp_path: Path, crops: str, batch: tuple[int, int, int]
) -> None:
    from gamma_runtime.contract import CropPolicy

    options = vision.GraphOptions(precision="fp32", crops=CropPolicy.parse(crops).crops, batch=batch)
    text = fold.fold_text(tiny.text, tiny.model.clip_model.logit_scale)
    graph = vision.build_graph("graph", tiny.weights("fp32"), tiny.dims, text, options)
    path = tiny.folder / f"{crops}-{batch[2]}.onnx"
    path.write_bytes(graph.SerializeToString())
    with backends.create("onnxruntime", path) as runner:
        found = parity.graph_scores(runner, batch[2], tiny.wanted.crops, steps.Steps(), "")
    assert np.abs(found - tiny.wanted.scores).max() <= fidelity.LIMITS["fp32"]
