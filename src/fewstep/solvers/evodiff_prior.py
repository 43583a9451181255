r"""The priors of EVODiff's default rule, and the weights of least error variance under them.

Two families of one-dimensional data stand for what a trajectory may be. In both, s is spread evenly over the decades:

* *diffuse* data, :math:`N(0, s^2)`: denoised moves early and slowly, as for smooth and Gaussian-like data;
* *clustered* data, two clusters at :math:`\pm s` of width s / 4: denoised makes up its mind late and at once, as for
  images.

Their probability-flow ODE is solved exactly by the map of quantiles, :math:`F_\kappa(x) = \Phi(z)`, so what a rule does
to them is known to rounding. A step is written from an anchor, the sample a few steps back, over the estimates since,

.. math:: \hat x_{i+1} = \tfrac{\sigma_{i+1}}{\sigma_a} x_a + \sum_{j=a}^{i} w_j m_j, \qquad
          \sum_j w_j = \alpha_{i+1} - \alpha_a \tfrac{\sigma_{i+1}}{\sigma_a}

so that constants are exact whatever the weights. They are chosen step by step along the rule's own states, its earlier
errors included, to minimise the variance of the error over a family:

.. math:: \min_w \; E\big[(x_{i+1} - \hat x_{i+1})^2\big] / \alpha_{i+1}^2
          + \nu\, E[s^2]\, h^8 (1 + 10^4 h^{16})\, |w|^2 / \alpha_{i+1}^2, \qquad h = 1 - \kappa_{i+1} / \kappa_i

with the sum held and the ridge on all weights but the newest: a small linear least-squares problem. The ridge keeps the
weights of very long steps calm, where a prior says little of the data at hand, and vanishes with the step faster than
anything a rule of second order leaves, so it costs no order. The same estimator says, before m_i is known, what it
should be; those weights sum to 1. Everything here is computed on the host in float64, once for a grid.

A grid that begins at pure noise and takes its first step to a small kappa says that there is little to see on the way:
data of a larger scale would have shown up before. So the scales of a family end at

.. math:: s \le \big(1 + \tfrac14 \kappa_1\big) \big(1 + (160 / \kappa_0)^4\big) ,

which leaves all of them to grids that begin at kappa 90 or below (a straight path in N steps has
:math:`\kappa_1 = N - 1`). Without it the rule believes its first step to have been far off for the largest scales, and
undoes that with weights of 20 and -30.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.noise import Grid, NoiseLevel

__all__ = ["CLUSTERED", "DIFFUSE", "WINDOW", "Family", "Weights", "weights_of"]

WINDOW = 5  # estimates that a step uses
MEMORY = 3  # estimates that foresee the next one
_FIRST = 160.0  # kappa of a first level at which large scales begin to be seen
_NARROWEST = 3.0  # a family spans at least this factor
_SPARED, _LONG = 8, (1e4, 16)  # powers of the relative step h in the ridge: h^8 (1 + 1e4 h^16)


class Weights(NamedTuple):
    """Weights of one family for a whole grid, float64.

    Attributes:
        step: of the estimates in the window of step i, oldest first, one row a step.
        foresee: of the last estimates before step i, oldest first, in a prediction of the one it makes; empty where
            nothing is known yet.
    """

    step: tuple[Tensor, ...]
    foresee: tuple[Tensor, ...]


@dataclass(frozen=True)
class Family:
    """One-dimensional data sets of many scales.

    Args:
        smallest: the smallest scale s, data units.
        largest: the largest.
        scales: how many, evenly in the logarithm.
        width: standard deviation of a cluster over s; None for one Gaussian of standard deviation s.
        ridge: nu, in units of the mean square of s.
    """

    smallest: float
    largest: float
    scales: int
    width: float | None
    ridge: float

    def atoms(self, seen: Tensor | float = math.inf) -> tuple[Tensor, Tensor]:
        """Scales s, those up to `seen`, and standard normal starts z of all trajectories, equally likely."""
        part = torch.linspace(0, 1, self.scales, dtype=torch.float64, device="cpu")
        largest = torch.as_tensor(seen, dtype=torch.float64).clamp(_NARROWEST * self.smallest, self.largest)
        s = self.smallest * (largest / self.smallest) ** part
        if self.width is None:
            return s, torch.ones_like(s)  # x is proportional to z: one trajectory of unit variance is enough
        z = torch.special.ndtri(0.5 + (torch.arange(_STARTS, dtype=torch.float64, device="cpu") + 0.5) / (2 * _STARTS))
        return s.repeat_interleave(_STARTS), z.repeat(self.scales)

    def denoised(self, x: Tensor, level: NoiseLevel, s: Tensor) -> Tensor:
        """E[x0 | x] of every trajectory."""
        alpha, sigma = level
        if self.width is None:
            return alpha * s**2 / (alpha**2 * s**2 + sigma**2) * x
        variance = alpha**2 * (self.width * s) ** 2 + sigma**2
        centre = s * torch.tanh(alpha * s * x / variance)
        return centre + alpha * (self.width * s) ** 2 / variance * (x - alpha * centre)

    def exact(self, level: NoiseLevel, s: Tensor, z: Tensor) -> Tensor:
        """Where the trajectories that start at z are at a level."""
        alpha, sigma = level
        if self.width is None:
            return z * (alpha**2 * s**2 + sigma**2).sqrt()
        spread, centre = (alpha**2 * (self.width * s) ** 2 + sigma**2).sqrt(), alpha * s
        return _quantile(spread, centre, z)


_STARTS = 8  # quantiles of z per scale, of its positive half: the data are symmetric
DIFFUSE = Family(0.01, 10.0, 32, None, 1e-6)
CLUSTERED = Family(0.1, 10.0, 20, 0.25, 1e-4)


def _quantile(spread: Tensor, centre: Tensor, z: Tensor) -> Tensor:
    """The x at which the mixture of two Gaussians at -centre and centre has the probability below it that z has."""
    share = torch.special.ndtr(z)
    with torch.no_grad():
        low, high = torch.zeros_like(centre + spread), centre + spread * z
        for _ in range(26):
            middle = (low + high) / 2
            above = _cdf(middle, spread, centre) > share
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    x = (low + high) / 2
    for _ in range(2):  # Newton: to rounding, and with the gradient of an implicit function
        density = (_bell((x - centre) / spread) + _bell((x + centre) / spread)) / (2 * spread)
        x = x - (_cdf(x, spread, centre) - share) / density
    return x


def _cdf(x: Tensor, spread: Tensor, centre: Tensor) -> Tensor:
    share: Tensor = torch.special.ndtr((x - centre) / spread) + torch.special.ndtr((x + centre) / spread)
    return share / 2


def _bell(x: Tensor) -> Tensor:
    return (x.square() / -2).exp() / math.sqrt(2 * math.pi)


def weights_of(family: Family, grid: Grid) -> Weights:
    """Make the weights of least error variance for a grid.

    Args:
        family: the prior.
        grid: levels; alpha may be 0 first, sigma 0 last.

    Returns:
        Weights; they carry a gradient if the grid does.
    """
    alpha, sigma = grid.levels
    s, z = family.atoms(_seen(alpha, sigma))
    truth = family.exact(NoiseLevel(alpha[:, None], sigma[:, None]), s, z)
    scale = family.ridge * (s**2).sum()
    states = [truth[0]]
    estimates: list[Tensor] = []
    step: list[Tensor] = []
    foresee: list[Tensor] = [s.new_empty(0)]
    for i in range(len(alpha) - 1):
        now = family.denoised(states[i], NoiseLevel(alpha[i], sigma[i]), s)
        if i:
            known = torch.stack(estimates[max(0, i - MEMORY) :])
            foresee.append(_least_squares(known, now, now.new_ones(()), scale * _spared(alpha, sigma, i - 1)))
        estimates.append(now)

        anchor = max(0, i + 1 - WINDOW)
        decay = sigma[i + 1] / sigma[anchor]
        missing = (truth[i + 1] - decay * states[anchor]) / alpha[i + 1]
        gain = 1 - alpha[anchor] / alpha[i + 1] * decay
        window = torch.stack(estimates[anchor:])
        weights = alpha[i + 1] * _least_squares(window, missing, gain, scale * _spared(alpha, sigma, i))
        step.append(weights)
        states.append(decay * states[anchor] + weights @ window)
    return Weights(tuple(step), tuple(foresee))


def _seen(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The largest scale that a first step does not miss."""
    unknown = (_FIRST * alpha[0] / sigma[0]) ** 4  # 0 at pure noise
    # At clean data, the end of one single step, there is nothing left to choose.
    return (1 + sigma[1] / alpha[1] / 4) * (1 + unknown)


def _spared(alpha: Tensor, sigma: Tensor, i: int) -> Tensor:
    """The part of the ridge that step i keeps: next to none where it is short, a lot where it is very long."""
    h: Tensor = 1 - sigma[i + 1] * alpha[i] / (alpha[i + 1] * sigma[i])
    gain, power = _LONG
    return h**_SPARED * (1 + gain * h**power)


def _least_squares(known: Tensor, wanted: Tensor, total: Tensor, ridge: Tensor) -> Tensor:
    """Weights of the rows of `known` that come nearest to `wanted`, with a given sum; the newest row takes the rest."""
    *earlier, newest = known
    if not earlier:
        return total.reshape(1)
    differences = (torch.stack(earlier) - newest).T
    # By QR of the differences with the ridge below them: normal equations would square the condition.
    ridges = ridge.sqrt() * torch.eye(len(earlier), dtype=known.dtype, device="cpu")
    q, r = torch.linalg.qr(torch.cat([differences, ridges]))
    wanted = torch.cat([wanted - total * newest, newest.new_zeros(len(earlier))])
    free = torch.linalg.solve_triangular(r, (q.T @ wanted)[:, None], upper=True)[:, 0]
    return torch.cat([free, (total - free.sum()).reshape(1)])
