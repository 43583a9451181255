r"""How much each noise level counts in denoising training.

The loss is a squared error of the network's *output*, weighted by :math:`w`. Papers state their weights in different
spaces, so each rule here is defined once, on the error of ``denoised``, as a function of
:math:`\mathrm{SNR} = \alpha^2 / \sigma^2`, and is moved to the output by the chain rule. Every prediction is affine,
:math:`\hat x_0 = a\,x + s\,out`, hence

.. math:: w_{x_0} |\hat x_0 - x_0|^2 = w_{x_0} s^2 |out - target|^2, \qquad s = \partial \hat x_0 / \partial out .
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.denoisers import Prediction
from fewstep.errors import ConfigError
from fewstep.noise import NoiseLevel

__all__ = ["WEIGHTS", "Debiased", "FlowError", "MinSNR", "Plain", "Weight"]


class Weight(Protocol):
    """The weight of a noise level."""

    def __call__(self, prediction: Prediction, level: NoiseLevel) -> Tensor:
        """Weight of the output's squared error at levels (b,), same shape."""
        ...


def _output_slope(prediction: Prediction, level: NoiseLevel) -> Tensor:
    """Find s, the derivative of denoised with respect to the output, from two points of the affine map."""
    zero = torch.zeros_like(level.alpha)
    return prediction.to_denoised(zero + 1, zero, level) - prediction.to_denoised(zero, zero, level)


@dataclass(frozen=True)
class Plain:
    """Every output error counts the same: the loss that the prediction was made for."""

    def __call__(self, prediction: Prediction, level: NoiseLevel) -> Tensor:
        """Ones, shape of the level."""
        return torch.ones_like(level.alpha)


@dataclass(frozen=True)
class MinSNR:
    r"""Clip the signal-to-noise ratio, so that nearly clean levels do not drown the others.

    .. math:: w_{x_0} = \min(\mathrm{SNR}, \gamma)

    Args:
        gamma: the ceiling, above 0.

    Raises:
        ConfigError: if gamma is not above 0.

    Source:
        Hang et al. 2023, arXiv:2303.09556, Eq. 8. Departs from it in: nothing; other predictions by the chain rule.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ConfigError(f"gamma={self.gamma:g} for MinSNR", "gamma is above 0", "Use the paper's 5")

    def __call__(self, prediction: Prediction, level: NoiseLevel) -> Tensor:
        """``min(SNR, gamma) * s**2``, shape of the level."""
        snr = (level.alpha / level.sigma) ** 2
        return snr.clamp(max=self.gamma) * _output_slope(prediction, level) ** 2


@dataclass(frozen=True)
class Debiased:
    r"""Count noisy levels more than an eps-loss does, where the estimate of the data matters most.

    .. math:: w_{x_0} = \sqrt{\mathrm{SNR}}

    which is :math:`1/\sqrt{\mathrm{SNR}}` on the error of an eps-prediction.

    Source:
        Yu et al. 2023, arXiv:2310.08442, Section 3.3. Departs from it in: other predictions by the chain rule.
    """

    def __call__(self, prediction: Prediction, level: NoiseLevel) -> Tensor:
        """``alpha / sigma * s**2``, shape of the level."""
        return level.alpha / level.sigma * _output_slope(prediction, level) ** 2


@dataclass(frozen=True)
class FlowError:
    r"""Measure any prediction by the error of the flow it implies, with a ceiling near clean data.

    .. math:: w_{x_0} = \min\Bigl(\frac{(\alpha + \sigma)^2}{\sigma^2}, c\Bigr)

    An x0-prediction with this weight learns what a flow-prediction learns with plain weights, while its output stays
    on clean images; unlike the rules made from the SNR alone it does not vanish at pure noise.

    Args:
        ceiling: c, above 0; 400 is the straight path's weight at t = 0.05.

    Raises:
        ConfigError: if the ceiling is not above 0.
    """

    ceiling: float = 400.0

    def __post_init__(self) -> None:
        if not self.ceiling > 0:
            raise ConfigError(f"ceiling={self.ceiling:g} for FlowError", "The ceiling is above 0", "Use 400")

    def __call__(self, prediction: Prediction, level: NoiseLevel) -> Tensor:
        """``min(((alpha + sigma) / sigma)**2, ceiling) * s**2``, shape of the level."""
        flow = ((level.alpha + level.sigma) / level.sigma) ** 2
        return flow.clamp(max=self.ceiling) * _output_slope(prediction, level) ** 2


WEIGHTS: dict[str, type[Plain] | type[MinSNR] | type[Debiased] | type[FlowError]] = {
    "plain": Plain,
    "min_snr": MinSNR,
    "debiased": Debiased,
    "flow_error": FlowError,
}
