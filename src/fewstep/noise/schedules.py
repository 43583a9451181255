r"""Schedules: from a clock to noise levels and back.

A schedule maps its own clock ``t`` (0 = clean) to a level and inverts the map exactly through
:math:`\lambda = \log(\alpha/\sigma)`. Schedules hold plain numbers, no tensors and no device; they compute in the
dtype of what they are given, so a float64 clock gives float64 levels. The clock of

* ``EDM`` is the noise level itself, ``t = sigma`` with ``alpha = 1``; that of ``VE`` is its square, the variance;
* ``VPLinear``, ``VPCosine``, ``LinearFlow`` and ``ShiftedFlow`` runs from 0 (clean) to 1 (noise);
* ``Tabulated`` counts the timesteps of a discrete model, from 0 (clean) over 1 (its timestep 0) to their number.

``t_range()`` is the part of the clock that grids and training use: from the clean limit, where lam is still finite, to
the noisy end. Levels between the clean limit and ``t = 0`` exist; beyond the noisy end there is nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.errors import ConfigError, LevelError
from fewstep.noise.level import NoiseLevel

__all__ = ["EDM", "VE", "Schedule", "VPCosine", "VPLinear", "check_limits", "inside", "lam_range_of"]


class Schedule(Protocol):
    """From a clock to noise levels and back."""

    def level(self, t: Tensor) -> NoiseLevel:
        """Level at time t, shape () or (b,); LevelError outside ``0 <= t <= t_range()[1]``."""
        ...

    def t_of_lam(self, lam: Tensor) -> Tensor:
        """Exact inverse of ``t -> level(t).lam``, same shape."""
        ...

    def t_range(self) -> tuple[float, float]:
        """Clean limit and noisy end of the clock."""
        ...

    def lam_range(self) -> tuple[float, float]:
        """Values of lam at the noisy end (``-inf`` where alpha reaches 0) and at the clean limit."""
        ...


def inside(t: Tensor, schedule: Schedule) -> Tensor:
    """Refuse times that the schedule does not have; forgive the last bit of rounding at the noisy end."""
    last = schedule.t_range()[1]
    if bool(((t < 0) | (t > last * (1 + 1e-6)) | t.isnan()).any()):
        raise LevelError(
            f"Time {t.detach().flatten().tolist()[:4]} for {schedule}",
            f"The clock of this schedule runs from 0 (clean) to {last:g} (noise)",
            "Clip the times, or widen the schedule",
        )
    return t.clamp(max=last)


def lam_range_of(schedule: Schedule) -> tuple[float, float]:
    """Values of lam at both ends of the clock, noisy first."""
    clean, noisy = schedule.level(torch.tensor(schedule.t_range(), dtype=torch.float64)).lam.tolist()
    return noisy, clean


def check_limits(schedule: Schedule, low: float, high: float) -> None:
    """Refuse limits of which the clean one is not above 0 and below the noisy one."""
    if not 0 < low < high < math.inf:
        raise ConfigError(
            f"{schedule} with limits {low:g} and {high:g}",
            "The clean limit must be above 0 and below the noisy end, both finite",
            "Swap or change the two limits",
        )


@dataclass(frozen=True)
class EDM:
    r"""Variance-exploding levels on the clock :math:`t = \sigma`, :math:`\alpha = 1`.

    Args:
        sigma_min: clean limit, data units.
        sigma_max: noisy end, data units.

    Source:
        Karras et al. 2022, arXiv:2206.00364, Table 1. Departs from it in: nothing.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_limits(self, self.sigma_min, self.sigma_max)

    def level(self, t: Tensor) -> NoiseLevel:
        """Level with ``alpha = 1`` and ``sigma = t``."""
        t = inside(t, self)
        return NoiseLevel(torch.ones_like(t), t)

    def t_of_lam(self, lam: Tensor) -> Tensor:
        """Noise level ``exp(-lam)``."""
        return (-lam).exp()

    def t_range(self) -> tuple[float, float]:
        """The interval ``(sigma_min, sigma_max)``."""
        return self.sigma_min, self.sigma_max

    def lam_range(self) -> tuple[float, float]:
        """The interval ``(-log sigma_max, -log sigma_min)``."""
        return lam_range_of(self)


