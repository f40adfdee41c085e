"""Recipes tried, remembered, and searched until the gate holds; on a tiny Gamma, with the real graphs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from gamma_calib.compare import Gate, compare
from gamma_calib.products import count_macs
from gamma_calib.search import best_method, search, sensitivity
from gamma_calib.trials import Outcome, Trials
from gamma_runtime import backends
from tests.calib.bundles import tiny

FINE = Gate(1.0, 1.0, -1.0)
NONE = Gate(0.0, 0.0)


@pytest.fixture(scope="module")
def wanted() -> np.ndarray:
    """The fp32 graph's own scores [P, K]."""
    model = tiny()
    (graph,) = (g for g in model.bundle.manifest.graphs if g.name == "joint" and g.precision == "fp32")
    with backends.create("onnxruntime", model.bundle.folder / graph.onnx, threads=1) as backend:
        scores = [backend.infer(crop[None, None]).crop_scores[0, 0] for crop in model.crops]
    return np.array(scores, np.float64)


@pytest.fixture
def trials(wanted: np.ndarray, tmp_path: Path) -> Trials:
    model = tiny()
    return Trials(model.source, model.crops, wanted, model.half, file=tmp_path / "trials.json", threads=1)


def forbidden(*_: object) -> None:
    raise AssertionError("this trial was run before")


def test_a_trial_is_what_the_graph_scores(trials: Trials, wanted: np.ndarray, tmp_path: Path) -> None:
    model = tiny()
    outcome = trials.measure(model.recipe(), "all")
    with backends.create("onnxruntime", model.placed(tmp_path, model.recipe()), threads=1) as backend:
        found = np.array([backend.infer(crop[None, None]).crop_scores[0, 0] for crop in model.crops], np.float64)
    assert outcome.scenes == tuple(compare(wanted[:, k], found[:, k]) for k in range(wanted.shape[1]))
    assert outcome.worst.max_abs > 0


def test_trials_leave_nothing_behind(trials: Trials) -> None:
    before = sorted(path.name for path in tiny().source.folder.iterdir())
    trials.measure(tiny().recipe(), "all")
    assert sorted(path.name for path in tiny().source.folder.iterdir()) == before


def test_a_trial_is_run_once(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny().recipe()
    first = trials.measure(recipe, "all")
    other = trials.measure(tiny().recipe("blocks.0/attn/qkv"), "one")
    monkeypatch.setattr(Trials, "_run", forbidden)
    again = dataclasses.replace(trials)  # as after a kill: a new process, the same file
    assert again.measure(recipe, "all") == first
    assert again.measure(tiny().recipe("blocks.0/attn/qkv"), "one") == other != first


@pytest.mark.parametrize("change", ["recipe", "inputs", "wanted", "count", "form", "half"])
def test_a_trial_of_something_else_is_run(
    trials: Trials, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    recipe = tiny().recipe()
    trials.measure(recipe, "all")
    monkeypatch.setattr(Trials, "_run", forbidden)
    changed, how = trials, {}
    if change == "recipe":
        recipe = dataclasses.replace(recipe, ranges=dict(recipe.ranges) | {"blocks.0/ln_1": 1.0})
    elif change == "inputs":
        changed = dataclasses.replace(trials, inputs=trials.inputs[::-1])
    elif change == "wanted":
        changed = dataclasses.replace(trials, wanted=wanted + 1)
    elif change == "half":
        changed = dataclasses.replace(trials, half=None)
    else:
        how = {"count": 2} if change == "count" else {"form": "tensorrt"}
    with pytest.raises(AssertionError, match="was run before"):
        changed.measure(recipe, "all", **how)  # type: ignore[arg-type]


BROKEN = [b"", b"{", b"[]", b'{"a": 3}', b'{"a": {}}', b"\xff" * 9]
BROKEN += [b'{"a": {"scenes": [{"max_abs": 1}], "milliseconds": 1}}']


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_file_counts_as_none(trials: Trials, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    assert trials.file is not None
    trials.file.write_bytes(content)
    trials.measure(tiny().recipe(), "all")
    assert "measuring anew" in capsys.readouterr().err
    assert len(json.loads(trials.file.read_bytes())) == 1


def test_each_group_alone(trials: Trials) -> None:
    model = tiny()
    rows = sensitivity(trials, model.products, model.recipe(), None)
    assert {row.group for row in rows} == {product.group for product in model.products}
    assert all(row.outcome.mean_abs > 0 for row in rows)
    assert [row.cost for row in rows] == sorted((row.cost for row in rows), reverse=True)
    (alone,) = (row for row in rows if row.group == "blocks.0/mlp/in")
    assert alone.outcome == trials.measure(model.recipe("blocks.0/mlp/in"), "again")


def test_the_search_stops_at_once_where_the_gate_holds(trials: Trials) -> None:
    model = tiny()
    total = count_macs(model.source.model)
    found = search(trials, model.products, model.recipe(), FINE, total)
    assert found.passed
    assert found.recipe.groups == {product.group for product in model.products}
    assert (len(found.points), found.alone, found.points[0].kept) == (1, (), ())
    assert found.points[0].int8_share == pytest.approx(sum(p.macs for p in model.products) / total)


def test_the_search_sends_back_the_most_expensive_first(trials: Trials) -> None:
    model = tiny()
    found = search(trials, model.products, model.recipe(), NONE, count_macs(model.source.model))
    assert not found.passed
    assert len(found.recipe.groups) == 1
    assert len(found.points) == len(model.products)
    order = [row.group for row in found.alone]
    for index, point in enumerate(found.points):
        assert set(point.kept) == set(order[:index])
    shares = [point.int8_share for point in found.points]
    assert shares == sorted(shares, reverse=True)


def test_a_gate_between_moves_some_back(trials: Trials) -> None:
    model = tiny()
    every = trials.measure(model.recipe(), "all")
    gate = Gate(1.0, max(scene.mean_abs for scene in every.scenes) * 0.7, -1.0)
    found = search(trials, model.products, model.recipe(), gate, count_macs(model.source.model))
    assert found.passed
    assert 1 <= len(found.points[-1].kept) < len(model.products)
    assert not any(point.passed for point in found.points[:-1])


def test_the_gate_holds_on_every_backend_and_for_tensorrt(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, str]] = []
    run = Trials._run

    def noted(self: Trials, recipe: object, label: str, count: int | None, form: str, backend: str) -> Outcome:
        ran.append((form, backend))
        return run(self, recipe, label, count, form, backend)  # type: ignore[arg-type]

    monkeypatch.setattr(Trials, "_run", noted)
    both = dataclasses.replace(trials, backends=("onnxruntime", "openvino"))
    assert both.everywhere(tiny().recipe(), "all", FINE)[1]
    assert ran == [("cpu", "onnxruntime"), ("cpu", "openvino"), ("tensorrt", "onnxruntime")]
    ran.clear()
    assert not both.everywhere(tiny().recipe(), "all", NONE)[1]
    assert ran == []  # known, and the first one says no


def test_the_best_method_is_the_one_with_the_least_shift(trials: Trials) -> None:
    model = tiny()
    best, found = best_method(trials, model.record, model.recipe(), ("max", "percentile", "mse"))
    assert found[best] == min(found.values())
    assert found["mse"] == trials.measure(model.recipe(method="mse"), "mse").mean_abs
    assert len(set(found.values())) == 3
