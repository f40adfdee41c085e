"""Work counted from graphs: a tiny one by hand, the full size against its known number; and the machine's peak."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import onnx
import pytest

from gamma_calib.products import count_macs
from gamma_export.bench.parts import ADAPTIVE, ATTENTION, HEAD, MLP, OTHER, PARTS, PATCH, SHARED
from gamma_export.bench.peak import Peak, cache_bytes, copy_bytes, measure_peak
from gamma_export.bench.roofline import Work, attained, count_file, count_work, part_attained
from gamma_runtime.errors import EnvironmentFault, InputError, UsageError
from gamma_training.dims import FULL_SIZE, GammaDims
from tests.bench.graphs import TOKENS, graph
from tests.calib.bundles import tiny

VISION = dataclasses.replace(FULL_SIZE.vision, width=64, hidden=256, layers=2, heads=1, first_moae=1)
TINY = dataclasses.replace(FULL_SIZE, vision=VISION)
PEAK = Peak(gmacs=50.0, gbytes=20.0, threads=1, copy_bytes=128 << 20, cache_bytes=32 << 20)


def macs(dims: GammaDims) -> dict[str, int]:
    """Multiply-adds of one crop by arithmetic: a row of the patch product and of the gates' bias each is ours."""
    tower, rows = dims.vision, TOKENS
    width, deep = tower.width, tower.layers - tower.first_moae
    mlp = 2 * rows * width * tower.hidden
    gate = rows * width * tower.experts + rows * (1 + tower.experts) * width  # logits; then the experts' biases
    biases = rows * width  # of those, the shared expert's
    return {
        PATCH: rows * dims.patch**2 * 3 * width,
        ATTENTION: tower.layers * (4 * rows * width * width + 2 * rows * rows * width),
        MLP: tower.first_moae * mlp,
        SHARED: deep * (mlp + biases),
        ADAPTIVE: deep * (tower.experts * mlp + gate - biases),
        HEAD: width * dims.embed + 2 * dims.embed * dims.adapter + dims.embed * dims.levels,
        OTHER: 0,
    }


def nodes(work: Work) -> dict[str, tuple[int, int, int, int]]:
    return {node.name: (node.macs, node.weights, node.inputs, node.outputs) for node in work.nodes}


def test_full_size_is_34_30_gmac_a_crop() -> None:
    by_hand = macs(FULL_SIZE)
    work = count_work(graph(FULL_SIZE, crops=1))
    assert {part: found.macs for part, found in work.parts.items()} == by_hand
    assert round(work.macs / 1e9, 2) == 34.30
    # The model itself: 34,298.6 MMAC. Ours has 197 rows of patches for 196, and the experts' biases as a product.
    extra = 16 * 16 * 3 * 768 + 6 * TOKENS * 4 * 768
    assert round((work.macs - extra) / 1e6, 1) == 34298.6
    assert round(100 * (by_hand[SHARED] + by_hand[ADAPTIVE]) / work.macs, 1) == 65.1  # 65.0 without the gates
    assert work.weights / 4e6 == pytest.approx(171.47, abs=0.05)  # million parameters


def test_a_tiny_graph_node_by_node() -> None:
    work = count_work(graph(TINY, crops=1))
    found, four = nodes(work), 4
    assert work.macs == sum(macs(TINY).values()) == count_macs(graph(TINY, crops=1))
    assert found["patch/product"] == (197 * 768 * 64, four * 768 * 64, four * 197 * 768, four * 197 * 64)
    assert found["blocks.0/attn/qkv/bias"] == (0, four * 192, four * 197 * 192, four * 197 * 192)
    assert found["blocks.0/attn/scores"] == (197 * 197 * 64, 0, four * 2 * 197 * 64, four * 197 * 197)
    assert found["blocks.1/moae/in"] == (197 * 64 * 1024, four * 64 * 1024, four * 197 * 64, four * 197 * 1024)
    assert found["blocks.0/attn/split"] == (0, 3 * 8, four * 197 * 192, four * 197 * 192)  # its sizes are weights
    assert found["patch/grid"] == (0, 0, 0, 0)  # a view
    assert found["crops/cast_pixels"] == (0, 0, 224 * 224 * 3, four * 224 * 224 * 3)
    assert work.ends == 224 * 224 * 3 + four + four
    assert work.least_bytes < work.most_bytes


@pytest.mark.parametrize("options", [{}, {"precision": "fp16", "attention": "op"}, {"precision": "bf16"}])
def test_batch_and_crops_multiply(options: dict[str, str]) -> None:
    one = count_work(graph(TINY, crops=1, batch=(1, 4, 8), **options), 1)
    many = count_work(graph(TINY, crops=5, batch=(1, 4, 8), **options), 8)
    assert (many.batch, many.crops) == (8, 5)
    assert many.macs == 40 * one.macs
    assert abs(many.weights - one.weights) < 100  # shapes in constants
    assert many.parts[ADAPTIVE].macs == 40 * macs(TINY)[ADAPTIVE]


