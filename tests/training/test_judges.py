"""One interface for both kinds of source: the authors' own scores, brightness worked out by hand, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gamma_runtime.contract import CropPolicy
from gamma_runtime.errors import EnvironmentFault, GammaError, InputError, UsageError
from gamma_runtime.graphs import OpenGraph
from gamma_training import judges
from gamma_training.checkpoint import Checkpoint, build_model, read_checkpoint
from gamma_training.judges import BundleJudge, JudgeOptions, TorchJudge, open_judge
from gamma_training.scenes import SCENES, Scene
from tests import tiny_export
from tests.runtime.tiny_bundle import FACTORS, Tiny, make_bundle

ONE = JudgeOptions(threads=1)


@pytest.fixture(scope="session")
def crops() -> np.ndarray:
    """Eleven crops of different brightness: no multiple of a batch or of five."""
    noise = np.random.default_rng(3).integers(0, 128, (11, 224, 224, 3), dtype=np.uint8)
    return noise + (np.arange(11, dtype=np.uint8) * 11)[:, None, None, None]


def test_a_checkpoint_scores_like_the_authors_classes(
    oracle: Checkpoint, oracle_crops: np.ndarray, oracle_scores: dict[str, list[float]]
) -> None:
    judge = TorchJudge.of(oracle, ONE)
    assert set(judge.scenes) < set(oracle_scores)
    for scene in judge.scenes:
        assert judge.score(oracle_crops, scene) == pytest.approx(oracle_scores[scene], abs=1e-5)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_checkpoint_and_its_bundle_score_alike(backend: str, crops: np.ndarray) -> None:
    options = JudgeOptions(backend=backend, threads=1)
    checkpoint = open_judge(tiny_export.checkpoint(), tiny_export.SCENES, ONE)
    with open_judge(tiny_export.exported(precision="fp32"), tiny_export.SCENES, options) as bundle:
        assert (checkpoint.fixed, bundle.fixed) == (False, True)
        assert bundle.dims == checkpoint.dims
        assert bundle.facts["checkpoint_sha256"] == checkpoint.facts["sha256"]
        assert bundle.facts["run_by"].startswith(backend)
        for scene in tiny_export.SCENES:
            wanted = checkpoint.score(crops, scene)
            assert np.ptp(wanted) > 1e-3  # else any scores would do
            assert bundle.score(crops, scene) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
def test_scores_do_not_depend_on_the_batch(batch: int, crops: np.ndarray, tmp_path: Path) -> None:
    scene = tiny_export.SCENES[0]
    alone = open_judge(tiny_export.checkpoint(), (scene,), JudgeOptions(threads=1, batch=1))
    judge = open_judge(tiny_export.checkpoint(), (scene,), JudgeOptions(threads=1, batch=batch))
    assert judge.score(crops, scene) == pytest.approx(alone.score(crops, scene), abs=1e-6)
    bundle = make_bundle(tmp_path / "tiny.gamma", Tiny(batch=(2, 2, 4)))
    with BundleJudge(bundle, (scene,), JudgeOptions(threads=1, batch=batch)) as ranged:
        assert ranged.score(crops, scene) == pytest.approx(crops.mean(axis=(1, 2, 3)) / 255, abs=1e-5)


@pytest.mark.parametrize("crop", ["centre", "five", "grid2x3", "cover"])
@pytest.mark.parametrize("count", [1, 5, 11])
def test_crops_are_packed_into_whatever_the_graph_takes(
    crop: str, count: int, crops: np.ndarray, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "tiny.gamma", Tiny(crop=crop))
    with BundleJudge(bundle, ("face-quality", "underwater-quality"), ONE) as judge:
        assert judge.contract.crop == CropPolicy.parse(crop)
        for scene in judge.scenes:
            wanted = crops[:count].mean(axis=(1, 2, 3)) / 255 * FACTORS[scene]
            assert judge.score(crops[:count], scene) == pytest.approx(wanted, abs=1e-5)


def test_a_scenes_text_is_encoded_once(monkeypatch: pytest.MonkeyPatch, crops: np.ndarray) -> None:
    asked: list[str] = []
    encode = judges.encode_scenes

    def counted(model: object, scenes: list[Scene]) -> torch.Tensor:
        asked.extend(scene.name for scene in scenes)
        return encode(model, scenes)

    monkeypatch.setattr(judges, "encode_scenes", counted)
    judge = open_judge(tiny_export.checkpoint(), (), ONE)
    for _ in range(3):
        for scene in ("natural-quality", "face-quality"):
            judge.score(crops[:2], scene)
    assert asked == ["natural-quality", "face-quality"]


def test_torch_is_left_as_it_was(crops: np.ndarray) -> None:
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    model = build_model(read_checkpoint(tiny_export.checkpoint())).train()
    judge = TorchJudge(model, [SCENES["plain"]], JudgeOptions(threads=before[0] + 1))
    judge.score(crops[:1], "plain")
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == before
    assert not torch.is_inference_mode_enabled()


def test_a_model_of_the_naive_prompts_scores_every_scene_in_plain() -> None:
    plain = TorchJudge(build_model(read_checkpoint(tiny_export.checkpoint())), [SCENES["plain"]], ONE)
    assert plain.scene_for("underwater-quality") == "plain"
    assert plain.contract.short_sides == {"plain": 384}
    with pytest.raises(UsageError, match="no scene 'product-photos'"):
        plain.scene_for("product-photos")
    with pytest.raises(UsageError, match="no scene 'face-quality'"):
        plain.score(np.zeros((1, 224, 224, 3), np.uint8), "face-quality")


def test_a_users_scene_can_be_scored_with_a_checkpoint(crops: np.ndarray) -> None:
    mine = Scene("mine", tuple(f"{level} picture" for level in ("bad", "poor", "fair", "good", "perfect")), "user", 300)
    judge = open_judge(tiny_export.checkpoint(), ("mine",), JudgeOptions(threads=1, user_scenes=(mine,)))
    assert judge.contract.short_sides["mine"] == 300
    assert np.isfinite(judge.score(crops, "mine")).all()


def test_scores_that_are_not_finite_are_never_scores(crops: np.ndarray, tmp_path: Path) -> None:
    model = build_model(read_checkpoint(tiny_export.checkpoint()))
    model.score_level = torch.nn.Parameter(torch.full_like(model.score_level, torch.nan))
    with pytest.raises(InputError, match="11 of 11 scores in plain are not finite"):
        TorchJudge(model, [SCENES["plain"]], ONE).score(crops, "plain")
    bundle = make_bundle(tmp_path / "tiny.gamma", Tiny(dark_is_nan=True))
    with BundleJudge(bundle, (), ONE) as judge, pytest.raises(InputError, match="non-finite") as caught:
        judge.score(np.zeros((1, 224, 224, 3), np.uint8), "natural-quality")
    assert caught.value.exit_code == 7


def test_a_score_that_is_not_the_mean_is_caught(
    monkeypatch: pytest.MonkeyPatch, crops: np.ndarray, tmp_path: Path
) -> None:
    honest = OpenGraph.run
    with BundleJudge(make_bundle(tmp_path / "tiny.gamma"), (), ONE) as judge:
        judge.score(crops, "natural-quality")
        monkeypatch.setattr(OpenGraph, "run", lambda *args: [(s + 1e-3, c) for s, c in honest(*args)])
        with pytest.raises(InputError, match="not the mean"):
            judge.score(crops, "natural-quality")


def test_emulated_precision_is_said(tmp_path: Path) -> None:
    with BundleJudge(make_bundle(tmp_path / "half.gamma", Tiny(precision="fp16")), (), ONE) as judge:
        assert "emulated" in judge.facts["note"]
    with BundleJudge(make_bundle(tmp_path / "full.gamma"), (), ONE) as judge:
        assert "note" not in judge.facts


def test_what_cannot_work_is_said(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny.gamma").folder
    checkpoint = tiny_export.checkpoint()
    refused: list[tuple[type[GammaError], str, Path, tuple[str, ...], JudgeOptions]] = [
        (UsageError, "--device is for checkpoints", bundle, (), JudgeOptions(device="cuda")),
        (UsageError, "--backend is for bundles", checkpoint, (), JudgeOptions(backend="openvino")),
        (UsageError, "--precision is for bundles", checkpoint, (), JudgeOptions(precision="fp16")),
        (UsageError, "unknown device 'gpu'", checkpoint, (), JudgeOptions(device="gpu")),
        (UsageError, "unknown device 'cuda:-1'", checkpoint, (), JudgeOptions(device="cuda:-1")),
        (EnvironmentFault, "device cuda:99: PyTorch finds no such GPU", checkpoint, (), JudgeOptions(device="cuda:99")),
        (UsageError, "a batch of 0", checkpoint, (), JudgeOptions(batch=0)),
        (UsageError, "no scene 'natural-aesthetics'", bundle, ("natural-aesthetics",), ONE),
        (UsageError, "no scene 'mine'", checkpoint, ("mine",), ONE),
        (InputError, "cannot be read|no such file|No such file", tmp_path / "missing.pth", (), ONE),
        (EnvironmentFault, "tensorrt", bundle, (), JudgeOptions(backend="tensorrt")),
    ]
    for error, words, source, scenes, options in refused:
        with pytest.raises(error, match=words):
            open_judge(source, scenes, options)


def test_a_graph_that_takes_frames_is_refused(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "tiny.gamma")
    contract = made.contract()
    frames = CropPolicy.parse("frame640x480:five")
    tiny_export.rewrite(
        made.folder,
        lambda data: data.update(
            contract=type(contract)(short_sides=dict.fromkeys(contract.short_sides), crop=frames).to_json()
        ),
    )
    with pytest.raises(UsageError, match="takes frames"):
        open_judge(made.folder)
