"""A run that goes on: only as it was begun, and what is looked at before its first step."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gamma_runtime.errors import InputError
from gamma_runtime.files import LOCK, TEMPORARY_PREFIX, locked
from gamma_runtime.steps import Steps
from gamma_training.checkpoint import read_checkpoint, write_authors, write_safetensors
from gamma_training.train import TrainReport, read_config, train
from tests.training import train_runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return train_runs.ready(tmp_path)


def run(folder: Path, name: str = "run", *, resume: bool = False, **settings: Any) -> TrainReport:
    report = train(read_config(train_runs.config(folder, name, **{"epochs": 1} | settings)), resume=resume)
    assert report is not None
    return report


def test_a_finished_run_needs_no_cache_to_be_judged_again(folder: Path) -> None:
    first = run(folder, cache={"crops": 1})
    [views] = (folder / "run").glob("views-*.npy")
    views.unlink()
    again = run(folder, cache={"crops": 1}, resume=True)
    assert first.test is not None
    assert again.test is not None
    assert again.test["mean"]["rmse"] == first.test["mean"]["rmse"]
    assert not list((folder / "run").glob("views-*.npy"))


def test_an_edited_scene_is_another_run(folder: Path) -> None:
    def scene(last: str, short_side: int = 224) -> str:
        prompts = ["bad thing", "poor thing", "fair thing", "good thing", last]
        return json.dumps({"name": "things", "prompts": prompts, "short_side": short_side})

    settings = {"scene_file": "scenes.yaml"}
    table, path = folder / "mos.csv", folder / "scenes.yaml"
    table.write_text(table.read_text().replace("face-quality", "things"))
    path.write_text(scene("fine thing"))
    run(folder, **settings)
    for edited in (scene("splendid thing"), scene("fine thing", 232)):
        path.write_text(edited)
        with pytest.raises(InputError, match="begun with another set of photos and scenes"):
            run(folder, resume=True, **settings)
    path.write_text(scene("fine thing"))
    run(folder, resume=True, **settings)


def spoiled(photo: Path) -> bytes:
    """A PNG whose header and checksums are right, and whose compressed data are not."""
    content = bytearray(photo.read_bytes())
    start = content.index(b"IDAT")
    size = int.from_bytes(content[start - 4 : start], "big")
    content[start + 4 + size // 2 : start + 4 + size] = bytes(size - size // 2)
    content[start + 4 + size : start + 8 + size] = zlib.crc32(content[start : start + 4 + size]).to_bytes(4, "big")
    return bytes(content)


def test_a_spoiled_test_photo_may_be_left_out_of_a_run_that_goes_on(folder: Path) -> None:
    table = folder / "mos.csv"
    bad = folder / "14.png"
    bad.write_bytes(spoiled(bad))
    with pytest.raises(InputError, match=r"14\.png"):
        run(folder)
    assert (folder / "run" / "last.safetensors").is_file()  # told late: only decoding finds it
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith("14.png")))
    report = run(folder, resume=True)
    assert report.test is not None
    assert report.test["mean"]["photos"] == 1
    table.write_text("\n".join(line for line in lines if not line.startswith(("14.png", "0.png"))))
    with pytest.raises(InputError, match="begun with another set of photos"):
        run(folder, resume=True)


def test_photos_that_cannot_be_used_end_a_run_before_its_first_step(folder: Path) -> None:
    table = folder / "mos.csv"
    cv2.imwrite(str(folder / "14.png"), np.zeros((300, 200, 3), np.uint8))  # the test split is read last
    (folder / "11.png").write_bytes((folder / "11.png").read_bytes()[:-30])
    with pytest.raises(
        InputError, match=r"2 of 15 photos cannot be used: .*11\.png.*14\.png: 200x300 leaves"
    ) as caught:
        run(folder)
    assert "check-data" in str(caught.value.hint)
    assert not list((folder / "run").glob("*.safetensors"))
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith(("11.png", "14.png"))))
    run(folder)


def test_two_runs_do_not_write_into_one_folder(folder: Path) -> None:
    path = train_runs.config(folder)
    (folder / "run").mkdir()
    with locked(folder / "run", 0):
        done = train_runs.train_in_child(path)
    assert done.returncode == 6
    assert f"{folder / 'run'}: another run is going on there" in done.stderr
    assert "hint: wait, or another out" in done.stderr
    assert [one.name for one in (folder / "run").iterdir()] == [LOCK]
    assert train_runs.train_in_child(path).returncode == 0  # and the lock is given back
    with locked(folder / "run", 0):
        pass


def test_what_killed_runs_left_is_swept(folder: Path) -> None:
    (folder / "run").mkdir()
    dead, alive = (folder / "run" / f"{TEMPORARY_PREFIX}{pid}-x" for pid in (2**22 + 1, os.getpid()))
    for path in (dead, alive):
        path.write_bytes(b"half a state")
    run(folder)
    assert alive.exists()
    assert not dead.exists()


@pytest.mark.parametrize("how", ["relative", "link"])
def test_another_spelling_of_the_configuration_is_the_same_run(
    folder: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = train_runs.config(folder, epochs=1)
    train(read_config(path))
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to(folder)
    again = Path(path.name) if how == "relative" else folder / "link" / path.name
    assert train(read_config(again), resume=True) is not None


def test_a_base_is_known_by_its_content(folder: Path) -> None:
    run(folder)
    (folder / "base.pth").rename(folder / "moved.pth")
    run(folder, base="moved.pth", resume=True)
    state = read_checkpoint(folder / "moved.pth").state
    write_authors(folder / "moved.pth", state | {"score_level": state["score_level"] * 1.01})
    with pytest.raises(InputError, match="begun with another base"):
        run(folder, base="moved.pth", resume=True)


def test_a_validation_that_is_cut_short_costs_no_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(folder, "whole", epochs=2)
    photo = folder / "11.png"
    good = photo.read_bytes()
    photo.write_bytes(spoiled(photo))  # of the val split
    with pytest.raises(InputError, match=r"11\.png"):
        run(folder, epochs=2)
    photo.write_bytes(good)
    capsys.readouterr()
    report = train(read_config(train_runs.config(folder, epochs=2)), resume=True, steps=Steps(quiet=False))
    assert "resumed after epoch 0, step 2" in capsys.readouterr().err
    assert report is not None
    left, right = (load_file(one.best.parent / "last.safetensors") for one in (whole, report))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_best_checkpoint_is_the_last_one_under_another_name(folder: Path) -> None:
    report = run(folder)
    last = report.best.with_name("last.safetensors")
    assert report.best.samefile(last)
    assert report.best.with_suffix(".json").samefile(last.with_suffix(".json"))
    train(read_config(train_runs.config(folder, "flat", epochs=2, lr=0.0)))  # the second epoch is no better
    best, last = (folder / "flat" / name for name in ("best.safetensors", "last.safetensors"))
    assert not best.samefile(last)
    assert best.read_bytes() == last.read_bytes()
    assert read_checkpoint(best).dims == read_checkpoint(last).dims


def test_a_number_that_there_is_none_of_is_null(folder: Path) -> None:
    done = train_runs.train_in_child(train_runs.config(folder, epochs=1), "--json")
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, (folder / "run" / "report.json").read_text()):
        assert json.loads(text, parse_constant=pytest.fail)["test"]["mean"]["srcc"] is None  # of two photos


def test_what_was_not_trained_stays_fresh_and_experts_may_wait(folder: Path) -> None:
    read = read_checkpoint(folder / "base.pth")
    state = {name: torch.zeros(()) if name.endswith(".scale") else value for name, value in read.state.items()}
    mlp = "clip_model.visual.transformer.resblocks.1.mlp."
    fresh = ["adapter.fc.0.weight", f"{mlp}gating.layer1.weight", f"{mlp}scale"]
    write_safetensors(folder / "fresh.safetensors", state, prompts="sdp", dims=read.dims, fresh=fresh)
    head = run(folder, "head", base="fresh.safetensors", freeze_blocks=2, cache={"crops": 1})
    found = read_checkpoint(head.best)
    assert found.fresh == set(fresh[1:])
    assert not torch.equal(found.state[fresh[0]], state[fresh[0]])
    assert torch.equal(found.state[fresh[1]], state[fresh[1]])
    later = {"base": "head/best.safetensors", "cache": {"crops": 1}, "keep_tokens": 0.25}
    whole = run(folder, "whole", **later)
    assert read_checkpoint(whole.best).fresh == set()
    assert read_checkpoint(whole.best).state[fresh[2]] != 0
    others = run(folder, "others", **later | {"keep_tokens": 0.5})
    assert others.steps == whole.steps
    losses = [json.loads((folder / name / "report.json").read_text())["losses"] for name in ("whole", "others")]
    assert losses[0] != losses[1]
