"""What a backend checks, and that asking for one never gives another."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gamma_runtime import backends
from gamma_runtime.backends.base import NonFiniteError, Shape, read_io
from gamma_runtime.backends.onnxruntime_ import OnnxRuntimeBackend
from gamma_runtime.errors import EnvironmentFault, InputError, UsageError
from tests.runtime.tiny_bundle import Tiny, make_bundle

NAMES = ["onnxruntime", "openvino"]


def graph(tmp_path: Path, tiny: Tiny | None = None, scene: str = "natural-quality") -> Path:
    bundle = make_bundle(tmp_path / "t.gamma", tiny)
    return bundle.file(next(g.onnx for g in bundle.manifest.graphs if g.name == scene))


def crops(images: int, count: int = 5, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (images, count, 224, 224, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_graphs(tmp_path: Path, name: str) -> None:
    image = crops(1)
    with backends.create(name, graph(tmp_path), threads=1) as backend:
        outputs = backend.infer(image)
        assert backend.name == name
        assert backend.last_ms > 0
    expected = image.mean(axis=(2, 3, 4)) / 255
    np.testing.assert_allclose(outputs.crop_scores, expected, atol=1e-6)
    np.testing.assert_allclose(outputs.score, expected.mean(axis=1), atol=1e-6)
    assert outputs.score.dtype == outputs.crop_scores.dtype == np.float32
    assert outputs.score.shape == (1,)


@pytest.mark.parametrize("name", NAMES)
def test_joint_graph_has_a_column_a_scene(tmp_path: Path, name: str) -> None:
    with backends.create(name, graph(tmp_path, scene="joint"), threads=1) as backend:
        outputs = backend.infer(crops(1))
    assert outputs.score.shape == (1, 3)
    assert outputs.crop_scores.shape == (1, 5, 3)
    np.testing.assert_allclose(outputs.score[0, 1], outputs.score[0, 0] / 2, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_ranged_batch(tmp_path: Path, name: str) -> None:
    with backends.create(name, graph(tmp_path, Tiny(batch=(1, 4, 8))), threads=1) as backend:
        assert backend.io.batch is None
        assert backend.infer(crops(3)).score.shape == (3,)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_survive_the_next_call(tmp_path: Path, name: str) -> None:
    with backends.create(name, graph(tmp_path), threads=1) as backend:
        first = backend.infer(crops(1))
        kept = first.score.copy()
        backend.infer(np.zeros_like(crops(1)))
    np.testing.assert_array_equal(first.score, kept)


@pytest.mark.parametrize("name", NAMES)
def test_non_contiguous_crops(tmp_path: Path, name: str) -> None:
    mirrored = crops(1)[:, :, :, ::-1]
    with backends.create(name, graph(tmp_path), threads=1) as backend:
        np.testing.assert_array_equal(backend.infer(mirrored).score, backend.infer(mirrored.copy()).score)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 5, 224, 224, 3), np.float32),
        np.zeros((1, 4, 224, 224, 3), np.uint8),
        np.zeros((2, 5, 224, 224, 3), np.uint8),
        np.zeros((0, 5, 224, 224, 3), np.uint8),
        np.zeros((5, 224, 224, 3), np.uint8),
        np.zeros((1, 5, 3, 224, 224), np.uint8),
        "crops",
    ],
    ids=["float", "crops", "batch", "empty", "rank", "layout", "text"],
)
def test_wrong_crops_are_refused(tmp_path: Path, name: str, wrong: NDArray[np.uint8]) -> None:
    with (
        backends.create(name, graph(tmp_path), threads=1) as backend,
        pytest.raises(InputError, match="the graph takes"),
    ):
        backend.infer(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_never_a_score(tmp_path: Path, name: str) -> None:
    with backends.create(name, graph(tmp_path, Tiny(dark_is_nan=True)), threads=1) as backend:
        assert np.isfinite(backend.infer(crops(1)).score).all()
        with pytest.raises(NonFiniteError, match="6 values"):
            backend.infer(np.zeros_like(crops(1)))


@pytest.mark.parametrize("name", NAMES)
def test_closed_backend(tmp_path: Path, name: str) -> None:
    backend = backends.create(name, graph(tmp_path), threads=1)
    backend.close()
    backend.close()
    with pytest.raises(UsageError, match="closed"):
        backend.infer(crops(1))


@pytest.mark.parametrize("name", NAMES)
def test_threads_get_their_own_results(tmp_path: Path, name: str) -> None:
    with backends.create(name, graph(tmp_path), threads=1) as backend:
        inputs = [np.full((1, 5, 224, 224, 3), value, np.uint8) for value in (0, 51, 102, 255)]
        results: dict[int, list[float]] = {}

        def work(index: int) -> None:
            results[index] = [float(backend.infer(inputs[index]).score[0]) for _ in range(5)]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index, value in enumerate((0, 0.2, 0.4, 1)):
        assert results[index] == pytest.approx([value] * 5, abs=1e-6)


def test_openvino_is_compiled_for_f32(tmp_path: Path) -> None:
    with backends.create("openvino", graph(tmp_path), threads=1) as backend:
        compiled = backend._compiled  # type: ignore[attr-defined]
        assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert list(compiled.get_property("EXECUTION_DEVICES")) == ["CPU"]
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_onnxruntime_runs_on_the_cpu_provider(tmp_path: Path) -> None:
    with backends.create("onnxruntime", graph(tmp_path), threads=1) as backend:
        session = backend._session  # type: ignore[attr-defined]
        assert session.get_providers() == ["CPUExecutionProvider"]
        assert session.get_session_options().intra_op_num_threads == 1


def test_another_provider_than_asked_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for a provider that is not there, the library goes to the CPU with a warning: our comparison must fail."""
    monkeypatch.setattr("gamma_runtime.backends.onnxruntime_._PROVIDERS", ["AzureExecutionProvider"])
    path = graph(tmp_path)
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build of onnxruntime has the CPU provider only")
    with pytest.raises(EnvironmentFault, match="chose"):
        OnnxRuntimeBackend(path)


