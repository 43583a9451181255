r"""Training draws: which noise levels a network learns.

A draw maps uniform numbers in (0, 1) to the schedule's clock, so that one stratified uniform sequence serves every
density: stratification lowers the variance of the loss without changing its mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from fewstep.noise.schedules import Schedule

__all__ = ["DRAWS", "Draw", "LogNormalDraw", "LogitNormalDraw", "UniformDraw", "stratified"]


class Draw(Protocol):
    """A density of training times, as the inverse of its distribution function."""

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        """Times on the schedule's clock for uniforms u in (0, 1), same shape."""
        ...


def stratified(n: int, generator: Generator) -> Tensor:
    """Draw one uniform number from each n-th of the unit interval, in random order.

    Args:
        n: how many.
        generator: source of randomness, on the host.

    Returns:
        Numbers in (0, 1), shape (n,), float64; each is uniform, together they are evenly spread.
    """
    jitter = torch.rand(n, generator=generator, dtype=torch.float64)
    u = (torch.randperm(n, generator=generator) + jitter) / n
    return u.clamp(1e-9, 1 - 1e-9)


def _on_clock(schedule: Schedule, fraction: Tensor) -> Tensor:
    clean, noisy = schedule.t_range()
    return clean + (noisy - clean) * fraction


@dataclass(frozen=True)
class UniformDraw:
    """Every time equally often."""

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        """Times, uniform between the clean limit and the noisy end."""
        return _on_clock(schedule, u)


@dataclass(frozen=True)
class LogitNormalDraw:
    """Middle times more often: the logit of the time's fraction is normal.

    Args:
        mean: above 0 leans to noise, below 0 to data.
        std: spread of the logit.

    Source:
        Esser et al. 2024, arXiv:2403.03206, Eq. 19. Departs from it in: nothing.
    """

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        """Times whose fraction of the clock is ``sigmoid(mean + std * normal)``."""
        return _on_clock(schedule, torch.sigmoid(self.mean + self.std * torch.special.ndtri(u)))


@dataclass(frozen=True)
class LogNormalDraw:
    """The logarithm of kappa is normal, clipped to the schedule's range: EDM's draw.

    Args:
        mean: of log kappa.
        std: of log kappa.

    Source:
        Karras et al. 2022, arXiv:2206.00364, Table 1 (noise distribution). Departs from it in: clipped to the schedule.
    """

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, schedule: Schedule, u: Tensor) -> Tensor:
        """Times whose ``log kappa`` is ``mean + std * normal``."""
        clean, noisy = schedule.t_range()
        return schedule.t_of_lam(-(self.mean + self.std * torch.special.ndtri(u))).clamp(clean, noisy)


DRAWS: dict[str, type[UniformDraw] | type[LogitNormalDraw] | type[LogNormalDraw]] = {
    "uniform": UniformDraw,
    "logit_normal": LogitNormalDraw,
    "log_normal": LogNormalDraw,
}
