"""Rows 9 to 12, 15 and 16 of the hostile list: ONNX files that a manifest vouches for, and that are wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

import gamma_runtime
from gamma_export.photos import packaged_golden
from gamma_export.verify import verify
from gamma_runtime.bundle import open_bundle
from gamma_runtime.engines import EngineOptions, build_engines
from gamma_runtime.errors import GammaError, InputError, IntegrityError
from gamma_runtime.onnx_scan import MAX_GRAPH, check_graph_file
from tests import tiny_export
from tests.tiny_export import SCENES, graph, rewrite, vouch

BACKENDS = ("onnxruntime", "openvino")
CROPS = helper.make_tensor_value_info("crops", TensorProto.UINT8, [1, 1, 224, 224, 3])
SCORE = helper.make_tensor_value_info("score", TensorProto.FLOAT, [1])
CROP_SCORES = helper.make_tensor_value_info("crop_scores", TensorProto.FLOAT, [1, 1])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_export.copy(tmp_path / "b.gamma", precision="fp32")


@pytest.fixture
def file(bundle: Path) -> Path:
    return bundle / graph(bundle)["onnx"]


def refused(bundle: Path, words: str, code: int = 3) -> str:
    """Every reader refuses the graph; what it says."""
    message = ""
    for backend in BACKENDS:
        with pytest.raises(GammaError, match=words) as caught:
            gamma_runtime.load(bundle, backend=backend, threads=1)
        assert caught.value.exit_code == code
        assert caught.value.message.isprintable()
        message = caught.value.message
    return message


def change(bundle: Path, file: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(file, load_external_data=False)
    edit(model)
    vouch(bundle, file.name, model.SerializeToString())


# Row 9


def test_garbage_with_a_matching_digest(bundle: Path, file: Path) -> None:
    for content in (b"garbage", bytes(1000), os.urandom(1000), b"version https://git-lfs.github.com/spec/v1\n"):
        vouch(bundle, file.name, content)
        refused(bundle, r"not an ONNX file|not a Gamma graph|refuses it")


def test_an_empty_file_with_a_matching_digest(bundle: Path, file: Path) -> None:
    vouch(bundle, file.name, b"")
    refused(bundle, "refuses it|not a Gamma graph|found ")


def test_cut_anywhere_with_a_matching_digest(bundle: Path, file: Path) -> None:
    good = file.read_bytes()
    for length in (40, len(good) // 2, len(good) - 1):
        vouch(bundle, file.name, good[:length])
        refused(bundle, r"not an ONNX file|refuses it|not a Gamma graph")


# Row 10


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[TensorProto] | None = None,
    **kwargs: object,
) -> bytes:
    made = helper.make_graph(nodes, "other", inputs, outputs, constants or [])
    kwargs = {"opset_imports": [helper.make_opsetid("", 20)], "ir_version": 10} | kwargs
    return bytes(helper.make_model(made, **kwargs).SerializeToString())


def _mean_model(**kwargs: object) -> bytes:
    """A good graph that scores the mean brightness of one crop."""
    pixels = numpy_helper.from_array(np.array([2, 3, 4]), "pixels")
    axis = numpy_helper.from_array(np.array([1]), "axis")
    nodes = [
        helper.make_node("Cast", ["crops"], ["wide"], "cast", to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["wide", "pixels"], ["crop_scores"], "crops", keepdims=0),
        helper.make_node("ReduceMean", ["crop_scores", "axis"], ["score"], "mean", keepdims=0),
    ]
    return _model(nodes, [CROPS], [SCORE, CROP_SCORES], [pixels, axis], **kwargs)


def test_the_good_graph_of_these_tests_loads(bundle: Path, file: Path) -> None:
    vouch(bundle, file.name, _mean_model())
    for backend in BACKENDS:
        with gamma_runtime.load(bundle, backend=backend, threads=1) as scorer:
            assert 0 < scorer.score(packaged_golden()[0]).value < 255


def _image(kind: int, shape: list[int | str | None], name: str = "crops") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _classifier() -> bytes:
    """Somebody else's model: float NCHW image in, logits out."""
    nodes = [helper.make_node("ReduceMean", ["image"], ["logits"], "mean", keepdims=0)]
    image = _image(TensorProto.FLOAT, [1, 3, 224, 224], "image")
    return _model(nodes, [image], [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [])])


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (_classifier, r"found image float32 \[1, 3, 224, 224\]; logits float32 \[\]"),
        (
            lambda: _model(
                [
                    helper.make_node("ReduceMean", ["crops"], ["score"], "a", keepdims=0),
                    helper.make_node("ReduceMean", ["crops"], ["crop_scores"], "b", keepdims=0),
                ],
                [_image(TensorProto.FLOAT, [1, 1, 224, 224, 3])],
                [_image(TensorProto.FLOAT, [], "score"), _image(TensorProto.FLOAT, [], "crop_scores")],
            ),
            r"found crops float32 \[1, 1, 224, 224, 3\]; .*score",
        ),
        (
            lambda: _model(
                [helper.make_node("Cast", ["crops"], ["score"], "a", to=TensorProto.FLOAT)],
                [CROPS],
                [_image(TensorProto.FLOAT, [1, 1, 224, 224, 3], "score")],
            ),
            r"found crops uint8 \[1, 1, 224, 224, 3\]; score float32 \[1, 1, 224, 224, 3\]",
        ),
    ],
    ids=["classifier", "float input", "output missing"],
)
def test_another_graph_shows_what_was_found(bundle: Path, file: Path, made: Callable[[], bytes], found: str) -> None:
    vouch(bundle, file.name, made())
    refused(bundle, found)


