"""Views: what a file holds, bit for bit, and where the gradient goes."""

from __future__ import annotations

import pytest
import torch

from fewstep.data import to_uint8, to_unit
from fewstep.losses import VIEWS, Outcome, Viewed, clamped, eight_bit

from .outcomes import GENERATOR, normal


def test_eight_bit_is_the_file_bit_for_bit():
    levels = to_unit(torch.arange(256, dtype=torch.uint8))
    halves = (levels[1:] + levels[:-1]) / 2
    everywhere = torch.linspace(-3, 3, 100_001)
    extremes = torch.tensor([-torch.inf, -1e30, -1.0, 1.0, 1e30, torch.inf])
    for x in (levels, halves, everywhere, extremes):
        assert torch.equal(eight_bit(x), to_unit(to_uint8(x)))
    assert torch.equal(eight_bit(levels), levels)
    assert len(eight_bit(everywhere).unique()) == 256


@pytest.mark.parametrize(("dtype", "seen"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_eight_bit_in_other_dtypes(dtype, seen):
    x = torch.linspace(-2, 2, 4001, dtype=torch.float64).to(dtype)
    assert eight_bit(x).dtype == seen
    assert torch.equal(eight_bit(x), to_unit(to_uint8(x)).to(seen))


@pytest.mark.parametrize("view", [clamped, eight_bit])
def test_gradients_pass_inside_and_stop_outside(view):
    x = torch.tensor([-5.0, -1.001, -1.0, -0.3, 0.0, 0.7001, 1.0, 1.001, torch.inf], requires_grad=True)
    pull = torch.arange(1.0, 10)
    (pull * view(x)).sum().backward()
    assert torch.equal(x.grad, pull * torch.tensor([0.0, 0, 1, 1, 1, 1, 1, 0, 0]))


def test_not_a_number_stays_one():
    """So that whoever looks for it still finds it."""
    for view in VIEWS.values():
        assert view(torch.tensor([torch.nan, 0.5])).isnan().tolist() == [True, False]


def test_a_viewed_term_sees_everything_through_the_view():
    class Spread:
        draws, role = 2, "moment"

        def __call__(self, outcome, generator):
            self.seen = outcome
            return outcome.fake.mean()

    term, given = Spread(), Outcome(3 * normal(2, 3, 4), 3 * normal(3, 4, seed=1), 3 * normal(3, 4, seed=2), {})
    viewed = Viewed(term, clamped)
    assert (viewed.draws, viewed.role) == (2, "moment")
    assert viewed(given, GENERATOR) == given.fake.clamp(-1, 1).mean()
    for seen, whole in zip(term.seen[:3], given[:3], strict=True):
        assert torch.equal(seen, whole.clamp(-1, 1))
    assert Viewed(term).view is VIEWS["eight_bit"]
    assert VIEWS["none"](given.fake) is given.fake
