"""On a GPU: every engine of a fresh demo bundle is built, chosen, loaded and run, or refused in its library's words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from gamma_runtime.bundle import Bundle, open_bundle
from gamma_runtime.engines import (
    Device,
    EngineOptions,
    LoadedEngine,
    build_engines,
    fitting_engine,
    load_engine,
    this_device,
)
from gamma_runtime.engines.host import import_flavour
from gamma_runtime.engines.options import Flavour
from gamma_runtime.errors import EnvironmentFault, GammaError
from tests.gpu.graphs import GATES, SPELLINGS, Measured, Subject, judge, subject_of

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.gpu

# TensorRT-RTX has kernels for these only; elsewhere (A100 and Orin in part, H100, Thor) a refusal is expected.
RTX_KNOWS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


@pytest.fixture(scope="module")
def demo() -> Path:
    from gamma_export.demo import demo_checkpoint

    return demo_checkpoint()


@pytest.fixture(scope="module")
def bundles(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A bundle for each spelling of attention; the operator exists in half precision only."""
    from gamma_export.exporter import ExportOptions, export

    folder = tmp_path_factory.mktemp("bundles")
    common: dict[str, Any] = {"joint": True, "crops": "centre"}
    options = {
        "decomposed": ExportOptions(precision=("fp32", "fp16", "bf16"), **common),
        "op": ExportOptions(precision=("fp16", "bf16"), attention="op", **common),
    }
    made = {name: export(demo, folder / f"{name}.gamma", chosen) for name, chosen in options.items()}
    assert all(report.published for report in made.values())
    return {name: open_bundle(report.bundle) for name, report in made.items()}


@pytest.fixture(scope="module")
def subject(demo: Path) -> Subject:
    from gamma_training.checkpoint import build_model, read_checkpoint
    from gamma_training.scenes import encode_scenes, scenes_of

    model = build_model(read_checkpoint(demo))
    return subject_of(model, encode_scenes(model, scenes_of("sdp")), photos=4)


def _refused(measured: Measured, outcome: str, error: GammaError, *, expected: bool) -> NoReturn:
    """A refusal goes into the report word for word; one that this GPU gives no cause for is a failure."""
    measured(outcome=outcome, words=str(error))
    if expected:
        pytest.skip(f"{outcome}: {error}")
    pytest.fail(f"{outcome}: {error}")


def _run(loaded: LoadedEngine, crops: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """One call: uint8 [1, 1, 224, 224, 3] -> crop scores [1, 1, 5], in memory that torch owns."""
    import torch

    engine, context = loaded.engine, loaded.engine.create_execution_context()
    source = torch.from_numpy(crops).to(device)
    assert context.set_input_shape("crops", tuple(crops.shape))
    tensors = {"crops": source}
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        if name not in tensors:
            tensors[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=torch.float32, device=device)
        assert context.set_tensor_address(name, tensors[name].data_ptr())
    stream = torch.cuda.current_stream(device)  # torch's own, so that the copy above is done before
    assert context.execute_async_v3(stream.cuda_stream), loaded.logger.lines
    stream.synchronize()
    scores: NDArray[np.float32] = tensors["crop_scores"].cpu().numpy()
    return scores


def _device(flavour: Flavour, measured: Measured) -> Device:
    try:
        import_flavour(flavour)
        device = this_device(flavour)
    except EnvironmentFault as fault:  # not installed, or for another CUDA than the driver's
        _refused(measured, "not usable", fault, expected=True)
    measured(library=f"{flavour} {device.version}", compute_capability=device.compute_capability)
    return device


def _load(
    bundle: Bundle, folder: Path, device: Device, precision: str, attention: str, measured: Measured
) -> LoadedEngine:
    flavour = device.flavour
    try:
        build_engines(bundle, EngineOptions(flavour=flavour, precision=precision, engine_dir=folder))
    except GammaError as error:  # TensorRT before 10.14 does not know the Attention operator
        _refused(measured, "not built", error, expected=attention == "op" and flavour == "tensorrt")
    try:
        entry = fitting_engine(bundle, folder, flavour, device, precision=precision)
        loaded = load_engine(bundle, entry, folder)
    except EnvironmentFault as fault:
        foreign = flavour == "tensorrt-rtx" and device.compute_capability not in RTX_KNOWS
        _refused(measured, "refused", fault, expected=foreign)
    measured(outcome="loaded", words="\n".join(loaded.logger.lines))
    return loaded


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("precision", "attention"), SPELLINGS)
def test_engine(
    bundles: dict[str, Bundle],
    subject: Subject,
    measured: Measured,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    flavour: Flavour,
    precision: str,
    attention: str,
) -> None:
    device = _device(flavour, measured)
    loaded = _load(bundles[attention], tmp_path, device, precision, attention, measured)
    cuda: torch.device = request.getfixturevalue("cuda")  # only now: an engine loads without torch's CUDA
    found = subject.scored_by(lambda crops: _run(loaded, crops, cuda), batch=1)
    measured(outcome="loaded and run")
    judge(measured, subject.scores, found, GATES[precision])
