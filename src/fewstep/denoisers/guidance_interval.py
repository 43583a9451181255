"""Guidance at some levels only: a choice between two denoisers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep._cond import rows_of
from fewstep._tensor import expand
from fewstep.denoisers.base import Cond, Denoiser, evaluate
from fewstep.errors import ConfigError
from fewstep.noise import NoiseLevel

__all__ = ["Interval"]


@dataclass(frozen=True)
class Interval:
    r"""Guide where the noise is neither high nor low, and nowhere else.

    The guided denoiser is called where :math:`\kappa_{min} < \kappa \le \kappa_{max}`, the plain one at all other
    levels, so that a step outside the interval costs one evaluation. Of a batch with a level per sample, each sample
    goes to the one denoiser that is meant for it. Which that is is read on the host: levels of grids are there, a
    batch of levels on a device is waited for.

    Args:
        guided: the denoiser inside the interval.
        plain: the denoiser outside, as a rule the one that `guided` is put around.
        kappa_min: noise below or at which there is no guidance, sigma / alpha.
        kappa_max: noise above which there is none; infinity guides pure noise, too.

    Raises:
        ConfigError: if the bounds are negative, NaN, or not in order.

    Source:
        Kynkäänniemi et al. 2024, arXiv:2404.07724, Section 3 (their sigma is kappa). Departs from it in: nothing.
    """

    guided: Denoiser
    plain: Denoiser
    kappa_min: float
    kappa_max: float

    def __post_init__(self) -> None:
        if not 0 <= self.kappa_min < self.kappa_max:
            raise ConfigError(
                f"Guidance from kappa {self.kappa_min:g} to {self.kappa_max:g}",
                "An interval of noise has 0 <= kappa_min < kappa_max",
                "Order the bounds; kappa_min=0 and kappa_max=math.inf guide everywhere",
            )

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Denoised estimate of whichever denoiser the level asks for, shape and dtype of x.

        Args:
            x: noisy samples, shape (b, *d).
            level: () or (b,).
            cond: conditions, batch first.

        Returns:
            Denoised, shape and dtype of x, data units.

        Raises:
            ShapeError: if the level is neither a scalar nor one value per sample.
        """
        expand(level.sigma, x)  # refuses a level (1,), which would index the first sample only
        inside = (level.kappa > self.kappa_min) & (level.kappa <= self.kappa_max)
        if bool(inside.all()):
            return evaluate(self.guided, x, level, cond)
        if not bool(inside.any()):
            return evaluate(self.plain, x, level, cond)
        parts, order = [], []
        for denoiser, rows in ((self.guided, inside.nonzero()[:, 0]), (self.plain, (~inside).nonzero()[:, 0])):
            on_device = rows.to(x.device)
            own = NoiseLevel(level.alpha[rows], level.sigma[rows])
            parts.append(evaluate(denoiser, x[on_device], own, rows_of(cond, on_device)))
            order.append(on_device)
        return torch.cat(parts)[torch.cat(order).argsort()]
