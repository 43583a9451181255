"""Sliced Wasserstein against scipy, one dimension and shifted Gaussians."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from fewstep.errors import ConfigError, DataError, NonFiniteError, ShapeError
from fewstep.metrics import FeatureSet, sliced_distance, sliced_wasserstein
from fewstep.metrics.grouping import group_of

DOUBLE = torch.float64


def normal(n, dim, seed, shift=0.0):
    return torch.randn(n, dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) + shift


def of(x, **options):
    summary = FeatureSet(x.shape[1], **options)
    summary.update(x, torch.arange(len(x)))
    return summary


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=20),
    st.lists(st.floats(-5, 5), min_size=1, max_size=20),
)
def test_one_dimension_against_scipy_with_unequal_sizes(x, y):
    a, b = (torch.tensor(values, dtype=DOUBLE)[:, None] for values in (x, y))
    assert sliced_distance(a, b, projections=3, p=1) == pytest.approx(wasserstein_distance(x, y), abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 41)])
def test_every_projection_against_scipy(n, m):
    x, y = normal(n, 5, 0), normal(m, 5, 1, shift=0.4)
    directions = torch.randn(16, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    units = directions / directions.norm(dim=1, keepdim=True)
    each = [wasserstein_distance(x @ unit, y @ unit) for unit in units]
    assert sliced_distance(x, y, projections=16, seed=3, p=1) == pytest.approx(sum(each) / 16, abs=1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_copies_of_a_set_are_the_set(p):
    x, y = normal(20, 3, 2), normal(15, 3, 3)
    exact = sliced_distance(x, y, p=p)
    assert sliced_distance(x.repeat(3, 1), y.repeat(2, 1), p=p) == pytest.approx(exact, rel=1e-12)
    assert sliced_distance(y, x, p=p) == pytest.approx(exact, rel=1e-12)
    assert sliced_distance(x, x, p=p) == 0
    assert sliced_distance(x, x.flip(0), p=p) < 1e-15


def test_equal_sizes_pair_the_sorted_values():
    x, y = normal(40, 1, 4), normal(40, 1, 5)
    expected = (x.sort(0).values - y.sort(0).values).square().mean().sqrt()
    assert sliced_distance(x, y, projections=1, p=2) == pytest.approx(float(expected), rel=1e-12)


def test_a_shift_alone_is_known_exactly():
    # Equal sets but for a shift m: every projection is off by theta . m, and the mean of (theta . m)^2 is |m|^2 / d.
    x, shift = normal(50, 6, 6), normal(1, 6, 7)
    values = torch.tensor([sliced_distance(x, x + shift, 500, seed) ** 2 for seed in range(40)])
    expected = float(shift.square().sum()) / 6
    assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / 40**0.5


def test_shifted_gaussians_reach_the_closed_form():
    # The projections are N(0, 1) and N(theta . m, 1). The error of a mean is sqrt(1/3000 + 1/4000) = 0.024 along each
    # axis, so that of the distance is about that too, on 0.5.
    x, y, seeds = normal(3000, 3, 8), normal(4000, 3, 9, shift=0.5), range(10)
    mean = sum(sliced_distance(x, y, seed=seed) ** 2 for seed in seeds) / 10
    assert mean**0.5 == pytest.approx(0.5, abs=3 * 0.024)


def test_the_interval_and_the_order_of_batches():
    x, ref = normal(200, 4, 10, 0.5), of(normal(300, 4, 11))
    estimate = sliced_wasserstein(of(x), ref)
    assert estimate.value == pytest.approx(sliced_distance(x, ref.rows), rel=1e-6)
    assert estimate.low < estimate.value < estimate.high
    left = torch.tensor(
        [sliced_distance(x.float()[group_of(torch.arange(200), 10) != out], ref.rows) for out in range(10)]
    )
    half = 2.2621571627 * float((0.9 * (left - left.mean()).square().sum()).sqrt())
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=1e-4)
    streamed = FeatureSet(4)
    for batch in torch.split(torch.randperm(200, generator=torch.Generator().manual_seed(0)), 23):
        streamed.update(x[batch], batch)
    assert sliced_wasserstein(streamed, ref) == estimate
    assert sliced_wasserstein(of(x, groups=1), ref).low is None
    assert sliced_wasserstein(of(x[:8]), ref).low is None


def test_bad_input():
    x = normal(5, 3, 12)
    for options in ({"projections": 0}, {"p": 3}):
        with pytest.raises(ConfigError):
            sliced_distance(x, x, **options)
    with pytest.raises(ShapeError):
        sliced_distance(x, x[:, :2])
    with pytest.raises(NonFiniteError):
        sliced_distance(x, x / 0)
    for a, b in ((x[:0], x), (x, x[:0])):
        with pytest.raises(DataError, match="at least 1"):
            sliced_distance(a, b)
    with pytest.raises(DataError, match="read from statistics"):
        sliced_wasserstein(of(x), FeatureSet.from_moments(torch.zeros(3), torch.eye(3), 9))
