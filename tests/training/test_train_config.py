"""Configurations: how they are read, and what is refused before any photo is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gamma_runtime.errors import InputError, OutputError, UsageError
from gamma_runtime.files import LOCK, lock_file
from gamma_runtime.steps import Steps
from gamma_training.checkpoint import read_checkpoint, write_safetensors
from gamma_training.scenes import SCENES
from gamma_training.tokens import compact_tokens
from gamma_training.train import read_config, train
from tests.training import train_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.ready(tmp_path_factory.mktemp("train"))


def run(folder: Path, name: str, **settings: Any) -> None:
    train(read_config(train_runs.config(folder, name, **settings)))


def test_a_cache_folder_in_use_is_refused(folder: Path) -> None:
    (folder / "views").mkdir(exist_ok=True)
    with (
        lock_file(folder / "views" / LOCK, 0, "busy"),
        pytest.raises(OutputError, match="another run is making its cache there"),
    ):
        run(folder, "one", cache={"crops": 1}, cache_folder="views")
    (folder / "file").touch()
    with pytest.raises(OutputError, match=r"cache_folder: .*file cannot be made"):
        run(folder, "two", cache={"crops": 1}, cache_folder="file")


def test_pairs_need_two_photos(folder: Path) -> None:
    with pytest.raises(UsageError, match="mse\\+rank, and a process's part of a step is one photo"):
        run(folder, "pairs", loss="mse+rank", batch=4, accumulate=4)


def test_prompts_that_the_base_does_not_say_are_assumed_aloud(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(read_config(train_runs.config(folder, "aloud", epochs=1)), steps=Steps(quiet=False))
    assert "does not say which prompts it was trained with: sdp assumed" in capsys.readouterr().err
    train(read_config(train_runs.config(folder, "said", epochs=1, prompts="sdp")), steps=Steps(quiet=False))
    assert "assumed" not in capsys.readouterr().err


def test_a_word_that_was_never_learned_is_told_before_the_photos_are_read(folder: Path) -> None:
    base = read_checkpoint(folder / "base.pth")
    state, dims = compact_tokens(base.state, base.dims, SCENES["natural-quality"].prompts)
    write_safetensors(folder / "compact.safetensors", state, prompts="sdp", dims=dims)
    with pytest.raises(InputError, match="never learned the word 'face'"):
        run(folder, "compact", base="compact.safetensors", cache={"crops": 1})
    assert not list((folder / "compact").glob("views-*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch'"),
        ({"epochs": 0}, "epochs: 0 is not between 1 and"),
        ({"epochs": 2.5}, "epochs: 2.5 is not a whole number"),
        ({"lr": "fast"}, "lr: 'fast' is not a number"),
        ({"lr": True}, "lr: True is not a number"),
        ({"loss": "mae"}, "loss: 'mae'"),
        ({"cache": {"crop": 3}}, "cache: unknown key 'crop'"),
        ({"cache": 4}, "cache: 4, expected a mapping"),
        ({"batch": 6, "accumulate": 4}, "batch: 6 is no multiple of accumulate, 4"),
        ({"label": "x" * 301}, "label: .* expected one line of up to 300 characters"),
        ({"licence": "two\nlines"}, "licence: .* expected one line"),
        ({"batch": 64}, "10 photos to train on, fewer than a batch of 64"),
        ({"base": None}, "base is missing"),
        ({"data": []}, "data"),
    ],
)
def test_a_wrong_configuration_is_told(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(folder, "wrong", **change)


def test_yaml_is_read_as_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("out: o\nbase: b.pt\ndata: {table: m.csv, range: [0, 1], scene: plain}\namp: off\nlr: 2e-5\n")
    config = read_config(path)
    assert (config.amp, config.lr, config.out) == ("off", 2e-5, tmp_path / "o")


def test_a_small_file_with_an_endless_value_is_told_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    path.write_text("\n".join([*lines, "epochs: *a39"]))
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert len(str(caught.value)) < 1000
