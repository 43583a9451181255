"""Churn: raise the noise level of a sample a little before a step, and let the step remove more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.errors import ConfigError
from fewstep.noise import Grid, NoiseLevel
from fewstep.solvers.base import NoiseSource, drawn
from fewstep.solvers.coeffs import Level, Number, levels_of

__all__ = ["Churn", "Start", "churned", "starts"]


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

    def raise_level(self, here: Level, steps: int) -> tuple[Level, Number]:
        """Where a step begins.

        Args:
            here: level of the grid.
            steps: of the grid.

        Returns:
            The noisier level, and the standard deviation of the fresh noise that leads there; 0 outside the interval.
        """
        if not self.kappa_min * here.alpha <= here.sigma <= self.kappa_max * here.alpha:
            return here, 0.0
        gamma = min(self.amount / steps, math.sqrt(2) - 1)
        return Level(here.alpha, here.sigma * (1 + gamma)), self.scale * here.sigma * math.sqrt((1 + gamma) ** 2 - 1)


def churned(churn: Churn | float | None) -> Churn | None:
    """Read the option of a rule: a churn, its amount alone, or none; ConfigError for anything else."""
    if churn is None or isinstance(churn, Churn):
        return churn
    if isinstance(churn, int | float):
        return Churn(float(churn))
    raise ConfigError(f"churn={churn!r}", "A Churn, its amount alone, or None", "Use churn=Churn(40), or churn=40")


class Start(NamedTuple):
    """Where a step begins, once its sample is churned.

    Attributes:
        level: what the denoiser is asked at.
        numbers: the same, for weights.
        noise: standard deviation of the fresh noise; nothing is drawn where it is the number 0.
    """

    level: NoiseLevel
    numbers: Level
    noise: Number

    def churn(self, x: Tensor, i: int, noise: NoiseSource | None) -> Tensor:
        """Bring samples (b, *d) of step i there."""
        if isinstance(self.noise, float) and self.noise == 0:
            return x
        return x + self.noise * drawn(noise, i, x)


def starts(grid: Grid, churn: Churn | float | None) -> list[Start]:
    """Where every step of a grid begins, with churn or without."""
    found, raising = [], churned(churn)
    for i, here in enumerate(levels_of(grid)[:-1]):
        level, noise = (here, 0.0) if raising is None else raising.raise_level(here, grid.steps)
        found.append(Start(grid.at(i) if level is here else _asked(level), level, noise))
    return found


def _asked(level: Level) -> NoiseLevel:
    """A level as denoisers take it."""
    alpha, sigma = (torch.as_tensor(part, dtype=torch.float64, device="cpu") for part in level)
    return NoiseLevel(alpha, sigma)
