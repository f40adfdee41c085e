"""Thresholds from histograms, against the samples themselves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from gamma_calib.ranges import METHODS, PERCENTILE, SMALLEST_SCALE, threshold, with_ranges
from gamma_calib.record import Histogram, Record
from gamma_runtime.errors import InputError, UsageError
from tests.calib.records import KEY

Samples = NDArray[np.float64]
COUNT = 200_000
BINS = 2048


def _drawn() -> dict[str, Samples]:
    numbers = np.random.default_rng(0)
    normal, laplace = np.abs(numbers.normal(size=COUNT)), np.abs(numbers.laplace(size=COUNT))
    return {
        "normal": normal,
        "laplace": laplace,
        "uniform": numbers.uniform(0, 1.5, COUNT),
        "outliers": np.concatenate([normal, np.full(10, 20.0)]),
        "far outlier": np.concatenate([normal, [100.0]]),
        "zeros": np.where(numbers.random(COUNT) < 0.99, 0, laplace),
        "relu": np.maximum(numbers.normal(size=COUNT), 0),
        "one value": np.full(COUNT, 0.7),
    }


DRAWN = _drawn()


def histogram(samples: Samples, bins: int = BINS) -> Histogram:
    """As the collector makes it: R is the first power of two above the largest value."""
    high = float(2.0 ** (np.floor(np.log2(samples.max())) + 1)) if samples.any() else 2.0**-100
    return Histogram(0.0, high, np.histogram(samples, bins, (0, high))[0])


def found(samples: Samples, method: str, levels: int = 127) -> float:
    """Of 2048 bins, of which ONNX Runtime gets 512: its time grows with their square."""
    made = histogram(samples, 512 if method == "entropy" else BINS)
    return threshold(made, float(samples.max()), method, levels)


def error(samples: Samples, end: float, levels: int = 127) -> float:
    """Mean squared error of quantising the samples themselves."""
    step = end / levels
    return float(np.mean((np.minimum(np.rint(samples / step), levels) * step - samples) ** 2))


@pytest.mark.parametrize("name", DRAWN)
def test_max_is_the_peak(name: str) -> None:
    assert found(DRAWN[name], "max") == DRAWN[name].max()


@pytest.mark.parametrize("name", DRAWN)
def test_percentile_is_that_of_the_samples(name: str) -> None:
    samples, end = DRAWN[name], found(DRAWN[name], "percentile")
    width = histogram(samples).high / BINS
    assert abs(end - np.percentile(samples, PERCENTILE, method="inverted_cdf")) <= width
    assert np.mean(samples <= end + width) >= PERCENTILE / 100 > np.mean(samples <= end - width)


def test_a_percentile_inside_a_bin_is_interpolated() -> None:
    assert threshold(Histogram(0.0, 8.0, np.array([9998, 2])), 7.5, "percentile") == pytest.approx(4 + 4 / 2)
    assert threshold(Histogram(0.0, 8.0, np.array([20000, 0])), 4.0, "percentile") == pytest.approx(4 * 0.9999)
    # Below a gap: one value in ten thousand is behind it, and is clipped.
    assert threshold(Histogram(0.0, 8.0, np.array([9999, 0, 0, 1])), 7.5, "percentile") == pytest.approx(2.0)


@pytest.mark.parametrize("levels", [127, 7])
@pytest.mark.parametrize("name", DRAWN)
def test_mse_is_the_least_error_of_the_samples(name: str, levels: int) -> None:
    """The least over all candidates, each tried on the samples, but for what a histogram cannot tell."""
    samples = DRAWN[name]
    end = found(samples, "mse", levels)
    ends = samples.max() * np.linspace(0.01, 1, 200)
    least = min(error(samples, candidate, levels) for candidate in ends)
    assert error(samples, end, levels) <= 1.02 * least
    if name != "one value":
        assert error(samples, end / 1.5, levels) > 1.02 * least  # the comparison itself can fail


def test_mse_clips_where_it_pays() -> None:
    """A few outliers at 20 make the step of all the others coarse, and clipping one costs its distance squared."""
    few, many = (np.concatenate([DRAWN["normal"], np.full(count, 20.0)]) for count in (1, 2000))
    assert found(few, "mse") < 0.8 * 20
    assert error(few, found(few, "mse")) < error(few, 20.0) / 1.5
    assert found(many, "mse") > 0.95 * 20
    step = DRAWN["uniform"].max() / 127
    assert found(DRAWN["uniform"], "mse") > DRAWN["uniform"].max() - step  # what is clipped is within a step
    assert found(DRAWN["normal"], "mse") < 0.95 * DRAWN["normal"].max()


def test_mse_of_values_within_the_first_half_step() -> None:
    """Theirs is their own square, not step² / 12: there is nothing to gain from clipping the peak."""
    samples = np.concatenate([np.full(100_000, 0.01), np.full(100, 50.0), [100.0]])
    assert found(samples, "mse") == pytest.approx(100.0, rel=0.01)
    assert 100_000 * (50 / 127) ** 2 / 12 + 50**2 < 100_000 * (100 / 127) ** 2 / 12  # but it would seem so


@pytest.mark.parametrize("name", DRAWN)
def test_entropy_is_within_the_peak(name: str) -> None:
    assert 0 < found(DRAWN[name], "entropy") <= DRAWN[name].max()


def test_entropy_clips_outliers_and_not_uniform_values() -> None:
    assert found(DRAWN["far outlier"], "entropy") < 0.75 * 100
    assert found(DRAWN["uniform"], "entropy") > 0.98 * DRAWN["uniform"].max()


def test_entropy_is_that_of_onnx_runtime() -> None:
    """Its own collector has the same answer, given signed values whose mirrored histogram is ours."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    values = np.append(DRAWN["normal"], [32 - 2.0**-10] * 3).astype(np.float32)
    signed = np.concatenate([values, -values, np.float32([32, -32])])  # to make its bins end at 32
    collector = HistogramCollector("entropy", True, 2 * 512, 255, PERCENTILE, None)
    collector.collect_value({"x": signed})
    low, high, *_ = collector.compute_entropy()["x"]
    ours = found(values.astype(np.float64), "entropy")
    assert ours == max(-low, high)
    assert ours < 20  # a cut, rather than the peak