@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"precision": "fp16", "attention": "op"}])
def test_parts_add_up_and_nothing_is_left_over(options: dict[str, str]) -> None:
    work = count_work(graph(TINY, **options))
    assert set(work.parts) == set(PARTS)
    assert sum(part.macs for part in work.parts.values()) == work.macs
    assert sum(part.bytes for part in work.parts.values()) == pytest.approx(work.most_bytes, abs=len(PARTS))
    assert work.parts[OTHER].bytes == 0


def test_products_agree_with_the_shapes_that_onnx_infers() -> None:
    """The same count from shapes alone: output elements times the inner dimension."""
    model = graph(TINY, crops=3, scenes=2)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in inferred.value_info:
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    counted = {n.name: math.prod(shapes[n.output[0]]) * shapes[n.input[0]][-1] for n in products}
    assert counted == {node.name: node.macs for node in count_work(model).nodes if node.macs}


def test_eight_bits_are_counted_alike(tmp_path: Path) -> None:
    """Weights behind casts and dequantisation, split experts: the same products, fewer bytes."""
    model = tiny()
    whole = count_work(model.source.model)
    for form in ("cpu", "tensorrt"):
        (tmp_path / form).mkdir()
        eight = count_file(model.placed(tmp_path / form, model.recipe(), form))
        assert eight.macs == whole.macs
        assert {part: work.macs for part, work in eight.parts.items()} == {
            part: work.macs for part, work in whole.parts.items()
        }
        assert eight.weights < 0.75 * whole.weights  # of a tiny model the head, in fp32, is the larger part
        assert eight.parts[OTHER].bytes == 0


def test_what_is_no_graph_of_ours(tmp_path: Path) -> None:
    static = graph(TINY, batch=(2, 2, 2))
    assert count_work(static, 2).batch == 2
    for batch in (0, 1, 3):
        with pytest.raises(UsageError, match="a batch of"):
            count_work(static, batch)
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xff not a graph")
    with pytest.raises(InputError, match=r"bad\.onnx"):
        count_file(tmp_path / "bad.onnx")
    with pytest.raises(InputError, match=r"gone\.onnx"):
        count_file(tmp_path / "gone.onnx")
    with pytest.raises(InputError, match="not made by gamma-export"):
        count_work(onnx.ModelProto())
    odd = graph(TINY)
    next(node for node in odd.graph.node if node.name == "patch/mul").op_type = "Strange"
    with pytest.raises(InputError, match="unweighted"):
        count_work(odd)


def test_share_of_the_roof() -> None:
    work = Work(1, 1, (), {}, weights=10**9, ends=0)
    memory = attained(work, PEAK, 0.1)
    assert (memory.bound, memory.share) == ("memory", pytest.approx(0.5))
    work = count_work(graph(FULL_SIZE, crops=10))
    found = attained(work, PEAK, 10.0)
    assert found.bound == "compute"
    assert found.gmacs == pytest.approx(34.30, abs=0.01)
    assert found.share == pytest.approx(34.30 / 50, abs=0.001)
    assert found.roof_seconds == pytest.approx(6.86, abs=0.01)
    parts = part_attained(work, PEAK, {ATTENTION: 4000.0, HEAD: 0.0})
    assert list(parts) == [ATTENTION]
    assert parts[ATTENTION] == pytest.approx(10 * macs(FULL_SIZE)[ATTENTION] / 4 / 50e9)
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="a call of"):
            attained(work, PEAK, seconds)


def test_the_peak_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = measure_peak(1, seconds=0.01, size=1 << 20)
    assert peak.gmacs > 0
    assert peak.gbytes > 0
    assert (peak.threads, peak.copy_bytes) == (1, 1 << 20)
    for bad in ({"seconds": 0.0}, {"seconds": math.nan}, {"size": 0}, {"threads": 0}):
        with pytest.raises(UsageError):
            measure_peak(**bad)  # type: ignore[arg-type]
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(EnvironmentFault, match="peak"):
        measure_peak(1, seconds=0.01, size=1)


def test_how_much_is_copied(tmp_path: Path) -> None:
    mib = 1 << 20
    assert (cache_bytes(tmp_path), copy_bytes(tmp_path)) == (0, 64 * mib)
    cache = tmp_path / "sys/devices/system/cpu/cpu0/cache"
    for index, size in enumerate(("48K", "2048K", "32M", "?", "")):
        (cache / f"index{index}").mkdir(parents=True)
        (cache / f"index{index}" / "size").write_text(f"{size}\n")
    assert (cache_bytes(tmp_path), copy_bytes(tmp_path)) == (32 * mib, 128 * mib)
    (cache / "index3" / "size").write_text("1G\n")
    assert copy_bytes(tmp_path) == 512 * mib
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2097152 kB\n")
    assert copy_bytes(tmp_path) == 256 * mib
    assert PEAK.beyond_cache
    assert not dataclasses.replace(PEAK, cache_bytes=0).beyond_cache
    assert not dataclasses.replace(PEAK, cache_bytes=PEAK.copy_bytes).beyond_cache
