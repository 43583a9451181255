"""Fréchet distances with intervals: closed forms, the bias by simulation, the extrapolation on known Gaussians."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ConfigError, DataError, ShapeError
from fewstep.metrics import FeatureSet, Moments, fd, fd_inf, frechet_bias, frechet_distance, small_sample_note

DOUBLE = torch.float64


def normal(n, dim, seed, variances=None, shift=0.0):
    x = torch.randn(n, dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return (x if variances is None else x * variances.sqrt()) + shift


def of(x, **options):
    summary = FeatureSet(x.shape[1], **options)
    summary.update(x, torch.arange(len(x)))
    return summary


def gaussian(variances, mean=None, n=None):
    """A set with exactly these moments."""
    return FeatureSet.from_moments(torch.zeros_like(variances) if mean is None else mean, torch.diag(variances), n)


def closed_form(variances, others, shift):
    return float(len(variances) * shift**2 + (variances.sqrt() - others.sqrt()).square().sum())


# Zero or above: a variance of 1e-16 of the largest one is rounding and counts as zero, whose root would be 1e-8.
variance = st.just(0.0) | st.floats(1e-6, 9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(variance, variance), min_size=1, max_size=12), st.floats(-3, 3))
def test_gaussians_against_the_closed_form(variances, shift):
    a, b = torch.tensor(variances, dtype=DOUBLE).T
    rotation = torch.linalg.qr(normal(len(a), len(a), 0)).Q
    mean = torch.full_like(a, shift) @ rotation
    sets = [
        FeatureSet.from_moments(m, rotation.mT @ (v[:, None] * rotation), None) for m, v in ((mean, a), (0 * mean, b))
    ]
    assert fd(*sets).value == pytest.approx(closed_form(a, b, shift), abs=1e-8)
    assert fd(sets[1], sets[1]).value <= 1e-12 * max(1.0, float(b.sum()))


@pytest.mark.parametrize("dim", [3, 40])
def test_the_distance_to_itself_is_zero(dim):
    x = normal(100, dim, 1) @ normal(dim, dim, 2)
    assert fd(of(x), of(x.flip(0))).value <= 1e-12 * float(x.var(0).sum())
    x[:, : dim // 2] = 7.0  # constant elements: a singular covariance
    assert fd(of(x), of(x)).value <= 1e-12 * float(x.var(0).sum())


def test_parity_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = of(normal(300, 6, 3) @ normal(6, 6, 4)), of(normal(200, 6, 5) @ normal(6, 6, 6) + 0.5)
    mine, theirs = a.moments(), b.moments()
    expected = fid._compute_fid(mine.mean, mine.cov, theirs.mean, theirs.cov)
    assert fd(a, b).value == pytest.approx(float(expected), rel=1e-9)


def test_small_dtypes_and_order():
    x = normal(200, 5, 7, shift=2.0)
    ref = of(normal(300, 5, 8))
    exact, narrow = fd(of(x), ref), fd(of(x.float()), ref)
    assert narrow.value == pytest.approx(exact.value, rel=1e-6)
    streamed = FeatureSet(5)
    for batch in torch.split(torch.randperm(200, generator=torch.Generator().manual_seed(9)), 17):
        streamed.update(x[batch], batch)
    again = fd(streamed, ref)
    for end in ("value", "low", "high"):
        assert getattr(again, end) == pytest.approx(getattr(exact, end), rel=1e-10)


def test_the_interval_covers_the_mean_distance():
    # Over repeated sets, 95 % of the intervals hold the mean of the distance at this n.
    variances = torch.linspace(0.5, 2, 4, dtype=DOUBLE)
    ref = gaussian(variances, torch.full((4,), 0.3, dtype=DOUBLE))
    estimates = [fd(of(normal(200, 4, 100 + seed, variances)), ref) for seed in range(80)]
    mean = sum(estimate.value for estimate in estimates) / 80
    inside = sum(estimate.low <= mean <= estimate.high for estimate in estimates)
    print(f"of 80 intervals, with the mean {mean:.3f}: {inside}; the first {estimates[0]}")
    assert 68 <= inside <= 80
    assert estimates[0].how == "jackknife over 10 groups, 95 %"


# ---- bias


@pytest.mark.parametrize(("dim", "n"), [(1, 20), (8, 100), (16, 400)])
def test_the_bias_is_what_a_perfect_generator_scores(dim, n):
    variances = torch.arange(1, dim + 1, dtype=DOUBLE).reciprocal()
    ref = gaussian(variances).moments()
    values = torch.tensor([frechet_distance(Moments(normal(n, dim, seed, variances)), ref) for seed in range(400)])
    predicted, error = frechet_bias(ref, n), float(values.std()) / 20
    print(f"dim {dim}, n {n}: mean {float(values.mean()):.4f} +- {error:.4f}, predicted {predicted:.4f}")
    # The next order of the expansion is about dim / n of the bias; 4 % in all three cases.
    assert abs(float(values.mean()) - predicted) < 4 * error + 0.04 * predicted


def test_the_bias_in_closed_forms():
    for dim, scale, n in ((1, 1.0, 10), (30, 2.5, 1000)):
        ref = gaussian(torch.full((dim,), scale, dtype=DOUBLE)).moments()
        expected = scale * dim / n + scale * dim * (dim + 1) / (4 * (n - 1))
        assert frechet_bias(ref, n) == pytest.approx(expected, rel=1e-12)
        assert frechet_bias(ref, n, n) == pytest.approx(2 * expected, rel=1e-12)
    assert frechet_bias(gaussian(torch.tensor([0.0, 2.0, 0.0], dtype=DOUBLE)).moments(), 10) == pytest.approx(
        2 / 10 + 2 * 2 / 36, rel=1e-12
    )


def test_the_reference_adds_its_own_bias():
    dim, n, m = 6, 200, 150
    variances = torch.ones(dim, dtype=DOUBLE)
    pairs = [(Moments(normal(n, dim, 2 * i)), Moments(normal(m, dim, 2 * i + 1))) for i in range(300)]
    values = torch.tensor([frechet_distance(a, b) for a, b in pairs])
    predicted = frechet_bias(gaussian(variances).moments(), n, m)
    assert abs(float(values.mean()) - predicted) < 4 * float(values.std()) / 300**0.5 + 0.04 * predicted


def test_the_note_appears_when_it_should():
    assert small_sample_note(50_000, 64, 0.1, 2.0) is None
    for n, dim, bias, value in ((500, 64, 0.1, 2.0), (50_000, 8192, 0.1, 2.0), (50_000, 64, 0.3, 2.0), (1999, 2, 0, 1)):
        note = small_sample_note(n, dim, bias, value)
        assert f"{n:,} images in {dim} dimensions" in note
        assert f"would have about {bias:.3g}" in note
        assert f"dimensions: {value:.4g}, where" in note
        assert "singular" not in note
    assert "singular" in small_sample_note(64, 64, 1.0, 2.0)


# ---- extrapolation


def test_the_extrapolation_finds_the_distance_of_the_distributions():
    dim, n = 12, 300
    variances = torch.arange(1, dim + 1, dtype=DOUBLE).reciprocal()
    others, shift = variances * torch.linspace(0.6, 1.4, dim, dtype=DOUBLE), 0.1
    ref = gaussian(others, torch.full((dim,), shift, dtype=DOUBLE))
    truth, nearer, inside, gaps = closed_form(variances, others, shift), 0, 0, []
    for seed in range(40):
        gen = of(normal(n, dim, 500 + seed, variances))
        plain, inf = fd(gen, ref), fd_inf(gen, ref)
        nearer += abs(inf.value - truth) < abs(plain.value - truth)
        inside += inf.low <= truth <= inf.high
        gaps.append((plain.value - truth, inf.value - truth))
    plain_gap, inf_gap = torch.tensor(gaps).mean(0).tolist()
    print(f"truth {truth:.4f}, fd off by {plain_gap:.4f}, fd_inf by {inf_gap:.4f}, nearer {nearer}/40, in {inside}/40")
    assert nearer >= 28
    assert inside >= 34
    assert abs(inf_gap) < plain_gap / 3


def test_the_extrapolation_takes_out_one_over_n_exactly():
    # All groups alike: the covariance of g groups of m equal copies is S (g m) / (g m - 1), so that with C_ref = 0 the
    # distance is a + b n / (n - 1), a line in 1 / n to second order; with n = 2000 that order is 5e-7 of it.
    rows = normal(200, 2, 10).repeat_interleave(10, 0)
    gen, ref = of(rows), gaussian(torch.zeros(2, dtype=DOUBLE))
    centred = rows - rows.mean(0)
    expected = float(centred.square().sum() / len(rows) + rows.mean(0).square().sum())
    assert fd_inf(gen, ref).value == pytest.approx(expected, rel=2e-6)
    assert fd(gen, ref).value > expected * (1 + 2e-4)


# ---- bad input


def test_too_few_images_for_the_dimension():
    few, enough = of(normal(8, 8, 11)), of(normal(50, 8, 12))
    for gen, ref, side in ((few, enough, "generated"), (enough, few, "reference")):
        with pytest.raises(DataError, match=f"8 {side} images.*at least 9 images"):
            fd(gen, ref)
        assert fd(gen, ref, allow_singular=True).value > 0
    for n in (0, 1):
        with pytest.raises(DataError, match=f"{n} generated images"):
            fd(of(normal(n, 8, 13)), enough, allow_singular=True)
    with pytest.raises(DataError, match="at least 18 images"):
        fd_inf(of(normal(17, 8, 14)), enough)
    for summary in (of(normal(100, 8, 15), groups=1), gaussian(torch.ones(8, dtype=DOUBLE), n=100)):
        with pytest.raises(DataError, match="groups"):
            fd_inf(summary, enough)
    with pytest.raises(ConfigError):
        frechet_bias(enough.moments(), 1)
    for metric in (fd, fd_inf):
        with pytest.raises(ShapeError):
            metric(enough, of(normal(50, 7, 16)))


def test_no_interval_without_full_groups():
    ref = of(normal(50, 2, 17))
    assert fd(of(normal(9, 2, 18)), ref).low is None  # group 9 is empty
    assert fd(of(normal(10, 2, 19)), ref).low is not None
    assert fd(gaussian(torch.ones(2, dtype=DOUBLE)), ref).how == "none"
