"""Moments and the Fréchet distance against closed forms, scipy and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from fewstep.errors import DataError, NonFiniteError, ShapeError
from fewstep.metrics import Moments, frechet_distance

DOUBLE = torch.float64


def normal(n, dim, seed, scale=None, shift=0.0):
    x = torch.randn(n, dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return (x @ scale if scale is not None else x) + shift


def covariance(dim, seed):
    factor = normal(dim, dim, seed)
    return factor @ factor.mT / dim


def gaussian(mean, cov):
    return Moments.from_statistics(torch.as_tensor(mean, dtype=DOUBLE), torch.as_tensor(cov, dtype=DOUBLE), 1000)


def gap(a, b):
    return float((torch.as_tensor(a) - torch.as_tensor(b)).abs().max())


# ---- moments


def test_moments_equal_numpy():
    x = normal(400, 7, 0, covariance(7, 1), 3.0)
    moments = Moments(x)
    assert moments.n == 400
    assert moments.dim == 7
    assert gap(moments.mean, x.numpy().mean(0)) < 1e-13
    assert gap(moments.cov, np.cov(x.numpy(), rowvar=False)) < 1e-13


@pytest.mark.parametrize("sizes", [(1,) * 50, (7, 40, 3), (49, 1), (0, 50, 0)])
def test_streaming_equals_batch(sizes):
    x = normal(50, 5, 2, shift=10.0)
    streamed = Moments()
    for part in x.split(list(sizes)):
        streamed.update(part)
    whole = Moments(x)
    assert streamed.n == whole.n
    assert gap(streamed.mean, whole.mean) < 1e-12
    assert gap(streamed.cov, whole.cov) < 1e-12


def test_order_of_batches_and_merging_do_not_matter():
    parts = normal(90, 4, 3).split(20)
    forwards, backwards, merged = Moments(), Moments(), Moments()
    for part in parts:
        forwards.update(part)
        merged = merged.merge(Moments(part))
    for part in reversed(parts):
        backwards.update(part)
    for other in (backwards, merged):
        assert other.n == forwards.n == 90
        assert gap(forwards.mean, other.mean) < 1e-14
        assert gap(forwards.cov, other.cov) < 1e-13


def test_merge_leaves_both_sides_alone():
    a, b = Moments(normal(10, 3, 4)), Moments(normal(20, 3, 5))
    before = a.cov, b.cov
    assert a.merge(b).n == 30
    assert (a.n, b.n) == (10, 20)
    assert gap(a.cov, before[0]) == gap(b.cov, before[1]) == 0
    assert Moments().merge(Moments()).n == 0


def test_a_large_offset_costs_no_precision():
    # One-pass sums of squares would lose 8 of 16 digits here: (1e4)^2 against a variance of 1.
    x = normal(3000, 3, 6)
    centred, moved = Moments(x), Moments()
    for part in (x + 1e4).split(100):
        moved.update(part)
    assert gap(centred.cov, moved.cov) < 1e-10
    assert gap(centred.mean + 1e4, moved.mean) < 1e-10


def test_what_moments_return_cannot_change_them():
    moments = Moments(normal(10, 3, 7))
    mean = moments.mean.clone()
    moments.mean.zero_()
    moments.cov.zero_()
    assert gap(moments.mean, mean) == 0
    assert float(moments.cov.trace()) > 0


def test_half_precision_features_are_summed_in_float64():
    x = normal(1000, 3, 8).to(torch.bfloat16)
    assert Moments(x).mean.dtype == DOUBLE
    assert gap(Moments(x).cov, np.cov(x.double().numpy(), rowvar=False)) < 1e-13


# ---- distance


def test_the_distance_of_a_set_to_itself_is_zero():
    for moments in (Moments(normal(200, 16, 9, covariance(16, 10))), Moments(normal(5, 16, 11))):
        assert frechet_distance(moments, moments) <= 1e-12


def test_one_dimension():
    # (mu_a - mu_b)^2 + (s_a - s_b)^2
    assert frechet_distance(gaussian([1.0], [[4.0]]), gaussian([-2.0], [[9.0]])) == pytest.approx(9 + 1, abs=1e-12)


def test_commuting_covariances():
    rotation = torch.linalg.qr(normal(6, 6, 12)).Q
    a, b = torch.arange(1.0, 7.0, dtype=DOUBLE), torch.tensor([9, 1, 0.5, 4, 2, 30], dtype=DOUBLE)
    mean = torch.arange(6.0, dtype=DOUBLE)
    expected = float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    first = gaussian(torch.zeros(6), (rotation * a) @ rotation.mT)
    second = gaussian(mean, (rotation * b) @ rotation.mT)
    assert frechet_distance(first, second) == pytest.approx(expected, abs=1e-11)
    assert frechet_distance(second, first) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("dim", [2, 5, 20])
def test_other_covariances_against_scipy(dim):
    a, b, mean = covariance(dim, 13), covariance(dim, 14), normal(1, dim, 15)[0]
    cross = np.trace(sqrtm(a.numpy() @ b.numpy()).real)
    expected = float(mean.square().sum() + a.trace() + b.trace()) - 2 * cross
    assert abs(float((a @ b - b @ a).abs().max())) > 1e-2  # they do not commute
    assert frechet_distance(gaussian(mean, a), gaussian(torch.zeros(dim), b)) == pytest.approx(expected, abs=1e-9)


def test_singular_covariances_on_one_line_each():
    # For rank one, C_a = u u^T and C_b = w w^T: the trace is |u . w|.
    u, w = normal(2, 8, 16)
    expected = float(u.square().sum() + w.square().sum() - 2 * (u @ w).abs())
    distance = frechet_distance(
        gaussian(torch.zeros(8), torch.outer(u, u)), gaussian(torch.zeros(8), torch.outer(w, w))
    )
    assert distance == pytest.approx(expected, abs=1e-12)


def test_a_singular_covariance_against_a_full_one():
    # tr (C_a^{1/2} I C_a^{1/2})^{1/2} = tr C_a^{1/2}: constant features, as corner pixels are, add their variance in b.
    values = torch.tensor([4.0, 1.0, 0.0, 0.0, 0.0], dtype=DOUBLE)
    rotation = torch.linalg.qr(normal(5, 5, 17)).Q
    a = gaussian(torch.zeros(5), (rotation * values) @ rotation.mT)
    b = gaussian(torch.zeros(5), torch.eye(5))
    assert frechet_distance(a, b) == pytest.approx(1.0 + 0.0 + 3.0, abs=1e-12)


def test_constant_sets_are_as_far_apart_as_their_means():
    a, b = Moments(torch.zeros(4, 3)), Moments(torch.full((5, 3), 2.0))
    assert frechet_distance(a, b) == pytest.approx(12.0, abs=1e-12)


def test_rotating_both_sets_changes_nothing():
    a, b = normal(60, 5, 18, covariance(5, 19)), normal(70, 5, 20, shift=0.3)
    rotation = torch.linalg.qr(normal(5, 5, 21)).Q
    plain = frechet_distance(Moments(a), Moments(b))
    assert frechet_distance(Moments(a @ rotation), Moments(b @ rotation)) == pytest.approx(plain, abs=1e-11)


def test_parity_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Flat(torch.nn.Module):
        num_features = 6

        def forward(self, x):
            return x

    metric = fid.FrechetInceptionDistance(feature=Flat()).set_dtype(DOUBLE)
    real, fake = normal(300, 6, 22, covariance(6, 23)), normal(200, 6, 24, covariance(6, 25), 0.5)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    ours = frechet_distance(Moments(real), Moments(fake))
    assert ours == pytest.approx(float(metric.compute()), abs=1e-7)


# ---- bad input


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_samples(n):
    few, enough = Moments(torch.ones(n, 3)), Moments(normal(5, 3, 26))
    for a, b in ((few, enough), (enough, few)):
        with pytest.raises(DataError, match=f"Moments of {n} samples"):
            frechet_distance(a, b)
    with pytest.raises(DataError):
        _ = few.cov
    with pytest.raises(DataError):
        _ = Moments().mean
    with pytest.raises(DataError):
        Moments.from_statistics(torch.zeros(3), torch.eye(3), n)


def test_unlike_dimensions():
    a, b = Moments(normal(5, 3, 27)), Moments(normal(5, 4, 28))
    for wrong in (
        lambda: frechet_distance(a, b),
        lambda: a.merge(b),
        lambda: a.update(normal(5, 4, 29)),
        lambda: a.update(torch.zeros(3)),
        lambda: Moments.from_statistics(torch.zeros(3), torch.eye(4), 5),
    ):
        with pytest.raises(ShapeError):
            wrong()
    assert a.n == 5


def test_values_that_are_no_numbers_add_nothing():
    moments = Moments(normal(5, 3, 30))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFiniteError, match="1 of 6 values"):
            moments.update(torch.tensor([[1.0, 2.0, bad], [1.0, 2.0, 3.0]]))
        with pytest.raises(NonFiniteError):
            Moments.from_statistics(torch.tensor([bad]), torch.eye(1), 5)
    assert moments.n == 5


def test_statistics_from_elsewhere_are_made_symmetric():
    # float32 rounding leaves files asymmetric, and an eigenvalue routine reads one triangle only.
    skewed = torch.tensor([[2.0, 0.4], [0.6, 1.0]], dtype=DOUBLE)
    assert torch.equal(Moments.from_statistics(torch.zeros(2), skewed, 9).cov, (skewed + skewed.mT) / 2)
