"""Names of nodes, whole, fused and strange, to parts of the model."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gamma_export.bench.parts import ADAPTIVE, ATTENTION, HEAD, MLP, OTHER, PARTS, PATCH, SHARED, Parts, parts_of
from tests.bench.graphs import graph
from tests.bench.test_roofline import TINY

READ = Parts({"blocks.6": 3}, {"blocks.6/attn/qkv": 300, "blocks.6/moae/in": 100})
BOTH = {SHARED: Fraction(1, 4), ADAPTIVE: Fraction(3, 4)}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("crops/cast_pixels", PATCH),
        ("frame/crop_3", PATCH),
        ("patch/product", PATCH),
        ("patch.weight/cast_weight", PATCH),
        ("tokens/add", PATCH),
        ("ln_pre", PATCH),
        ("blocks.0/ln_1", ATTENTION),
        ("blocks.0/ln_1/quantised", ATTENTION),
        ("blocks.11/attn/softmax/cast_product", ATTENTION),
        ("blocks.0.attn.qkv.weight/dequantised", ATTENTION),
        ("blocks.0/ln_2", MLP),
        ("blocks.5/mlp/quick_gelu/QuickGeluFusion/", MLP),
        ("blocks.6/moae/shared_out/quantised", SHARED),
        ("blocks.6/moae/out/shared_rows", SHARED),
        ("blocks.6.moae.out.shared_out.weight/dequantised", SHARED),
        ("blocks.6/moae/adaptive_out", ADAPTIVE),
        ("blocks.6/moae/out/scaled/DequantizationMultiply", ADAPTIVE),
        ("blocks.6/moae/gate/bias/cast_softmax", ADAPTIVE),
        ("blocks.6/moae/gates", ADAPTIVE),
        ("blocks.6/moae/gate_column", ADAPTIVE),
        ("blocks.6/moae/softmax", ADAPTIVE),
        ("head/proj", HEAD),
        ("score", HEAD),
        ("score/sink_port_0", HEAD),
        ("crop_scores", HEAD),
    ],
)
def test_one_part(name: str, part: str) -> None:
    assert READ.of(name) == {part: 1}


@pytest.mark.parametrize("name", ["in", "out", "gated", "gated_rows", "quick_gelu", "bias", "biased", "add", "experts"])
def test_merged_experts_are_divided(name: str) -> None:
    assert READ.of(f"blocks.6/moae/{name}") == BOTH
    assert READ.of("blocks.6/ln_2") == BOTH
    assert Parts().of(f"blocks.6/moae/{name}") is None  # how many experts is not known


@pytest.mark.parametrize(
    "name", ["", "MVN_34", "Multiply_41", "blocks.x/attn", "blocks.1", "blocks.1/", "scores", "headless", "/score", "é"]
)
def test_names_that_say_nothing(name: str) -> None:
    assert READ.of(name) is None
    assert READ.of_all([name]) == {OTHER: 1}


def test_fused_nodes_go_by_their_products_then_evenly() -> None:
    assert READ.of_all(["Multiply_41", "ln_pre"]) == {PATCH: 1}
    assert READ.of_all(["blocks.6/attn/qkv", "blocks.6/ln_1", "patch/mul"]) == {ATTENTION: 1}
    found = READ.of_all(["blocks.6/attn/qkv", "blocks.6/moae/in"])
    assert found == {ATTENTION: Fraction(3, 4), SHARED: Fraction(1, 16), ADAPTIVE: Fraction(3, 16)}
    assert READ.of_all(["patch/mul", "head/unit"]) == {PATCH: Fraction(1, 2), HEAD: Fraction(1, 2)}
    assert READ.of_all([]) == {OTHER: 1}


def test_names_inside_names() -> None:
    assert READ.origins("blocks.0/attn/qkv + blocks.0/attn/qkv/bias") == ("blocks.0/attn/qkv", "blocks.0/attn/qkv/bias")
    assert READ.origins("PWN(PWN(head/unit, x), head/length)") == ("head/unit", "head/length")
    assert READ.origins("Reformatting CopyNode for Input Tensor 0 to patch/product") == ("patch/product",)
    assert READ.origins("{ForeignNode[patch/sub...score]}") == ()
    assert READ.origins("__myl_MulAddCast_myl0_3") == ()


def test_every_node_of_a_graph_has_a_part() -> None:
    model = graph(TINY, precision="fp16")
    read = parts_of(model)
    assert read.experts == {"blocks.1": 3}
    for node in model.graph.node:
        shares = read.of(node.name)
        assert shares is not None, node.name
        assert sum(shares.values()) == 1
        assert set(shares) <= set(PARTS)
