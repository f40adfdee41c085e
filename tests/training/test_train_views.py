"""Which photos make a step, and what is cut of them."""

from __future__ import annotations

import collections
from pathlib import Path

import cv2
import numpy as np
import pytest

from gamma_runtime.errors import InputError
from gamma_training.data import Sample
from gamma_training.train.views import (
    View,
    cut,
    epoch_order,
    fixed_views,
    kept_rows,
    repeats_of,
    steps_of,
    turn_of,
    view_of,
)


def sample(path: Path = Path("a.png"), dataset: str = "one", short_side: int | None = None) -> Sample:
    return Sample(path, 1.0, 0.5, "natural-quality", "train", dataset, path.name, short_side)


def test_a_view_is_decided_by_seed_epoch_and_photo() -> None:
    assert view_of(1, 2, 3) == view_of(1, 2, 3)
    assert len({view_of(seed, epoch, index) for seed in (1, 2) for epoch in (0, 1) for index in (0, 1)}) == 8


def test_views_are_spread_over_the_photo_and_mirrored_half_of_the_time() -> None:
    views = [view_of(0, epoch, index) for epoch in range(20) for index in range(100)]
    assert abs(np.mean([view.mirrored for view in views]) - 0.5) < 0.04
    for name in ("down", "right"):
        shares = np.array([getattr(view, name) for view in views])
        assert np.histogram(shares, 4, (0, 1))[0].min() > 400


def test_every_second_fixed_view_is_mirrored() -> None:
    views = fixed_views(0, 7, 4)
    assert [view.mirrored for view in views] == [False, True, False, True]
    assert len({(view.down, view.right) for view in views}) == 4


def test_an_epoch_shows_every_photo_once_in_an_order_of_its_own() -> None:
    samples = [sample() for _ in range(50)]
    orders = [epoch_order(samples, "none", 1, epoch) for epoch in range(2)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert orders[0].tolist() != orders[1].tolist()


@pytest.mark.parametrize(("balance", "share"), [("none", 0.9), ("sqrt", 0.75), ("equal", 0.5)])
def test_balancing_changes_the_shares_of_the_sets_and_not_the_length(balance: str, share: float) -> None:
    samples = [sample(dataset="large")] * 900 + [sample(dataset="small")] * 100
    order = epoch_order(samples, balance, 1, 0)
    assert len(order) == 1000
    assert np.mean(order < 900) == pytest.approx(share, abs=0.002)
    counts = collections.Counter(order.tolist())
    for members in (range(900), range(900, 1000)):  # a set's photos in turn
        seen = [counts[index] for index in members]
        assert max(seen) - min(seen) <= 1


def test_the_rest_of_an_epoch_is_dropped() -> None:
    assert [step.tolist() for step in steps_of(np.arange(7), 3)] == [[0, 1, 2], [3, 4, 5]]


def test_repeats_are_counted_and_seen_otherwise() -> None:
    assert repeats_of(np.array([3, 1, 3, 3, 1])).tolist() == [0, 0, 1, 2, 1]
    assert view_of(1, 2, 3, 0) == view_of(1, 2, 3)
    assert len({view_of(1, 2, 3, repeat) for repeat in range(20)}) == 20
    assert {turn_of(1, 2, 3, 8, repeat) for repeat in range(8)} == set(range(8))
    assert not np.array_equal(kept_rows(1, 2, 3, 17, 0.5, 0), kept_rows(1, 2, 3, 17, 0.5, 1))


@pytest.fixture
def ramp(tmp_path: Path) -> Path:
    """300 rows, 260 columns: red is the row, green the column (both halved)."""
    rows, columns = np.mgrid[0:300, 0:260]
    rgb = np.stack([rows // 2, columns // 2, np.zeros_like(rows)], -1).astype(np.uint8)
    path = tmp_path / "ramp.png"
    cv2.imwrite(str(path), rgb[..., ::-1])
    return path


def test_a_view_lies_where_it_says(ramp: Path) -> None:
    first, last, mirrored = cut(sample(ramp), [View(0, 0, False), View(0.9999, 0.9999, False), View(0, 0, True)], None)
    assert first[0, 0].tolist() == [0, 0, 0]
    assert last[-1, -1].tolist() == [149, 129, 0]
    assert np.array_equal(mirrored, first[:, ::-1])


def test_all_rows_are_cut_from_not_only_the_top_ones(ramp: Path) -> None:
    # The authors' paired sets are always cut from the top 224 rows: the row offset is overwritten (model.md section 3).
    tops = {int(cut(sample(ramp), [view_of(0, epoch, 0)], None)[0][0, 0, 0]) for epoch in range(40)}
    assert len(tops) > 20
    assert max(tops) > 30


def test_a_photo_is_reduced_to_the_working_size_and_never_enlarged(ramp: Path) -> None:
    whole = [View(0.5, 0.5, False)]
    assert np.ptp(cut(sample(ramp), whole, 224)[0][..., 1]) > np.ptp(cut(sample(ramp), whole, 260)[0][..., 1])
    assert np.array_equal(cut(sample(ramp), whole, 384), cut(sample(ramp), whole, None))


def test_a_photo_without_room_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    cv2.imwrite(str(path), np.zeros((223, 300, 3), np.uint8))
    with pytest.raises(InputError, match=r"small\.png: 300x223 leaves no room"):
        cut(sample(path), [View(0, 0, False)], None)
