"""The energy score: unbiased, equal to its closed form, and smallest, for every condition, at the data itself."""

from __future__ import annotations

import math
from itertools import combinations, product

import pytest
import torch

from fewstep.errors import ConfigError, ShapeError
from fewstep.features import PixelMaps
from fewstep.losses import EnergyScore, Outcome, energy_score
from fewstep.losses.energy import typical_distance

from .outcomes import GENERATOR, normal


def rho(d: torch.Tensor, scale: float, beta: float, smooth: float) -> float:
    return (float(d.square().sum()) / scale**2 + smooth**2) ** (beta / 2)


def by_loops(fake, target, condition, beta, smooth, tied):
    """Straight from the formula: every draw of the condition of each target."""
    found = []
    for j, c in enumerate(condition):
        rows = [(i, row) for i in range(len(fake)) for row in range(len(target)) if condition[row] == c]
        to = [rho(fake[at] - target[j], 1, beta, smooth) for at in rows if not (tied and at == (0, j))]
        between = [rho(fake[a] - fake[b], 1, beta, smooth) for a, b in combinations(rows, 2)]
        found.append(sum(to) / len(to) - sum(between) / len(between) / 2)
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("k", "condition"), [(2, [0, 1, 2]), (4, [0, 1, 2]), (1, [1, 0, 1, 1, 0]), (3, [0, 0, 2, 0])])
@pytest.mark.parametrize(("beta", "smooth"), [(1.0, 0.0), (0.6, 0.1), (1.7, 1e-3)])
def test_formula_by_loops(k, condition, beta, smooth, tied):
    b = len(condition)
    fake, target = normal(k, b, 5), normal(b, 5, seed=1)
    found = energy_score(fake, target, torch.tensor(condition), beta, smooth, tied=tied)
    assert found.tolist() == pytest.approx(by_loops(fake, target, condition, beta, smooth, tied), abs=1e-12)


ROWS = {"two draws of one row": (2, 1), "three draws of one row": (3, 1), "one draw of three rows": (1, 3)}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("k", "b"), ROWS.values(), ids=ROWS)
def test_unbiased_exactly(k, b, tied):
    """F = f(z), x = t(z) of the first z, each z one of four: over all choices the mean is that of independent F and x.

    With `tied` false the targets are of choices of their own.
    """
    f, t = normal(4, 5), normal(4, 5, seed=1)
    own, count = ([], k * b) if tied else ([range(4)] * b, k * b)
    choices = torch.tensor(list(product(*([range(4)] * count), *own)))
    z = choices[:, :count].reshape(-1, k, b)
    targets = t[z[:, 0] if tied else choices[:, count:]]
    together = torch.zeros(b, dtype=torch.int64)
    scores = torch.stack(
        [energy_score(draws, target, together, 0.8, tied=tied) for draws, target in zip(f[z], targets, strict=True)]
    )
    to = sum(rho(a - x, 1, 0.8, 1e-3) for a, x in product(f, t)) / 16
    between = sum(rho(a - b, 1, 0.8, 1e-3) for a, b in product(f, repeat=2)) / 16
    assert float(scores.mean()) == pytest.approx(to - between / 2, abs=1e-12)
    if tied:
        naive = [energy_score(draws, x, together, 0.8) for draws, x in zip(f[z], targets, strict=True)]
        assert abs(float(torch.stack(naive).mean()) - (to - between / 2)) > 1e-3, "a draw held against its own pair"


def test_the_score_is_that_of_the_real_samples_whatever_the_targets_are():
    given = Outcome(normal(2, 5, 3), normal(5, 3, seed=1), normal(5, 3, seed=2))
    expected = energy_score(given.fake, given.real, torch.zeros(5, dtype=torch.int64)).mean()
    assert float(EnergyScore()(given, GENERATOR)) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize(("k", "b"), [(2, 1), (1, 4), (2, 3)])
@pytest.mark.parametrize(("s", "beta"), [(1.0, 1.0), (0.6, 1.0), (1.5, 0.5)])
def test_closed_form_for_gaussians(s, beta, k, b):
    r"""F ~ N(0, s^2 I), x ~ N(0, I) in n dimensions: E|N(0, v I)|^b = (2 v)^(b/2) G((n + b)/2) / G(n/2)."""
    n, groups = 5, 4000
    together = torch.zeros(b, dtype=torch.int64)
    score = torch.vmap(lambda draws, x: energy_score(draws, x, together, beta, 0.0).mean())
    scores = score(s * normal(groups, k, b, n), normal(groups, b, n, seed=1))
    unit = 2 ** (beta / 2) * math.gamma((n + beta) / 2) / math.gamma(n / 2)
    expected = unit * ((1 + s**2) ** (beta / 2) - (2 * s**2) ** (beta / 2) / 2)
    z = (float(scores.mean()) - expected) / float(scores.std()) * groups**0.5
    assert abs(z) < 4


def slopes(m: float, s: float, k: int, b: int, groups: int = 20_000, n: int = 3) -> list[float]:
    """z-scores of the slopes in m and s of the score of F ~ N(m, s^2 I) for x ~ N(0, I), from many batches."""
    shift, spread = (torch.full((groups, 1, 1, 1), value, dtype=torch.float64, requires_grad=True) for value in (m, s))
    fake = shift + spread * normal(groups, k, b, n)
    together = torch.zeros(b, dtype=torch.int64)
    scores = torch.vmap(lambda draws, x: energy_score(draws, x, together).mean())(fake, normal(groups, b, n, seed=1))
    found = torch.autograd.grad(scores.sum(), (shift, spread))
    return [float(slope.mean() / slope.std()) * groups**0.5 for slope in found]


