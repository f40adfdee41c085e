"""The module against the authors' own classes, and against the counts of the authors' full-size file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gamma_training.checkpoint import Checkpoint, build_model
from gamma_training.dims import FULL_SIZE, dims_of, is_trained
from gamma_training.model import Gamma, expected_shapes
from gamma_training.scenes import SCENES
from gamma_training.tokens import tokenize

TOLERANCE = 2e-6
FULL = {name: math.prod(shape) for name, shape in expected_shapes(FULL_SIZE).items()}


def score(model: Gamma, crops: np.ndarray, scene: str) -> torch.Tensor:
    with torch.inference_mode():
        text = model.text_features(tokenize(SCENES[scene].prompts, model.dims.context))
        return model.score(torch.from_numpy(crops), text)[:, 0]


@pytest.mark.parametrize("scene", SCENES)
def test_every_score_of_the_authors_classes(
    oracle_model: Gamma, oracle_crops: np.ndarray, oracle_scores: dict[str, list[float]], scene: str
) -> None:
    expected = torch.tensor(oracle_scores[scene])
    assert len(expected) == len(oracle_crops) == 6
    assert float((score(oracle_model, oracle_crops, scene) - expected).abs().max()) <= TOLERANCE


def test_the_oracle_covers_every_prompt_set(oracle_scores: dict[str, list[float]]) -> None:
    assert set(oracle_scores) == set(SCENES)


@pytest.mark.parametrize("scenes", [["natural-quality", "plain"], list(SCENES)])
def test_scenes_in_one_pass_equal_one_by_one(
    oracle_model: Gamma, oracle_crops: np.ndarray, oracle_scores: dict[str, list[float]], scenes: list[str]
) -> None:
    prompts = [prompt for scene in scenes for prompt in SCENES[scene].prompts]
    with torch.inference_mode():
        text = oracle_model.text_features(tokenize(prompts, oracle_model.dims.context))
        scores = oracle_model.score(torch.from_numpy(oracle_crops[:2]), text)
    expected = torch.tensor([oracle_scores[scene][:2] for scene in scenes]).T
    assert scores.shape == (2, len(scenes))
    assert float((scores - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("part", ["clip_model.visual.", "clip_model.transformer."])
def test_the_tolerance_notices_a_missing_adaptive_branch(
    oracle: Checkpoint, oracle_crops: np.ndarray, oracle_scores: dict[str, list[float]], part: str
) -> None:
    model = build_model(oracle)
    scales = {n: torch.zeros(()) for n in oracle.state if n.startswith(part) and n.endswith("mlp.scale")}
    assert len(scales) == 6
    model.load_state_dict({**oracle.state, **scales}, assign=True)
    expected = torch.tensor(oracle_scores["natural-quality"][:2])
    assert float((score(model, oracle_crops[:2], "natural-quality") - expected).abs().max()) > 10 * TOLERANCE


def test_state_dict_names_and_order_are_the_files(oracle_file: Path, oracle_model: Gamma) -> None:
    params = torch.load(oracle_file, weights_only=True)["params"]
    assert list(oracle_model.state_dict()) == list(params)
    assert {n: t.shape for n, t in oracle_model.state_dict().items()} == {n: t.shape for n, t in params.items()}
    assert len(params) == 485
    assert not list(oracle_model.buffers())


def test_text_trimmed_after_its_end_equals_77_tokens(oracle_model: Gamma) -> None:
    for scene in SCENES.values():
        short = tokenize(scene.prompts, 77)
        full = tokenize(scene.prompts, 77, full_length=True)
        assert short.shape[1] < 10
        assert full.shape[1] == 77
        with torch.inference_mode():
            difference = oracle_model.text_features(short) - oracle_model.text_features(full)
        assert float(difference.abs().max()) <= 1e-6


def test_prompts_of_mixed_lengths_in_one_batch_do_not_disturb_each_other(oracle_model: Gamma) -> None:
    mixed = [SCENES["plain"].prompts[0], SCENES["aigc-quality"].prompts[0]]
    with torch.inference_mode():
        together = oracle_model.text_features(tokenize(mixed, 77))
        alone = torch.cat([oracle_model.text_features(tokenize([prompt], 77)) for prompt in mixed])
    assert float((together - alone).abs().max()) <= 1e-6


def test_full_size_counts() -> None:
    assert len(FULL) == 485
    assert sum(FULL.values()) == 272_704_566


def test_trained_and_frozen_split_of_the_full_size() -> None:
    trained = {name: count for name, count in FULL.items() if is_trained(name)}
    assert (len(trained), sum(trained.values())) == (183, 123_083_829)
    assert (len(FULL) - len(trained), sum(FULL.values()) - sum(trained.values())) == (302, 149_620_737)


@pytest.mark.parametrize(
    ("part", "count"),
    [  # model.md section 6
        ("clip_model.visual.", 171_210_264),
        ("clip_model.visual.conv1.", 589_824),
        ("clip_model.visual.proj", 393_216),
        ("clip_model.token_embedding.", 25_296_896),
        ("adapter.", 262_144),
        ("score_level", 5),
    ],
)
def test_full_size_parts(part: str, count: int) -> None:
    assert sum(n for name, n in FULL.items() if name.startswith(part)) == count


def test_full_size_adaptive_experts() -> None:
    experts = {name: n for name, n in FULL.items() if ".mlp.experts." in name}
    assert sum(n for name, n in experts.items() if ".visual." in name) == 85_003_776
    assert sum(n for name, n in experts.items() if ".visual." not in name) == 37_794_816


def test_dimensions_are_read_back_from_the_shapes(oracle: Checkpoint) -> None:
    assert dims_of(expected_shapes(FULL_SIZE)) == FULL_SIZE
    assert oracle.dims.vision.width == oracle.dims.text.width == 64
    assert (oracle.dims.vision.layers, oracle.dims.vision.first_moae, oracle.dims.vision.experts) == (12, 6, 3)
    assert oracle.parameters == 5_950_070
