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


def by_loops(fake, target, scale, beta, smooth):
    found = []
    for row in range(len(target)):
        draws = [fake[i, row] for i in range(len(fake))]
        to = [rho(draw - target[row], scale, beta, smooth) for draw in draws]
        between = [rho(a - b, scale, beta, smooth) for a, b in combinations(draws, 2)]
        found.append(sum(to) / len(to) - sum(between) / len(between) / 2)
    return found


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize(("scale", "beta", "smooth"), [(1.0, 1.0, 0.0), (2.5, 0.6, 0.1), (0.3, 1.7, 1e-3)])
def test_formula_by_loops(k, scale, beta, smooth):
    fake, target = normal(k, 3, 5), normal(3, 5, seed=1)
    found = energy_score(fake, target, scale, beta, smooth)
    assert found.tolist() == pytest.approx(by_loops(fake, target, scale, beta, smooth), abs=1e-12)


@pytest.mark.parametrize("k", [2, 3])
def test_unbiased_exactly(k):
    """Over all k-tuples of independent draws from four points, the mean is that of the distribution of the points."""
    points, x = normal(4, 5), normal(5, seed=1)
    tuples = torch.tensor(list(product(range(4), repeat=k)))
    found = energy_score(points[tuples.T], x.expand(len(tuples), 5), beta=0.8).mean()
    to = sum(rho(a - x, 1, 0.8, 1e-3) for a in points) / 4
    between = sum(rho(a - b, 1, 0.8, 1e-3) for a, b in product(points, repeat=2)) / 16
    assert float(found) == pytest.approx(to - between / 2, abs=1e-12)


@pytest.mark.parametrize("k", [2, 3])
def test_unbiased_exactly_where_the_first_draw_knows_the_real_sample(k):
    """z is one of four; F = f(z), x = t(z) of the first z: the mean is that of F and x from z of their own."""
    f, t = normal(4, 5), normal(4, 5, seed=1)
    tuples = torch.tensor(list(product(range(4), repeat=k)))
    given = Outcome(f[tuples.T], t[tuples[:, 0]], t[tuples[:, 0]])
    to = sum(rho(a - x, 1, 1.0, 1e-3) for a, x in product(f, t)) / 16
    between = sum(rho(a - b, 1, 1.0, 1e-3) for a, b in product(f, repeat=2)) / 16
    scores = [float(EnergyScore(scale=1.0)(given._replace(tied=tied), GENERATOR)) for tied in (True, False)]
    assert scores[0] == pytest.approx(to - between / 2, abs=1e-12)
    assert abs(scores[1] - scores[0]) > 1e-3, "a first draw that is held against its own pair is biased"


def test_the_score_is_that_of_the_real_samples_whatever_the_targets_are():
    given = Outcome(normal(2, 5, 3), normal(5, 3, seed=1), normal(5, 3, seed=2))
    expected = energy_score(given.fake, given.real, typical_distance(given.real)).mean()
    assert torch.equal(EnergyScore()(given, GENERATOR), expected)


@pytest.mark.parametrize(("s", "beta"), [(1.0, 1.0), (0.6, 1.0), (1.5, 0.5)])
def test_closed_form_for_gaussians(s, beta):
    r"""F ~ N(0, s^2 I), x ~ N(0, I) in n dimensions: E|N(0, v I)|^b = (2 v)^(b/2) G((n + b)/2) / G(n/2)."""
    n, batch = 5, 100_000
    scores = energy_score(s * normal(2, batch, n), normal(batch, n, seed=1), beta=beta, smooth=0)
    unit = 2 ** (beta / 2) * math.gamma((n + beta) / 2) / math.gamma(n / 2)
    expected = unit * ((1 + s**2) ** (beta / 2) - (2 * s**2) ** (beta / 2) / 2)
    z = (float(scores.mean()) - expected) / float(scores.std()) * batch**0.5
    assert abs(z) < 4


def slopes(m: float, s: float, measure=typical_distance, groups: int = 20_000, b: int = 4, n: int = 3) -> list[float]:
    """z-scores of the slopes in m and s of the score of F ~ N(m, s^2 I) for x ~ N(0, I).

    There are many batches of b targets, and each measures its own scale.
    """
    data = normal(groups, b, n, seed=1)
    scale = torch.vmap(measure)(data).flatten()
    shift, spread = (torch.full((groups, 1), value, dtype=torch.float64, requires_grad=True) for value in (m, s))
    fake = shift + spread * normal(2, groups, b * n)
    scores = energy_score(fake.reshape(2, -1, n), data.reshape(-1, n), scale)
    found = torch.autograd.grad(scores.sum(), (shift, spread))
    return [float(slope.mean() / slope.std()) * groups**0.5 for slope in found]


