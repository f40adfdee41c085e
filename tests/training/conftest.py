"""The oracle: a random-weight checkpoint in the authors' layout, and what the authors' own classes answer."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from gamma_training.checkpoint import Checkpoint, build_model, read_checkpoint
from gamma_training.model import Gamma

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture(scope="session")
def oracle_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("oracle") / "authors_tiny.pth"
    path.write_bytes(lzma.decompress((DATA / "authors_tiny.pth.xz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def oracle(oracle_file: Path) -> Checkpoint:
    return read_checkpoint(oracle_file)


@pytest.fixture(scope="session")
def oracle_model(oracle: Checkpoint) -> Gamma:
    return build_model(oracle)


@pytest.fixture(scope="session")
def oracle_crops() -> np.ndarray:
    return np.load(DATA / "authors_tiny_crops.npy")


@pytest.fixture(scope="session")
def oracle_scores() -> dict[str, list[float]]:
    return json.loads((DATA / "authors_tiny_scores.json").read_text())["scores"]