@pytest.mark.parametrize(("k", "b"), [(2, 1), (1, 4)])
def test_minimum_at_the_data(k, b):
    """The slope is 0 at the data's own mean and spread, and points there from elsewhere."""
    at_mean, at_spread = slopes(0.0, 1.0, k, b)
    assert abs(at_mean) < 4
    assert abs(at_spread) < 4
    assert slopes(0.0, 0.8, k, b)[1] < -20
    assert slopes(0.0, 1.25, k, b)[1] > 20
    assert slopes(-0.3, 1.0, k, b)[0] < -20
    assert slopes(0.3, 1.0, k, b)[0] > 20


def test_draws_of_other_rows_take_noise_from_the_gradient():
    """Ten conditions in a batch of 60: the gradient in the spread has less noise than that of rows on their own."""
    label = torch.arange(60) % 10

    def slope(seed, condition):
        spread = torch.ones((), dtype=torch.float64, requires_grad=True)
        centre = 3.0 * label[:, None].double()
        fake, target = centre + spread * normal(2, 60, 3, seed=seed), centre + normal(60, 3, seed=seed + 1000)
        energy_score(fake, target, condition).mean().backward()
        return float(spread.grad)

    alone, together = (torch.tensor([slope(i, c) for i in range(200)]).std() for c in (torch.arange(60), label))
    assert float(together) < 0.75 * float(alone)


def test_each_condition_is_scored_by_its_own_targets():
    """Draws that are right on the whole, but of the wrong conditions, score worse: by 4 - 0.56 or so in the mean."""
    label = torch.arange(600) % 2
    centre = 4.0 * label[:, None].double()
    target = centre + normal(600, 1, seed=1)
    right, swapped = (middle + normal(2, 600, 1) for middle in (centre, 4 - centre))
    term = EnergyScore()
    scores = [float(term(Outcome(fake, target, target, {"label": label}), GENERATOR)) for fake in (right, swapped)]
    assert scores[0] == pytest.approx(1 / math.pi**0.5, abs=0.1)  # E|F - x| / 2, both N(0, 1)
    assert scores[1] == pytest.approx(4 - 1 / math.pi**0.5, abs=0.2)


def test_typical_distance_by_loops():
    vectors = normal(6, 3)
    squares = [float((a - b).square().sum()) for a, b in combinations(vectors, 2)]
    assert typical_distance(vectors) == pytest.approx((sum(squares) / len(squares)) ** 0.5, abs=1e-12)


def test_typical_distance_where_all_are_alike():
    assert typical_distance(torch.ones(4, 9)) == pytest.approx(3e-3)


def test_gradients_are_finite_where_all_images_are_equal():
    x = normal(3, 1, 4, 4)
    fake = x.repeat(2, 1, 1, 1, 1).requires_grad_()
    EnergyScore()(Outcome(fake, x, x, {"label": torch.arange(3)}), GENERATOR).backward()
    assert float(fake.grad.abs().max()) <= 1e-10


def test_every_space_counts_in_units_of_its_own():
    """The mean over spaces of the mean over maps; a space in other units scores the same."""
    fake, target = normal(2, 5, 1, 4, 4), normal(5, 1, 4, 4, seed=1)
    given = Outcome(fake, target, target)

    class Two:
        name = "two maps"

        def __init__(self, unit):
            self.unit = unit

        def __call__(self, images, cond=None):
            return [self.unit * images[:, :, :2], images[:, :, 2:].square().flatten(1)]

    def alone(images):
        """One map's score by hand, in units of its typical distance; there are no conditions."""
        fake, target = (of.flatten(-3) / typical_distance(images[1].flatten(1)) for of in images)
        return energy_score(fake, target, torch.zeros(5, dtype=torch.int64)).mean()

    pixels = alone((fake, target))
    top, low = ([of[..., rows, :] for of in (fake, target)] for rows in (slice(2), slice(2, 4)))
    both = (alone(top) + alone([of.square() for of in low])) / 2
    for unit in (1.0, 1e3):
        found = EnergyScore((PixelMaps(), Two(unit))).fitted(target)(given, GENERATOR)
        assert float((found - (pixels + both) / 2).abs()) <= 1e-12
    assert float((EnergyScore().fitted(target)(given, GENERATOR) - pixels).abs()) <= 1e-12
    raw = EnergyScore()(given, GENERATOR) / typical_distance(target.flatten(1))
    assert float((raw - pixels).abs()) <= 1e-6, "without scales distances have the units of the maps; epsilon differs"


def test_rows_that_are_alone_in_their_condition_go_without_a_score():
    label = torch.tensor([0, 1, 0, 2])
    fake, real = normal(1, 4, 3), normal(4, 3, seed=1)
    rows = torch.tensor([0, 2])
    given, fewer = Outcome(fake, real, real, {"label": label}), Outcome(fake[:, rows], real[rows], real[rows])
    assert float(EnergyScore(draws=1)(given, GENERATOR)) == pytest.approx(float(EnergyScore(draws=1)(fewer, GENERATOR)))
    lonely = given._replace(cond={"label": torch.arange(4)})
    with pytest.raises(ShapeError, match="no two of which are the same") as caught:
        EnergyScore(draws=1)(lonely, GENERATOR)
    assert "energy.draws=2" in caught.value.todo


def test_refusals():
    for beta in (0.0, 2.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="between 0 and 2") as caught:
            EnergyScore(beta=beta)
        assert f"beta={beta:g}" in caught.value.given
        assert "beta=1" in caught.value.todo
    with pytest.raises(ConfigError, match="over no features"):
        EnergyScore(())
    with pytest.raises(ConfigError, match="At least 1"):
        EnergyScore(draws=0)
    with pytest.raises(ShapeError, match="At least 2 of them"):
        EnergyScore().fitted(normal(1, 3))
