"""gamma-calib explain: facts that can be worked out by hand, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from gamma_calib.explain import (
    Activation,
    Explanation,
    clipped_share,
    explain,
    massive_channels,
    outliers,
    quantile,
    record_of,
)
from gamma_calib.record import Histogram, Record, read_record, write_record
from gamma_export.exporter import export
from gamma_runtime.bundle import Bundle, open_bundle
from gamma_runtime.errors import InputError, IntegrityError
from tests import tiny_export
from tests.calib import loud
from tests.calib.loud import LOUD, SIZE, run
from tests.calib.records import KEY

KEPT = "blocks.1/moae/adaptive_in"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return loud.bundle()


@pytest.fixture(scope="module")
def record() -> Record:
    return read_record(loud.record_file())


@pytest.fixture(scope="module")
def found(bundle: Bundle, record: Record) -> Explanation:
    return explain(bundle, record)


def activation(found: Explanation, tensor: str) -> Activation:
    (row,) = (row for row in found.activations if row.tensor == tensor)
    return row


def made(values: Mapping[str, NDArray[np.float32]], high: float = 16.0) -> Record:
    """A record of tensors ``[rows, width]`` that are known."""
    histograms = {name: Histogram(0.0, high, np.histogram(np.abs(v), 2048, (0, high))[0]) for name, v in values.items()}
    return Record(KEY, 1, 1, histograms, channels={name: np.abs(v).max(axis=0) for name, v in values.items()})


def test_who_reads_what(found: Explanation) -> None:
    readers = {row.tensor: [group.name for group in row.groups] for row in found.activations}
    assert readers == {
        "patch/rows": ["patch/product"],
        "blocks.0/ln_1": ["blocks.0/attn/qkv"],
        "blocks.0/attn/rows": ["blocks.0/attn/out"],
        "blocks.0/ln_2": ["blocks.0/mlp/in"],
        "blocks.0/mlp/quick_gelu": ["blocks.0/mlp/out"],
        "blocks.1/ln_1": ["blocks.1/attn/qkv"],
        "blocks.1/attn/rows": ["blocks.1/attn/out"],
        "blocks.1/ln_2": ["blocks.1/moae/shared_in", "blocks.1/moae/adaptive_in"],
        "blocks.1/moae/shared_out": ["blocks.1/moae/shared_out"],
        "blocks.1/moae/adaptive_out": ["blocks.1/moae/adaptive_out"],
        "head/ln_post": ["head/proj"],
        "head/proj": ["head/adapter_in"],
        "head/adapter_in/relu": ["head/adapter_out"],
    }
    assert {row.tensor.split("/")[0] for row in found.activations if row.state == "never"} == {"patch", "head"}
    assert all(row.state in ("int8", "never") for row in found.activations)
    assert found.blocks == ["blocks.0", "blocks.1"]
    assert found.missing == ()


def test_facts_of_the_record(bundle: Bundle, record: Record, found: Explanation) -> None:
    """Once more, by other means."""
    quantisation = bundle.manifest.quantisation
    assert quantisation is not None
    assert (found.method, found.images, found.int8_share) == ("mse", 8, quantisation.int8_share)
    for row in found.activations:
        measured, peaks = row.measured, record.channels[row.tensor]
        assert measured is not None
        assert row.range == quantisation.ranges[row.tensor]
        assert row.range / 127 <= row.scale <= row.range / 127 * (1 + 2**-10)
        assert row.scale == np.float16(row.scale)
        assert measured.peak == peaks.max() == record.ranges["max"][row.tensor][1]
        histogram = record.histograms[row.tensor]
        middles = (np.arange(2048) + 0.5) * histogram.high / 2048
        total, near = histogram.counts.sum(), histogram.counts.max() / histogram.counts.sum()
        assert measured.clipped == pytest.approx(histogram.counts[middles > row.range].sum() / total, abs=near)
        assert (measured.clipped == 0) == (row.range >= measured.peak)
        assert measured.channels.count == len(peaks)
        assert measured.channels.above == sum(peak > 6 * np.median(peaks) for peak in peaks)
        assert [peak for _, peak in measured.channels.top] == sorted(peaks.tolist(), reverse=True)[:3]
        assert all(peaks[channel] == peak for channel, peak in measured.channels.top)
    assert any(row.measured and row.measured.clipped for row in found.activations)


def test_the_streams_loud_channel(found: Explanation) -> None:
    """As in CLIP: one channel is far above the others in every block, and goes through LayerNorm into the products."""
    assert list(found.stream) == ["blocks.0/attn/add", "blocks.0/mlp/add", "blocks.1/attn/add", "blocks.1/moae/add"]
    for measured in found.stream.values():
        assert measured.channels.top[0][0] == LOUD
        assert measured.channels.ratio is not None
        assert measured.channels.ratio > 6
        assert measured.peak == pytest.approx(SIZE, rel=0.5)
        assert (measured.clipped, measured.used) == (None, None)
    assert found.massive == (LOUD,)
    first = activation(found, "blocks.0/ln_1").measured
    assert first is not None
    assert first.channels.top[0][0] == LOUD


def test_weights(bundle: Bundle, found: Explanation) -> None:
    assert [row.tensor for row in found.weights] == [
        "blocks.0.attn.qkv.weight", "blocks.0.attn.out.weight", "blocks.0.mlp.in.weight", "blocks.0.mlp.out.weight",
        "blocks.1.attn.qkv.weight", "blocks.1.attn.out.weight", "blocks.1.moae.in.weight",
        "blocks.1.moae.out.shared_out.weight", "blocks.1.moae.out.adaptive_out.weight",
    ]  # fmt: skip
    (path,) = (bundle.folder / g.onnx for g in bundle.manifest.graphs if g.target == "cpu")
    model = onnx.load(path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for row in found.weights:
        codes, scales = stored[row.tensor], stored[f"{row.tensor}.scale_fp32"]
        assert row.shape == codes.shape
        assert row.zeros == pytest.approx((codes == 0).mean())
        assert (row.least_scale, row.largest_scale) == (scales.min(), scales.max())
        assert row.scale_ratio == pytest.approx(scales.max() / scales.min())
    assert found.weights[6].groups == ("blocks.1/moae/shared_in", "blocks.1/moae/adaptive_in")


def test_a_histogram_by_hand() -> None:
    """100 values: 60 in 0 to 1, 30 in 1 to 2, 10 in 2 to 3 of which 2.5 is the largest."""
    histogram = Histogram(0.0, 4.0, np.array([60, 30, 10, 0]))
    assert clipped_share(histogram, 2.5, 2.5) == 0
    assert clipped_share(histogram, 2.5, 3.0) == 0
    assert clipped_share(histogram, 2.5, 2.25) == pytest.approx(0.05)
    assert clipped_share(histogram, 2.5, 2.0) == pytest.approx(0.1)
    assert clipped_share(histogram, 2.5, 1.5) == pytest.approx(0.25)
    assert quantile(histogram, 2.5, 0.3) == pytest.approx(0.5)
    assert quantile(histogram, 2.5, 0.95) == pytest.approx(2.25)
    assert quantile(histogram, 2.5, 1.0) == 2.5
    gap = Histogram(0.0, 4.0, np.array([99, 0, 0, 1]))  # 3 lies on a bin's edge
    assert clipped_share(gap, 3.0, 2.9) == pytest.approx(0.01)
    assert quantile(gap, 3.0, 0.99) == 1


def test_one_outlier_channel_by_hand(bundle: Bundle) -> None:
    """1 everywhere, 10 in one value of channel 5, so that the median is 1 and one value in 640 is beyond the range."""
    values = np.full((10, 64), -1.0, np.float32)
    values[3, 5] = 10
    (row,) = (row for row in explain(bundle, made({"blocks.0/ln_1": values})).activations if row.measured)
    assert row.tensor == "blocks.0/ln_1"
    assert row.measured is not None
    channels = row.measured.channels
    assert (channels.count, channels.median, channels.ratio, channels.above) == (64, 1, 10, 1)
    assert channels.top == ((5, 10.0), (0, 1.0), (1, 1.0))
    assert 1 < row.range < 10
    assert row.measured.clipped == pytest.approx(1 / 640)
    assert row.measured.used == pytest.approx(1 / row.range, rel=0.01)  # a bin is 1/128


def test_channels_that_never_say_anything(bundle: Bundle) -> None:
    values = np.zeros((4, 64), np.float32)
    values[0, :2] = 3, 2
    found = explain(bundle, made({"blocks.0/mlp/add": values, "blocks.0/ln_1": np.zeros((4, 64), np.float32)}))
    channels = found.stream["blocks.0/mlp/add"].channels
    assert (channels.median, channels.ratio, channels.above) == (0, None, 2)
    silent = activation(found, "blocks.0/ln_1").measured
    assert silent is not None
    assert (silent.clipped, silent.channels.above, silent.channels.ratio) == (0, 0, None)


def test_outliers_and_massive_channels_by_hand() -> None:
    plain = np.ones(8, np.float32)

    def loud(*channels: int) -> NDArray[np.float32]:
        return np.where(np.isin(np.arange(8), channels), np.float32(7), plain)

    assert outliers(np.array([1, 6, 1, 6.5, 1, 20], np.float32) * 2) == []  # the median is 3.5 times 2
    assert outliers(np.array([1, 6, 1, 6.5, 1, 20, 1], np.float32)) == [5, 3]
    stream = {"blocks.0/attn/add": loud(1), "blocks.0/mlp/add": loud(1, 2), "blocks.1/mlp/add": loud(2)}
    assert massive_channels(stream) == (2,)  # 1 is in one block of two, though in two tensors
    stream |= {"blocks.2/moae/add": loud(1, 2, 3), "blocks.10/moae/add": loud(1)}
    assert massive_channels(stream) == (1, 2)
    assert massive_channels({}) == ()


def test_what_was_kept_back(bundle: Bundle, record: Record, tmp_path: Path) -> None:
    """The experts' first product, half of it in floating point: the graph that the manifest then goes with."""
    quantisation = bundle.manifest.quantisation
    assert quantisation is not None
    copy = shutil.copytree(bundle.folder, tmp_path / "x.gamma")
    kept = ["blocks.0/attn/qkv", KEPT]
    groups = [group for group in quantisation.groups if group not in kept]
    alone = {KEPT: 0.25, "blocks.1/moae/shared_in": 0.125}
    tiny_export.rewrite(copy, lambda d: d["quantisation"].update(groups=groups, kept=kept, sensitivity=alone))
    found = explain(open_bundle(copy), record)
    assert activation(found, "blocks.0/ln_1").state == "kept"
    row = activation(found, "blocks.1/ln_2")
    assert row.state == "partly"
    assert [(group.int8, group.alone) for group in row.groups] == [(True, 0.125), (False, 0.25)]
    assert found.weights[-3].groups == ("blocks.1/moae/shared_in",)


