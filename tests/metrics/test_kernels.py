"""Kernel discrepancies against loops, torchmetrics, a hand-made example and the promise of being unbiased."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.errors import ConfigError, DataError, NonFiniteError, ShapeError
from fewstep.metrics import RBF, FeatureSet, Polynomial, kernel_mmd, kernels, kid, mmd_rbf
from fewstep.metrics.grouping import group_of
from fewstep.metrics.kernels import median_distance

DOUBLE = torch.float64
KERNELS = [Polynomial(), Polynomial(2, 0.5, 0.0), RBF((1.5,)), RBF((0.5, 1.0, 4.0))]


def normal(n, dim, seed, shift=0.0):
    return torch.randn(n, dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) + shift


def of(x, **options):
    summary = FeatureSet(x.shape[1], **options)
    summary.update(x, torch.arange(len(x)))
    return summary


def by_loops(x, y, value):
    """The definition, pair by pair."""

    def mean(z, w, skip):
        values = [value(a, b) for i, a in enumerate(z) for j, b in enumerate(w) if not (skip and i == j)]
        return math.fsum(values) / len(values)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def polynomial(kernel):
    def value(a, b):
        return ((kernel.gamma or 1 / len(a)) * float(a @ b) + kernel.coef) ** kernel.degree

    return value


def gaussian(kernel):
    def value(a, b):
        squared = float((a - b).square().sum())
        return sum(math.exp(-squared / (2 * s * s)) for s in kernel.bandwidths) / len(kernel.bandwidths)

    return value


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_the_definition(kernel):
    x, y = normal(12, 3, 0), normal(9, 3, 1, shift=0.5)
    value = polynomial(kernel) if isinstance(kernel, Polynomial) else gaussian(kernel)
    assert kernel_mmd(x, y, kernel) == pytest.approx(by_loops(x, y, value), abs=1e-12)


def test_by_hand():
    # k(a, b) = (a b + 1)^3 with x = {0, 1}, y = {2, 0}: k(0, 1) = 1, k(2, 0) = 1; k(0, 2) = k(0, 0) = k(1, 0) = 1 and
    # k(1, 2) = 27, so MMD^2 = 1 + 1 - 2 (1 + 1 + 27 + 1) / 4 = -13.
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [0.0]])
    assert kernel_mmd(x, y, Polynomial()) == -13.0


def test_parity_with_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.image.kid")
    x, y = normal(60, 7, 2), normal(60, 7, 3, shift=0.3)
    expected = float(theirs.poly_mmd(x, y))
    assert kernel_mmd(x, y, Polynomial()) == pytest.approx(expected, abs=1e-12)
    assert kid(of(x), of(y)).value == pytest.approx(expected, abs=1e-6)  # rows are kept in float32


@pytest.mark.parametrize("kernel", [Polynomial(), RBF((1.5,))], ids=str)
def test_the_mean_over_resamples_is_zero(kernel):
    values = torch.tensor([kernel_mmd(normal(30, 4, 2 * i), normal(20, 4, 2 * i + 1), kernel) for i in range(300)])
    error = float(values.std()) / 300**0.5
    print(f"{kernel}: mean {float(values.mean()):.2e} +- {error:.1e}")
    assert abs(float(values.mean())) < 4 * error
    assert float(values.min()) < 0 < float(values.max())


def test_the_mean_of_a_shift_is_its_closed_form():
    # x - y is N(m, 2 I), so E exp(-|x - y|^2 / (2 s^2)) = (s^2 / (s^2 + 2))^(d/2) exp(-|m|^2 / (2 (s^2 + 2))).
    dim, s, shift = 3, 1.7, 0.8
    factor = (s**2 / (s**2 + 2)) ** (dim / 2)
    truth = 2 * factor * (1 - math.exp(-dim * shift**2 / (2 * (s**2 + 2))))
    values = torch.tensor(
        [kernel_mmd(normal(40, dim, 2 * i), normal(30, dim, 2 * i + 1, shift), RBF((s,))) for i in range(200)]
    )
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / 200**0.5


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_change_nothing(block, monkeypatch):
    x, y = normal(33, 4, 4), normal(21, 4, 5, 0.2)
    whole = [kernel_mmd(x, y, kernel) for kernel in KERNELS]
    monkeypatch.setattr(kernels, "_BLOCK", block)
    assert [kernel_mmd(x, y, kernel) for kernel in KERNELS] == pytest.approx(whole, abs=1e-13)


@pytest.mark.parametrize("metric", [kid, mmd_rbf])
def test_leaving_a_group_out_is_leaving_its_rows_out(metric):
    x, y = normal(45, 4, 6).float().to(DOUBLE), normal(50, 4, 7, 0.3).float().to(DOUBLE)
    estimate, kernel = metric(of(x), of(y)), Polynomial()
    if metric is mmd_rbf:
        median = median_distance(y)
        kernel = RBF((median / 2, median, 2 * median))
    left = torch.tensor(
        [kernel_mmd(x[group_of(torch.arange(45), 10) != out], y, kernel) for out in range(10)], dtype=DOUBLE
    )
    half = 2.2621571627 * float((0.9 * (left - left.mean()).square().sum()).sqrt())
    assert estimate.value == pytest.approx(kernel_mmd(x, y, kernel), abs=1e-13)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=1e-8)


def test_intervals_hold_the_truth():
    # The truth for this reference, from 80 times as many samples of the generator.
    ref, shift, inside = of(normal(500, 2, 8)), 0.5, 0
    truth = sum(kernel_mmd(normal(2000, 2, 9 + i, shift), ref.rows, Polynomial()) for i in range(4)) / 4
    for seed in range(40):
        estimate = kid(of(normal(100, 2, 50 + seed, shift)), ref)
        inside += estimate.low <= truth <= estimate.high
    assert inside >= 34


def test_batches_and_order_are_bitwise_irrelevant():
    x, ref = normal(50, 3, 10), of(normal(40, 3, 11))
    streamed = FeatureSet(3)
    for batch in torch.split(torch.randperm(50, generator=torch.Generator().manual_seed(0)), 9):
        streamed.update(x[batch], batch)
    assert kid(streamed, ref) == kid(of(x), ref)
    assert mmd_rbf(streamed, ref) == mmd_rbf(of(x), ref)


def test_the_median_is_that_of_all_pairs():
    rows = normal(31, 3, 12, shift=1000.0)
    assert median_distance(rows) == pytest.approx(float(torch.pdist(rows - 1000).median()), rel=1e-2)
    assert median_distance(torch.tensor([[0.0], [3.0]])) == pytest.approx(3.0, rel=1e-12)
    more = torch.cat([normal(1000, 2, 13), normal(500, 2, 14, 9.0)])
    assert median_distance(more) == median_distance(more[:1000])


def test_bad_input():
    x = normal(5, 3, 15)
    for a, b in ((x[:1], x), (x, x[:0])):
        with pytest.raises(DataError, match="at least 2"):
            kernel_mmd(a, b, Polynomial())
    for a, b in ((x, x[:, :2]), (x[0], x)):
        with pytest.raises(ShapeError):
            kernel_mmd(a, b, Polynomial())
    with pytest.raises(NonFiniteError):
        kernel_mmd(x, x / 0, Polynomial())
    statistics = FeatureSet.from_moments(torch.zeros(3), torch.eye(3), 100)
    for metric in (kid, mmd_rbf):
        with pytest.raises(DataError, match="read from statistics"):
            metric(of(x), statistics)
        with pytest.raises(ShapeError):
            metric(of(x), of(x[:, :2]))
    with pytest.raises(DataError, match="copies"):
        mmd_rbf(of(x), of(torch.ones(20, 3)))
    for widths in ((), (1.0, 0.0)):
        with pytest.raises(ConfigError):
            RBF(widths)
    assert kid(of(x), of(x.flip(0))).low is None  # five images do not fill ten groups


def test_gaussian_kernels_do_not_see_an_offset():
    # Norms of 5e12 carry rounding errors of 1e-3; what is left here is that of the rows themselves, 1e-10.
    x, y, kernel = normal(20, 5, 0), normal(30, 5, 1), RBF((1.0,))
    gap = (kernel(x + 1e6, y + 1e6) - kernel(x, y)).abs().max()
    print(f"largest difference {float(gap):.1e}")
    assert gap < 1e-8
