"""SmoothQuant: the same function in floating point, and less of an error in 8 bits where a channel is loud."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from gamma_calib.record import Record
from gamma_calib.smooth import readers, smoothed_ranges, smoothing
from gamma_calib.trials import Trials
from gamma_runtime.errors import UsageError
from tests.calib.bundles import Tiny, tiny
from tests.calib.records import KEY
from tests.calib.test_qdq import error, stream

NORMS = ["blocks.0.ln_1", "blocks.0.ln_2", "blocks.1.ln_1", "blocks.1.ln_2"]


@pytest.fixture(scope="module")
def model() -> Tiny:
    return tiny()


def test_a_factor_for_every_channel_of_every_norm(model: Tiny) -> None:
    factors = smoothing(model.source, model.record, 0.5)
    assert sorted(factors) == NORMS
    for norm, values in factors.items():
        peaks = model.record.channels["/".join(norm.rsplit(".", 1))].astype(np.float64)
        held = {tensor.name for tensor in model.source.model.graph.initializer}
        weights = [name for name in readers(norm) if name in held and "gate" not in name]
        loud = np.max([np.abs(model.source.value(name)).max(axis=1) for name in weights], axis=0)
        wanted = np.sqrt(peaks / loud)
        wanted /= math.exp(np.log(wanted).mean())
        np.testing.assert_allclose(values, wanted, rtol=1e-3)


def test_no_smoothing_of_the_loud_where_alpha_is_0(model: Tiny) -> None:
    """Then a factor follows the weights alone."""
    factors = smoothing(model.source, model.record, 0.0)
    loud = np.abs(model.source.value("blocks.0.attn.qkv.weight")).max(axis=1)
    product = np.array(factors["blocks.0.ln_1"]) * loud
    np.testing.assert_allclose(product, product[0], rtol=2e-3)


def test_silent_channels_keep_their_1(model: Tiny) -> None:
    channels = dict(model.record.channels)
    channels["blocks.0/ln_1"] = np.concatenate([np.zeros(3, np.float32), channels["blocks.0/ln_1"][3:]])
    factors = smoothing(model.source, dataclasses.replace(model.record, channels=channels), 0.5)
    assert factors["blocks.0.ln_1"][:3] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("form", ["cpu", "tensorrt"])
def test_it_is_the_same_function(model: Tiny, tmp_path: Path, form: str) -> None:
    """With one product in 8 bits that no LayerNorm feeds, smoothing changes nothing but the rounding to fp16."""
    plain = model.recipe("blocks.1/attn/out")
    smooth = dataclasses.replace(plain, smooth=smoothing(model.source, model.record, 0.5))
    folders = []
    for name in ("plain", "smooth"):
        (tmp_path / name).mkdir()
        folders.append(tmp_path / name)
    found = stream(model.placed(folders[1], smooth, form), model)
    assert error(found, stream(model.placed(folders[0], plain, form), model)) < 2e-3
    assert (
        len({path.name for folder in folders for path in folder.glob("weights-*")}) == 2
    )  # other weights all the same


def test_forgetting_one_reader_would_be_noticed(model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gamma_calib import qdq

    smooth = dataclasses.replace(model.recipe("blocks.1/attn/out"), smooth=smoothing(model.source, model.record, 0.5))
    plain = stream(model.placed(tmp_path, model.recipe("blocks.1/attn/out")), model)
    monkeypatch.setattr(qdq, "readers", lambda norm: [name for name in readers(norm) if "gate" not in name])
    (tmp_path / "broken").mkdir()
    assert error(stream(model.placed(tmp_path / "broken", smooth), model), plain) > 2e-3


def test_ranges_are_those_of_the_smoothed_channels() -> None:
    peaks = np.array([1.0, 40.0, 2.0], np.float32)
    record = Record(KEY, 4, 4, channels={"blocks.0/ln_1": peaks, "blocks.0/attn/rows": peaks})
    ranges = {"blocks.0/ln_1": 30.0, "blocks.0/attn/rows": 30.0}
    found = smoothed_ranges(ranges, record, {"blocks.0.ln_1": (1.0, 10.0, 0.5)})
    assert found == {"blocks.0/ln_1": 4.0, "blocks.0/attn/rows": 30.0}


def test_trials_of_smoothed_recipes_need_the_fp16_graph(model: Tiny) -> None:
    recipe = dataclasses.replace(model.recipe(), smooth={"blocks.0.ln_1": (1.0,) * 64})
    wanted = np.zeros((len(model.crops), 2))
    with pytest.raises(UsageError, match="it needs the fp16 graph"):
        Trials(model.source, model.crops, wanted, threads=1).measure(recipe, "all")
