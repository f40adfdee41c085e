"""Two processes of which one ends, or stands elsewhere: told in a sentence, not as a bug."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gamma_training.train import read_config, train
from tests.training import train_runs
from tests.training.test_train_resume import spoiled

_APART = """
import dataclasses, os, sys
from pathlib import Path
from gamma_runtime.errors import InputError
from gamma_training.train import read_config, train
config = read_config(Path(sys.argv[1]))
config = dataclasses.replace(config, out=config.out / os.environ["RANK"])
try:
    train(config, resume=True)
except InputError as error:
    print(os.environ["RANK"], error.message)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return train_runs.ready(tmp_path)


def two(*words: str | Path) -> list[tuple[int, str]]:
    """Exit code and all output of both; as torchrun starts them, but nobody ends one because of the other."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    there = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    children = [
        subprocess.Popen(
            command,
            env={**os.environ, **there, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [child.communicate(timeout=300)[0] for child in children]
    return [(child.returncode, output) for child, output in zip(children, outputs, strict=True)]


def test_one_that_ends_is_not_called_a_bug_by_the_other(folder: Path) -> None:
    photo = folder / "4.png"
    photo.write_bytes(spoiled(photo))
    done = two("-m", "gamma_training.commands.train", train_runs.config(folder, epochs=1))
    (code, guilty), (other, innocent) = sorted(done)
    assert (code, other) == (3, 5)
    assert "4.png: png" in guilty
    assert "another process of the run ended; its message is above" in innocent
    assert "bug" not in guilty + innocent


def test_processes_that_stand_apart_are_refused(folder: Path) -> None:
    config = read_config(train_runs.config(folder, epochs=1))
    train(config)
    (folder / "run").rename(folder / "1")
    (folder / "run").mkdir()
    (folder / "1").rename(folder / "run" / "1")
    script = folder / "apart.py"
    script.write_text(_APART)
    done = two(script, folder / "run.yaml")
    words = "the processes would go on from different places (0: 0 epochs and 0 steps, 1: 1 epochs and 0 steps)"
    for rank, (code, output) in enumerate(done):
        assert code == 0, output
        assert f"{rank} {folder / 'run' / str(rank)}: {words}" in output
