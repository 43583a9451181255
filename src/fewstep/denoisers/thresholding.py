"""Dynamic thresholding: keep a guided estimate in the range of images, a denoiser around a denoiser."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoisers.base import Cond, Denoiser, evaluate
from fewstep.errors import ConfigError
from fewstep.noise import NoiseLevel

__all__ = ["DynamicThresholding", "thresholded"]


@dataclass(frozen=True)
class DynamicThresholding:
    r"""Cut off the largest numbers of an estimate and divide by where the cut was.

    .. math:: D' = \mathrm{clamp}(D, -s, s) / s, \qquad s = \max(1, \mathrm{quantile}_p |D|)

    with one s per sample, over all its numbers. An estimate inside [-1, 1] stays as it is; one that guidance drove out
    is brought back whole, instead of being clipped to flat white and black. For data in [-1, 1] alone: latents have
    another range. Put it around the guidance, not inside.

    Args:
        denoiser: as a rule a guided one.
        percentile: p, above 0 and at most 1, no unit.

    Raises:
        ConfigError: if the percentile is not in (0, 1].

    Source:
        Saharia et al. 2022, arXiv:2205.11487, Section 2.3. Departs from it in: nothing.
    """

    denoiser: Denoiser
    percentile: float = 0.995

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ConfigError(
                f"Dynamic thresholding at percentile {self.percentile:g}",
                "A share of the numbers, above 0 and at most 1",
                "Use 0.995; 99.5 of a hundred is written 0.995",
            )

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Thresholded estimate in [-1, 1], shape and dtype of x (b, *d), at a level () or (b,)."""
        denoised = evaluate(self.denoiser, x, level, cond)
        return thresholded(denoised, self.percentile)


def thresholded(denoised: Tensor, percentile: float, largest: float = math.inf) -> Tensor:
    """Cut off the largest numbers of estimates and divide by where the cut was.

    Args:
        denoised: estimates, shape (b, *d).
        percentile: p, from 0 to 1.
        largest: s is at most this, whatever the quantile; 1 cuts at [-1, 1] and divides by nothing.

    Returns:
        Estimates in [-1, 1], same shape and dtype.
    """
    flat = denoised.reshape(denoised.shape[0], -1)
    s = _quantile(flat.abs(), percentile).clamp(min=1).clamp(max=largest)
    return (flat.clamp(-s, s) / s).reshape(denoised.shape)


def _quantile(rows: Tensor, p: float) -> Tensor:
    """Quantile of each row of (b, n), interpolated linearly, (b, 1).

    Sorts the largest alone, and has no limit of size; torch.quantile refuses batches of more than 2**24 numbers.
    """
    n = rows.shape[1]
    rank = p * (n - 1)
    largest = rows.topk(n - math.floor(rank), dim=1).values
    below, above = largest[:, -1:], largest[:, -2:][:, :1]
    return torch.lerp(below, above, rank - math.floor(rank))
