r"""Schedules: from a clock to noise levels and back.

A schedule maps its own clock ``t`` (0 = clean) to a level and inverts the map exactly through
:math:`\lambda = \log(\alpha/\sigma)`. Schedules hold plain numbers, no tensors and no device; they compute in the
dtype of what they are given, so a float64 clock gives float64 levels. The clock of

* ``EDM`` is the noise level itself, ``t = sigma`` with ``alpha = 1``;
* ``VPLinear``, ``VPCosine`` and ``LinearFlow`` runs from 0 (clean) to 1 (noise).

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

__all__ = ["EDM", "SCHEDULES", "LinearFlow", "Schedule", "VPCosine", "VPLinear"]


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


def _inside(t: Tensor, schedule: Schedule) -> Tensor:
    """Refuse times that the schedule does not have; forgive the last bit of rounding at the noisy end."""
    last = schedule.t_range()[1]
    if bool(((t < 0) | (t > last * (1 + 1e-6)) | t.isnan()).any()):
        raise LevelError(
            f"Time {t.detach().flatten().tolist()[:4]} for {schedule}",
            f"The clock of this schedule runs from 0 (clean) to {last:g} (noise)",
            "Clip the times, or widen the schedule",
        )
    return t.clamp(max=last)


def _lam_range(schedule: Schedule) -> tuple[float, float]:
    clean, noisy = schedule.level(torch.tensor(schedule.t_range(), dtype=torch.float64)).lam.tolist()
    return noisy, clean


def _check_limits(schedule: Schedule, low: float, high: float) -> None:
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
        _check_limits(self, self.sigma_min, self.sigma_max)

    def level(self, t: Tensor) -> NoiseLevel:
        """Level with ``alpha = 1`` and ``sigma = t``."""
        t = _inside(t, self)
        return NoiseLevel(torch.ones_like(t), t)

    def t_of_lam(self, lam: Tensor) -> Tensor:
        """Noise level ``exp(-lam)``."""
        return (-lam).exp()

    def t_range(self) -> tuple[float, float]:
        """The interval ``(sigma_min, sigma_max)``."""
        return self.sigma_min, self.sigma_max

    def lam_range(self) -> tuple[float, float]:
        """The interval ``(-log sigma_max, -log sigma_min)``."""
        return _lam_range(self)


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
        _check_limits(self, self.t_min, 1.0)
        _check_limits(self, self.beta_min, self.beta_max)

    def level(self, t: Tensor) -> NoiseLevel:
        """Level of the variance-preserving process at time t in [0, 1]."""
        t = _inside(t, self)
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
        return _lam_range(self)


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
        _check_limits(self, self.t_min, 1.0)
        if self.offset < 0:
            raise ConfigError(f"{self} with offset {self.offset:g}", "The offset is 0 or above", "Use 0.008, or 0")

    @property
    def _angle(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    def level(self, t: Tensor) -> NoiseLevel:
        """Level of the variance-preserving process at time t in [0, 1]."""
        t, a = _inside(t, self), self._angle
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
        return _lam_range(self)


@dataclass(frozen=True)
class LinearFlow:
    r"""The straight path of rectified flow, :math:`\alpha = 1 - t`, :math:`\sigma = t`; pure noise at t = 1.

    Args:
        t_min: clean limit of the clock.

    Source:
        Liu, Gong, Liu 2023, arXiv:2209.03003, Eq. 1. Departs from it in: the clock; here t = 0 is clean.
    """

    t_min: float = 1e-3

    def __post_init__(self) -> None:
        _check_limits(self, self.t_min, 1.0)

    def level(self, t: Tensor) -> NoiseLevel:
        """Level with ``alpha = 1 - t`` and ``sigma = t``."""
        t = _inside(t, self)
        return NoiseLevel(1 - t, t)

    def t_of_lam(self, lam: Tensor) -> Tensor:
        """Time ``sigmoid(-lam)``."""
        return torch.sigmoid(-lam)

    def t_range(self) -> tuple[float, float]:
        """The interval ``(t_min, 1)``."""
        return self.t_min, 1.0

    def lam_range(self) -> tuple[float, float]:
        """Minus infinity, and lam at t_min."""
        return _lam_range(self)


SCHEDULES: dict[str, type[EDM] | type[VPLinear] | type[VPCosine] | type[LinearFlow]] = {
    "edm": EDM,
    "vp_linear": VPLinear,
    "vp_cosine": VPCosine,
    "linear_flow": LinearFlow,
}
