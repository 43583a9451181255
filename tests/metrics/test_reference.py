"""RMSE and contrast gain against their formulas."""

from __future__ import annotations

import pytest
import torch

from fewstep.errors import ConfigError, NonFiniteError, ShapeError
from fewstep.metrics import contrast_gain, rmse

REFERENCE = torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_rmse():
    assert rmse(REFERENCE, REFERENCE) == 0
    assert rmse(REFERENCE + 0.5, REFERENCE) == pytest.approx(0.5, abs=1e-14)
    assert rmse(torch.tensor([3.0, 4.0]), torch.zeros(2)) == pytest.approx((25 / 2) ** 0.5, abs=1e-14)


@pytest.mark.parametrize("gain", [0.0, 0.9, 1.0, 1.07, -1.0])
@pytest.mark.parametrize("shape", [(), (2, 4, 4), (1, 2, 1, 1), (6, 2, 4, 4)])
def test_the_gain_is_what_the_contrast_was_multiplied_with(gain, shape):
    mean = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert contrast_gain(mean + gain * (REFERENCE - mean), REFERENCE, mean) == pytest.approx(gain, abs=1e-13)


def test_an_error_across_the_contrast_does_not_count():
    reference, across = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    assert contrast_gain(1.1 * reference + across, reference, torch.zeros(2)) == pytest.approx(1.1, abs=1e-6)


def test_small_dtypes_are_computed_in_float64():
    x = REFERENCE.to(torch.bfloat16)
    assert contrast_gain(x, x, torch.zeros(())) == pytest.approx(1.0, abs=1e-14)


def test_bad_input():
    with pytest.raises(ShapeError):
        rmse(REFERENCE, REFERENCE[:3])
    with pytest.raises(ShapeError):
        rmse(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ShapeError):
        contrast_gain(REFERENCE, REFERENCE, torch.zeros(3))
    with pytest.raises(NonFiniteError, match="samples"):
        rmse(REFERENCE * float("nan"), REFERENCE)
    with pytest.raises(NonFiniteError, match="reference"):
        contrast_gain(REFERENCE, REFERENCE / 0, torch.zeros(()))
    with pytest.raises(ConfigError):
        contrast_gain(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3))
