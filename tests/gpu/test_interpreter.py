"""The interpreter itself, on the CPU: it must be right before a GPU is judged by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from gamma_export.lint import OPS
from gamma_runtime.errors import InputError
from tests.gpu.graphs import (
    GATES,
    SPELLINGS,
    TINY,
    Subject,
    make_subject,
    max_difference,
    write_eight_bits,
    write_graph,
)
from tests.gpu.interpreter import EIGHT_BITS, HANDLERS, TYPES, Interpreter, exact_products

FP32_AGAINST_ONNXRUNTIME = 2e-6


@pytest.fixture(scope="module")
def subject() -> Subject:
    made = make_subject(TINY, photos=2)  # torch's fp16 products on a CPU are slow
    assert made.spread > 0.1
    return made


def _interpreted(subject: Subject, path: Path) -> np.ndarray[Any, Any]:
    interpreter = Interpreter(path)
    return subject.scored_by(lambda crops: interpreter.run(crops)["crop_scores"])


def _without_an_expert(state: dict[str, Tensor]) -> None:
    for name in state:
        if ".visual.transformer.resblocks.2.mlp.experts.expert_0." in name:
            state[name].zero_()


def _numbers(values: Any, kind: int) -> TensorProto:
    array = np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(kind))
    return helper.make_tensor("c", kind, array.shape, array.tobytes(), raw=True)


def _graph(
    folder: Path, op: str, kind: int, inputs: list[TensorProto], **attributes: Any
) -> tuple[Path, onnx.ModelProto]:
    """crops -> Cast to ``kind`` -> one node -> Cast to float ``score``."""
    for index, tensor in enumerate(inputs):
        tensor.name = f"c{index}"
    nodes = [
        helper.make_node("Cast", ["crops"], ["x"], "cast", to=kind),
        helper.make_node(op, ["x", *(t.name for t in inputs)], ["y"], "node", **attributes),
        helper.make_node("Cast", ["y"], ["score"], "wide", to=TensorProto.FLOAT),
    ]
    crops = helper.make_tensor_value_info("crops", TensorProto.UINT8, [2, 3, 4])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "one", [crops], [score], inputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "one.onnx")
    return folder / "one.onnx", model


def test_it_knows_the_exporters_operators_and_no_others() -> None:
    assert set(HANDLERS) == OPS | EIGHT_BITS


@pytest.mark.parametrize("attention", ["decomposed", "op"])
def test_fp32_is_onnxruntimes_score(subject: Subject, tmp_path: Path, attention: str) -> None:
    path = write_graph(tmp_path, subject.model, subject.text, "fp32", attention)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = subject.scored_by(lambda crops: session.run(["crop_scores"], {"crops": crops})[0])
    found = _interpreted(subject, path)
    assert max_difference(wanted, found) <= FP32_AGAINST_ONNXRUNTIME
    assert max_difference(subject.scores, found) <= FP32_AGAINST_ONNXRUNTIME


@pytest.mark.parametrize(("precision", "attention"), SPELLINGS)
def test_rounded_at_every_node_the_scores_are_within_the_gate(
    subject: Subject, tmp_path: Path, precision: str, attention: str
) -> None:
    """Not an emulation: every node's result is held in its own type (the interpreter refuses any other)."""
    path = write_graph(tmp_path, subject.model, subject.text, precision, attention)
    interpreter = Interpreter(path)
    seen: set[torch.dtype] = set()
    found = subject.scored_by(
        lambda crops: interpreter.run(crops, lambda _, value: seen.add(value.dtype))["crop_scores"]
    )
    half = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    assert seen == {torch.float32, half}
    assert max_difference(subject.scores, found) <= GATES[precision]


@pytest.mark.parametrize("kind", ["int8", "fp8", "int4"])
def test_8_bits_err_as_a_library_emulates_them(subject: Subject, tmp_path: Path, kind: str) -> None:
    """The form for TensorRT with every group in 8 bits (nothing was searched), each node in its own type."""
    from gamma_runtime.backends import create

    path = write_eight_bits(tmp_path, subject, kind)
    interpreter = Interpreter(path)
    seen: set[torch.dtype] = set()
    found = subject.scored_by(
        lambda crops: interpreter.run(crops, lambda _, value: seen.add(value.dtype))["crop_scores"]
    )
    codes = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "int4": torch.int8}[kind]
    assert seen == {torch.float32, torch.float16, codes}
    with create("openvino", path, threads=1) as backend:
        emulated = subject.scored_by(lambda crops: backend.infer(crops).crop_scores)
    ours, theirs = (float(np.abs(subject.scores - scores).mean()) for scores in (found, emulated))
    assert 0 < ours <= 1.5 * theirs
    assert float(np.abs(found - emulated).mean()) <= theirs  # nearer to each other than to fp32


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_expert_of_zeros_is_seen(subject: Subject, tmp_path: Path, precision: str) -> None:
    """The gate is not so wide that a missing expert slips through."""
    path = write_graph(tmp_path, subject.model, subject.text, precision, "decomposed", _without_an_expert)
    assert max_difference(subject.scores, _interpreted(subject, path)) > 2 * GATES[precision]


