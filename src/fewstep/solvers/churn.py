"""Churn: raise the noise level of a sample a little before a step, and let the step remove more."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import ConfigError
from fewstep.noise import Grid, NoiseLevel
from fewstep.solvers.base import NoiseSource

__all__ = ["Churn"]


@dataclass(frozen=True)
class Churn:
    r"""Fresh noise in every step whose level lies in an interval.

    .. math:: \hat\sigma = (1 + \gamma)\, \sigma, \qquad \hat x = x + S \sqrt{\hat\sigma^2 - \sigma^2}\, z,
              \qquad \gamma = \min(A / N, \sqrt 2 - 1)

    Args:
        amount: A, the noise of a whole run; N is the number of steps.
        kappa_min: no churn below this level, noise per unit of data.
        kappa_max: no churn above it. A network is then asked for levels up to sqrt(2) times this one.
        scale: S, standard deviation of the fresh noise; 1 is right for an exact denoiser.

    Raises:
        ConfigError: if a number is out of its range.

    Source:
        Karras et al. 2022, arXiv:2206.00364, Algorithm 2. Departs from it in: written for any alpha.
    """

    amount: float
    kappa_min: float = 0.05
    kappa_max: float = 50.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        fine = 0 < self.amount < math.inf and 0 <= self.kappa_min < self.kappa_max and 0 < self.scale < math.inf
        if not fine:
            raise ConfigError(
                str(self),
                "amount and scale are above 0 and finite, 0 <= kappa_min < kappa_max",
                "Use Churn(40) as EDM does, or no churn",
            )

    def __call__(self, x: Tensor, grid: Grid, i: int, noise: NoiseSource | None) -> tuple[Tensor, NoiseLevel]:
        """Bring samples at level i to a noisier level.

        Args:
            x: shape (b, *d).
            grid: the levels.
            i: index of the step that is about to be made.
            noise: source of fresh noise.

        Returns:
            The samples and their level; both unchanged outside the interval.
        """
        here = grid.at(i)
        inside = bool(here.sigma >= self.kappa_min * here.alpha) and bool(here.sigma <= self.kappa_max * here.alpha)
        if noise is None or not inside:
            return x, here
        gamma = min(self.amount / grid.steps, math.sqrt(2) - 1)
        up = self.scale * math.sqrt((1 + gamma) ** 2 - 1) * here.sigma
        return x + up * noise(i, x), NoiseLevel(here.alpha, torch.mul(here.sigma, 1 + gamma))
