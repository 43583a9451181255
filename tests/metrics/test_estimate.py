"""Intervals: against scipy, against what they promise, and how they print."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fewstep.errors import ConfigError, DataError, NonFiniteError, ShapeError
from fewstep.metrics import Estimate, bootstrap_mean, jackknife, over_seeds
from fewstep.metrics.estimate import t_quantile

DOUBLE = torch.float64


def test_quantiles_equal_scipy():
    for freedom in (1, 2, 3, 4, 9, 10, 57, 200, 999):
        assert t_quantile(freedom) == pytest.approx(float(stats.t.ppf(0.975, freedom)), rel=1e-12)


def test_the_interval_over_seeds_is_students():
    values = [1.0, 2.5, 0.5, 3.0]
    low, high = stats.t.interval(0.95, 3, loc=1.75, scale=stats.sem(values))
    estimate = over_seeds(values)
    assert (estimate.value, estimate.how) == (1.75, "t over 4 seeds, 95 %")
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12)


def test_the_jackknife_of_a_mean_is_students_over_the_group_means():
    # For a mean over groups of one size the jackknife is exact: leaving group g out gives (10 m - m_g) / 9.
    groups = torch.randn(10, 30, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)).mean(1)
    left_out = ((groups.sum() - groups) / 9).tolist()
    estimate, expected = jackknife(float(groups.mean()), left_out), over_seeds(groups.tolist())
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert estimate.how == "jackknife over 10 groups, 95 %"


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = torch.Generator().manual_seed(1)
    inside = {"jackknife": 0, "bootstrap": 0}
    for seed in range(200):
        x = torch.rand(10, 12, dtype=DOUBLE, generator=generator).square()  # mean 1/3, skewed
        total = x.sum()
        left_out = [float((total - group.sum()) / 108) for group in x]
        estimates = {
            "jackknife": jackknife(float(x.mean()), left_out),
            "bootstrap": bootstrap_mean(x.flatten(), 200, seed),
        }
        for name, estimate in estimates.items():
            inside[name] += estimate.low <= 1 / 3 <= estimate.high
    print("of 200 intervals, with the truth:", inside)
    assert all(178 <= count <= 199 for count in inside.values())  # 190 +- 4 standard deviations


def test_the_bootstrap_is_repeatable_and_near_the_normal_interval():
    x = torch.randn(2000, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    first, again = bootstrap_mean(x), bootstrap_mean(x.to(torch.float32).to(DOUBLE))
    assert str(first) == str(again)
    assert bootstrap_mean(x) == first
    assert first.value == pytest.approx(float(x.mean()), abs=1e-15)
    half = 1.96 * float(x.std()) / 2000**0.5
    assert (first.high - first.low) / 2 == pytest.approx(half, rel=0.1)
    assert first.how == "bootstrap, 1,000 resamples, 95 %"


def test_one_of_anything_has_no_interval():
    for estimate in (over_seeds([3.0]), bootstrap_mean(torch.tensor([3.0])), jackknife(3.0, []), jackknife(3.0, [2.0])):
        assert estimate == Estimate(3.0)
        assert (str(estimate), estimate.how) == ("3", "none")


@pytest.mark.parametrize(
    ("half", "text"),
    [
        (0.06, "0.85 [0.79, 0.91]"),
        (0.029, "0.850 [0.821, 0.879]"),
        (0.0, "0.85 [0.85, 0.85]"),
        (40.0, "0 [-40, 40]"),
        (400.0, "0 [-400, 400]"),
    ],
)
def test_as_many_digits_as_the_interval_supports(half, text):
    assert str(Estimate(0.85, 0.85 - half, 0.85 + half)) == text
    assert str(Estimate(-0.1, -4.1, 3.9)) == "0 [-4, 4]"


numbers = st.floats(-1e12, 1e12)


@given(numbers, st.none() | st.floats(0, 1e9))
def test_json_is_the_way_there_and_back(value, half):
    estimate = Estimate(value) if half is None else Estimate(value, value - half, value + half, "a test")
    assert Estimate.from_json(json.loads(json.dumps(estimate.to_json()))) == estimate
    assert str(estimate)


def test_bad_input():
    for numbers in ((math.nan,), (1.0, -math.inf, 2.0)):
        with pytest.raises(NonFiniteError):
            Estimate(*numbers)
    for ends in ((2.0, 1.0), (None, 1.0), (1.0, None)):
        with pytest.raises(ConfigError, match="interval"):
            Estimate(1.5, *ends)
    for content in ({}, {"value": "x", "low": None, "high": None, "how": ""}, {**Estimate(1.0).to_json(), "n": 3}):
        with pytest.raises(DataError):
            Estimate.from_json(content)
    with pytest.raises(DataError):
        over_seeds([])
    with pytest.raises(DataError):
        bootstrap_mean(torch.empty(0))
    with pytest.raises(ShapeError):
        bootstrap_mean(torch.zeros(2, 2))
    with pytest.raises(ConfigError):
        bootstrap_mean(torch.zeros(5), resamples=10)
