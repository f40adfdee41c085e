"""Speed of graphs side by side: real processes on the tiny graphs; what is judged is the arithmetic, not a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from gamma_calib.speed import Speed, measure_speed
from gamma_runtime.errors import EnvironmentFault
from tests.calib.bundles import tiny


def test_every_graph_has_its_turn_on_every_backend(tmp_path: Path) -> None:
    model = tiny()
    int8 = model.placed(tmp_path, model.recipe())
    (fp32,) = (g.onnx for g in model.bundle.manifest.graphs if g.name == "joint" and g.precision == "fp32")
    graphs = {"int8": int8, "fp32": model.bundle.folder / fp32}
    found = measure_speed(graphs, 1, ("onnxruntime", "openvino"), rounds=1, threads=1)
    assert [speed.backend for speed in found] == ["onnxruntime", "openvino"]
    assert all(set(speed.milliseconds) == set(graphs) and min(speed.milliseconds.values()) > 0 for speed in found)


def test_a_graph_that_does_not_run(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(EnvironmentFault, match=r"broken\.onnx on onnxruntime: its speed cannot be measured"):
        measure_speed({"int8": broken}, 1, ("onnxruntime",), rounds=1, threads=1)


@pytest.mark.parametrize(("fp32", "fp16", "pays"), [(105.1, 200.0, True), (104.9, 200.0, False), (300.0, 90.0, False)])
def test_int8_pays_from_five_percent_on(fp32: float, fp16: float, pays: bool) -> None:
    speed = Speed("onnxruntime", {"int8": 100.0, "fp32": fp32, "fp16": fp16})
    assert speed.pays is pays
    assert speed.times_as_fast("fp32") == pytest.approx(fp32 / 100)
