"""Exported bundles through the engine backend: gamma-verify, camera frames and `cover` from the device.

The device is a CPU that keeps CUDA's rules, and its engines compute the exported graph: emulated, not run on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import gamma_runtime
from gamma_export import export
from gamma_export.commands.verify import VerifyOptions, verify_command
from gamma_runtime.bundle import Bundle, open_bundle
from gamma_runtime.cuda import Owner
from gamma_runtime.cuda.arrays import DeviceCrops, DeviceFrame
from tests import tiny_export
from tests.runtime.engine_device import EngineDevice, store_plan
from tests.runtime.images import photo
from tests.runtime.test_tensorrt_scorer import CudaArray

FRAME = (320, 256)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineDevice]:
    """At the end nothing may be left on it."""
    made = EngineDevice(monkeypatch)
    yield made
    made.cuda.close()


def bundle_of(folder: Path, crops: str, **changes: object) -> Bundle:
    chosen = tiny_export.options(precision=("fp32",), crops=crops, joint=True, **changes)
    report = export(tiny_export.checkpoint(), folder / "t.gamma", chosen)
    assert report.published
    return open_bundle(report.bundle)


def verified(bundle: Bundle) -> int:
    """Exit code of gamma-verify on the engine backend."""
    source, photos = tiny_export.checkpoint(), tiny_export.photos()
    options = VerifyOptions(
        bundle=bundle.folder, backend=("tensorrt",), against=source, photos=photos, json=True, quiet=True
    )
    return verify_command(options)


def pixels(index: int) -> NDArray[np.uint8]:
    return photo(*FRAME, seed=index)


def uploads(device: EngineDevice) -> int:
    return device.cuda.calls.count("cudaMemcpyAsync")


def test_engines_are_verified_like_graphs(
    device: EngineDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_of(tmp_path, "centre")
    store_plan(bundle, "joint")
    assert verified(bundle) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["backend"] for row in found["parity"]} == {"tensorrt"}
    assert {row["scene"] for row in found["parity"]} == {scene.name for scene in bundle.manifest.scenes}
    assert {row["note"] for row in found["parity"]} == {None}
    assert {check["backend"] for check in found["golden"]} == {"tensorrt"}


def test_an_engine_that_drifts_is_caught(
    device: EngineDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its plan computes another checkpoint's graph."""
    bundle = bundle_of(tmp_path, "centre")
    other = export(
        tiny_export.checkpoint(8),
        tmp_path / "o.gamma",
        tiny_export.options(precision=("fp32",), crops="centre", joint=True),
    )
    wrong = store_plan(open_bundle(other.bundle), "joint", tmp_path)
    entry = store_plan(bundle, "joint")
    engines = bundle.folder / "engines.json"
    swapped = json.loads(engines.read_text())
    swapped["engines"][0] |= {"file": entry.file, "sha256": wrong.sha256, "size": wrong.size}
    (bundle.folder / entry.file).write_bytes((tmp_path / wrong.file).read_bytes())
    engines.write_text(json.dumps(swapped))
    assert verified(bundle) == 7
    assert not all(row["passed"] for row in json.loads(capsys.readouterr().out)["parity"])


def test_a_frame_on_the_device_reaches_a_graph_of_frames_without_the_host(device: EngineDevice, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, "frame320x256", batch="1:2:4")
    store_plan(bundle, "joint")
    frames = [pixels(index) for index in range(3)]
    with gamma_runtime.load(bundle, backend="onnxruntime", threads=1) as plain:
        wanted = [score.crop_scores for score in plain.score_many(frames, batch=3)]
    with Owner(device.cuda) as owner, gamma_runtime.load(bundle, backend="tensorrt") as scorer:
        arrays = [CudaArray(owner, frame, 1024) for frame in frames]
        prepared = scorer.prepare(arrays[0])
        assert isinstance(prepared.frame, DeviceFrame)
        before, images = uploads(device), device.cuda.calls.count("cudaMemcpy2DAsync")
        for _ in range(3):  # eager, captured, replayed
            found = list(scorer.score_many(arrays, batch=3, decode_threads=0))
            np.testing.assert_allclose([s.crop_scores for s in found], wanted, atol=1e-6)
        assert device.cuda.calls.count("cudaMemcpy2DAsync") - images == 3 * 3
        assert uploads(device) - before <= 3 * 2, "only the two outputs of each call are copied to the host"
        with pytest.raises(
            gamma_runtime.errors.InputError, match="320x250; this bundle's graph takes frames of 320x256"
        ):
            scorer.score(CudaArray(owner, pixels(0)[:250]))


def test_cover_on_the_device(device: EngineDevice, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, "cover", native=True, batch="1:2:4")
    store_plan(bundle, "joint")
    wide = photo(700, 260)
    with gamma_runtime.load(bundle, backend="onnxruntime", threads=1) as plain:
        wanted = plain.score(wide)
    assert len(wanted.crop_scores) == 4 * 2
    with Owner(device.cuda) as owner, gamma_runtime.load(bundle, backend="tensorrt") as scorer:
        array = CudaArray(owner, wide)
        assert isinstance(scorer.prepare(array).crops, DeviceCrops)
        found = scorer.score(array)
        np.testing.assert_allclose(found.crop_scores, wanted.crop_scores, atol=1e-6)
        assert found.value == pytest.approx(wanted.value, abs=1e-6)