def test_minimum_at_the_data_with_the_measured_scale():
    """The slope is 0 at the data's own mean and spread, and points there from elsewhere."""
    at_mean, at_spread = slopes(0.0, 1.0)
    assert abs(at_mean) < 4
    assert abs(at_spread) < 4
    assert slopes(0.0, 0.8)[1] < -20
    assert slopes(0.0, 1.25)[1] > 20
    assert slopes(-0.3, 1.0)[0] < -20
    assert slopes(0.3, 1.0)[0] > 20


def test_a_scale_that_knows_its_target_moves_the_minimum():
    """Why the scale leaves the scored target out; and the proof that the test above would see a scale that does not."""

    def of_the_whole_batch(vectors):
        return (2 * vectors.var(0).sum()).sqrt().expand(len(vectors))

    assert slopes(0.0, 1.0, of_the_whole_batch)[1] > 8


def test_each_condition_is_scored_by_its_own_targets():
    """Draws that are right on the whole, but of the wrong conditions, score worse: by 4 - 0.56 or so in the mean."""
    label = torch.arange(2000) % 2
    centre = 4.0 * label[:, None].double()
    target = centre + normal(2000, 1, seed=1)
    right, swapped = (middle + normal(2, 2000, 1) for middle in (centre, 4 - centre))
    term = EnergyScore(scale=1.0)
    scores = [float(term(Outcome(fake, target, target, {"label": label}), GENERATOR)) for fake in (right, swapped)]
    assert scores[0] == pytest.approx(1 / math.pi**0.5, abs=0.1)  # E|F - x| / 2, both N(0, 1)
    assert scores[1] == pytest.approx(4 - 1 / math.pi**0.5, abs=0.2)


def test_typical_distance_by_loops():
    vectors = normal(6, 3)
    for i, found in enumerate(typical_distance(vectors)):
        others = [vectors[j] for j in range(6) if j != i]
        squares = [float((a - b).square().sum()) for a, b in combinations(others, 2)]
        assert float(found) == pytest.approx((sum(squares) / len(squares)) ** 0.5, abs=1e-12)


def test_typical_distance_where_all_are_alike():
    vectors = torch.ones(4, 9, requires_grad=True)
    found = typical_distance(vectors)
    assert found.tolist() == pytest.approx([3e-3] * 4)
    assert not found.requires_grad


def test_gradients_are_finite_where_all_images_are_equal():
    x = normal(3, 1, 4, 4)
    fake = x.repeat(2, 1, 1, 1, 1).requires_grad_()
    EnergyScore()(Outcome(fake, x, x), GENERATOR).backward()
    assert float(fake.grad.abs().max()) == 0


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
        images = [of.flatten(2) if of is fake else of.flatten(1) for of in images]
        return energy_score(*images, typical_distance(images[1])).mean()

    pixels = alone((fake, target))
    top = energy_score(
        *(of[..., :2, :].flatten(-3) for of in (fake, target)), typical_distance(target[..., :2, :].flatten(1))
    )
    low = [of[..., 2:, :].square().flatten(-3) for of in (fake, target)]
    both = (top.mean() + energy_score(*low, typical_distance(low[1])).mean()) / 2
    for unit in (1.0, 1e3):
        found = EnergyScore((PixelMaps(), Two(unit)))(given, GENERATOR)
        assert float((found - (pixels + both) / 2).abs()) <= 1e-12
    assert float((EnergyScore()(given, GENERATOR) - pixels).abs()) <= 1e-12


def test_refusals():
    for beta in (0.0, 2.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="between 0 and 2") as caught:
            EnergyScore(beta=beta)
        assert f"beta={beta:g}" in caught.value.given
        assert "beta=1" in caught.value.todo
    with pytest.raises(ConfigError, match="scale is above 0"):
        EnergyScore(scale=0.0)
    with pytest.raises(ConfigError, match="over no features"):
        EnergyScore(())
    few = Outcome(normal(2, 2, 3), normal(2, 3), normal(2, 3))
    with pytest.raises(ShapeError, match="At least 3 of them") as caught:
        EnergyScore()(few, GENERATOR)
    assert "scale=" in caught.value.todo
    assert EnergyScore(scale=1.0)(few, GENERATOR).isfinite()