@dataclass(frozen=True)
class VE:
    r"""Variance-exploding levels on the clock of the variance, :math:`t = \sigma^2`, :math:`\alpha = 1`.

    The levels of :class:`EDM`; another clock, so other grids of equal steps and other training times.

    Args:
        sigma_min: clean limit, data units.
        sigma_max: noisy end, data units.

    Source:
        Song et al. 2021, arXiv:2011.13456, Section 3.4, with the clock of Karras et al. 2022, arXiv:2206.00364, Table 1
        (column VE). Departs from it in: nothing.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        check_limits(self, self.sigma_min, self.sigma_max)

    def level(self, t: Tensor) -> NoiseLevel:
        """Level with ``alpha = 1`` and ``sigma = sqrt(t)``."""
        t = inside(t, self)
        return NoiseLevel(torch.ones_like(t), t.sqrt())

    def t_of_lam(self, lam: Tensor) -> Tensor:
        """Variance ``exp(-2 lam)``."""
        return (-2 * lam).exp()

    def t_range(self) -> tuple[float, float]:
        """The interval ``(sigma_min^2, sigma_max^2)``."""
        return self.sigma_min**2, self.sigma_max**2

    def lam_range(self) -> tuple[float, float]:
        """The interval ``(-log sigma_max, -log sigma_min)``."""
        return lam_range_of(self)


@dataclass(frozen=True)
class VPLinear:
    r"""Variance-preserving levels with a linear rate, the continuous form of DDPM's betas.

    .. math:: \log\alpha_t = -\tfrac14 t^2 (\beta_1 - \beta_0) - \tfrac12 t \beta_0, \quad \sigma_t^2 = 1 - \alpha_t^2

    Args:
        beta_min: rate at t = 0.
        beta_max: rate at t = 1.
        t_min: clean limit of the clock.

    Source:
        Song et al. 2021, arXiv:2011.13456, Eq. 33. Departs from it in: nothing.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        check_limits(self, self.t_min, 1.0)
        check_limits(self, self.beta_min, self.beta_max)

    def level(self, t: Tensor) -> NoiseLevel:
        """Level of the variance-preserving process at time t in [0, 1]."""
        t = inside(t, self)
        log_alpha = -t * (t * (self.beta_max - self.beta_min) / 4 + self.beta_min / 2)
        return NoiseLevel(log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt())

    def t_of_lam(self, lam: Tensor) -> Tensor:
        """Positive root of the quadratic in t, in the form that does not cancel near t = 0."""
        minus_2_log_alpha = torch.nn.functional.softplus(-2 * lam, threshold=1e6)
        gap = self.beta_max - self.beta_min
        return 2 * minus_2_log_alpha / ((self.beta_min**2 + 2 * gap * minus_2_log_alpha).sqrt() + self.beta_min)

    def t_range(self) -> tuple[float, float]:
        """The interval ``(t_min, 1)``."""
        return self.t_min, 1.0

    def lam_range(self) -> tuple[float, float]:
        """Values of lam at t = 1 and t = t_min."""
        return lam_range_of(self)


@dataclass(frozen=True)
class VPCosine:
    r"""Variance-preserving levels on a quarter of a cosine; pure noise, alpha = 0, at t = 1.

    .. math:: \alpha_t = \frac{\sin(a (1-t))}{\sin a}, \quad a = \frac{\pi}{2 (1 + s)}

    which is :math:`\cos\frac{\pi}{2}\frac{t+s}{1+s}` over its value at 0, written so that alpha(1) is 0 exactly.

    Args:
        offset: the small s that keeps the first noise levels from being too small.
        t_min: clean limit of the clock.

    Source:
        Nichol, Dhariwal 2021, arXiv:2102.09672, Eq. 17. Departs from it in: continuous time, no clipping of betas.
    """

    offset: float = 0.008
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        check_limits(self, self.t_min, 1.0)
        if self.offset < 0:
            raise ConfigError(f"{self} with offset {self.offset:g}", "The offset is 0 or above", "Use 0.008, or 0")

    @property
    def _angle(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    def level(self, t: Tensor) -> NoiseLevel:
        """Level of the variance-preserving process at time t in [0, 1]."""
        t, a = inside(t, self), self._angle
        # 1 - alpha^2 as a product of sines: the difference of squares would cancel near t = 0.
        variance = (a * t).sin() * (a * (2 - t)).sin()
        return NoiseLevel((a * (1 - t)).sin() / math.sin(a), variance.sqrt() / math.sin(a))

    def t_of_lam(self, lam: Tensor) -> Tensor:
        """Time by the two-argument arctangent, exact at both ends."""
        a = self._angle
        alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
        return 1 - torch.atan2(alpha * math.sin(a), (sigma**2 + (alpha * math.cos(a)) ** 2).sqrt()) / a

    def t_range(self) -> tuple[float, float]:
        """The interval ``(t_min, 1)``."""
        return self.t_min, 1.0

    def lam_range(self) -> tuple[float, float]:
        """Minus infinity, and lam at t_min."""
        return lam_range_of(self)
