"""On a GPU: the PyTorch module, the interpreted graphs and ONNX Runtime against PyTorch in fp32 on the CPU."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from gamma_runtime.engines.host import memory_mib
from gamma_training.dims import FULL_SIZE, GammaDims
from tests.gpu.graphs import (
    GATES,
    SPELLINGS,
    TINY,
    Measured,
    Subject,
    judge,
    make_subject,
    torch_scores,
    write_eight_bits,
    write_graph,
)
from tests.gpu.interpreter import Interpreter

pytestmark = pytest.mark.gpu

_SIZES = [pytest.param(TINY, id="tiny"), pytest.param(FULL_SIZE, id="full-size", marks=pytest.mark.full)]
_NEEDED_MIB = 6 * 1024  # the weights four times over, in fp32, and the values of a batch
_PHOTOS = 8


def _check_memory(device: torch.device) -> None:
    """Skip when the full size does not fit, on either side."""
    free = {"the GPU": torch.cuda.mem_get_info(device)[0] >> 20, "this machine": memory_mib()[1]}
    for where, mib in free.items():
        if 0 < mib < _NEEDED_MIB:
            pytest.skip(f"the full-size model needs {_NEEDED_MIB} MiB; {where} has {mib} MiB free")


@pytest.fixture(scope="module", params=_SIZES)
def subject(request: pytest.FixtureRequest, cuda: torch.device) -> Subject:
    dims: GammaDims = request.param
    if dims is FULL_SIZE:
        _check_memory(cuda)
    made = make_subject(dims, photos=_PHOTOS)
    assert made.spread > 0.1
    return made


def test_pytorch(subject: Subject, cuda: torch.device, measured: Measured) -> None:
    model = copy.deepcopy(subject.model).to(cuda)
    judge(measured, subject.scores, torch_scores(model, subject.text.to(cuda), subject.crops), GATES["fp32"])


@pytest.mark.parametrize(("precision", "attention"), SPELLINGS)
def test_interpreted_graph(
    subject: Subject, cuda: torch.device, measured: Measured, tmp_path: Path, precision: str, attention: str
) -> None:
    """Real half precision: every node in its own type on the GPU's own kernels."""
    path = write_graph(tmp_path, subject.model, subject.text, precision, attention)
    interpreter = Interpreter(path, cuda)
    found = subject.scored_by(lambda crops: interpreter.run(crops)["crop_scores"])
    judge(measured, subject.scores, found, GATES[precision])


@pytest.mark.parametrize("kind", ["int8", "fp8", "int4"])
def test_interpreted_8_bit_graph(
    subject: Subject, cuda: torch.device, measured: Measured, tmp_path: Path, kind: str
) -> None:
    """The form for TensorRT, every group in 8 bits, the rest in real fp16: it errs as on the CPU, where it is held
    against a library.
    """
    path = write_eight_bits(tmp_path, subject, kind)
    gaps = {}
    for device in (torch.device("cpu"), cuda):
        interpreter = Interpreter(path, device)
        found = subject.scored_by(lambda crops, run=interpreter.run: run(crops)["crop_scores"])
        gaps[device.type] = np.abs(subject.scores - found)
    gap = gaps["cuda"]
    measured(max_abs=float(gap.max()), mean_abs=float(gap.mean()), mean_abs_on_cpu=float(gaps["cpu"].mean()))
    assert 0 < gap.mean() <= 1.5 * gaps["cpu"].mean()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime(subject: Subject, measured: Measured, tmp_path: Path, precision: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    provider = "CUDAExecutionProvider"
    if provider not in ort.get_available_providers():
        pytest.skip(f"onnxruntime {ort.__version__} has only {', '.join(ort.get_available_providers())}")
    path = write_graph(tmp_path, subject.model, subject.text, precision, "decomposed")
    session = ort.InferenceSession(str(path), providers=[(provider, {"use_tf32": "0"})])
    measured(onnxruntime=ort.__version__, providers=session.get_providers())
    assert session.get_providers()[0] == provider  # it falls back to the CPU with no more than a log line
    found = subject.scored_by(lambda crops: session.run(["crop_scores"], {"crops": crops})[0])
    judge(measured, subject.scores, found, GATES[precision])