def test_entropy_of_all_bins() -> None:
    assert 3 < threshold(histogram(DRAWN["far outlier"]), 100.0, "entropy") < 50


def test_entropy_of_fewer_bins_than_levels_cuts_nothing() -> None:
    assert threshold(Histogram(0.0, 8.0, np.array([9998, 0, 2, 0])), 5.5, "entropy") == 5.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("power", [-40, -3, 1, 20])
def test_values_times_a_power_of_two(method: str, power: int) -> None:
    samples = DRAWN["far outlier" if method == "mse" else "laplace"]
    assert found(samples * 2.0**power, method) == found(samples, method) * 2.0**power


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_a_scale(method: str) -> None:
    end = found(np.zeros(9), method)
    assert end == 127 * SMALLEST_SCALE
    assert np.float16(end / 127) == end / 127 == np.finfo(np.float16).smallest_normal


@pytest.mark.parametrize("method", METHODS)
def test_nothing_has_no_range(method: str) -> None:
    with pytest.raises(InputError, match="without a value"):
        threshold(Histogram(0.0, 1.0, np.zeros(BINS, np.int64)), 0.0, method)


def test_unknown_methods() -> None:
    with pytest.raises(UsageError, match="'minmax' is not a method") as caught:
        found(DRAWN["normal"], "minmax")
    assert caught.value.hint
    assert all(method in caught.value.hint for method in METHODS)
    with pytest.raises(UsageError):
        with_ranges(Record(KEY, 1, 1), ["max", "minmax"])


# Records


def record() -> Record:
    samples = {name: DRAWN[name].astype(np.float32).astype(np.float64) for name in ("normal", "far outlier")}
    samples["nothing"] = np.zeros(9)
    return Record(
        KEY,
        4,
        4,
        {name: histogram(values, 512) for name, values in samples.items()},
        {"max": {name: (-values.max(), values.max()) for name, values in samples.items()}, "theirs": {"x": (0.0, 1.0)}},
        {name: np.array([0, values.max(), values.min()], np.float32) for name, values in samples.items()},
    )


def test_ranges_of_a_record() -> None:
    before = record()
    after = with_ranges(before)
    assert [*after.ranges] == ["max", "theirs", "percentile", "entropy", "mse"]
    for method in METHODS:
        for name, made in before.histograms.items():
            end = threshold(made, float(before.channels[name].max()), method)
            assert after.ranges[method][name] == (-end, end)
    assert after.ranges["max"]["nothing"] == (-127 * SMALLEST_SCALE, 127 * SMALLEST_SCALE)
    assert (after.histograms, after.channels) == (before.histograms, before.channels)
    assert after.ranges["theirs"] == {"x": (0.0, 1.0)}
    assert before.ranges["max"]["nothing"] == (0, 0)  # it is as it was


def test_ranges_of_ranges_are_the_same() -> None:
    once = with_ranges(record(), ["max", "percentile", "mse"])
    assert with_ranges(once, ["mse", "max", "percentile"]).ranges == once.ranges
    assert [*with_ranges(record(), ["mse"]).ranges] == ["max", "theirs", "mse"]


def test_a_record_without_channels_has_no_peaks() -> None:
    channels = {name: values for name, values in record().channels.items() if name != "nothing"}
    lacking = dataclasses.replace(record(), channels=channels)
    with pytest.raises(InputError, match="nothing: the record lacks its channels"):
        with_ranges(lacking)
