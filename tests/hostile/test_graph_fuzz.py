"""The walk through an ONNX file meets bytes that are no ONNX file: it may refuse them or find nothing, never more."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import onnx
import pytest
from onnx import helper

from gamma_runtime.errors import GammaError, InputError
from gamma_runtime.onnx_scan import check_graph_file
from tests import tiny_export
from tests.tiny_export import graph


@pytest.fixture
def file(tmp_path: Path) -> Path:
    bundle = tiny_export.copy(tmp_path / "b.gamma")
    return bundle / graph(bundle)["onnx"]


def _verdict(file: Path, weights: str, size: int) -> int | None:
    """The exit code that our own look at the file gives; None when it finds nothing."""
    try:
        check_graph_file(file, weights, size)
    except GammaError as error:
        assert error.message.isprintable()  # noqa: PT017 - the code is looked at by the callers
        return error.exit_code
    return None


def test_a_graph_that_was_cut_anywhere(file: Path) -> None:
    good, name = file.read_bytes(), graph(file.parent)["weights"]
    size = (file.parent / name).stat().st_size
    parsed = 0
    for length in range(1, len(good), 97):
        file.write_bytes(good[:length])
        # None: cut between two fields. Digests find that, and the graph's own inputs and outputs.
        parsed += _verdict(file, name, size) is None
    assert parsed < 30


def _nested(levels: int) -> bytes:
    inner = helper.make_graph([], "leaf", [], [])
    for _ in range(levels):
        node = helper.make_node("If", ["x"], ["y"], "if", then_branch=inner)
        inner = helper.make_graph([node], "level", [], [])
    return bytes(onnx.ModelProto(graph=inner).SerializeToString())


@pytest.mark.parametrize(
    "content",
    [
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a graph of 2**63 bytes
        b"\x3a\x05ab",  # longer than the file
        b"\xff" * 11,  # a number without an end
        b"\x3b\x3c",  # groups, which proto3 does not have
        b"\x39\x01",  # eight bytes that are not there
        b"\x02\x00",  # field 0
        _nested(20),
    ],
    ids=["huge length", "length", "varint", "group", "fixed64", "field zero", "nested"],
)
def test_malformed_protobuf_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "graph.onnx"
    file.write_bytes(content)
    with pytest.raises(InputError, match="not an ONNX file"):
        check_graph_file(file, "weights.bin", 0)


def _mutated(good: bytes, numbers: random.Random) -> bytes:
    content = bytearray(good)
    for _ in range(numbers.choice((1, 1, 2, 8))):
        place = numbers.randrange(len(content))
        action = numbers.randrange(4)
        if action == 0:
            content[place] ^= 1 << numbers.randrange(8)
        elif action == 1:
            content[place] = numbers.randrange(256)
        elif action == 2:
            del content[place : place + numbers.randrange(1, 20)]
        else:
            content[place:place] = numbers.randbytes(numbers.randrange(1, 20))
    return bytes(content)


def _fuzz(file: Path, rounds: int, seed: int) -> None:
    good, weights = file.read_bytes(), graph(file.parent)["weights"]
    size = (file.parent / weights).stat().st_size
    numbers = random.Random(seed)  # noqa: S311 - a repeatable choice, no secret
    outcomes: Counter[int | None] = Counter()
    for _ in range(rounds):
        file.write_bytes(_mutated(good, numbers))
        outcomes[_verdict(file, weights, size)] += 1
    assert set(outcomes) == {None, 3, 4}, outcomes  # nothing but these, and each of them was met


def test_mutated_graphs_give_only_our_errors(file: Path) -> None:
    _fuzz(file, 400, 3)


@pytest.mark.long
def test_mutated_graphs_give_only_our_errors_for_longer(file: Path) -> None:
    _fuzz(file, 30_000, 4)


def test_names_from_the_file_are_escaped(tmp_path: Path) -> None:
    """Found by the long fuzz: a domain with a line break reached the terminal as it was."""
    from onnx import helper

    node = helper.make_node("Evil", ["x"], ["y"], name="a\x1bname", domain="a\n\x02domain")
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="outside the ONNX standard") as caught:
        check_graph_file(path, "weights.bin", 0)
    assert caught.value.message.isprintable()