@pytest.mark.long
def test_the_graph_of_a_recipe_that_keeps_half_of_the_experts(bundle: Bundle, tmp_path: Path) -> None:
    """Exported so, its products are spelled apart."""
    quantisation = bundle.manifest.quantisation
    assert quantisation is not None
    recipe = shutil.copytree(bundle.folder, tmp_path / "recipe.gamma")
    kept = [KEPT, "blocks.1/moae/shared_out", "blocks.1/moae/adaptive_out"]
    groups = [group for group in quantisation.groups if group not in kept]
    tiny_export.rewrite(recipe, lambda data: data["quantisation"].update(groups=groups, kept=kept))
    chosen = tiny_export.options(precision=("int8",), recipe=recipe, gate=0.9, scene=tiny_export.SCENES[:1])
    assert export(loud.checkpoint(), tmp_path / "y.gamma", chosen).published
    found = explain(open_bundle(tmp_path / "y.gamma"), None)
    assert activation(found, "blocks.1/ln_2").state == "partly"
    assert activation(found, "blocks.1/moae/adaptive_out").state == "kept"
    assert found.weights[-1].tensor == "blocks.1.moae.in.shared_in.weight"
    assert found.weights[-1].groups == ("blocks.1/moae/shared_in",)


def test_the_table(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle.folder, "--quiet") == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    row = next(line.split() for line in lines if line.split()[:1] == ["blocks.1/ln_2"])
    assert row[:4] == ["blocks.1/ln_2", "yes", "moae/shared_in,", "moae/adaptive_in"]
    assert sum("blocks.0/attn/add" in line for line in lines) == 1
    assert lines[0].endswith("of the multiply-adds; ranges by mse from 8 photos")
    assert f"more than 6 times the median in more than half of the blocks: {LOUD}" in said.out
    assert "blocks.1.moae.out.adaptive_out.weight" in said.out


