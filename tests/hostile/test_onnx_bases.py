"""ONNX files from strangers as bases: whatever is wrong with the graph, the answer is a sentence of ours."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from gamma_runtime.errors import InputError
from tests.training.test_bases import imported
from tests.training.vit_onnx import write_vit

OPERATORS = ["Add", "Mul", "Div", "Erf", "Gelu", "Softmax", "Reshape", "Identity", "Gemm", "MatMul", "Conv", "Sub"]
SPELLINGS: list[dict[str, Any]] = [{}, {"packed": True, "decomposed_norm": False, "activation": "Gelu"}, {"gemm": True}]
SEEDS = range(40)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("vits")
    return [write_vit(folder / f"{i}.onnx", **spelling) for i, spelling in enumerate(SPELLINGS)]


def _damage(graph: Any, draw: random.Random) -> None:
    """One fault: an input of another node, another operator, a lost node, input or attribute, a wrong tensor."""
    node, tensor = draw.choice(graph.node), draw.choice(graph.initializer)
    kind = draw.randrange(8)
    if kind == 0 and node.input:
        names = [name for other in graph.node for name in other.output] + [t.name for t in graph.initializer]
        node.input[draw.randrange(len(node.input))] = draw.choice(names)
    elif kind == 1:
        node.op_type = draw.choice(OPERATORS)
    elif kind == 2:
        graph.node.remove(node)
    elif kind == 3:
        tensor.raw_data = tensor.raw_data[: draw.randrange(len(tensor.raw_data) + 1)]
    elif kind == 4 and tensor.dims:
        tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice([0, 1, -1, 7, 2**40])
    elif kind == 5:
        tensor.data_type = draw.choice([1, 2, 7, 8, 10, 11, 16])
    elif kind == 6 and node.input:
        del node.input[draw.randrange(len(node.input))]
    elif node.attribute:
        node.attribute.remove(draw.choice(node.attribute))


def test_damaged_graphs(files: list[Path], tmp_path: Path) -> None:
    said = []
    for seed in SEEDS:
        draw = random.Random(seed)  # noqa: S311 - the same faults every time
        model = onnx.load(draw.choice(files))
        for _ in range(draw.randint(1, 3)):
            _damage(model.graph, draw)
        onnx.save(model, tmp_path / "bad.onnx")
        try:
            imported(tmp_path / "bad.onnx")  # what is read at all computes what the file computes
        except InputError as error:
            said.append(error.message)
    assert len(said) > len(SEEDS) // 2
    assert all(text.startswith(str(tmp_path / "bad.onnx")) and text.isprintable() and len(text) < 1000 for text in said)


@pytest.mark.parametrize("location", ["beside.bin", "../../../../../../../../etc/hostname"])
@pytest.mark.parametrize("home", ["initializer", "node", "branch"])
def test_weights_in_other_files_are_not_opened(tmp_path: Path, location: str, home: str) -> None:
    """The location in a stranger's file may be any path."""
    model = onnx.load(write_vit(tmp_path / "vit.onnx"))
    graph = model.graph
    tensor = onnx.numpy_helper.from_array(np.ones(4, dtype=np.float32), "elsewhere")
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    constant = onnx.helper.make_node("Constant", [], ["elsewhere"], value=tensor)
    if home == "initializer":
        graph.initializer.append(tensor)
    elif home == "node":
        graph.node.insert(0, constant)
    else:
        value = onnx.helper.make_tensor_value_info("elsewhere", onnx.TensorProto.FLOAT, [4])
        inner = onnx.helper.make_graph([constant], "inner", [], [value])
        flag = onnx.helper.make_node("Constant", [], ["flag"], value=onnx.numpy_helper.from_array(np.array(True)))
        graph.node.insert(0, onnx.helper.make_node("If", ["flag"], ["x"], then_branch=inner, else_branch=inner))
        graph.node.insert(0, flag)
    (tmp_path / "beside.bin").write_bytes(bytes(16))
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="its weights are in other files"):
        imported(tmp_path / "bad.onnx")
