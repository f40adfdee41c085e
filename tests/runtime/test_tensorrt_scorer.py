"""From bundle to score through an engine: choice, scenes, rebuilding, the commands, and arrays on the device."""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import gamma_runtime
from gamma_runtime import backends
from gamma_runtime.backends.base import Outputs
from gamma_runtime.backends.tensorrt_ import TensorRtBackend
from gamma_runtime.bundle import ENGINES, Bundle, read_engines
from gamma_runtime.commands.run import main
from gamma_runtime.cuda import Kind, Owner
from gamma_runtime.cuda.arrays import DeviceCrops
from gamma_runtime.cuda_probe import probe
from gamma_runtime.engines import EngineOptions, EngineUse
from gamma_runtime.errors import EnvironmentFault, InputError, IntegrityError, UsageError
from gamma_runtime.scorer import load_panel
from gamma_runtime.selftest import selftest
from tests.runtime.engine_device import EngineDevice, store_plan
from tests.runtime.images import encode, photo
from tests.runtime.tiny_bundle import SHORT_SIDES, Tiny, make_bundle

TINY = Tiny(batch=(1, 2, 4))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineDevice]:
    """At the end nothing may be left on it."""
    made = EngineDevice(monkeypatch)
    yield made
    made.cuda.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(
        tmp_path / "t.gamma", TINY, {"a": encode(photo(300, 260), "png"), "b": encode(photo(500, 400, seed=1), "png")}
    )


def pictures(count: int) -> list[NDArray[np.uint8]]:
    return [photo(300 + 10 * index, 260, seed=index) for index in range(count)]


def test_scores_are_those_of_onnxruntime(device: EngineDevice, bundle: Bundle) -> None:
    store_plan(bundle, "joint")
    with gamma_runtime.load(bundle, backend="tensorrt") as scorer, gamma_runtime.load(bundle, backend="auto") as other:
        assert (scorer.backend_name, other.backend_name) == ("tensorrt", "onnxruntime"), "auto never means an engine"
        found = list(scorer.score_many(pictures(7), batch=3))
        wanted = list(other.score_many(pictures(7), batch=3))
    assert [score.backend for score in found] == ["tensorrt"] * 7
    np.testing.assert_array_equal([s.crop_scores for s in found], [s.crop_scores for s in wanted])
    assert len(device.engines) == 1