def test_json(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle.folder, "--json") == 0
    data = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert data["massive"] == [LOUD]
    assert len(data["activations"]) == 13
    assert data["activations"][1]["measured"]["channels"]["count"] == 64
    assert data["stream"]["blocks.1/moae/add"]["clipped"] is None
    assert data["weights"][0]["shape"] == [64, 192]
    assert data["plots"] == []


def test_without_a_record(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the manifest and the graph say is still there."""
    copy = shutil.copytree(bundle.folder, tmp_path / "x.gamma")
    assert record_of(open_bundle(copy)) is None
    assert run(copy) == 0
    said = capsys.readouterr()
    assert "no calibration record" in said.err
    assert "--record FILE" in said.err
    assert "blocks.1/moae/adaptive_out" in said.out
    assert "codes 0" in said.out
    assert "largest channels" not in said.out
    assert run(copy, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert {row["measured"] for row in data["activations"]} == {None}
    assert data["activations"][0]["range"] > 0
    assert data["missing"][0].startswith("no calibration record")
    assert run(copy, "--plot", tmp_path / "x.png") == InputError.exit_code
    assert "pictures need the calibration record" in capsys.readouterr().err
    assert run(copy, "--record", tmp_path / "none") == InputError.exit_code
    assert not (tmp_path / "x.png").exists()


def changed(bundle: Bundle, record: Record, what: str) -> Record:
    if what == "photos":
        return dataclasses.replace(record, key=dataclasses.replace(record.key, images="a" * 64))
    if what == "contract":
        return dataclasses.replace(record, key=dataclasses.replace(record.key, contract="b" * 64))
    ranges = {name: (low / 2, high / 2) for name, (low, high) in record.ranges["mse"].items()}
    return dataclasses.replace(record, ranges={**record.ranges, "mse": ranges})


@pytest.mark.parametrize("what", ["photos", "contract", "ranges"])
def test_the_record_of_another_calibration(bundle: Bundle, record: Record, tmp_path: Path, what: str) -> None:
    """Of a bundle without an fp32 graph the measured graph's digest says nothing; this does."""
    write_record(tmp_path / "record", changed(bundle, record, what))
    with pytest.raises(IntegrityError, match=rf"another calibration \((other|another) {what}\) than this bundle's"):
        record_of(bundle, tmp_path / "record")
    write_record(tmp_path / "record", record)
    same = record_of(bundle, tmp_path / "record")
    assert same is not None
    assert same.key == record.key


def test_a_record_that_lacks_something(bundle: Bundle, record: Record) -> None:
    """Of an earlier version, without the stream; and one that was interrupted."""
    names = [name for name in record.histograms if not name.endswith("/add")]
    old = dataclasses.replace(
        record,
        done=5,
        histograms={name: record.histograms[name] for name in names[1:]},
        channels={name: record.channels[name] for name in names[1:]},
    )
    found = explain(bundle, old)
    assert (found.massive, dict(found.stream)) == ((), {})
    interrupted, stream, lacks = found.missing
    assert "5 of 8 photos" in interrupted
    assert "no residual stream" in stream
    assert f"lacks {names[0]};" in lacks


def test_a_bundle_without_int8(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny_export.exported()) == InputError.exit_code
    said = capsys.readouterr().err
    assert "no int8 in it" in said
    assert "gamma-export --precision int8 --calib PHOTOS" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ["blocks.9/attn/qkv"]}, "no product blocks.9/attn/qkv"),
        ({"groups": ["head/proj"]}, "head.proj is float32, not int8"),
        ({"groups": ["patch/product"]}, "no stored patch.weight/cast_weight"),
        ({"ranges": {"blocks.0/ln_1": 0.0}}, "range of blocks.0/ln_1 is 0"),
    ],
)
def test_a_manifest_that_contradicts_its_graph(
    bundle: Bundle, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    copy = shutil.copytree(bundle.folder, tmp_path / "x.gamma")
    tiny_export.rewrite(copy, lambda data: data["quantisation"].update(change))
    with pytest.raises(IntegrityError, match=message):
        explain(open_bundle(copy), None)
