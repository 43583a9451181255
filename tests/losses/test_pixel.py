"""Pixel losses against hand formulas, and the exact sense in which pairs of independent noise tax diversity."""

from __future__ import annotations

import pytest
import torch

from fewstep.errors import ConfigError
from fewstep.losses import L1, L2, Huber, Outcome, Paired

from .outcomes import GENERATOR, normal


def test_hand_formulas():
    fake = torch.tensor([[0.0, 1.0, -2.0], [0.1, 0.0, 0.0]], dtype=torch.float64)
    target = torch.tensor([[0.5, 1.0, 1.0], [0.0, 0.0, 0.3]], dtype=torch.float64)
    expected = {
        L1(): [3.5 / 3, 0.4 / 3],
        L2(): [9.25 / 3, 0.10 / 3],
        Huber(0.2): [(0.5 - 0.1 + 3 - 0.1) / 3, (0.01 / 0.4 + 0.3 - 0.1) / 3],
    }
    for loss, values in expected.items():
        assert loss(fake, target).tolist() == pytest.approx(values, abs=1e-15)


def test_huber_joins_smoothly_and_has_slope_one_outside():
    d = torch.tensor([0.2 - 1e-9, 0.2, 0.2 + 1e-9, 5.0, -7.0], dtype=torch.float64, requires_grad=True)
    values = Huber(0.2)(d[:, None], torch.zeros(5, 1, dtype=torch.float64))
    (slopes,) = torch.autograd.grad(values.sum(), d)
    assert values[:3].tolist() == pytest.approx([0.1] * 3, abs=2e-9)
    assert slopes.tolist() == pytest.approx([1, 1, 1, 1, -1], abs=1e-8)


def test_with_independent_noise_the_squared_error_is_the_variance_of_the_samples_and_a_bias():
    """Averaged over all pairs of a sample and a target, exactly: so it falls when samples become alike."""
    samples, data = normal(7, 3), normal(5, 3, seed=1) + 2
    fake, target = samples.repeat_interleave(5, 0), data.repeat(7, 1)
    found = Paired(L2())(Outcome(fake[None], target, target), GENERATOR)
    variance, spread = (x.var(0, correction=0).sum() for x in (samples, data))
    bias = (samples.mean(0) - data.mean(0)).square().sum()
    assert float((3 * found - (variance + bias + spread)).abs()) <= 1e-12


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_impossible_delta(delta):
    with pytest.raises(ConfigError, match="delta is above 0") as caught:
        Huber(delta)
    assert "0.1" in caught.value.todo