def test_own_engine_before_joint_and_joint_for_several(device: EngineDevice, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    folder.mkdir()
    for name in ("joint", *SHORT_SIDES):
        store_plan(bundle, name, folder)
    with gamma_runtime.load(bundle, "face-quality", backend="tensorrt", engine_dir=folder) as scorer:
        assert scorer.panel._graphs[0].entry.name == "face-quality"
    use = EngineUse(engine_dir=folder)
    with load_panel(bundle, tuple(SHORT_SIDES), "tensorrt", engine=use) as panel:
        assert [graph.entry.name for graph in panel._graphs] == ["joint"]
        values = [score.value for score in next(panel.results([photo(300, 260)])).scores]
    with load_panel(bundle, tuple(SHORT_SIDES), "onnxruntime") as panel:
        assert values == [score.value for score in next(panel.results([photo(300, 260)])).scores]


def test_no_engine_says_what_to_do_and_never_gives_the_cpu(device: EngineDevice, bundle: Bundle) -> None:
    with pytest.raises(EnvironmentFault, match="no TensorRT engine for scene natural-quality was built") as caught:
        gamma_runtime.load(bundle, backend="tensorrt")
    assert str(caught.value.hint).endswith("--engine tensorrt; or let it be built now: --rebuild-ok")
    store_plan(bundle, "joint", compute_capabilities=["8.6"])
    with pytest.raises(EnvironmentFault, match=r"built for TensorRT 10\.3\.0/sm_86, here 10\.3\.0/sm_87"):
        gamma_runtime.load(bundle, backend="tensorrt")
    with pytest.raises(EnvironmentFault, match="no TensorRT-RTX engine"):
        gamma_runtime.load(bundle, backend="tensorrt-rtx")


def test_engine_of_another_graph_is_refused(device: EngineDevice, bundle: Bundle) -> None:
    store_plan(bundle, "joint", graph="face-quality")
    with pytest.raises(IntegrityError, match="the manifest says"):
        gamma_runtime.load(bundle, backend="tensorrt")


def test_a_plan_replaced_while_it_is_opened_is_followed(
    device: EngineDevice, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gamma_runtime.engines import run

    store_plan(bundle, "joint")
    real, replaced = run.load_engine, []

    def late(*arguments: Any) -> Any:
        if not replaced:
            replaced.append(store_plan(bundle, "joint", tail="another build"))
        return real(*arguments)

    monkeypatch.setattr(run, "load_engine", late)
    with gamma_runtime.load(bundle, backend="tensorrt") as scorer:
        assert scorer.score(photo(300, 260)).value > 0
    assert replaced


def test_changed_plan_is_refused(device: EngineDevice, bundle: Bundle) -> None:
    plan = bundle.folder / store_plan(bundle, "joint").file
    plan.write_bytes(plan.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(IntegrityError, match="it was not loaded"):
        gamma_runtime.load(bundle, backend="tensorrt")
    assert device.engines == []


@pytest.mark.parametrize("right", [True, False])
def test_rebuilt_engine_is_proven_before_it_is_published(
    device: EngineDevice, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    """The build itself needs a GPU; here it stores a plan, whose scores are right or a tenth too low."""
    old = store_plan(bundle, "joint", compute_capabilities=["8.6"])
    before = {path.name: path.read_bytes() for path in bundle.folder.iterdir() if path.is_file()}

    def build(opened: Bundle, options: EngineOptions) -> list[Any]:
        assert options.engine_dir not in (None, bundle.folder)
        return [store_plan(opened, "joint", options.engine_dir)]

    def low(self: TensorRtBackend, crops: NDArray[np.uint8]) -> Outputs:
        outputs = self._run(crops)
        return Outputs(outputs.score * np.float32(0.9), outputs.crop_scores)

    if not right:
        monkeypatch.setattr(TensorRtBackend, "_infer", low)
    monkeypatch.setattr("gamma_runtime.engines.run.build_engines", build)
    use = EngineUse(rebuild_ok=True)
    if right:
        with gamma_runtime.load(bundle, backend="tensorrt", engine=use) as scorer:
            assert scorer.score(photo(300, 260)).backend == "tensorrt"
        assert [entry.compute_capabilities for entry in read_engines(bundle.folder).engines] == [["8.6"], ["8.7"]]
        assert (bundle.folder / old.file).exists()
    else:
        with pytest.raises(EnvironmentFault, match="does not score the golden images like the checkpoint") as caught:
            gamma_runtime.load(bundle, backend="tensorrt", engine=use)
        assert caught.value.exit_code == 7
        assert {path.name: path.read_bytes() for path in bundle.folder.iterdir()} == before
    assert not [path for path in bundle.folder.iterdir() if path.is_dir()], "the scratch folder is gone"


def test_rebuild_needs_golden_images(device: EngineDevice, tmp_path: Path) -> None:
    bare = make_bundle(tmp_path / "bare.gamma", TINY)
    with pytest.raises(InputError, match="no golden images to prove a new engine with"):
        gamma_runtime.load(bare, backend="tensorrt", engine=EngineUse(rebuild_ok=True))
    assert not (bare.folder / ENGINES).exists()


def test_selftest_and_command(device: EngineDevice, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    store_plan(bundle, "joint")
    checks = selftest(bundle, ("tensorrt",))
    assert {check.backend for check in checks} == {"tensorrt"}
    assert all(check.passed for check in checks)
    golden = str(bundle.folder / bundle.manifest.golden[0].file)
    assert main([str(bundle.folder), golden, "--backend", "tensorrt", "--json", "--halve-on-oom"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["backend"] == "tensorrt"
    assert record["score"] == pytest.approx(bundle.manifest.golden[0].scores["natural-quality"], abs=1e-5)
    assert main([str(bundle.folder), golden, "--backend", "tensorrt", "--infer-timeout", "0"]) == 2


def test_available_says_why_engines_cannot_run_here() -> None:
    if probe().usable:
        pytest.skip("this machine has a GPU")
    state = backends.available()["tensorrt-rtx"]
    if backends.installed("tensorrt-rtx"):
        assert "cannot score here: no NVIDIA driver" in state
    else:
        assert state == "not installed: pip install 'gamma-edge[rtx]'"
    with pytest.raises(UsageError, match="runs engines, not ONNX graphs"):
        backends.create("tensorrt-rtx", Path("x.onnx"))


# Arrays on the device


class CudaArray:
    """A frame in `HostCuda`'s device memory, as PyCUDA or CuPy would offer it."""

    def __init__(self, owner: Owner, pixels: NDArray[np.uint8], pitch: int = 0, **interface: Any) -> None:
        height, width = pixels.shape[:2]
        self.pitch = pitch or 3 * width
        size = self.pitch * height
        buffer, stream = owner.buffer(size, zero_copy=False), owner.stream()
        rows = buffer.host.reshape(height, self.pitch)
        rows[:] = 255
        rows[:, : 3 * width] = pixels.reshape(height, 3 * width)
        buffer.upload(owner.cuda, size, stream)
        owner.cuda.stream_synchronize(stream)
        strides = None if self.pitch == 3 * width else (self.pitch, 3, 1)
        self.__cuda_array_interface__ = {
            "shape": pixels.shape,
            "typestr": "|u1",
            "data": (buffer.device, False),
            "strides": strides,
            "version": 3,
            **interface,
        }


def native(folder: Path, batch: tuple[int, int, int] = (1, 2, 4)) -> Bundle:
    """A bundle whose scenes keep the photo's pixels."""
    made = make_bundle(folder / "native.gamma", Tiny(batch=batch))
    contract = {**made.manifest.contract, "short_sides": dict.fromkeys(SHORT_SIDES)}
    from gamma_runtime.contract import Contract
    from tests.runtime.tiny_bundle import write_manifest

    data = made.manifest.model_dump(mode="json")
    data |= {"contract": contract, "contract_sha256": Contract.from_json(contract).sha256()}
    return write_manifest(made.folder, data)


@pytest.mark.parametrize("pitch", [0, 1024])
def test_crops_are_cut_on_the_device(device: EngineDevice, tmp_path: Path, pitch: int) -> None:
    bundle = native(tmp_path)
    store_plan(bundle, "joint")
    frames = pictures(3)
    with Owner(device.cuda) as owner, gamma_runtime.load(bundle, backend="tensorrt") as scorer:
        arrays = [CudaArray(owner, frame, pitch) for frame in frames]
        wanted = [scorer.score(frame) for frame in frames]
        before = device.cuda.calls.count("cudaMemcpy2DAsync")
        for _ in range(3):  # eager, captured, replayed
            found = [scorer.score(array) for array in arrays]
            assert [s.crop_scores for s in found] == [s.crop_scores for s in wanted]
            assert [(s.flags, s.working_size) for s in found] == [(s.flags, s.working_size) for s in wanted]
        assert device.cuda.calls.count("cudaMemcpy2DAsync") - before == 3 * 3 * 5
        mixed = list(scorer.score_many([arrays[0], frames[1], arrays[2]], batch=3))
        assert [s.crop_scores for s in mixed] == [s.crop_scores for s in scorer.score_many(frames, batch=3)], (
            "host and device in one batch"
        )
        on_device = scorer.prepare(arrays[0])
        assert isinstance(on_device.crops, DeviceCrops)
        assert on_device.sha256() == scorer.prepare(frames[0]).sha256()


def test_frames_that_must_be_reduced_or_reordered_go_through_the_host(device: EngineDevice, bundle: Bundle) -> None:
    store_plan(bundle, "joint")
    large, small = photo(900, 700), photo(300, 260)
    with Owner(device.cuda) as owner, gamma_runtime.load(bundle, backend="tensorrt") as scorer:
        assert scorer.score(CudaArray(owner, large)).crop_scores == scorer.score(large).crop_scores
        plain = CudaArray(owner, small)
        address = plain.__cuda_array_interface__["data"][0]
        mirrored = CudaArray(owner, small, data=(address + 2, False), strides=(3 * small.shape[1], 3, -1))
        assert scorer.score(mirrored).crop_scores == scorer.score(small[:, :, ::-1]).crop_scores


def test_cpu_backends_take_device_arrays_too(device: EngineDevice, tmp_path: Path) -> None:
    bundle = native(tmp_path)
    with Owner(device.cuda) as owner, gamma_runtime.load(bundle, backend="onnxruntime") as scorer:
        array = CudaArray(owner, photo(300, 260))
        assert scorer.score(array).crop_scores == scorer.score(photo(300, 260)).crop_scores


def test_the_producers_stream_is_waited_for(device: EngineDevice, tmp_path: Path) -> None:
    """Version 3 names the stream; the frame is written on it, late, just before it is scored."""
    bundle = native(tmp_path)
    store_plan(bundle, "joint")
    first, second = photo(300, 260), photo(300, 260, seed=9)
    with Owner(device.cuda) as owner, gamma_runtime.load(bundle, backend="tensorrt") as scorer:
        wanted = scorer.score(second).crop_scores
        stream, source = owner.stream(), CudaArray(owner, second)
        target = CudaArray(owner, first, stream=stream)
        addresses = [array.__cuda_array_interface__["data"][0] for array in (target, source)]
        device.cuda.delay = 0.05
        device.cuda.memcpy_async(*addresses, second.size, Kind.DEVICE_TO_DEVICE, stream)
        assert scorer.score(target).crop_scores == wanted
        unnamed = CudaArray(owner, first, stream=None)
        place = unnamed.__cuda_array_interface__["data"][0]
        device.cuda.delay = 0.0005
        device.cuda.queue("slow", stream, lambda: time.sleep(0.5))
        device.cuda.memcpy_async(place, addresses[1], second.size, Kind.DEVICE_TO_DEVICE, stream)
        assert scorer.score(unnamed).crop_scores != wanted, "without its name the stream is not waited for"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"typestr": "<f4"}, r"float32 \[260, 300, 3\]"),
        ({"shape": (260, 300)}, r"uint8 \[260, 300\]"),
        ({"shape": (260, 300, 4)}, r"uint8 \[260, 300, 4\]"),
        ({"shape": (0, 300, 3)}, r"uint8 \[0, 300, 3\]"),
        ({"shape": (100, 100, 3)}, "leaves no room for a crop"),
        ({"shape": (20000, 300, 3)}, "20000"),
        ({"mask": object()}, "has a mask"),
    ],
)
def test_other_arrays_are_refused(device: EngineDevice, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    bundle = native(tmp_path)
    store_plan(bundle, "joint")
    with Owner(device.cuda) as owner, gamma_runtime.load(bundle, backend="tensorrt") as scorer:
        array = CudaArray(owner, photo(300, 260), **changes)
        with pytest.raises(InputError, match=words):
            scorer.score(array)


class Dlpack:
    """A torch tensor's capsule with another device written into it: what torch gives on a GPU."""

    def __init__(self, tensor: torch.Tensor, kind: int, index: int = 0) -> None:
        self.tensor = tensor
        self.device = (kind, index)
        self.streams: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.tensor.__dlpack__()


def test_dlpack(device: EngineDevice, tmp_path: Path) -> None:
    bundle = native(tmp_path)
    store_plan(bundle, "joint")
    picture = photo(300, 260)
    with Owner(device.cuda) as owner, gamma_runtime.load(bundle, backend="tensorrt") as scorer:
        wanted = scorer.score(picture).crop_scores
        assert scorer.score(torch.from_numpy(picture.copy())).crop_scores == wanted, "on the CPU"
        address = CudaArray(owner, picture).__cuda_array_interface__["data"][0]
        memory = np.frombuffer((ctypes.c_ubyte * picture.size).from_address(address), np.uint8)
        tensor = torch.from_numpy(memory.reshape(picture.shape))
        on_device = Dlpack(tensor, 2)
        assert isinstance(scorer.prepare(on_device).crops, DeviceCrops)
        assert scorer.score(on_device).crop_scores == wanted
        assert on_device.streams == [1, 1], "the legacy default stream, which torch makes wait"
        with pytest.raises(InputError, match="DLPack device 2:1"):
            scorer.score(Dlpack(tensor, 2, 1))
        with pytest.raises(InputError, match="DLPack device 10:0"):
            scorer.score(Dlpack(tensor, 10))
        with pytest.raises(InputError, match="DLPack type 2 of 32 bits"):
            scorer.score(Dlpack(tensor.float(), 2))
