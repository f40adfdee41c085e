"""Statistics against values computed by hand, and intervals that cover what they promise."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest

from gamma_export.bench.stats import (
    drift,
    half_width,
    median_interval,
    median_ratio,
    percentile,
    summarise,
    thinned,
)


def test_percentiles_by_hand() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    assert percentile(values, 0.5) == 2.5
    assert percentile(values, 0.9) == pytest.approx(3.7)
    assert percentile(values, 0.0) == 1.0
    assert percentile(values, 1.0) == 4.0
    assert percentile([7.0], 0.99) == 7.0
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)


def test_percentiles_are_numpys() -> None:
    values = sorted(np.random.default_rng(1).exponential(size=137).tolist())
    for share in (0.01, 0.5, 0.9, 0.99):
        assert percentile(values, share) == pytest.approx(float(np.percentile(values, 100 * share)))


def test_a_summary_by_hand() -> None:
    one = summarise([4.0, 2.0, 9.0, 1.0])
    assert (one.n, one.min, one.max, one.p50, one.mean) == (4, 1.0, 9.0, 3.0, 4.0)
    assert one.sd == pytest.approx(math.sqrt((0 + 4 + 25 + 9) / 3))
    assert summarise([5.0]).sd == 0.0


@pytest.mark.parametrize(("count", "below"), [(6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (50, 18)])
def test_the_interval_takes_the_ranks_of_the_tables(count: int, below: int) -> None:
    """Ranks of the sign test's 95 % interval, as printed in textbooks (Conover, table of binomial quantiles)."""
    assert median_interval([float(i) for i in range(1, count + 1)]) == (below, count + 1 - below)


def test_of_five_samples_there_is_no_interval() -> None:
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert half_width([1.0]) is None
    assert half_width([]) is None


@pytest.mark.parametrize("count", [7, 30, 61, 200])
@pytest.mark.parametrize("kind", ["exponential", "normal", "lognormal"])
def test_the_interval_covers_the_true_median(kind: str, count: int) -> None:
    true = {"exponential": math.log(2), "normal": 0.0, "lognormal": 1.0}[kind]
    draw = getattr(np.random.default_rng(count), kind)
    found = [median_interval(draw(size=count).tolist()) or (9, 9) for _ in range(1000)]
    covered = sum(low <= true <= high for low, high in found)
    assert covered >= 935  # 95 % at least; three standard deviations of the count are 21


def test_half_width_by_hand() -> None:
    assert half_width([float(value) for value in range(96, 105)]) == pytest.approx((103 - 97) / 2 / 100)


def test_drift_is_seen_where_the_halves_differ_and_only_there() -> None:
    noise = np.random.default_rng(3).normal(0, 0.01, 200)
    assert drift((1 + noise).tolist()) is None
    moved = 1 + noise + np.where(np.arange(200) < 100, 0, 0.2)
    assert drift(moved.tolist()) == pytest.approx(0.2, abs=0.01)
    assert drift([1.0, 2.0, 3.0]) is None


def test_thinning_keeps_ends_and_order() -> None:
    values = [float(i) for i in range(10_001)]
    kept = thinned(values, 2000)
    assert len(kept) == 2000
    assert (kept[0], kept[-1]) == (0.0, 10_000.0)
    assert kept == sorted(kept)
    assert {b - a for a, b in itertools.pairwise(kept)} == {5.0, 6.0}
    assert thinned([1.0, 2.0], 2000) == [1.0, 2.0]


def test_a_ratio_and_its_interval() -> None:
    generator = np.random.default_rng(5)
    first, second = generator.normal(10, 1, 300).tolist(), generator.normal(12, 1, 300).tolist()
    ratio, low, high = median_ratio(first, second)
    assert ratio == statistics.median(second) / statistics.median(first)
    assert low < ratio < high
    assert low < 1.2 < high
    assert (ratio, low, high) == median_ratio(first, second)  # the same every time
    with pytest.raises(ValueError, match="positive median"):
        median_ratio([0.0, 0.0], first)


def test_the_ratios_interval_covers() -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(60):
        _, low, high = median_ratio(generator.normal(10, 1, 40).tolist(), generator.normal(10, 1, 40).tolist())
        covered += low <= 1 <= high
    assert covered >= 51
