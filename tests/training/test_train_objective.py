"""Loss, objective, what is trained, and the rates."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gamma_runtime.errors import InputError, UsageError
from gamma_training.data import DataSpec
from gamma_training.dims import FULL_SIZE
from gamma_training.model import Gamma
from gamma_training.scenes import SCENES
from gamma_training.tokens import tokenize
from gamma_training.train import CacheSpec, TrainConfig
from gamma_training.train.distributed import Group
from gamma_training.train.experts import expert_facts
from gamma_training.train.objective import Objective, loss_of, to_tokens
from gamma_training.train.setup import Average, blocks_of, make_optimizer, mark_trained, rate, scaler_for
from tests.training import tiny

CPU = Group(0, 1, torch.device("cpu"))
NOTHING: frozenset[str] = frozenset()


def config(**settings: object) -> TrainConfig:
    return TrainConfig(out=Path("out"), base=Path("base"), data=(DataSpec(table=Path("mos.csv")),), **settings)  # type: ignore[arg-type]


def model(layers: int = 3, first_moae: int = 2) -> Gamma:
    tower = tiny.tower(64, layers, first_moae)
    dims = tiny.dims(tower, tower)
    made = Gamma(dims)
    made.load_state_dict(tiny.state(dims))
    return made


def crops(count: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, 224, 224, 3), np.uint8))


def prompts(*names: str) -> torch.Tensor:
    return torch.cat([tokenize(SCENES[name].prompts, 16) for name in names])


def test_at_full_size_the_papers_tensors_are_trained() -> None:
    with torch.device("meta"):
        full = Gamma(FULL_SIZE)
    chosen = mark_trained(config(), full, blocks_of(config(), full, NOTHING), NOTHING)
    frozen = [value for value in full.parameters() if not value.requires_grad]
    assert (len(chosen), sum(value.numel() for value in chosen.values())) == (183, 123_083_829)
    assert (len(frozen), sum(value.numel() for value in frozen)) == (302, 149_620_737)


def test_all_trains_every_tensor_and_freezing_takes_the_first_blocks_away() -> None:
    everything = model()
    assert len(mark_trained(config(trainable="all"), everything, 0, NOTHING)) == len(list(everything.parameters()))
    left = mark_trained(config(trainable="all", freeze_blocks=1), everything, 1, NOTHING)
    lost = [name for name, _ in everything.named_parameters() if name not in left]
    visual = "clip_model.visual."
    assert f"{visual}conv1.weight" in lost
    assert all(name.startswith(visual) for name in lost)
    assert not any(
        "resblocks.1." in name or "ln_post" in name or name.endswith("proj")
        for name in lost
        if "resblocks.0." not in name
    )


def test_what_starts_from_scratch_is_trained_too_and_cannot_be_frozen() -> None:
    name = "clip_model.visual.proj"
    assert name in mark_trained(config(), model(), 2, frozenset({name}))
    early = "clip_model.visual.conv1.weight"
    with pytest.raises(InputError, match="starts from scratch"):
        blocks_of(config(), model(), frozenset({early}))


def test_more_frozen_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="freeze_blocks: 9, and the vision tower has 3"):
        blocks_of(config(freeze_blocks=9), model(), NOTHING)


def test_dropping_tokens_needs_cached_ones() -> None:
    with pytest.raises(InputError, match=r"keep_tokens: 0\.5 without cache"):
        config(keep_tokens=0.5)
    cached = {"keep_tokens": 0.5, "cache": CacheSpec()}
    assert blocks_of(config(**cached), model(), NOTHING) == 2
    with pytest.raises(InputError, match="every block is frozen"):
        blocks_of(config(freeze_blocks=3, **cached), model(), NOTHING)
    with pytest.raises(InputError, match="no block is frozen"):
        blocks_of(config(trainable="all", **cached), model(), NOTHING)


def test_the_objective_scores_like_the_model_each_photo_in_its_own_scene() -> None:
    made, images = model(), crops()
    names = ["face-quality", "natural-quality"]
    columns = torch.tensor([1, 0, 1])
    scores = Objective(made, 0)(images, columns, prompts(*names))
    for row, column in enumerate(columns.tolist()):
        alone = made.score(images[row : row + 1], made.text_features(prompts(names[column])))
        assert scores[row].item() == pytest.approx(alone.item(), abs=1e-6)


def test_a_mixed_batch_does_not_change_a_photos_score() -> None:
    # The authors regroup crops as if they were ordered otherwise, and give them other photos' prompts (model.md 7.12).
    made, images = model(), crops()
    both = prompts("face-quality", "natural-quality")
    alone = Objective(made, 0)(images[:1], torch.tensor([0]), both)
    mixed = Objective(made, 0)(images, torch.tensor([0, 1, 1]), both)
    other = Objective(made, 0)(images[:1], torch.tensor([1]), both)
    assert mixed[0].item() == pytest.approx(alone[0].item(), abs=1e-6)
    assert abs(other[0].item() - alone[0].item()) > 1e-4  # the scenes do differ


def test_cached_activations_give_the_same_scores_and_gradients() -> None:
    made, images, columns = model(), crops(), torch.zeros(3, dtype=torch.int64)
    weights = mark_trained(config(), made, 2, NOTHING)
    found = []
    for inputs in (images, to_tokens(made, images, 2)):
        made.zero_grad()
        scores = Objective(made, 2)(inputs, columns, prompts("natural-quality"))
        scores.sum().backward()
        found.append((scores.detach(), {name: value.grad.clone() for name, value in weights.items()}))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in weights)
    assert any(grad.abs().max() > 0 for grad in found[0][1].values())


def test_mean_squared_error_by_hand() -> None:
    loss = loss_of(torch.tensor([0.5, 0.7]), torch.tensor([0.4, 1.0]), ["a", "a"], 0.0)
    assert loss.item() == pytest.approx((0.01 + 0.09) / 2)


def test_the_hinge_counts_clear_pairs_of_one_set_in_the_wrong_order() -> None:
    targets = torch.tensor([0.2, 0.8])
    right, wrong = torch.tensor([0.3, 0.7]), torch.tensor([0.7, 0.3])

    def hinge(scores: torch.Tensor, sets: list[str]) -> float:
        return (loss_of(scores, targets, sets, 1.0) - loss_of(scores, targets, sets, 0.0)).item()

    assert hinge(right, ["a", "a"]) == 0
    assert hinge(wrong, ["a", "a"]) == pytest.approx(0.4 + 0.02)
    assert hinge(wrong, ["a", "b"]) == 0
    close = torch.tensor([0.50, 0.53])
    assert loss_of(wrong, close, ["a", "a"], 1.0).item() == pytest.approx(loss_of(wrong, close, ["a", "a"], 0).item())


def test_the_rate_falls_as_the_authors_did() -> None:
    logged = [2.000, 1.951, 1.809, 1.588, 1.309, 1.000, 0.691, 0.412, 0.191, 0.049]  # x 1e-5, model.md section 3
    made = [2 * rate(config(), epoch, 5, 10) for epoch in range(10)]
    assert made == pytest.approx(logged, abs=6e-4)


def test_warm_up_and_the_other_schedules() -> None:
    warm = config(warmup=4, schedule="constant")
    assert [rate(warm, 0, step, 3) for step in range(3)] == [0.25, 0.5, 0.75]
    assert rate(warm, 1, 2, 3) == 1
    by_steps = config(schedule="cosine-steps", epochs=2)
    assert rate(by_steps, 1, 0, 8) == pytest.approx(0.5)
    assert rate(by_steps, 1, 7, 8) == pytest.approx(0.5 * (1 + math.cos(math.pi * 15 / 16)))


def test_fresh_tensors_have_a_rate_of_their_own() -> None:
    made = model()
    fresh = frozenset({"adapter.fc.0.weight"})
    chosen = config(lr=1e-5, lr_fresh=1e-3)
    optimizer = make_optimizer(chosen, mark_trained(chosen, made, 2, fresh), fresh)
    assert [(len(group["params"]), group["base"]) for group in optimizer.param_groups][1] == (1, 1e-3)
    assert optimizer.param_groups[0]["base"] == 1e-5


def test_only_matrices_decay() -> None:
    weights = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in {"m": (2, 2), "v": (2,), "s": ()}.items()}
    for fresh in (NOTHING, frozenset(weights), frozenset({"m"})):
        optimizer = make_optimizer(config(lr=0.1, weight_decay=0.5), weights, fresh)
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(weights)
        for value in weights.values():
            value.grad = torch.zeros_like(value)
        before = {name: value.detach().flatten()[0].item() for name, value in weights.items()}
        optimizer.step()
        after = {name: value.detach().flatten()[0].item() for name, value in weights.items()}
        assert after == {"m": pytest.approx(before["m"] * 0.95), "v": before["v"], "s": before["s"]}


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        scaler_for(config(amp="fp16"), CPU)


def test_the_average_follows_the_weights_and_steps_aside() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    average = Average({"w": weight}, 0.9)
    with torch.no_grad():
        weight.fill_(1.0)
    average.update(1)
    assert average.values["w"].tolist() == pytest.approx([9 / 11] * 2)  # decay 2/11 at the first step
    for step in range(100, 103):
        average.update(step)
    assert average.values["w"].tolist() == pytest.approx([1 - (2 / 11) * 0.9**3] * 2)
    with average.in_place():
        assert weight.tolist() == pytest.approx(average.values["w"].tolist())
    assert weight.tolist() == [1.0, 1.0]


def test_expert_facts_of_known_experts() -> None:
    made = model(layers=1, first_moae=0)
    moae = made.clip_model.visual.transformer.resblocks[0].mlp
    [before] = expert_facts(made, crops().numpy())
    assert before.scale == pytest.approx(moae.scale.item())
    assert before.expert_difference > 0.1
    assert 0 < before.gate_entropy < 0.99
    assert before.share > 0.01
    with torch.no_grad():
        moae.scale.zero_()
        moae.gating.layer1.weight.zero_()
        moae.gating.layer1.bias.zero_()
        for expert in moae.experts.values():
            expert.load_state_dict(moae.useful_experts.state_dict())
    [after] = expert_facts(made, crops().numpy())
    assert (after.scale, after.share) == (0, 0)
    assert after.gate_entropy == pytest.approx(1, abs=1e-5)
    assert after.expert_difference == pytest.approx(0, abs=1e-5)
    assert after.gates == pytest.approx([0.5, 0.5])
    with torch.no_grad():
        moae.scale.fill_(1.0)  # both branches are then the same
    assert expert_facts(made, crops().numpy())[0].share == pytest.approx(0.5, abs=1e-5)


def test_dims_of_the_tiny_model_are_what_the_tests_think() -> None:
    assert dataclasses.astuple(model().dims.vision)[2:5] == (3, 1, 2)
