"""Moment reconstruction: unbiased, and blind to the spread of the samples."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from fewstep.losses import L2, MomentReconstruction, Outcome, Paired

from .outcomes import GENERATOR, normal


@pytest.mark.parametrize("k", [2, 3])
def test_unbiased_exactly(k):
    """Over all k-tuples of independent draws from four points, the mean estimate is the squared error of the mean."""
    points, x = normal(4, 5), normal(5, seed=1)
    tuples = torch.tensor(list(product(range(4), repeat=k)))
    target = x.expand(len(tuples), 5)
    found = MomentReconstruction()(Outcome(points[tuples.T], target, target), GENERATOR)
    assert float((found - (points.mean(0) - x).square().mean()).abs()) <= 1e-12


@pytest.mark.parametrize("k", [2, 3])
def test_unbiased_exactly_where_the_first_draw_knows_the_real_sample(k):
    """z is one of four; F = f(z), x = t(z) of the first z: the mean is that of F and x from z of their own."""
    f, t = normal(4, 5), normal(4, 5, seed=1)
    tuples = torch.tensor(list(product(range(4), repeat=k)))
    given = Outcome(f[tuples.T], t[tuples[:, 0]], t[tuples[:, 0]])
    found, naive = (MomentReconstruction()(given._replace(tied=tied), GENERATOR) for tied in (True, False))
    assert float((found - (f.mean(0) - t).square().mean()).abs()) <= 1e-12
    assert abs(float(naive - found)) > 1e-2


def test_more_of_a_learned_pair_is_not_better():
    """F = s x of pairs z = x: held against its own pair, the mean would improve without end as s grows."""
    z = torch.tensor(list(product([-1.0, 1.0], repeat=2)), dtype=torch.float64).T[..., None]

    def cost(s, tied):
        return float(MomentReconstruction()(Outcome(s * z, z[0], z[0], tied=tied), GENERATOR))

    assert [cost(s, tied=True) for s in (0.0, 1.0, 10.0)] == pytest.approx([1, 1, 1])
    assert [cost(s, tied=False) for s in (0.0, 1.0, 10.0)] == pytest.approx([1, 0, -9])


def test_formula_by_loops():
    fake, target = normal(3, 2, 2, 2), normal(2, 2, 2, seed=1)
    total, terms = 0.0, 0
    for row in range(2):
        for i, j in product(range(3), repeat=2):
            if i != j:
                total += float(((fake[i, row] - target[row]) * (fake[j, row] - target[row])).mean())
                terms += 1
    assert float(MomentReconstruction()(Outcome(fake, target, target), GENERATOR)) == pytest.approx(total / terms)


def test_spread_is_free_and_the_mean_is_not():
    """Samples m + s z, z = -1 or 1: over all pairs of draws every s costs the same; the squared error rises with it."""
    z = torch.tensor(list(product([-1.0, 1.0], repeat=2)), dtype=torch.float64).T[..., None]
    x = torch.tensor([[0.5], [1.5], [0.5], [1.5]], dtype=torch.float64)
    pairs = [z.repeat_interleave(4, 1), x.repeat(4, 1)]

    def slopes(term, m):
        m, s = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (m, 0.7))
        loss = term(Outcome(m + s * pairs[0], pairs[1], pairs[1]), GENERATOR)
        return [float(slope) for slope in torch.autograd.grad(loss, (m, s))]

    assert slopes(MomentReconstruction(), 1.0) == pytest.approx([0, 0], abs=1e-15)
    assert slopes(MomentReconstruction(), 1.3) == pytest.approx([0.6, 0], abs=1e-15)
    assert slopes(Paired(L2()), 1.0) == pytest.approx([0, 1.4], abs=1e-15)
