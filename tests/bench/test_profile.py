"""Profiles of three runtimes, from files and from real runs, grouped by the model's parts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import onnx
import pytest

from gamma_export.bench.parts import ADAPTIVE, ATTENTION, HEAD, MLP, OTHER, PARTS, PATCH, SHARED, Parts, parts_of
from gamma_export.bench.profile import (
    NodeTime,
    group,
    openvino_times,
    parse_inspector,
    parse_onnxruntime,
    parse_tensorrt,
    unattributed,
)
from gamma_export.bench.profile_run import profile_graph
from gamma_runtime.errors import InputError, UsageError
from tests.bench.graphs import graph
from tests.bench.test_roofline import TINY
from tests.calib.bundles import tiny

DATA = Path(__file__).parents[1] / "data" / "bench"
READ = parts_of(graph(TINY))


def call(start: int, *nodes: tuple[str, int]) -> list[dict[str, Any]]:
    """The events of one call: its nodes, then the call itself."""
    events: list[dict[str, Any]] = []
    at = start + 1
    for name, spent in nodes:
        shape = {"op_name": "MatMul", "input_type_shape": []}
        events.append({"cat": "Node", "name": f"{name}_kernel_time", "ts": at, "dur": spent, "ph": "X", "args": shape})
        at += spent + 1
    return [*events, {"cat": "Session", "name": "model_run", "ts": start, "dur": at - start, "ph": "X", "args": {}}]


def events() -> list[dict[str, Any]]:
    head = {"cat": "Session", "name": "session_initialization", "ts": 1, "dur": 50, "ph": "X", "args": {}}
    slow = call(100, ("patch/product", 9000), ("blocks.0/attn/qkv/MatMulAddFusion", 9000))
    first = call(20000, ("patch/product", 100), ("blocks.0/attn/qkv/MatMulAddFusion", 300), ("ReorderInput", 50))
    second = call(30000, ("patch/product", 200), ("blocks.0/attn/qkv/MatMulAddFusion", 500), ("blocks.1/moae/in", 400))
    return [head, *slow, *first, *second]


def test_onnxruntime_means_of_the_calls_behind_the_first() -> None:
    found = parse_onnxruntime(json.dumps(events()), READ)
    assert found.calls == 2
    assert found.parts[PATCH] == pytest.approx(0.15)
    assert found.parts[ATTENTION] == pytest.approx(0.4)
    assert (found.parts[SHARED], found.parts[ADAPTIVE]) == (pytest.approx(0.05), pytest.approx(0.15))
    assert found.parts[OTHER] == pytest.approx(0.025)
    assert found.shares[OTHER] == pytest.approx(0.025 / 0.775)
    assert found.call_milliseconds == pytest.approx((454 + 1104) / 2e3)
    assert [node.name for node in unattributed(found, READ)] == ["ReorderInput"]
    assert parse_onnxruntime(json.dumps(events()), READ, skip=2).parts[ATTENTION] == pytest.approx(0.5)


def test_onnxruntime_without_a_call() -> None:
    for text in ("[]", json.dumps(events()[:1]), json.dumps(call(0, ("patch/product", 5)))):
        with pytest.raises(InputError, match="no calls behind the first 1"):
            parse_onnxruntime(text, READ)
    with pytest.raises(InputError, match="no node that took time"):
        parse_onnxruntime(json.dumps(call(0) + call(50)), READ)


def test_openvino_means_without_the_calls_before() -> None:
    early = {"a": ("FullyConnected brgemm", 1000.0), "Multiply_41": ("MulAdd jit", 8.0)}
    late = {"a": ("FullyConnected brgemm", 550.0), "Multiply_41": ("MulAdd jit", 3.0), "b": ("Softmax", 4.0)}
    origins = {"a": ["blocks.0/attn/scores", "blocks.0/attn/mix"], "Multiply_41": ["Multiply_41", "ln_pre"]}
    found = openvino_times(early, late, (2, 4), origins)
    assert [node.milliseconds for node in found] == [pytest.approx(0.1), 0.0, pytest.approx(0.008)]  # never below 0
    assert found[0].origins == ("blocks.0/attn/scores", "blocks.0/attn/mix")
    assert found[2].origins == ("b",)
    profile = group("openvino", 2, found, READ, 0.2)
    assert (profile.parts[ATTENTION], profile.parts[OTHER]) == (pytest.approx(0.1), pytest.approx(0.008))
    for counts, broken in (((2, 2), late), ((-1, 3), late), ((1, 3), {"a": ("", -1.0)})):
        with pytest.raises(InputError, match="OpenVINO"):
            openvino_times(early, broken, counts, origins)


@pytest.mark.parametrize("schema", [10, 11])
def test_tensorrt_with_its_inspector(schema: int) -> None:
    inspected = parse_inspector((DATA / f"tensorrt-layers-{schema}.json").read_text(), READ)
    assert inspected.schema == schema
    assert inspected.kinds["_gemm_mha_v2_myl0_4"] == "gemm"
    found = parse_tensorrt((DATA / "tensorrt-profile.json").read_text(), READ, inspected)
    assert found.calls == 193
    assert found.milliseconds == pytest.approx(0.8)
    assert found.parts[PATCH] == pytest.approx(0.01 + 0.05 + 0.02 / 2)
    assert found.parts[ATTENTION] == pytest.approx(0.1 + 0.1 + 0.02 / 2)
    assert found.parts[MLP] == pytest.approx(0.1)
    assert (found.parts[SHARED], found.parts[ADAPTIVE]) == (pytest.approx(0.1), pytest.approx(0.3))
    assert found.shares[OTHER] == pytest.approx(0.02 / 0.8)
    assert [node.name for node in unattributed(found, READ)] == ["__myl_Move_myl0_7"]


def test_tensorrt_without_details() -> None:
    names = [row["name"] for row in json.loads((DATA / "tensorrt-profile.json").read_text())[1:]]
    inspected = parse_inspector(json.dumps({"Layers": names, "Bindings": []}), READ)
    for known in (inspected, None):
        found = parse_tensorrt((DATA / "tensorrt-profile.json").read_text(), READ, known)
        assert found.parts[OTHER] == pytest.approx(0.02 + 0.1 + 0.02)  # names that carry none of ours


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "[1]",
        '[{"name": "a", "averageMs": 1}]',
        '[{"count": 0}, {"name": "a", "averageMs": 1}]',
        '[{"count": 1.5}, {"name": "a", "averageMs": 1}]',
        '[{"count": 1}]',
        '[{"count": 1}, {"name": 5, "averageMs": 1}]',
        '[{"count": 1}, {"name": "a"}]',
        '[{"count": 1}, {"name": "a", "averageMs": -1}]',
        '[{"count": 1}, {"name": "a", "averageMs": Infinity}]',
    ],
)
def test_broken_profiles_of_tensorrt(text: str) -> None:
    with pytest.raises(InputError):
        parse_tensorrt(text, READ)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": {}}', '{"Layers": [5]}', '{"Layers": [{}]}', "[" * 99999])
def test_broken_answers_of_the_inspector(text: str) -> None:
    with pytest.raises(InputError, match="inspector"):
        parse_inspector(text, READ)


def test_cut_or_changed_files_are_read_or_refused() -> None:
    chance = random.Random(17)  # noqa: S311 - broken files, not secrets
    layers = json.loads((DATA / "tensorrt-layers-11.json").read_text())
    files: list[tuple[Callable[[str, Parts], object], str]] = [
        (parse_onnxruntime, json.dumps(events())),
        (parse_tensorrt, (DATA / "tensorrt-profile.json").read_text()),
        (parse_inspector, json.dumps(layers | {"Layers": layers["Layers"][:2]})),
    ]
    for parse, whole in files:
        broken = [whole[:end] for end in range(0, len(whole), 5)]
        for _ in range(500):
            at = chance.randrange(len(whole))
            broken.append(whole[:at] + chance.choice('09-.,:{}[]"etn \x00é') + whole[at + chance.randrange(3) :])
        for text in broken:
            try:
                parse(text, READ)
            except InputError:
                continue


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_real_profiles(backend: Literal["onnxruntime", "openvino"], precision: str, tmp_path: Path) -> None:
    model = tiny()
    entry = next(e for e in model.bundle.manifest.graphs if e.name == "joint" and e.precision == "fp32")
    path = model.bundle.folder / entry.onnx
    if precision == "int8":
        path = model.placed(tmp_path, model.recipe())
    found = profile_graph(path, backend, calls=3, threads=1)
    assert (found.source, found.calls) == (backend, 3)
    assert set(found.parts) == set(PARTS)
    assert all(found.parts[part] > 0 for part in (PATCH, ATTENTION, MLP, SHARED, ADAPTIVE, HEAD))
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.call_milliseconds is not None
    read = parts_of(onnx.load(path, load_external_data=False))
    ran = [node for node in found.nodes if node.milliseconds > 0]
    assert len(unattributed(found, read)) <= len(ran) / 10


def test_what_cannot_be_profiled(tmp_path: Path) -> None:
    model = tiny()
    entry = next(e for e in model.bundle.manifest.graphs if e.name == "joint" and e.precision == "fp32")
    path = model.bundle.folder / entry.onnx
    for wrong in ({"calls": 0}, {"batch": 0}, {"batch": 2}, {"threads": 0}):
        with pytest.raises(UsageError):
            profile_graph(path, "onnxruntime", **wrong)
    with pytest.raises(UsageError, match="no profiler"):
        profile_graph(path, "tensorrt")  # type: ignore[arg-type]
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(InputError):
        profile_graph(tmp_path / "bad.onnx", "openvino")


def test_a_node_in_several_parts() -> None:
    found = group("x", 1, [NodeTime("f", "", 1.0, ("patch/mul", "head/unit")), NodeTime("g", "", 0.0, ())], READ)
    assert (found.parts[PATCH], found.parts[HEAD], found.parts[OTHER]) == (0.5, 0.5, 0.0)
    with pytest.raises(InputError, match="took time"):
        group("x", 1, [], READ)
