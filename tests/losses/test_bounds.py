"""What pulls at samples beyond black and white."""

import pytest
import torch

from fewstep.errors import ConfigError, ShapeError
from fewstep.losses import Bounds, Outcome, Viewed
from fewstep.losses.views import unchanged


def outcome(fake: torch.Tensor) -> Outcome:
    real = torch.zeros(fake.shape[1:], dtype=fake.dtype)
    return Outcome(fake, real, real)


def test_squared_distance_to_the_interval() -> None:
    fake = torch.tensor([[[-3.0, -1.0, 0.5, 1.0]], [[1.5, 0.0, -1.5, 1.0]]], dtype=torch.float64)
    value = Bounds(margin=0.0)(outcome(fake), torch.Generator())
    assert float(value) == pytest.approx((4 + 0.25 + 0.25) / 8, abs=1e-15)


def test_only_what_is_outside_is_pulled_back() -> None:
    fake = torch.tensor([[[-3.0, -1.5, 0.5, 1.75]]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Bounds()(outcome(fake), torch.Generator()), fake)
    assert torch.equal(gradient, torch.tensor([[[-0.75, 0.0, 0.0, 0.125]]], dtype=torch.float64))


def test_behind_a_clipping_view_there_is_nothing_to_see() -> None:
    with pytest.raises(ConfigError, match="samples as they are"):
        Viewed(Bounds())
    assert float(Viewed(Bounds(0.0), unchanged)(outcome(3 * torch.ones(2, 3, 4)), torch.Generator())) == 4


def test_samples_of_the_wrong_shape() -> None:
    with pytest.raises(ShapeError):
        Bounds()(Outcome(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4)), torch.Generator())


def test_a_negative_margin() -> None:
    with pytest.raises(ConfigError, match=r"margin=-0.1.*0 or above"):
        Bounds(-0.1)
