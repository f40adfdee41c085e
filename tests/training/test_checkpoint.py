"""Good checkpoints of every layout: read, written, read back. The bad ones are in tests/hostile."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gamma_runtime.errors import InputError, IntegrityError, OutputError, UsageError
from gamma_runtime.files import hash_file
from gamma_training.checkpoint import (
    Checkpoint,
    build_model,
    read_checkpoint,
    write_authors,
    write_safetensors,
)
from gamma_training.dims import UNSEEN, GammaDims, TowerDims
from gamma_training.model import Gamma
from gamma_training.scenes import SCENES
from gamma_training.tokens import tokenize
from tests.training.tiny import TINY, dims, same, save, state, tower


def scores(model: Gamma) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    crops = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        text = model.text_features(tokenize(SCENES["plain"].prompts, model.dims.context))
        return model.score(crops, text)[:, 0]


# The authors' layout


@pytest.mark.parametrize("wrapper", ["params", "params_ema", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefix(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    named = OrderedDict((prefix + name, tensor) for name, tensor in state().items())
    found = read_checkpoint(save(tmp_path / "g.pth", {wrapper: named} if wrapper else named))
    assert same(found.state, state())
    assert (found.kind, found.dims) == ("authors", TINY)
    assert ("the prefix 'module.' was dropped" in " ".join(found.warnings)) == bool(prefix)


def test_other_entries_beside_params_are_left_alone(tmp_path: Path) -> None:
    content = {"params": state(), "params_ema": {"x": torch.ones(1)}, "iter": 5, "optimiser": [{"lr": 1e-5}]}
    assert same(read_checkpoint(save(tmp_path / "g.pth", content)).state, state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    halves = {name: tensor.to(dtype) for name, tensor in state().items()}
    found = read_checkpoint(save(tmp_path / "g.pth", {"params": halves}))
    assert same(found.state, {name: tensor.float() for name, tensor in halves.items()})


def test_parameters_transposed_and_shared_tensors(tmp_path: Path) -> None:
    content: dict[str, Tensor] = {name: torch.nn.Parameter(tensor) for name, tensor in state().items()}
    proj = "clip_model.visual.proj"
    content[proj] = content[proj].detach().T.contiguous().T  # strides swapped, values as they were
    content["clip_model.ln_final.bias"] = content["clip_model.visual.ln_post.bias"]
    assert content[proj].stride() != state()[proj].stride()
    found = read_checkpoint(save(tmp_path / "g.pth", content))
    assert torch.equal(found.state[proj], state()[proj])
    assert torch.equal(found.state["clip_model.ln_final.bias"], state()["clip_model.visual.ln_post.bias"])
    assert not any(tensor.requires_grad for tensor in found.state.values())


def test_round_trip_keeps_bits_and_order(tmp_path: Path, oracle: Checkpoint, oracle_file: Path) -> None:
    copy = tmp_path / "copy.pth"
    write_authors(copy, dict(reversed(oracle.state.items())))
    written, original = (torch.load(path, weights_only=True) for path in (copy, oracle_file))
    assert list(written) == ["params"]
    assert list(written["params"]) == list(original["params"])
    assert same(written["params"], original["params"])
    assert isinstance(written["params"], OrderedDict)


def test_the_authors_way_of_loading_takes_what_we_write(tmp_path: Path) -> None:
    write_authors(tmp_path / "g.pth", state(), label="untrained")
    model = Gamma(TINY)
    model.load_state_dict(torch.load(tmp_path / "g.pth", weights_only=True)["params"], strict=True)
    assert same(dict(model.state_dict()), state())


def test_a_slice_does_not_drag_its_storage_into_the_file(tmp_path: Path) -> None:
    large = torch.zeros(10_000_000)
    large[:5] = state()["score_level"]
    write_authors(tmp_path / "a.pth", {**state(), "score_level": large[:5]})
    write_authors(tmp_path / "b.pth", state())
    assert (tmp_path / "a.pth").stat().st_size == (tmp_path / "b.pth").stat().st_size


def test_changing_the_model_does_not_change_the_file(tmp_path: Path) -> None:
    write_authors(tmp_path / "g.pth", state())
    before = hash_file(tmp_path / "g.pth")
    model = build_model(read_checkpoint(tmp_path / "g.pth"))
    model.adapter.fc[0].weight.zero_()
    assert hash_file(tmp_path / "g.pth") == before


# Our safetensors


def test_safetensors_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    write_safetensors(path, state(), prompts="plain", label="untrained", licence="CC0-1.0")
    found = read_checkpoint(path)
    assert same(found.state, state())
    assert (found.kind, found.dims, found.prompts, found.prompts_assumed) == ("safetensors", TINY, "plain", False)
    assert (found.label, found.licence) == ("untrained", "CC0-1.0")
    assert found.sha256 == hash_file(path)
    config = json.loads(path.with_suffix(".json").read_text())
    assert GammaDims.from_json(config["dims"]) == TINY
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.json", "g.safetensors"]


@pytest.mark.parametrize("gone", [None, *UNSEEN])
def test_an_older_config_is_read_as_clip_s(tmp_path: Path, gone: str | None) -> None:
    """Configs of earlier versions have none of the newer dimensions."""
    path = tmp_path / "g.safetensors"
    write_safetensors(path, state(), prompts="sdp")
    config = json.loads(path.with_suffix(".json").read_text())
    for name in UNSEEN if gone is None else [gone]:
        tower_name, _, key = name.rpartition(".")
        del (config["dims"][tower_name] if tower_name else config["dims"])[key]
    path.with_suffix(".json").write_text(json.dumps(config))
    assert read_checkpoint(path).dims == TINY == GammaDims.from_json(config["dims"])


def test_what_only_the_config_says(tmp_path: Path) -> None:
    """Each of it changes the scores, so none of it may be lost on the way."""
    other = dataclasses.replace(
        TINY,
        vision=dataclasses.replace(TINY.vision, activation="gelu", epsilon=1e-3),
        text=dataclasses.replace(TINY.text, activation="gelu", epsilon=1e-4),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    write_safetensors(tmp_path / "clip.safetensors", state(), prompts="sdp")
    clip = scores(build_model(read_checkpoint(tmp_path / "clip.safetensors")))
    for name in UNSEEN:
        if name in ("ln_pre", "kept_tokens"):
            continue
        tower_name, _, key = name.rpartition(".")
        if tower_name:
            changed = {key: getattr(getattr(other, tower_name), key)}
            one = dataclasses.replace(TINY, **{tower_name: dataclasses.replace(getattr(TINY, tower_name), **changed)})
        else:
            one = dataclasses.replace(TINY, **{key: getattr(other, key)})
        write_safetensors(tmp_path / "one.safetensors", state(), dims=one, prompts="sdp")
        found = read_checkpoint(tmp_path / "one.safetensors")
        assert found.dims == one
        assert float((scores(build_model(found)) - clip).abs().max()) > 1e-6, name


def test_without_ln_pre_only_our_own_layout_will_do(tmp_path: Path) -> None:
    plain = dataclasses.replace(TINY, ln_pre=False)
    weights = {name: tensor for name, tensor in state().items() if "ln_pre" not in name}
    write_safetensors(tmp_path / "g.safetensors", weights, dims=plain, prompts="sdp")
    assert read_checkpoint(tmp_path / "g.safetensors").dims == plain
    with pytest.raises(InputError, match=r"2 missing: .*ln_pre"):
        write_authors(tmp_path / "g.pth", weights)
    with pytest.raises(InputError, match=r"2 missing: .*ln_pre"):
        write_safetensors(tmp_path / "h.safetensors", weights, prompts="sdp")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.json", "g.safetensors"]


def test_other_dimensions_than_the_tensors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not those of a model of the dimensions given"):
        write_safetensors(tmp_path / "g.safetensors", state(), dims=dims(tower(layers=2)), prompts="sdp")
    with pytest.raises(InputError, match="fresh that it lacks: nothing"):
        write_safetensors(tmp_path / "g.safetensors", state(), fresh=["nothing"], prompts="sdp")
    assert not list(tmp_path.iterdir())


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    """Matrices are rounded once; numbers and vectors, which weigh nothing, not at all."""
    write_safetensors(tmp_path / "a.safetensors", state(), prompts="sdp", dtype="float16")
    write_safetensors(tmp_path / "b.safetensors", state(), prompts="sdp")
    found = read_checkpoint(tmp_path / "a.safetensors")
    rounded = {name: tensor.half().float() if tensor.dim() > 1 else tensor for name, tensor in state().items()}
    assert same(found.state, rounded)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in "ab"]
    assert sizes[0] < 0.51 * sizes[1]
    write_safetensors(tmp_path / "c.safetensors", found.state, prompts="sdp", dtype="float16")
    assert same(read_checkpoint(tmp_path / "c.safetensors").state, found.state)  # the second time nothing is lost


def test_half_precision_does_not_hold_everything(tmp_path: Path) -> None:
    large = {**state(), "clip_model.visual.proj": state()["clip_model.visual.proj"] * 1e6}
    with pytest.raises(InputError, match=r"float16 ends at 65504, which values of clip_model\.visual\.proj are beyond"):
        write_safetensors(tmp_path / "g.safetensors", large, prompts="sdp", dtype="float16")
    assert not list(tmp_path.iterdir())


def test_from_one_layout_to_the_other_and_back(tmp_path: Path, oracle: Checkpoint) -> None:
    write_safetensors(tmp_path / "a.safetensors", oracle.state, prompts="sdp")
    write_authors(tmp_path / "b.pth", read_checkpoint(tmp_path / "a.safetensors").state)
    back = read_checkpoint(tmp_path / "b.pth")
    assert same(back.state, oracle.state)
    assert list(back.state) == list(oracle.state)


def test_the_kind_is_decided_by_content(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", state(), prompts="sdp")
    write_authors(tmp_path / "b.pth", state())
    (tmp_path / "a.json").rename(tmp_path / "weights.json")
    (tmp_path / "a.safetensors").rename(tmp_path / "weights")
    (tmp_path / "b.pth").rename(tmp_path / "b.gamma.bin")
    assert read_checkpoint(tmp_path / "weights").kind == "safetensors"
    assert read_checkpoint(tmp_path / "b.gamma.bin").kind == "authors"


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    write_authors(tmp_path / "blob", state())
    (tmp_path / "g.pth").symlink_to("blob")
    assert read_checkpoint(tmp_path / "g.pth").parameters == sum(t.numel() for t in state().values())


# What is known beside the weights


@pytest.mark.parametrize(
    ("written", "asked", "expected", "assumed"),
    [
        (None, None, "sdp", True),
        (None, "plain", "plain", False),
        (None, "sdp", "sdp", False),
        ("plain", None, "plain", False),
        ("sdp", "plain", "plain", False),
    ],
)
def test_prompts_said_or_assumed(tmp_path: Path, written: Any, asked: Any, expected: str, assumed: bool) -> None:
    write_authors(tmp_path / "g.pth", state(), prompts=written)
    found = read_checkpoint(tmp_path / "g.pth", prompts=asked)
    assert (found.prompts, found.prompts_assumed) == (expected, assumed)


def test_label_and_licence(tmp_path: Path) -> None:
    write_authors(tmp_path / "g.pth", state(), label="untrained", licence="CC0-1.0")
    found = read_checkpoint(tmp_path / "g.pth")
    assert (found.label, found.licence, found.prompts_assumed) == ("untrained", "CC0-1.0", True)
    assert read_checkpoint(tmp_path / "g.pth", licence="mine").licence == "mine"
    write_authors(tmp_path / "plain.pth", state())
    nothing = read_checkpoint(tmp_path / "plain.pth")
    assert (nothing.label, nothing.licence, nothing.warnings) == (None, None, ())


def test_expected_digest(tmp_path: Path) -> None:
    path = tmp_path / "g.pth"
    write_authors(path, state())
    digest = hash_file(path)
    assert read_checkpoint(path, expect_sha256=digest.upper()).sha256 == digest
    with pytest.raises(IntegrityError, match=r"--expect-sha256") as caught:
        read_checkpoint(path, expect_sha256="0" * 64)
    assert caught.value.exit_code == 4
    with pytest.raises(UsageError, match="not a SHA-256"):
        read_checkpoint(path, expect_sha256=digest[:16])


def test_the_digest_is_compared_before_anything_is_parsed(tmp_path: Path) -> None:
    (tmp_path / "g.pth").write_bytes(b"no checkpoint at all")
    with pytest.raises(IntegrityError, match=r"sha256"):
        read_checkpoint(tmp_path / "g.pth", expect_sha256="0" * 64)


def test_odd_weights_are_warned_about_and_listed_briefly(tmp_path: Path) -> None:
    changed = state(dims(tower(layers=12, first_moae=0, experts=1)))
    scales = [name for name in changed if ".visual." in name and name.endswith(".scale")]
    changed.update({name: torch.zeros(()) for name in scales})
    changed["clip_model.visual.ln_post.bias"] = torch.full((64,), 1e7)
    found = read_checkpoint(save(tmp_path / "g.pth", changed))
    zero, absurd = found.warnings
    assert zero.startswith("12 tensors are all zero: ")
    assert zero.count(".scale") == 10
    assert zero.endswith(", …")
    assert absurd == "1 tensors have values beyond 1e+06: clip_model.visual.ln_post.bias reaches 1e+07"


# Any width, depth, expert count and first MoAE block

SIZES = {
    "wide": dims(tower(128, layers=3, first_moae=2, experts=1)),
    "moae from block 0": dims(tower(64, layers=3, first_moae=0, experts=5)),
    "no moae": dims(tower(64, layers=3, first_moae=3), tower(64, layers=2, first_moae=2)),
    "moae in the text only": dims(tower(64, layers=2, first_moae=2), tower(64, layers=2, first_moae=1)),
    "deep, other text": dims(tower(128, layers=5, first_moae=2, experts=2), tower(64, layers=3, first_moae=1)),
    "wide text": dims(tower(64, layers=1), tower(128, layers=2, first_moae=0, experts=5)),
    "small patches": dims(tower(64, layers=1, experts=3), patch=16),
    "odd hidden": dims(TowerDims(width=64, hidden=80, layers=2, heads=1, first_moae=1, experts=2)),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("layout", ["authors", "safetensors"])
def test_any_size_is_read_from_the_file(tmp_path: Path, size: GammaDims, layout: str) -> None:
    path = tmp_path / f"g.{'pth' if layout == 'authors' else 'safetensors'}"
    if layout == "authors":
        write_authors(path, state(size))
    else:
        write_safetensors(path, state(size), prompts="sdp")
    found = read_checkpoint(path)
    assert found.dims == size
    model = build_model(found)
    result = scores(model)
    levels = model.score_level
    assert result.shape == (2,)
    assert bool(torch.isfinite(result).all())
    assert float(levels.min()) <= float(result.min()) <= float(result.max()) <= float(levels.max())
    assert not torch.equal(result[0], result[1])


# Writing


def write(kind: str, path: Path, content: dict[str, Tensor], **note: str) -> Path:
    if kind == "authors":
        write_authors(path / "g.pth", content, **note)
        return path / "g.pth"
    write_safetensors(path / "g.safetensors", content, prompts="sdp", **note)
    return path / "g.safetensors"


@pytest.mark.parametrize("kind", ["authors", "safetensors"])
def test_only_a_whole_gamma_is_written(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=r"1 missing: clip_model\.ln_final\.bias"):
        write(kind, tmp_path, {n: t for n, t in state().items() if n != "clip_model.ln_final.bias"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["authors", "safetensors"])
@pytest.mark.parametrize("note", [{"label": "two\nlines"}, {"licence": "x" * 301}])
def test_notes_that_could_not_be_read_back_are_not_written(tmp_path: Path, kind: str, note: dict[str, str]) -> None:
    with pytest.raises(InputError, match="expected one line of up to 300 characters"):
        write(kind, tmp_path, state(), **note)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["authors", "safetensors"])
def test_a_missing_folder_is_an_output_error(tmp_path: Path, kind: str) -> None:
    with pytest.raises(OutputError, match="cannot be written") as caught:
        write(kind, tmp_path / "nowhere", state())
    assert caught.value.exit_code == 6


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from gamma_runtime.errors import OutputError
from tests.training.test_checkpoint import write
from tests.training.tiny import state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    write(sys.argv[1], Path(sys.argv[2]), state())
except OutputError:
    sys.exit(6)
"""


@pytest.mark.parametrize("kind", ["authors", "safetensors"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, kind: str) -> None:
    path = write(kind, tmp_path, state(), label="old")
    before = {p.name: hash_file(p) for p in tmp_path.iterdir()}
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run([sys.executable, "-c", _FULL_DISK, kind, str(tmp_path)], cwd=root, timeout=120)
    assert process.returncode == 6
    assert {p.name: hash_file(p) for p in tmp_path.iterdir()} == before
    assert read_checkpoint(path).label == "old"


@pytest.mark.parametrize("kind", ["authors", "safetensors"])
def test_written_files_follow_the_usual_permissions(tmp_path: Path, kind: str) -> None:
    path = write(kind, tmp_path, state())
    assert {oct(os.stat(p).st_mode & 0o777) for p in path.parent.iterdir()} == {"0o644"}


def test_our_pth_is_stored_uncompressed(tmp_path: Path) -> None:
    write_authors(tmp_path / "g.pth", state())
    with zipfile.ZipFile(tmp_path / "g.pth") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