def bf16_product(tmp_path: Path) -> Path:
    """A Gamma-shaped graph whose product is bf16, for which ONNX Runtime has no CPU kernel."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, 150528])
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    weights = helper.make_tensor("w", TensorProto.BFLOAT16, [150528, 1], bytes(2 * 150528), raw=True)
    nodes = [
        helper.make_node("Cast", ["crops"], ["typed"], to=TensorProto.BFLOAT16),
        helper.make_node("Reshape", ["typed", "shape"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["crop_scores"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["crop_scores", "one"], ["score"]),
    ]
    info = helper.make_tensor_value_info
    model = helper.make_graph(
        nodes,
        "bf16",
        [info("crops", TensorProto.UINT8, [1, 1, 224, 224, 3])],
        [info("score", TensorProto.FLOAT, [1]), info("crop_scores", TensorProto.FLOAT, [1, 1])],
        [shape, one, weights],
    )
    onnx.save(helper.make_model(model, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "b.onnx")
    return tmp_path / "b.onnx"


def test_bf16_is_refused_by_onnxruntime_with_the_way_out(tmp_path: Path) -> None:
    path = bf16_product(tmp_path)
    with pytest.raises(InputError, match="no CPU kernel") as caught:
        backends.create("onnxruntime", path)
    assert "--backend openvino" in (caught.value.hint or "")
    with backends.create("openvino", path, threads=1) as backend:
        assert backend.infer(crops(1, 1)).score.tolist() == [0]


@pytest.mark.parametrize("name", NAMES)
def test_other_graphs_are_refused_with_what_was_found(tmp_path: Path, name: str) -> None:
    info = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "other",
        [info("x", TensorProto.FLOAT, [1, 3])],
        [info("y", TensorProto.FLOAT, [1, 3])],
    )
    path = tmp_path / "other.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    with pytest.raises(InputError, match=r"x float32 \[1, 3\]"):
        backends.create(name, path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"nonsense" * 100])
def test_what_is_no_graph(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.onnx"):
        backends.create(name, path)


@pytest.mark.parametrize("name", NAMES)
def test_missing_weights(tmp_path: Path, name: str) -> None:
    path = graph(tmp_path)
    next(path.parent.glob("weights-*.bin")).unlink()
    for weights in path.parent.glob("weights-*.bin"):
        weights.unlink()
    with pytest.raises(InputError):
        backends.create(name, path)


def test_names_and_threads() -> None:
    with pytest.raises(UsageError, match="tensorflow"):
        backends.create("tensorflow", Path("x.onnx"))
    with pytest.raises(UsageError, match="tensorflow"):
        backends.choose("tensorflow", "fp32")
    with pytest.raises(UsageError, match="0 threads"):
        backends.create("openvino", Path("x.onnx"), threads=0)


def test_auto_is_onnxruntime_but_for_bf16() -> None:
    assert backends.choose("auto", "fp32") == "onnxruntime"
    assert backends.choose("auto", "fp16") == "onnxruntime"
    assert backends.choose("auto", "bf16") == "openvino"
    with pytest.raises(InputError, match="no CPU kernels for bf16"):
        backends.choose("onnxruntime", "bf16")


def test_available_names_versions() -> None:
    found = backends.available()
    assert found["onnxruntime"] == onnxruntime.__version__
    assert set(found) == {*NAMES, "tensorrt", "tensorrt-rtx"}


FRAMES: dict[str, tuple[str, Shape]] = {"frames": ("uint8", (None, 480, 640, 3))}
OUTPUTS: dict[str, tuple[str, Shape]] = {"score": ("float32", (None, 2)), "crop_scores": ("float32", (None, 5, 2))}


def test_a_graph_of_frames_is_known_by_its_input() -> None:
    io = read_io(Path("x.onnx"), FRAMES, OUTPUTS)
    assert (io.batch, io.crops, io.scenes, io.frame) == (None, 5, 2, (640, 480))
    assert (io.input, io.image_shape) == ("frames", (480, 640, 3))


@pytest.mark.parametrize(
    "change",
    [
        {"frames": ("float32", (None, 480, 640, 3))},
        {"frames": ("uint8", (None, 3, 480, 640))},
        {"frames": ("uint8", (None, None, 640, 3))},
        {"frames": ("uint8", (1, 480, 640))},
        {"frames": ("uint8", (1, 223, 640, 3))},
        {"crops": ("uint8", (1, 5, 224, 224, 3))},
        {"crop_scores": ("float32", (None, None, 2))},
        {"crop_scores": ("float32", (None,))},
        {"crop_scores": ("float32", (None, 5))},
    ],
    ids=str,
)
def test_other_graphs_of_frames_are_refused(change: dict[str, tuple[str, Shape]]) -> None:
    both = FRAMES | OUTPUTS | change
    outputs = {name: both.pop(name) for name in OUTPUTS}
    with pytest.raises(InputError, match="not a Gamma graph"):
        read_io(Path("x.onnx"), both, outputs)