def test_score_is_the_mean_of_the_crops(subject: Subject, tmp_path: Path) -> None:
    path = write_graph(tmp_path, subject.model, subject.text, "fp32", "decomposed")
    result = Interpreter(path).run(subject.crops[:3, None])
    assert {name: value.shape for name, value in result.items()} == {"score": (3, 5), "crop_scores": (3, 1, 5)}
    assert np.array_equal(result["score"], result["crop_scores"][:, 0])


@pytest.mark.parametrize(("kind", "whole"), [(TensorProto.FLOAT16, 2048), (TensorProto.BFLOAT16, 256)])
def test_a_sum_is_rounded_to_the_nodes_type(tmp_path: Path, kind: int, whole: int) -> None:
    """2048 + 1 is 2048 in fp16, and 256 + 1 is 256 in bf16; a runtime that widens would say 2049 and 257."""
    path, _ = _graph(tmp_path, "Add", kind, [_numbers(whole, kind)])
    score = Interpreter(path).run(np.ones((2, 3, 4), np.uint8))["score"]
    assert (score == whole).all()


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Pad", [(_numbers([0, 1, 0, 2, 0, 3], TensorProto.INT64)), _numbers(0.5, TensorProto.FLOAT)], {}),
    ("Gather", [_numbers(2, TensorProto.INT64)], {"axis": 1}),
    ("Gather", [_numbers([[3, 0]], TensorProto.INT64)], {"axis": 2}),
    ("Reshape", [_numbers([0, -1], TensorProto.INT64)], {}),
    ("Transpose", [], {"perm": [2, 0, 1]}),
    ("Slice", [_numbers(n, TensorProto.INT64) for n in ([1, 0], [3, 2], [1, 2])], {}),
    ("Concat", [np.linspace(0, 1, 24).reshape(2, 3, 4), np.ones((2, 2, 4))], {"axis": 1}),
    ("Softmax", [], {"axis": 1}),
    ("ReduceL2", [_numbers([-1], TensorProto.INT64)], {"keepdims": 1}),
    ("ReduceMean", [_numbers([1], TensorProto.INT64)], {"keepdims": 0}),
    ("ReduceSum", [_numbers([0, 2], TensorProto.INT64)], {"keepdims": 0}),
    ("LayerNormalization", [np.linspace(0.5, 2, 4), np.linspace(-1, 1, 4)], {"axis": -1, "epsilon": 0.1}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES, ids=lambda value: str(value)[:20].split("\n")[0])
def test_each_operator_is_onnxs_own(tmp_path: Path, op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    tensors = [x if isinstance(x, TensorProto) else numpy_helper.from_array(x.astype(np.float32)) for x in inputs]
    if op == "LayerNormalization":
        attributes = {**attributes, "stash_type": 1}
    path, model = _graph(tmp_path, op, TensorProto.FLOAT, tensors, **attributes)
    crops = np.random.default_rng(0).integers(0, 9, (2, 3, 4)).astype(np.uint8)
    [wanted] = ReferenceEvaluator(model).run(["score"], {"crops": crops})
    found = Interpreter(path).run(crops)["score"]
    assert found.shape == np.shape(wanted)
    assert np.abs(found - np.asarray(wanted)).max() <= 1e-6


@pytest.mark.parametrize(
    ("op", "attributes", "words"),
    [
        ("Gelu", {}, "Gelu is not known"),
        ("Softmax", {}, "axis"),  # left to its default, which changed between opsets
        ("Transpose", {"perm": [0, 1, 2], "odd": 1}, "odd"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, op: str, attributes: dict[str, Any], words: str) -> None:
    nodes = [
        helper.make_node("Cast", ["crops"], ["x"], "cast", to=TensorProto.FLOAT),
        helper.make_node(op, ["x"], ["score"], "node", **attributes),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "one", [value("crops", TensorProto.UINT8, [1, 2, 3])], [value("score", TensorProto.FLOAT, None)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "one.onnx")
    with pytest.raises(InputError, match=words):
        Interpreter(tmp_path / "one.onnx")


def test_a_result_of_another_type_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that widens behind the graph's back is caught, here by a softmax that answers in fp32."""
    monkeypatch.setitem(HANDLERS, "Softmax", lambda x, *, axis: torch.softmax(x, axis, dtype=torch.float32))
    path, _ = _graph(tmp_path, "Softmax", TensorProto.FLOAT16, [], axis=-1)
    with pytest.raises(InputError, match=r"y: came out as torch\.float32, the graph says torch\.float16"):
        Interpreter(path).run(np.ones((2, 3, 4), np.uint8))


def test_the_types_are_the_exporters() -> None:
    from gamma_export.graph import DTYPES

    assert set(TYPES) == set(DTYPES.values())


def test_switches_of_products_are_put_back() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_reduced_precision_reduction
    with exact_products():
        assert not matmul.allow_fp16_reduced_precision_reduction
        assert not matmul.allow_tf32
    assert matmul.allow_fp16_reduced_precision_reduction == before