def test_another_batch_or_scene_count_than_the_manifest_says(bundle: Path, file: Path) -> None:
    rewrite(bundle, lambda data: data["graphs"][1].update(batch=[2, 2, 2]))
    refused(bundle, r"the manifest says batch \(2, 2, 2\)", code=4)
    rewrite(bundle, lambda data: data["graphs"][1].update(batch=[1, 1, 1], onnx=graph(bundle, "joint")["onnx"]))
    refused(bundle, "2 scenes; the manifest says .* 1 scenes", code=4)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"ir_version": 99},
        {"opset_imports": [helper.make_opsetid("", 99)]},
        {"opset_imports": []},
    ],
    ids=["newer IR", "newer opset", "no opset"],
)
def test_a_graph_of_another_time_is_an_error_of_the_library(
    bundle: Path, file: Path, kwargs: dict[str, object]
) -> None:
    vouch(bundle, file.name, _mean_model(**kwargs))
    with pytest.raises(InputError, match="ONNX Runtime refuses it"):
        gamma_runtime.load(bundle, backend="onnxruntime", threads=1)


# Rows 11 and 12: external data


def _entries(bundle: Path, file: Path, **fields: str | None) -> None:
    """Change the external-data fields of one weight; None removes one."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        found = {e.key: e.value for e in tensor.external_data} | fields
        del tensor.external_data[:]
        for key, value in found.items():
            if value is not None:
                tensor.external_data.add(key=key, value=value)

    change(bundle, file, edit)


ELSEWHERE: dict[str, dict[str, str | None]] = {
    "parent": {"location": "../secret.bin"},
    "absolute": {"location": "/etc/passwd"},
    "device": {"location": "/dev/zero"},
    "inside and out": {"location": "sub/../../secret.bin"},
    "another file of the bundle": {"location": "manifest.json"},
    "file that is not named": {"location": "secret.bin"},
    "same file by another name": {"location": "./WEIGHTS"},
    "nul": {"location": "WEIGHTS\0x"},
    "empty": {"location": ""},
    "none": {"location": None},
    "url": {"location": "http://localhost/weights.bin"},
    "negative offset": {"offset": "-4096"},
    "offset with a sign": {"offset": "+0"},
    "offset in words": {"offset": "zero"},
    "offset past the end": {"offset": str(1 << 40)},
    "offset that overflows": {"offset": str((1 << 64) - 8)},
    "offset of a thousand digits": {"offset": "9" * 1000},
    "offset in other digits": {"offset": "\u0663"},
    "negative length": {"length": "-1"},
    "length of petabytes": {"length": str(1 << 60)},
    "length too short": {"length": "4"},
    "no length": {"length": None},
    "unknown key": {"basepath": "/"},
}


@pytest.mark.parametrize("fields", ELSEWHERE.values(), ids=ELSEWHERE)
def test_external_data_stays_in_the_weights_file(bundle: Path, file: Path, fields: dict[str, str | None]) -> None:
    weights = graph(bundle)["weights"]
    (bundle.parent / "secret.bin").write_bytes((bundle / weights).read_bytes())
    (bundle / "secret.bin").write_bytes((bundle / weights).read_bytes())
    _entries(bundle, file, **{k: v and v.replace("WEIGHTS", weights) for k, v in fields.items()})
    refused(bundle, "weight '", code=4)


def test_verify_and_build_look_for_it_too(bundle: Path, file: Path) -> None:
    _entries(bundle, file, location="../secret.bin")
    with pytest.raises(IntegrityError, match="weight '"):
        verify(open_bundle(bundle), against=tiny_export.checkpoint(), photos=tiny_export.photos())
    rewrite(bundle, lambda data: data.update(graphs=[g for g in data["graphs"] if g["name"] == SCENES[0]]))
    with pytest.raises(IntegrityError, match="weight '"):
        build_engines(open_bundle(bundle), EngineOptions(flavour="tensorrt-rtx"))


def test_a_key_twice_is_refused(bundle: Path, file: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        tensor.external_data.add(key="location", value="../secret.bin")

    change(bundle, file, edit)
    refused(bundle, "external-data keys", code=4)


def _outside() -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "hidden")
    external_data_helper.set_external_data(tensor, "../secret.bin", offset=0, length=16)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def _in_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], "constant", value=_outside()))


def _in_subgraph(model: onnx.ModelProto) -> None:
    out = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [4])
    inner = helper.make_graph([], "inner", [], [out], [_outside()])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], "if", then_branch=inner, else_branch=inner))


def _in_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add(values=_outside(), dims=[8])


def _without_mark(model: onnx.ModelProto) -> None:
    """The entries are there, data_location says they do not count."""
    tensor = _outside()
    tensor.data_location = TensorProto.DEFAULT
    model.graph.initializer.append(tensor)


@pytest.mark.parametrize("edit", [_in_attribute, _in_subgraph, _in_sparse, _without_mark])
def test_external_data_is_found_wherever_it_hides(
    bundle: Path, file: Path, edit: Callable[[onnx.ModelProto], None]
) -> None:
    change(bundle, file, edit)
    refused(bundle, "'hidden' lies in '../secret.bin'", code=4)


# Row 15: operators of one library only


def _custom(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("evil.corp", 1))
    model.graph.node.append(helper.make_node("Shell", ["crops"], ["owned"], "run_it", domain="evil.corp"))


def _contrib(model: onnx.ModelProto) -> None:
    """ONNX Runtime has this operator, and runs it without asking."""
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node.append(helper.make_node("Gelu", ["score"], ["curve"], "gelu", domain="com.microsoft"))


def _function(model: onnx.ModelProto) -> None:
    made = helper.make_function(
        "local", "F", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    model.functions.append(made)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_custom, r"operator set 'evil.corp'.*'run_it' \(evil.corp.Shell\)|'run_it' \(evil.corp.Shell\).*'evil.corp'"),
        (_contrib, r"'gelu' \(com.microsoft.Gelu\)"),
        (_function, "a function inside the model"),
    ],
)
def test_operators_outside_the_standard_are_named(
    bundle: Path, file: Path, edit: Callable[[onnx.ModelProto], None], words: str
) -> None:
    change(bundle, file, edit)
    refused(bundle, words)
    rewrite(bundle, lambda data: data.update(graphs=[g for g in data["graphs"] if g["name"] == SCENES[0]]))
    with pytest.raises(InputError, match=words):
        build_engines(open_bundle(bundle), EngineOptions(flavour="tensorrt-rtx"))


def test_the_library_alone_would_have_run_the_contrib_operator(bundle: Path, file: Path) -> None:
    import onnxruntime

    change(bundle, file, _contrib)
    onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


# Row 16 and the walker itself


def test_a_graph_file_has_a_size_limit(bundle: Path, file: Path) -> None:
    os.truncate(file, MAX_GRAPH + 1)
    with pytest.raises(InputError, match="a graph file ends at 256 MiB"):
        check_graph_file(file, "weights.bin", 0)
