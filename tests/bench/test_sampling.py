"""Warm-up and sample counts on series that are known, by a clock that is ours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gamma_export.bench.sampling import Plan, sample, stable, warm_up
from gamma_export.bench.stats import drift
from tests.bench.clock import Clock, calls


def test_three_windows_must_agree() -> None:
    assert stable([4.0, 4.1, 4.05], 0.05)
    assert not stable([4.0, 4.1, 4.3], 0.05)
    assert not stable([4.0, 4.0], 0.05)
    assert stable([99.0, 4.0, 4.0, 4.0], 0.05)


def test_a_steady_series_is_stable_after_three_windows() -> None:
    clock = Clock()
    found = warm_up(calls(clock, itertools.repeat(20.0)), "call", Plan(seconds=10), clock)
    assert found.stable
    assert found.calls == 2 + 3 * 10  # windows of 0.2 s
    assert found.seconds == pytest.approx(0.64)


def test_slow_first_calls_are_waited_for() -> None:
    clock = Clock()
    series = (100.0 + 400 * 0.8**i for i in itertools.count())
    found = warm_up(calls(clock, series), "call", Plan(seconds=60), clock)
    assert found.stable
    assert 100 * 0.8**found.calls < 5  # what is left of the slowness


def test_a_plateau_fools_the_warm_up_but_not_the_drift() -> None:
    clock = Clock()
    series = itertools.chain([500.0, 501.0] * 50, itertools.cycle([100.0, 101.0]))
    found = sample(calls(clock, series), "call", Plan(seconds=100, within=1e-9, most=170), clock)
    assert found.warm_up.stable
    assert drift(found.values["call"]) == pytest.approx(-0.8, abs=0.01)


def test_a_series_that_grows_is_never_stable_and_is_given_up() -> None:
    clock = Clock()
    found = warm_up(calls(clock, (1.05**i for i in itertools.count())), "call", Plan(seconds=5), clock)
    assert not found.stable
    assert found.seconds > 5


def test_a_series_that_jumps_for_ever_is_given_up() -> None:
    clock = Clock()
    series = itertools.cycle([100.0] * 3 + [130.0] * 3)
    found = warm_up(calls(clock, series), "call", Plan(seconds=5), clock)
    assert not found.stable


def test_a_scorer_slower_than_the_limit_still_gets_its_windows() -> None:
    clock = Clock()
    found = warm_up(calls(clock, itertools.repeat(3000.0)), "call", Plan(seconds=1), clock)
    assert found.stable
    assert found.calls == 2 + 3 * 3


def test_sampling_ends_when_the_median_is_known() -> None:
    clock, noise = Clock(), np.random.default_rng(1).normal(10, 0.3, 100_000)
    found = sample(calls(clock, iter(noise.tolist())), "call", Plan(seconds=100, within=0.02), clock)
    assert found.warm_up.stable
    assert found.half_width is not None
    assert found.half_width <= 0.02
    assert clock.now < 40  # a fifth of the time is used, not all
    assert len(found.values["call"]) == len(found.values["part"])


def test_a_wild_series_ends_with_the_time_and_says_how_little_is_known() -> None:
    clock, wild = Clock(), np.random.default_rng(2).exponential(100, 100_000)
    found = sample(calls(clock, iter(wild.tolist())), "call", Plan(seconds=5, within=0.001), clock)
    assert found.half_width is not None
    assert found.half_width > 0.001


def test_the_least_is_taken_whatever_the_clock_says() -> None:
    clock = Clock()
    found = sample(calls(clock, itertools.repeat(5000.0)), "call", Plan(seconds=1), clock)
    assert len(found.values["call"]) == 10


def test_the_most_ends_it() -> None:
    clock, wild = Clock(), itertools.cycle([1.0, 2.0])
    found = sample(calls(clock, wild), "call", Plan(seconds=1e9, within=1e-9, most=50), clock)
    assert len(found.values["call"]) == 50
