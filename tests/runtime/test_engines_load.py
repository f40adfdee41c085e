"""Which engine fits which device, and what happens on the way into memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gamma_runtime.bundle import ENGINES, Bundle
from gamma_runtime.cuda_probe import probe
from gamma_runtime.engines import Device, EngineOptions, build_engines, fitting_engine, load_engine, why_not
from gamma_runtime.engines.host import host_os, import_flavour, installed_version, same_version
from gamma_runtime.engines.load import deserialize
from gamma_runtime.engines.store import read_plan
from gamma_runtime.errors import EnvironmentFault, IntegrityError
from gamma_runtime.manifest import EngineEntry
from tests.runtime.engine_bundle import SCENES, make_bundle, needs_rtx

pytestmark = needs_rtx
_NO_GPU = pytest.mark.skipif(probe().usable, reason="this machine has a GPU, where the engine would load")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[EngineEntry]]:
    """A bundle with joint engines in two precisions and one of a scene's own, for 8.6; read only."""
    bundle = make_bundle(tmp_path_factory.mktemp("built") / "b.gamma", precisions=("fp32", "fp16"))
    options = EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6",))
    entries = build_engines(bundle, options)
    entries += build_engines(bundle, dataclasses.replace(options, scene=SCENES[1], precision="fp16"))
    return bundle, entries


def _device(entry: EngineEntry, **changes: Any) -> Device:
    return dataclasses.replace(Device("tensorrt-rtx", entry.version, "8.6", host_os()), **changes)


def test_the_fitting_engine_is_found(built: tuple[Bundle, list[EngineEntry]]) -> None:
    bundle, (fp32, fp16, own) = built
    device = _device(fp32)
    assert fitting_engine(bundle, None, "tensorrt-rtx", device, precision="fp32") == fp32
    assert fitting_engine(bundle, None, "tensorrt-rtx", device, precision="fp16") == fp16
    assert fitting_engine(bundle, None, "tensorrt-rtx", device, scene=SCENES[1]) == own
    assert fitting_engine(bundle, bundle.folder, "tensorrt-rtx", device, scene=SCENES[1], precision="fp32") == fp32


def test_another_gpu_or_version_is_a_sentence_with_the_command(built: tuple[Bundle, list[EngineEntry]]) -> None:
    bundle, (fp32, *_) = built
    orin = _device(fp32, compute_capability="8.7", version="1.8.0.1")
    with pytest.raises(EnvironmentFault) as caught:
        fitting_engine(bundle, None, "tensorrt-rtx", orin, precision="fp32")
    assert f"built for TensorRT-RTX {fp32.version}/sm_86, here 1.8.0.1/sm_87" in caught.value.message
    assert caught.value.hint == f"gamma-build {bundle.folder} --engine tensorrt-rtx"


def test_another_flavour_is_never_given_instead(built: tuple[Bundle, list[EngineEntry]]) -> None:
    bundle, _ = built
    device = Device("tensorrt", "10.3.0", "8.7", host_os())
    with pytest.raises(EnvironmentFault, match="no TensorRT engine for scene natural-quality was built") as caught:
        fitting_engine(bundle, None, "tensorrt", device)
    assert caught.value.hint == f"gamma-build {bundle.folder} --engine tensorrt"


def test_reasons(built: tuple[Bundle, list[EngineEntry]]) -> None:
    _, (entry, *_) = built
    assert why_not(entry, _device(entry)) is None
    assert why_not(entry, _device(entry, os="Windows-AMD64")) == f"built on {host_os()}, this is Windows-AMD64"
    other = Device("tensorrt", "11.4", "8.7", host_os())
    assert why_not(entry, other) == f"built for TensorRT-RTX {entry.version}/sm_86, here TensorRT 11.4/sm_87"
    default = entry.model_copy(update={"compute_capabilities": ["8.0+"]})
    assert why_not(default, _device(entry, compute_capability="12.0")) is None
    turing = why_not(default, _device(entry, compute_capability="7.5"))
    assert turing == f"built for TensorRT-RTX {entry.version}/sm_80 and newer, here {entry.version}/sm_75"


def test_versions_compare_where_both_speak() -> None:
    assert same_version("10.3.0", "10.3.0.30")
    assert not same_version("10.3.0.26", "10.3.0.30")
    assert not same_version("1.7.1", "1.17.1")


def test_stale_engine_is_said_so(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    (entry,) = build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6",)))
    changed = make_bundle(tmp_path / "b.gamma", seed=1)
    with pytest.raises(EnvironmentFault, match="stale: built from another fp16 graph joint than the bundle has now"):
        fitting_engine(changed, None, "tensorrt-rtx", _device(entry))
    other = make_bundle(tmp_path / "b.gamma", precisions=("fp32",))
    with pytest.raises(EnvironmentFault, match="stale: the bundle has no fp16 graph joint any more"):
        fitting_engine(other, None, "tensorrt-rtx", _device(entry))


def test_broken_engines_json_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    (bundle.folder / ENGINES).write_text('{"schema_version": 1, "engines": [{}]}')
    with pytest.raises(IntegrityError, match=r"engines\.json: \d+ faults") as caught:
        build_engines(bundle, EngineOptions(flavour="tensorrt-rtx"))
    assert caught.value.hint == "delete it and run gamma-build"


@_NO_GPU
def test_load_without_a_gpu_names_the_cause(built: tuple[Bundle, list[EngineEntry]]) -> None:
    bundle, (entry, *_) = built
    with pytest.raises(EnvironmentFault, match="TensorRT-RTX needs a GPU here: ") as caught:
        load_engine(bundle, entry)
    assert "gamma-run BUNDLE PHOTO --backend onnxruntime" in str(caught.value.hint)


@_NO_GPU
def test_none_from_tensorrt_carries_its_own_words(built: tuple[Bundle, list[EngineEntry]]) -> None:
    """The real runtime of TensorRT-RTX, past the probe: without a driver it returns None and only logs."""
    bundle, (entry, *_) = built
    content = read_plan(bundle.folder, entry)
    with pytest.raises(EnvironmentFault) as caught:
        deserialize(import_flavour("tensorrt-rtx"), content, entry.file)
    assert entry.file in caught.value.message
    assert "cudaError 35" in caught.value.message


def test_garbage_is_a_fault_and_not_an_attribute_error() -> None:
    with pytest.raises(EnvironmentFault, match="does not load this engine"):
        deserialize(import_flavour("tensorrt-rtx"), b"not a plan" * 100, "x.plan")


def test_installed_version_is_that_of_the_module() -> None:
    assert installed_version("tensorrt-rtx") == import_flavour("tensorrt-rtx").__version__


@pytest.mark.gpu
def test_engine_loads_on_this_gpu(tmp_path: Path) -> None:
    state = probe()
    capability = state.devices[0].compute_capability
    bundle = make_bundle(tmp_path / "b.gamma")
    if capability not in ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"):
        pytest.skip(f"TensorRT-RTX does not know compute capability {capability}")
    (entry,) = build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", compute_capabilities=(capability,)))
    loaded = load_engine(bundle, entry)
    assert loaded.runtime.engine_host_code_allowed is False
    assert {loaded.engine.get_tensor_name(i) for i in range(loaded.engine.num_io_tensors)} == {
        "crops",
        "score",
        "crop_scores",
    }
