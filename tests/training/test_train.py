"""Whole runs: what is written, what is resumed, and what does not change the result."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gamma_runtime.errors import InputError, IntegrityError, UsageError
from gamma_runtime.steps import Steps
from gamma_training.checkpoint import read_checkpoint, write_authors
from gamma_training.data import Sample
from gamma_training.dims import is_trained
from gamma_training.train import TrainReport, read_config, train
from gamma_training.train.logs import Board
from gamma_training.train.validate import merit, summary
from tests.training import tiny, train_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.ready(tmp_path_factory.mktemp("train"))


def run(folder: Path, name: str, *, resume: bool = False, **settings: Any) -> TrainReport:
    report = train(read_config(train_runs.config(folder, name, **settings)), resume=resume)
    assert report is not None
    return report


def losses(report: TrainReport) -> list[float]:
    return json.loads((report.best.parent / "report.json").read_text())["losses"]


@pytest.fixture(scope="module")
def whole(folder: Path) -> TrainReport:
    """Three epochs in one go; other runs are compared with it."""
    return run(folder, "whole", epochs=3)


def weights(report: TrainReport, name: str = "last.safetensors") -> dict[str, torch.Tensor]:
    return load_file(report.best.parent / name)


def test_a_run_learns_and_reports(folder: Path, whole: TrainReport) -> None:
    report = json.loads((folder / "whole" / "report.json").read_text())
    assert report["photos"] == {"train": 10, "val": 3, "test": 2}
    assert len(report["losses"]) == 3 * 2 == whole.steps  # 10 photos, batches of 4
    assert report["losses"][-1] < report["losses"][0]
    assert [row["epoch"] for row in report["history"]] == [1, 2, 3]
    assert {row["block"] for row in report["experts"]} == {1}
    assert report["config"]["lr"] == 1e-3
    assert "| 1 |" in (folder / "whole" / "report.md").read_text()
    assert (folder / "whole" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_papers_tensors_change(folder: Path, whole: TrainReport) -> None:
    before, after = read_checkpoint(folder / "base.pth").state, read_checkpoint(whole.best).state
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if is_trained(name)}
    assert (whole.trained, whole.frozen) == (len(changed), len(before) - len(changed))


def test_the_checkpoint_exports_as_it_is(whole: TrainReport, tmp_path: Path) -> None:
    from gamma_export import ExportOptions, export

    options = ExportOptions(precision=("fp32",), scene=("natural-quality",), crops="centre")
    assert export(whole.best, tmp_path / "trained.gamma", options).published


def test_accumulated_parts_make_the_same_steps(folder: Path, whole: TrainReport) -> None:
    assert losses(run(folder, "parts", epochs=3, accumulate=4)) == pytest.approx(losses(whole), abs=2e-6)


# Everything that a step depends on besides the paper's settings, and that two processes can share.
MUCH: dict[str, Any] = {
    "trainable": "all",
    "freeze_blocks": 1,
    "cache": {"crops": 2, "dtype": "float32"},
    "keep_tokens": 0.5,
    "ema": 0.9,
    "clip": 0.5,
    "warmup": 3,
    "weight_decay": 0.05,
    "schedule": "cosine-steps",
    "balance": "equal",
}


def test_two_processes_with_every_option_make_the_same_steps(folder: Path) -> None:
    alone = run(folder, "much", epochs=2, **MUCH)
    two = in_two_processes(folder, "much-two", epochs=2, accumulate=2, **MUCH)
    assert two["losses"] == pytest.approx(losses(alone), abs=5e-6)
    assert two["test"]["mean"]["rmse"] == pytest.approx(alone.test["mean"]["rmse"], abs=1e-5)  # type: ignore[index]


def in_two_processes(folder: Path, name: str, **settings: Any) -> dict[str, Any]:
    """A run under torchrun; its report.json."""
    config = train_runs.config(folder, name, **settings)
    words = ["--standalone", "--nproc-per-node=2", "-m", "gamma_training.commands.train", config, "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made: dict[str, Any] = json.loads((folder / name / "report.json").read_text())
    return made


def test_two_processes_make_the_same_steps(folder: Path, whole: TrainReport) -> None:
    report = in_two_processes(folder, "two", epochs=3)
    assert report["losses"] == pytest.approx(losses(whole), abs=2e-6)
    assert report["test"]["mean"]["rmse"] == pytest.approx(whole.test["mean"]["rmse"], abs=1e-5)  # type: ignore[index]
    # That the comparison can fail: another seed is another curve.
    assert losses(run(folder, "seed", epochs=3, seed=9)) != pytest.approx(losses(whole), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("paper", {}), ("much", MUCH | {"loss": "mse+rank", "amp": "bf16", "accumulate": 2})],
    ids=["paper", "every-option"],
)
def test_after_sigkill_a_run_goes_on_bit_for_bit(folder: Path, name: str, settings: dict[str, Any]) -> None:
    whole = run(folder, f"{name}-whole", epochs=3, **settings)
    killed = folder / f"{name}-killed"
    config = train_runs.config(folder, killed.name, epochs=3, save_every=1, **settings)
    words = [sys.executable, "-m", "gamma_training.commands.train", str(config)]
    child = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    state = killed / "state.safetensors"
    end = time.monotonic() + 120
    while not state.is_file() and time.monotonic() < end:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    assert not (killed / "report.json").exists()
    done = train_runs.train_in_child(config, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    assert "resumed after" in done.stderr
    before, after = weights(whole), load_file(killed / "last.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads(done.stdout)["steps"] == whole.steps


def test_a_run_is_not_begun_over_another_one(folder: Path, whole: TrainReport) -> None:
    with pytest.raises(UsageError, match="a run lies there"):
        run(folder, "whole", epochs=3)
    assert losses(run(folder, "whole", epochs=3, resume=True)) == losses(whole)  # finished: only judged again


@pytest.mark.parametrize(("what", "settings"), [("config", {"lr": 2e-3}), ("config", {"epochs": 4})])
def test_a_run_is_resumed_only_as_it_was_begun(
    folder: Path, whole: TrainReport, what: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=f"another {what}"):
        run(folder, "whole", resume=True, **({"epochs": 3} | settings))


def test_a_damaged_state_is_told(folder: Path) -> None:
    (folder / "torn").mkdir()
    (folder / "torn" / "state.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(IntegrityError, match="not a whole training state"):
        run(folder, "torn", resume=True)


def test_a_cache_is_made_once_and_trains(folder: Path) -> None:
    first = run(folder, "cached", cache={"crops": 2, "dtype": "float32"})
    [views] = (folder / "cached").glob("views-*.npy")
    made = views.stat().st_mtime_ns
    (folder / "cached" / "state.safetensors").unlink()
    again = run(folder, "cached", cache={"crops": 2, "dtype": "float32"})
    assert views.stat().st_mtime_ns == made
    assert losses(first) == losses(again)
    half = run(folder, "half", cache={"crops": 2, "dtype": "float16"})
    assert losses(half) == pytest.approx(losses(first), rel=2e-2)
    assert losses(half) != losses(first)


def test_runs_share_a_cache_that_suits_them(folder: Path) -> None:
    shared = {"cache": {"crops": 2}, "cache_folder": "views", "freeze_blocks": 1}
    first = run(folder, "sharing", **shared)
    [views] = (folder / "views").glob("views-*.npy")
    made = views.stat().st_mtime_ns
    assert losses(run(folder, "sharing-too", **shared)) == losses(first)
    run(folder, "sharing-all", **shared, loss="mse+rank", trainable="all")
    assert list((folder / "views").glob("views-*.npy")) == [views]
    assert views.stat().st_mtime_ns == made
    assert not list((folder / "sharing").glob("views-*.npy"))


def test_a_cache_of_other_weights_is_not_used(folder: Path, tmp_path: Path) -> None:
    train_runs.photos(tmp_path)
    train_runs.base(tmp_path)
    run(tmp_path, "run", cache={"crops": 1})
    state = read_checkpoint(tmp_path / "base.pth").state
    state["clip_model.visual.conv1.weight"] = state["clip_model.visual.conv1.weight"] * 1.01
    write_authors(tmp_path / "base.pth", state)
    (tmp_path / "run" / "state.safetensors").unlink()
    run(tmp_path, "run", cache={"crops": 1})
    assert len(list((tmp_path / "run").glob("views-*.npy"))) == 2


def test_everything_can_be_trained_from_cached_crops(folder: Path) -> None:
    report = run(folder, "all", trainable="all", cache={"crops": 2}, ema=0.9, amp="bf16", clip=1.0)
    assert report.frozen == 0
    before, after = read_checkpoint(folder / "base.pth").state, read_checkpoint(report.best).state
    assert not torch.equal(before["clip_model.visual.conv1.weight"], after["clip_model.visual.conv1.weight"])


def test_patience_ends_a_run_and_the_best_weights_stay(folder: Path) -> None:
    report = run(folder, "patient", epochs=30, lr=0.0, patience=2)
    assert report.epochs == 3  # nothing is learned: the first validation stays the best
    history = json.loads((folder / "patient" / "report.json").read_text())["history"]
    assert len(history) == 3


def test_the_average_is_what_is_kept(folder: Path, whole: TrainReport) -> None:
    averaged = run(folder, "averaged", epochs=3, ema=0.5)
    assert losses(averaged) == losses(whole)  # the weights that are trained are the same
    name = "score_level"
    assert not torch.equal(weights(averaged)[name], weights(whole)[name])


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Board] = []
    monkeypatch.setattr(Board, "close", lambda board: closed.append(board))
    train_runs.photos(tmp_path)
    state = read_checkpoint(train_runs.base(tmp_path)).state
    huge = {name: state[name] * 1e25 for name in ("adapter.fc.0.weight", "adapter.fc.2.weight")}  # inf - inf
    write_authors(tmp_path / "base.pth", state | huge)
    with pytest.raises(InputError, match="the loss is nan at step 1"):
        run(tmp_path, "run")
    assert len(closed) == 1  # what is on the board stays


def test_the_mean_is_over_the_sets_that_have_a_correlation() -> None:
    samples = [
        Sample(Path(f"{n}.png"), n / 6, n / 6, "plain", "val", "large" if n < 4 else "small", f"{n}") for n in range(6)
    ]
    found = summary(samples, np.arange(6.0))
    assert math.isnan(found["small"]["srcc"])  # two photos
    assert found["mean"]["srcc"] == found["large"]["srcc"] == pytest.approx(1)
    assert found["mean"]["photos"] == 6


def test_pytorchs_threads_are_given_back(folder: Path, whole: TrainReport) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(folder, "whole", epochs=3, resume=True)  # with threads: 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_name_is_no_part_of_the_recipe(folder: Path, whole: TrainReport) -> None:
    again = run(folder, "whole", epochs=3, resume=True, label="another name")
    assert again.steps == whole.steps


def test_plain_prompts_are_one_scene(folder: Path) -> None:
    report = run(folder, "plain", prompts="plain", epochs=1)
    assert read_checkpoint(report.best).prompts == "plain"


def test_validation_photos_are_taken_from_the_training_photos(tmp_path: Path) -> None:
    table = train_runs.photos(tmp_path, count=40)
    table.write_text(table.read_text().replace(",val,", ",train,"))
    train_runs.base(tmp_path)
    run(tmp_path, "run", validation=0.3, epochs=1)
    counts = json.loads((tmp_path / "run" / "report.json").read_text())["photos"]
    assert counts["test"] == 2
    assert 5 <= counts["val"] <= 19
    assert counts["train"] + counts["val"] == 38


def test_every_set_is_judged_in_validation(tmp_path: Path) -> None:
    train_runs.photos(tmp_path, count=40)
    (tmp_path / "more").mkdir()
    table = train_runs.photos(tmp_path / "more", count=40).rename(tmp_path / "more" / "other.csv")
    table.write_text(table.read_text().replace(",val,", ",train,"))
    train_runs.base(tmp_path)
    data = [{"table": name, "range": [0, 1], "scene": "natural-quality"} for name in ("mos.csv", "more/other.csv")]
    run(tmp_path, "run", validation=0.3, epochs=1, data=data)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["validation"]["mos"]["photos"] == 3  # its own val split, and nothing of its training photos
    assert 5 <= report["validation"]["other"]["photos"] <= 19


def test_a_photo_that_cannot_be_used_is_named_and_the_run_can_go_on(tmp_path: Path) -> None:
    train_runs.photos(tmp_path)
    train_runs.base(tmp_path)
    bad = tmp_path / "5.png"
    good = bad.read_bytes()
    bad.write_bytes(good[: len(good) // 2])
    config = train_runs.config(tmp_path, save_every=1)
    done = train_runs.train_in_child(config)
    assert done.returncode == 3
    assert "5.png" in done.stderr
    bad.write_bytes(good)
    done = train_runs.train_in_child(config, "--resume", "--json")
    assert done.returncode == 0, done.stderr


def test_the_tiny_base_has_the_parts_that_the_tests_need() -> None:
    tower = tiny.tower(64, 2, 1)
    assert (tower.layers, tower.first_moae, tower.experts) == (2, 1, 2)


def test_without_a_correlation_the_smaller_error_is_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = train_runs.photos(tmp_path)
    rows = table.read_text().splitlines()
    table.write_text("\n".join(row.replace(",val,", ",train,") if row[:2] in ("10", "11") else row for row in rows))
    train_runs.base(tmp_path)
    config = read_config(train_runs.config(tmp_path, epochs=6, patience=1))
    report = train(config, steps=Steps(quiet=False))
    assert report is not None
    assert "fewer than 3 validation photos have no SRCC: mos has 1; the best epoch is chosen by the error" in (
        capsys.readouterr().err
    )
    history = json.loads((tmp_path / "run" / "report.json").read_text())["history"]
    errors = [row["validation"]["mean"]["rmse"] for row in history]
    assert errors[1] < errors[0]  # patience did not end the run behind the first epoch
    assert report.validation is not None
    assert report.validation["mean"]["rmse"] == min(errors)


def test_any_correlation_is_above_none() -> None:
    none, low, high = ({"mean": {"srcc": srcc, "rmse": 0.1}} for srcc in (math.nan, -0.5, 0.5))
    assert merit(none) < merit(low) < merit(high)
    assert merit({"mean": {"srcc": math.nan, "rmse": 0.2}}) < merit(none)


def test_patience_without_validation_photos_is_refused(tmp_path: Path) -> None:
    table = train_runs.photos(tmp_path)
    table.write_text(table.read_text().replace(",val,", ",train,"))
    train_runs.base(tmp_path)
    with pytest.raises(InputError, match="patience: 2, and there is no validation photo"):
        run(tmp_path, "run", patience=2)
