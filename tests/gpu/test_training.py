"""On a GPU: the trainer's steps beside those on the CPU, and half precision with its loss scaling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gamma_training.train import TrainReport, read_config, train
from tests.training import train_runs

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.ready(tmp_path_factory.mktemp("train"))


def run(folder: Path, name: str, **settings: Any) -> TrainReport:
    report = train(read_config(train_runs.config(folder, name, **settings)))
    assert report is not None
    return report


@pytest.fixture(scope="module")
def on_cpu(folder: Path) -> TrainReport:
    return run(folder, "cpu", epochs=4)


@pytest.mark.parametrize(("amp", "within"), [("off", 1e-3), ("bf16", 5e-2), ("fp16", 2e-2)])
def test_the_loss_falls_as_on_the_cpu(
    folder: Path, on_cpu: TrainReport, cuda: torch.device, amp: str, within: float
) -> None:
    report = run(folder, f"cuda-{amp}", epochs=4, device=cuda.type, amp=amp)
    assert np.abs(np.subtract(losses(report), losses(on_cpu))).max() < within
    assert report.test is not None
    assert on_cpu.test is not None
    assert abs(report.test["mean"]["rmse"] - on_cpu.test["mean"]["rmse"]) < within


def losses(report: TrainReport) -> list[float]:
    found: list[float] = json.loads((report.best.parent / "report.json").read_text())["losses"]
    return found
