"""Gamma from a base CLIP or UniQA state dict, as the authors initialise it (model.md 1.6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gamma_runtime.errors import InputError
from gamma_training.checkpoint import build_model, read_checkpoint, write_authors, write_safetensors
from gamma_training.data import DataSpec
from gamma_training.initialise import FIRST_MOAE, gamma_from_clip
from gamma_training.model import Gamma, expected_shapes
from gamma_training.scenes import SCENES
from gamma_training.tokens import tokenize
from gamma_training.train import TrainConfig
from gamma_training.train.setup import blocks_of, make_optimizer, mark_trained
from tests.training.tiny import clip_state, dims, same, save, tower


@pytest.fixture(scope="module")
def clip() -> dict[str, Tensor]:
    return clip_state()


@pytest.mark.parametrize("extras", [True, False])
def test_base_clip_becomes_an_untrained_gamma(tmp_path: Path, clip: dict[str, Tensor], extras: bool) -> None:
    numbers = {"input_resolution": torch.tensor(224), "context_length": torch.tensor(77), "vocab_size": 49408}
    found = read_checkpoint(save(tmp_path / "clip.pt", {**clip, **(numbers if extras else {})}))
    assert (found.kind, found.label) == ("base-clip", "untrained experts and adapter")
    assert (found.dims.vision.first_moae, found.dims.vision.experts) == (6, 3)
    assert (found.dims.text.first_moae, found.dims.text.experts) == (6, 3)
    assert set(found.state) == set(expected_shapes(found.dims))
    assert any("all zero" in warning and ".scale" in warning for warning in found.warnings)
    assert found.fresh == {
        n for n in found.state if "gating" in n or n.endswith(".scale") or n.startswith(("adapter.", "score_level"))
    }


def test_what_a_base_clip_lacks_is_trained_at_the_fresh_rate(tmp_path: Path, clip: dict[str, Tensor]) -> None:
    found = read_checkpoint(save(tmp_path / "clip.pt", clip))
    config = TrainConfig(out=tmp_path, base=found.path, data=(DataSpec(table=tmp_path),), lr=1e-5, lr_fresh=1e-3)
    model = build_model(found)
    weights = mark_trained(config, model, blocks_of(config, model, found.fresh), found.fresh)
    optimizer = make_optimizer(config, weights, found.fresh)
    rates = {id(value): group["base"] for group in optimizer.param_groups for value in group["params"]}
    named = {name: rates[id(value)] for name, value in weights.items()}
    assert named["adapter.fc.0.weight"] == named["score_level"] == 1e-3
    assert {rate for name, rate in named.items() if ".gating." in name or name.endswith(".scale")} == {1e-3}
    assert {rate for name, rate in named.items() if ".experts." in name} == {1e-5}


def test_experts_are_copies_of_the_blocks_mlp(tmp_path: Path, clip: dict[str, Tensor]) -> None:
    made = read_checkpoint(save(tmp_path / "clip.pt", clip)).state
    for prefix in ("visual.", ""):
        for block in (6, 7):
            mlp = f"{prefix}transformer.resblocks.{block}.mlp."
            for part in ("c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias"):
                expected = clip[mlp + part].half().float()
                for home in ("useful_experts", "experts.expert_0", "experts.expert_1", "experts.expert_2"):
                    assert torch.equal(made[f"clip_model.{mlp}{home}.{part}"], expected)
            assert float(made[f"clip_model.{mlp}scale"]) == 0.0
            gate = made[f"clip_model.{mlp}gating.layer1.weight"]
            assert 0 < float(gate.abs().max()) <= gate.shape[1] ** -0.5
    assert made["score_level"].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_rounding_to_half_precision(tmp_path: Path, clip: dict[str, Tensor]) -> None:
    made = read_checkpoint(save(tmp_path / "clip.pt", clip)).state
    kept = [n for n in clip if n.endswith("embedding") or "embedding." in n or ".ln_" in n or n.startswith("ln_")]
    kept.append("logit_scale")
    assert {"class_embedding", "positional_embedding"} < {name.split(".")[-1] for name in kept}
    mlp = {f"{p}transformer.resblocks.{i}.mlp." for p in ("visual.", "") for i in range(FIRST_MOAE, 8)}
    for name, tensor in clip.items():
        if not any(name.startswith(prefix) for prefix in mlp):
            assert torch.equal(made[f"clip_model.{name}"], tensor if name in kept else tensor.half().float()), name
    assert not torch.equal(clip["visual.proj"], clip["visual.proj"].half().float())


def test_an_untrained_gamma_is_base_clip_and_adapter(tmp_path: Path, clip: dict[str, Tensor]) -> None:
    found = read_checkpoint(save(tmp_path / "clip.pt", clip))
    gamma = build_model(found)
    plain_dims = dims(tower(64, 8, 8), tower(64, 8, 8))
    plain = Gamma(plain_dims).eval()
    rounded = {n: found.state[f"clip_model.{n}"] for n in clip if f"clip_model.{n}" in found.state}
    plain.clip_model.load_state_dict({**{n: t.half().float() for n, t in clip.items()}, **rounded}, strict=True)
    crops = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    tokens = tokenize(SCENES["plain"].prompts, 16)
    with torch.inference_mode():
        features = plain.clip_model.visual(plain.normalise(crops))
        residual = torch.relu(features @ found.state["adapter.fc.0.weight"].T) @ found.state["adapter.fc.2.weight"].T
        torch.testing.assert_close(gamma.image_features(crops), features + residual.relu(), rtol=0, atol=1e-5)
        torch.testing.assert_close(gamma.text_features(tokens), plain.text_features(tokens), rtol=0, atol=1e-6)


def test_base_clip_import_is_deterministic_and_writable(tmp_path: Path, clip: dict[str, Tensor]) -> None:
    found = read_checkpoint(save(tmp_path / "clip.pt", clip))
    assert same(found.state, gamma_from_clip(tmp_path / "clip.pt", clip))
    write_authors(tmp_path / "gamma.pth", found.state, label=found.label)
    write_safetensors(tmp_path / "gamma.safetensors", found.state, prompts="sdp", label=found.label)
    for name in ("gamma.pth", "gamma.safetensors"):
        assert same(read_checkpoint(tmp_path / name).state, found.state)


def test_half_precision_module_prefixed_and_wrapped_clip(tmp_path: Path, clip: dict[str, Tensor]) -> None:
    """UniQA's trainer keeps its linear weights in float16 on the GPU."""
    mixed = {f"module.{n}": t.half() if t.dim() == 2 and "embedding" not in n else t for n, t in clip.items()}
    found = read_checkpoint(save(tmp_path / "clip.pt", {"state_dict": mixed}))
    assert same(found.state, gamma_from_clip(tmp_path / "clip.pt", clip))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.proj": None}, "no room for MoAE"),
        ({"visual.proj": torch.ones(64)}, "visual.proj has shape"),
        ({"visual.transformer.resblocks.7.mlp.c_fc.weight": torch.ones(128)}, r"c_fc\.weight has shape \[128\]"),
        ({"visual.transformer.resblocks.2.mlp.c_fc.weight": torch.full((128, 64), 1e5)}, "beyond float16's 65504"),
        ({"text_projection": torch.ones(64, 32)}, "text_projection has shape"),
        ({"ln_final.bias": None}, "1 missing: clip_model.ln_final.bias"),
        ({"extra": torch.ones(2)}, "1 unexpected: clip_model.extra"),
    ],
)
def test_bad_base_clips(tmp_path: Path, clip: dict[str, Tensor], change: dict[str, Any], message: str) -> None:
    content = {name: tensor for name, tensor in {**clip, **change}.items() if tensor is not None}
    with pytest.raises(InputError, match=message):
        read_checkpoint(save(tmp_path / "clip.pt", content))


def test_a_shallow_clip_has_no_room_for_moae(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a CLIP with 6 blocks and no room for MoAE from block 6 on"):
        read_checkpoint(save(tmp_path / "clip.pt", clip_state(layers=6)))
