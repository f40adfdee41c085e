"""Correlations against values worked out by hand and against scipy; intervals against resampled lists."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from gamma_training import metrics
from gamma_training.metrics import METRICS, bootstrap, correlations, paired_bootstrap

# Two neighbours swapped: 1 - 6*2/(4*15) = 0.8; one of six pairs discordant: (5-1)/6.
SWAPPED = ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0])


def photos(count, levels=None, seed=5):
    random = np.random.default_rng(seed)
    targets = random.random(count)
    scores = targets + 0.5 * random.random(count)
    return (scores, targets) if levels is None else (np.round(scores * levels), np.round(targets * levels))


def scipys(scores, targets):
    return {
        "srcc": stats.spearmanr(scores, targets).statistic,
        "plcc": stats.pearsonr(scores, targets).statistic,
        "krcc": stats.kendalltau(scores, targets).statistic,
        "rmse": math.sqrt(np.mean((scores - targets) ** 2)),
    }


def test_correlations_by_hand():
    found = correlations(*SWAPPED)
    assert found.srcc == pytest.approx(0.8)
    assert found.plcc == pytest.approx(0.8)  # the values are their own ranks
    assert found.krcc == pytest.approx(4 / 6)
    assert found.rmse == pytest.approx(math.sqrt(2 / 4))
    assert (found.count, found.reason) == (4, None)


def test_pearson_is_plain():
    """No curve is fitted first: a bent but monotone relation is not 1."""
    found = correlations([1.0, 2.0, 3.0], [1.0, 10.0, 100.0])
    assert found.srcc == pytest.approx(1.0)
    assert found.plcc == pytest.approx(99 / math.sqrt(2 * 5994))


@pytest.mark.parametrize(("count", "levels"), [(3, None), (16, 3), (50, 5), (333, None), (333, 7)])
def test_correlations_agree_with_scipy(count, levels):
    scores, targets = photos(count, levels)
    found = correlations(scores, targets)
    assert {name: getattr(found, name) for name in METRICS} == pytest.approx(scipys(scores, targets), abs=1e-12)


@pytest.mark.parametrize("levels", [None, 4])
def test_resamples_agree_with_scipy_on_the_drawn_list(levels):
    scores, targets = photos(40, levels)
    statistics = metrics._Statistics(scores, targets)
    for weights in metrics._resamples(np.arange(40), 20, seed=3):
        made = statistics(weights)
        for draw, counts in enumerate(weights.astype(int)):
            drawn = np.repeat(np.arange(40), counts)
            found = {name: made[name][draw] for name in METRICS}
            assert found == pytest.approx(scipys(scores[drawn], targets[drawn]), abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "targets", "reason"),
    [
        ([], [], "0 photos; a correlation needs 3"),
        ([0.5, 0.6], [0.1, 0.2], "2 photos; a correlation needs 3"),
        ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3], "all 3 predictions are equal"),
        ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0], "all 3 targets are equal"),
        ([0.1, math.nan, math.inf], [1.0, 2.0, 3.0], "2 of 3 predictions are not finite"),
        ([0.1, 0.2, 0.3], [1.0, 2.0, -math.inf], "1 of 3 targets are not finite"),
    ],
)
def test_what_does_not_exist_is_nan_with_a_reason(scores, targets, reason):
    found = correlations(scores, targets)
    assert found.reason == reason
    assert all(math.isnan(value) for value in (found.srcc, found.plcc, found.krcc))
    assert all(math.isnan(end) for name in METRICS[:3] for end in bootstrap(scores, targets)[name])
    assert all(math.isnan(end) for end in paired_bootstrap(scores, scores, targets))


def test_rmse_of_constant_scores_exists():
    found = correlations([0.5, 0.5, 0.5], [0.4, 0.5, 0.6])
    assert found.rmse == pytest.approx(math.sqrt(0.02 / 3))
    low, high = bootstrap([0.5, 0.5, 0.5], [0.4, 0.5, 0.6])["rmse"]
    assert low <= found.rmse <= high


def test_nearly_constant_scores_are_no_warning():
    found = correlations([0.5, 0.5 + 1e-16, 0.5 + 2e-16, 0.5], [0.1, 0.2, 0.3, 0.4])
    assert -1 <= found.plcc <= 1


def test_lists_of_two_lengths_are_a_bug():
    with pytest.raises(ValueError, match=r"predictions \(2,\) and targets \(3,\)"):
        correlations([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="1 groups for 3 photos"):
        bootstrap([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], groups=["a"])


def test_intervals_are_seeded_and_hold_the_value():
    scores, targets = photos(120)
    found = correlations(scores, targets)
    intervals = bootstrap(scores, targets)
    assert intervals == bootstrap(scores, targets)
    assert intervals != bootstrap(scores, targets, seed=1)
    for name in ("srcc", "plcc", "krcc"):
        low, high = intervals[name]
        assert low < getattr(found, name) < high
        assert high - low < 0.35


def test_intervals_shrink_with_the_root_of_the_number_of_photos():
    widths = [np.ptp(bootstrap(*photos(count))["srcc"]) for count in (100, 1600)]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.4)


def test_intervals_agree_with_scipys():
    scores, targets = photos(150)
    data = (scores, targets)
    wanted = stats.bootstrap(
        data,
        lambda x, y: stats.pearsonr(x, y).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(9),
    ).confidence_interval
    assert bootstrap(scores, targets)["plcc"] == pytest.approx(tuple(wanted), abs=0.015)


def test_copies_of_one_photo_are_drawn_together():
    """Ten copies of each of twelve photos are twelve photos, not 120: the interval is that of the twelve."""
    scores, targets = photos(12)
    names = [f"photo {index}" for index in range(12)]
    alone = bootstrap(scores, targets, draws=4000)
    copies = bootstrap(np.repeat(scores, 10), np.repeat(targets, 10), draws=4000, groups=np.repeat(names, 10).tolist())
    naive = bootstrap(np.repeat(scores, 10), np.repeat(targets, 10), draws=4000)
    for name in ("srcc", "plcc", "rmse"):
        assert copies[name] == pytest.approx(alone[name], abs=1e-9)
        assert np.ptp(naive[name]) < 0.5 * np.ptp(alone[name])


def test_groups_of_different_sizes_agree_with_scipy():
    scores, targets = photos(30, levels=6)
    groups = [index * index // 60 for index in range(30)]
    made = metrics.resampled(scores, targets, draws=20, seed=2, groups=groups)
    for draw, weights in enumerate(next(metrics._resamples(metrics._members(groups, 30), 20, seed=2)).astype(int)):
        drawn = np.repeat(np.arange(30), weights)
        assert len(set(weights[np.array(groups) == 0])) == 1
        found = {name: made[name][draw] for name in METRICS}
        assert found == pytest.approx(scipys(scores[drawn], targets[drawn]), abs=1e-12)


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    scores, targets = photos(31)
    whole = bootstrap(scores, targets, draws=50)
    monkeypatch.setattr(metrics, "_AT_ONCE", 31 * 7)
    assert bootstrap(scores, targets, draws=50) == whole


def test_many_photos_take_bounded_memory():
    scores, targets = photos(20_000)
    tracemalloc.start()
    bootstrap(scores, targets, draws=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20  # 100 draws of one array alone are 16 MB; all at once would be the same arrays, doubled


def test_paired_interval_tells_models_apart_where_two_intervals_overlap():
    scores, targets = photos(200)
    worse = scores + 0.3 * np.random.default_rng(1).random(200)
    better_low, _ = bootstrap(scores, targets)["srcc"]
    _, worse_high = bootstrap(worse, targets)["srcc"]
    low, high = paired_bootstrap(scores, worse, targets)
    assert better_low < worse_high  # cannot be told apart this way
    assert 0 < low < high
    assert paired_bootstrap(scores, scores, targets) == (0.0, 0.0)
