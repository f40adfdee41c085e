"""Seeded random weights, and the conditioning that makes them tell photos apart."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gamma_training.dims import FULL_SIZE
from gamma_training.initialise import condition, random_state, smaller
from gamma_training.model import Gamma, expected_shapes
from gamma_training.scenes import SCENES
from gamma_training.tokens import tokenize
from tests.training.tiny import TINY, dims, tower

SMALL = dims(tower(128, layers=2, first_moae=1), tower(64, layers=2, first_moae=1))


def model_of(state: dict[str, Tensor]) -> Gamma:
    model = Gamma(SMALL)
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()


def pictures(count: int = 12) -> np.ndarray:
    """Smooth colour gradients with noise: different from each other, as photos are."""
    generator = np.random.default_rng(5)
    ramps = np.linspace(0, 1, 224)
    made = []
    for _ in range(count):
        colour, slope, noise = generator.uniform(0, 200, 3), generator.uniform(-150, 150, 3), generator.uniform(0, 60)
        picture = colour + ramps[:, None, None] * slope + generator.normal(0, noise, (224, 224, 3))
        made.append(np.clip(picture, 0, 255).astype(np.uint8))
    return np.stack(made)


def scores(model: Gamma, crops: np.ndarray, text: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.score(torch.from_numpy(crops), text)[:, 0]


def text_of(model: Gamma) -> Tensor:
    with torch.inference_mode():
        return model.text_features(tokenize(SCENES["natural-quality"].prompts, 16))


def test_random_state_is_decided_by_its_seed() -> None:
    first, again, other = random_state(TINY, 1), random_state(TINY, 1), random_state(TINY, 2)
    assert list(first) == list(expected_shapes(TINY))
    assert all(torch.equal(first[name], again[name]) for name in first)
    differing = [name for name in first if not torch.equal(first[name], other[name])]
    assert set(first) - set(differing) == {"clip_model.logit_scale"}


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    random_state(TINY, 1)
    assert torch.equal(torch.rand(3), expected)


def test_random_state_hides_nothing() -> None:
    """No bias, scale or LayerNorm at a value that would make a wrong graph look right."""
    made = random_state(SMALL, 3)
    for name, tensor in made.items():
        assert bool(torch.isfinite(tensor).all()), name
        if name.endswith("mlp.scale"):
            assert 0.25 < abs(float(tensor)) < 0.55
        elif tensor.dim():
            assert float(tensor.abs().max()) > 0.005, name
    assert {float(made[n]) > 0 for n in made if n.endswith("mlp.scale")} == {True, False}
    prefix = "clip_model.visual.transformer.resblocks.1.mlp."
    experts = [
        made[f"{prefix}{home}.c_fc.weight"] for home in ("useful_experts", "experts.expert_0", "experts.expert_1")
    ]
    assert all(not torch.allclose(a, b, atol=0.01) for a, b in itertools.pairwise(experts))
    levels = made["score_level"]
    assert bool((levels[1:] > levels[:-1]).all())


def test_gates_are_far_from_uniform() -> None:
    made = random_state(SMALL, 3)
    prefix = "clip_model.visual.transformer.resblocks.1.mlp.gating.layer1."
    x = torch.nn.functional.layer_norm(torch.randn(100, 128, generator=torch.Generator().manual_seed(0)), (128,))
    gates = torch.softmax(x @ made[prefix + "weight"].T + made[prefix + "bias"], dim=-1)
    assert float(gates.max()) > 0.9
    assert float(gates.std(0).min()) > 0.2


def test_condition_spreads_the_scores_by_a_rotation() -> None:
    state = {**random_state(SMALL, 3), "clip_model.logit_scale": torch.tensor(3.2)}
    model, crops = model_of(state), pictures()
    text = text_of(model)
    before = float(scores(model, crops, text).std())
    reported = condition(model, crops, text)
    after = scores(model, crops, text)
    assert float(after.std()) > max(0.1, 2 * before)
    assert reported == pytest.approx(float(after.std()), abs=1e-5)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, state[n])}
    assert changed == {"clip_model.visual.proj", "clip_model.visual.ln_post.bias"}
    old, new = state["clip_model.visual.proj"], model.clip_model.visual.proj
    rotation = torch.linalg.lstsq(old.double(), new.double()).solution
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(64, dtype=torch.float64), rtol=0, atol=1e-4)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0, abs=1e-4)


def test_condition_centres_the_class_token() -> None:
    model, crops = model_of(random_state(SMALL, 3)), pictures()
    condition(model, crops, text_of(model))
    with torch.inference_mode():
        visual = model.clip_model.visual
        centre = visual.ln_post(visual.class_token(model.normalise(torch.from_numpy(crops)))).mean(0)
    assert float(centre.abs().max()) < 1e-5


def test_condition_points_the_principal_axis_from_bad_to_perfect() -> None:
    model, crops = model_of(random_state(SMALL, 3)), pictures()
    text = text_of(model)
    condition(model, crops, text)
    with torch.inference_mode():
        features = model.clip_model.visual(model.normalise(torch.from_numpy(crops)))
        axis = torch.linalg.svd(features - features.mean(0), full_matrices=False).Vh[0]
        wanted = text[-1] - text[0]
    assert abs(float(axis @ wanted / wanted.norm())) == pytest.approx(1.0, abs=1e-4)
    along = (features - features.mean(0)) @ (wanted / wanted.norm())
    assert float(along[along.abs().argmax()]) > 0  # the sign does not hang on the linear algebra library


def test_smaller_models() -> None:
    made = smaller(FULL_SIZE, width=192, layers=6, first_moae=3, text_width=128)
    assert (made.vision.width, made.vision.heads, made.vision.hidden, made.vision.layers) == (192, 3, 768, 6)
    assert (made.text.width, made.text.heads, made.text.first_moae) == (128, 2, 3)
    assert (made.embed, made.vocabulary, made.tokens) == (512, 49408, 197)
    assert sum(math.prod(s) for s in expected_shapes(made).values()) < 20_000_000
