"""Memorisation: copies are found, honest samples are not accused, and the z is scipy's."""

from __future__ import annotations

import pytest
import torch
from tests.metrics.sets import draws, feature_set

from fewstep.errors import ConfigError, DataError, NonFiniteError, ShapeError
from fewstep.metrics import neighbours
from fewstep.metrics.estimate import jackknife
from fewstep.metrics.grouping import group_of
from fewstep.metrics.memorisation import mann_whitney_z, memorisation, nearest

TRAIN = draws(2000, 5, 50)


def measure(gen, held_out, **options):
    return memorisation(feature_set(gen), feature_set(TRAIN), feature_set(held_out), **options)


def test_copies_are_found():
    found = measure(TRAIN[torch.arange(0, 2000, 3)], draws(500, 5, 1))
    assert found["memorised"].value > 0.99
    assert found["copies"].value == 1
    assert found["memorised_z"].value < -10


def test_near_copies_are_found_and_are_no_copies():
    found = measure(TRAIN[:600] + 1e-3 * draws(600, 5, 2), draws(500, 5, 1))
    assert found["memorised"].value > 0.99
    assert found["copies"].value == 0


def test_some_copies_among_honest_samples():
    found = measure(torch.cat([draws(900, 5, 3), TRAIN[:100]]), draws(1000, 5, 1))
    assert found["copies"].value == pytest.approx(0.1)
    assert 0.1 < found["memorised"].value < 0.14


@pytest.mark.parametrize("q", [0.01, 0.05])
def test_honest_samples_are_not_accused(q):
    runs = [measure(draws(600, 5, 100 + s), draws(600, 5, 200 + s), q=q) for s in range(20)]
    shares, z = ([run[name] for run in runs] for name in ("memorised", "memorised_z"))
    values = torch.tensor([share.value for share in shares])
    error = float(values.std()) / 20**0.5
    missed = sum(not share.low <= q <= share.high for share in shares)
    print(
        f"q {q}: mean {float(values.mean()):.4f} ± {error:.4f}, {missed} of 20 missed, z {[str(one) for one in z[:3]]}"
    )
    assert abs(float(values.mean()) - q) < 4 * error + 1 / 600
    assert missed <= 4
    # z has sd 1 under the null; its mean over 20 runs has 0.22.
    scores = torch.tensor([one.value for one in z])
    assert abs(float(scores.mean())) < 4 / 20**0.5
    assert 0.5 < float(scores.std()) < 1.6
    assert runs[0]["copies"].value == 0


def test_the_interval_is_a_jackknife_over_both_sides():
    gen, held_out = draws(300, 5), draws(400, 5, 1)
    found = measure(gen, held_out, q=0.05)["memorised"]
    far, usual = (nearest(side.float(), TRAIN.float())[0] for side in (gen, held_out))
    groups = [group_of(torch.arange(len(side)), 10) for side in (gen, held_out)]
    parts = [(far[groups[0] != g] < usual[groups[1] != g].quantile(0.05)).double().mean().item() for g in range(10)]
    expected = jackknife(found.value, parts)
    assert (found.low, found.high) == pytest.approx((max(0, expected.low), expected.high), abs=1e-12)


def test_noise_is_far_and_not_accused():
    found = measure(3 * draws(500, 5, 4), draws(500, 5, 1))
    assert found["memorised"].value <= 0.01
    assert found["memorised_z"].value > 10


def test_mann_whitney_is_that_of_scipy():
    from scipy.stats import mannwhitneyu, norm

    for x, y in ((draws(30, 1)[:, 0], draws(41, 1, 1)[:, 0] + 0.4), (torch.arange(20) % 4, torch.arange(30) % 5)):
        theirs = mannwhitneyu(x.numpy(), y.numpy(), use_continuity=False, method="asymptotic", alternative="less")
        assert mann_whitney_z(x.double(), y.double()) == pytest.approx(float(norm.ppf(theirs.pvalue)), abs=1e-9)
    assert mann_whitney_z(torch.zeros(5), torch.zeros(7)) == 0


def test_nearest_is_that_of_scikit_learn(monkeypatch):
    from sklearn.neighbors import NearestNeighbors

    x, y = draws(130, 7), draws(210, 7, 1)
    expected = NearestNeighbors(n_neighbors=1).fit(y.numpy()).kneighbors(x.numpy())
    for block in (1000, 33):
        monkeypatch.setattr(neighbours, "_BLOCK", block)
        distances, index = nearest(x, y)
        assert float((distances - torch.from_numpy(expected[0][:, 0])).abs().max()) < 1e-12
        assert index.tolist() == expected[1][:, 0].tolist()
    assert nearest(x[:0], y)[1].shape == (0,)


def test_copies_on_a_large_offset_are_at_zero():
    y = draws(50, 300).float() + 1000
    distances, index = nearest(y.flip(0), y)
    assert distances.tolist() == [0.0] * 50
    assert index.tolist() == list(range(49, -1, -1))


def test_bad_input():
    with pytest.raises(DataError, match="At least 100"):
        measure(draws(200, 5), draws(99, 5))
    with pytest.raises(ConfigError):
        measure(draws(200, 5), draws(200, 5), q=1.0)
    with pytest.raises(ShapeError):
        measure(draws(200, 4), draws(200, 5))
    with pytest.raises(DataError):
        nearest(draws(2, 3), draws(0, 3))
    with pytest.raises(DataError, match="rows"):
        memorisation(feature_set(draws(20, 5)), feature_set(TRAIN, keep=0), feature_set(draws(200, 5)))
    with pytest.raises(DataError):
        mann_whitney_z(torch.zeros(0), torch.zeros(3))
    with pytest.raises(NonFiniteError):
        mann_whitney_z(torch.tensor([1.0, float("nan")]), torch.zeros(3))
    with pytest.raises(NonFiniteError):
        nearest(torch.full((2, 3), float("nan")), draws(4, 3))
