r"""Couplings that choose among noise that was drawn anyway, so that chains do not have to cross.

Both compare noise and images by their squared Euclidean distance in pixels,

.. math:: |z - x|^2 = |z|^2 - 2 \langle z, x \rangle + |x|^2 .
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep._cond import conditions_of
from fewstep._files import require
from fewstep._tensor import normal_like
from fewstep.data import Batch
from fewstep.errors import ConfigError
from fewstep.objectives.coupled import Coupled, Pairing

__all__ = ["OT", "NearestNoise"]


@dataclass(frozen=True)
class OT:
    r"""Optimal transport within the batch: as many draws as images, assigned at the least total cost.

    .. math:: \min_\pi \sum_i |z_{\pi(i)} - x_i|^2 = \mathrm{const} - 2 \max_\pi \sum_i \langle z_{\pi(i)}, x_i \rangle

    over the permutations that stay among equal conditions: the draws of a batch are only dealt out anew, so z remains
    N(0, I) and independent of the condition. Where every image has its own caption there is nothing to choose, and
    this is Independent. In high dimensions a batch explains little of the image (about 30 % of CIFAR-10's variance at
    256 to 1,024 images): less conflict for pointwise losses, not none.

    Losses that compare distributions see the images in random order. As sets, draws and images know nothing of each
    other; beside the image it was dealt to, a draw resembles it more than independent ones do, and the others less.

    Source:
        Pooladian et al. 2023, arXiv:2304.14772, Section 3.2; Tong et al. 2024, arXiv:2302.00482.
        Departs from them in: conditions; the assignment is exact.
    """

    pairing: ClassVar[Pairing] = "part"
    leaky: ClassVar[bool] = False

    def __call__(self, batch: Batch, generator: Generator) -> Coupled:
        """Deal the batch's noise out; MissingExtra without scipy."""
        assign = require("scipy.optimize", "train").linear_sum_assignment
        x, z = batch.x0, normal_like(batch.x0, generator)
        alike = z.detach().flatten(1).double().cpu() @ x.detach().flatten(1).double().cpu().T  # no autocast in float64
        chosen, shuffled = torch.arange(len(batch)), torch.arange(len(batch))
        groups = conditions_of(batch.cond, len(batch), "cpu")
        for group in range(int(groups.max()) + 1):
            rows = (groups == group).nonzero().flatten()
            draws, images = assign(alike[rows][:, rows].numpy(), maximize=True)
            chosen[rows[images]] = rows[draws]
            shuffled[rows] = rows[torch.randperm(len(rows), generator=generator)]
        return Coupled(z[chosen.to(z.device)], x, batch.cond, x[shuffled.to(x.device)], tied=False)


@dataclass(frozen=True)
class NearestNoise:
    r"""Immiscible noise: of k draws for each image, the one nearest to it.

    Cheaper than an assignment and independent of the rest of the batch, but *biased*: the chosen z leans towards its
    image. In many dimensions d its mean along the image, which is 0 for N(0, I), is

    .. math:: \frac{m_k |x|}{\sqrt{|x|^2 + d / 2}}

    with :math:`m_k` the mean of the largest of k standard normal numbers (1.03 for k = 4). Samples start from N(0, I),
    so a small k is a compromise, and a large one teaches to read the image's mean off the start. It is no pairing: a
    choice among k tells at most log2 k bits of the image, and a pointwise loss alone still blurs all the others away.

    Args:
        k: draws for each image; 1 is Independent.

    Raises:
        ConfigError: if k < 1.

    Source:
        Li et al. 2025, arXiv:2505.18521 (immiscible diffusion by nearest noise). Departs from it in: nothing known.
    """

    k: int = 4
    pairing: ClassVar[Pairing] = "none"
    leaky: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"NearestNoise(k={self.k})", "k is 1 or more", "Use k=4")

    def __call__(self, batch: Batch, generator: Generator) -> Coupled:
        """Draw k times and keep the nearest, in the memory of two draws."""
        x = batch.x0
        z = normal_like(x, generator)
        for _ in range(self.k - 1):
            other = normal_like(x, generator)
            z = torch.where((_square(other - x) < _square(z - x)).reshape(-1, *[1] * (x.ndim - 1)), other, z)
        return Coupled(z, x, batch.cond, x)


def _square(x: Tensor) -> Tensor:
    return x.flatten(1).float().square().sum(1)
