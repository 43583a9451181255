r"""Exact denoisers: distributions whose E[x0 | x] has a closed form.

They make a sampler's error measurable to rounding: no network, no training, the truth at every level. All flatten a
sample (b, *d) to vectors, so any tensor rank works, and all draw from their own data distribution with `draw`.

* :class:`Gaussian`: affine denoiser, and the probability-flow ODE solved exactly by :meth:`Gaussian.flow`;
* :class:`GaussianMixture`: curved trajectories with known modes;
* :class:`EmpiricalData`: the optimum that an infinitely large network would reach on a finite set of images;
* :class:`KDE`: the same with a Gaussian of width `bandwidth` around each image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from fewstep._tensor import expand
from fewstep.denoisers.base import Cond, record_evaluation
from fewstep.errors import ConfigError, ShapeError
from fewstep.noise import NoiseLevel

__all__ = ["KDE", "EmpiricalData", "Gaussian", "GaussianMixture"]


@dataclass(frozen=True)
class Gaussian:
    r"""Data from one Gaussian.

    .. math:: E[x_0|x] = \mu + \alpha\Sigma(\alpha^2\Sigma + \sigma^2 I)^{-1}(x - \alpha\mu)

    Args:
        mean: :math:`\mu`, shape (\*d), data units.
        cov: :math:`\Sigma` of the flattened data, shape (n, n) with n the product of d; or a number, times identity.

    Raises:
        ShapeError: if cov is neither a scalar nor n x n.
    """

    mean: Tensor
    cov: Tensor | float
    _spectrum: tuple[Tensor, Tensor | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        n, cov = self.mean.numel(), torch.as_tensor(self.cov, dtype=self.mean.dtype)
        if cov.ndim not in (0, 2) or (cov.ndim == 2 and cov.shape != (n, n)):
            raise ShapeError(
                f"A covariance of shape {tuple(cov.shape)} for a mean of {n} numbers",
                f"A scalar (), or ({n}, {n})",
                "Build the covariance of the flattened data",
            )
        spectrum: tuple[Tensor, Tensor | None] = (cov, None)
        if cov.ndim == 2:
            variances, basis = torch.linalg.eigh(cov)
            spectrum = (variances.clamp(min=0), basis)
        object.__setattr__(self, "_spectrum", spectrum)

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Exact E[x0 | x], shape and dtype of x (b, *d), at a level () or (b,)."""
        record_evaluation(x)
        alpha, sigma = expand(level.alpha, x.flatten(1)), expand(level.sigma, x.flatten(1))
        centred = x - expand(level.alpha, x) * self.mean.to(x)
        return self.mean.to(x) + self._in_eigenbasis(centred, lambda s: alpha * s / (alpha**2 * s + sigma**2))

    def flow(self, x: Tensor, here: NoiseLevel, there: NoiseLevel) -> Tensor:
        r"""Solve the probability-flow ODE from one level to another, exactly.

        .. math::
            x' = \alpha'\mu + \left((\alpha'^2\Sigma + \sigma'^2)(\alpha^2\Sigma+\sigma^2)^{-1}\right)^{1/2}
                 (x - \alpha\mu)

        Args:
            x: samples at `here`, shape (b, *d).
            here: level of x, scalars.
            there: level to reach, scalars; either end may be pure noise or clean.

        Returns:
            Samples at `there`, shape and dtype of x.
        """
        centred = x - here.alpha * self.mean.to(x)
        moved = self._in_eigenbasis(
            centred, lambda s: ((there.alpha**2 * s + there.sigma**2) / (here.alpha**2 * s + here.sigma**2)).sqrt()
        )
        return there.alpha * self.mean.to(x) + moved

    def draw(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw n samples of the data, shape (n, *d)."""
        eps = torch.randn(n, *self.mean.shape, dtype=self.mean.dtype, generator=generator)
        return self.mean + self._in_eigenbasis(eps, torch.sqrt)

    def _in_eigenbasis(self, x: Tensor, scale: Callable[[Tensor], Tensor]) -> Tensor:
        """Multiply x by a function of the covariance."""
        variances, basis = self._spectrum
        flat = x.flatten(1)
        factor = scale(variances.to(x))
        if basis is None:
            return (factor * flat).reshape(x.shape)
        basis = basis.to(x)
        return ((flat @ basis * factor) @ basis.T).reshape(x.shape)


def _mixture_mean(x: Tensor, level: NoiseLevel, means: Tensor, variances: Tensor, log_weights: Tensor) -> Tensor:
    r"""Posterior mean under :math:`\sum_k w_k N(\mu_k, s_k I)`, the one formula behind all mixtures.

    Component k has responsibility :math:`\propto w_k N(x; \alpha\mu_k, v_k)` with :math:`v_k = \alpha^2 s_k + \sigma^2`
    and posterior mean :math:`(\alpha s_k x + \sigma^2\mu_k) / v_k`.
    """
    flat, centre = x.flatten(1), means.mean(0).to(x)
    alpha, sigma = expand(level.alpha, flat), expand(level.sigma, flat)
    # Distances are taken around the common centre: |a - b|^2 by expansion would cancel for data far from the origin.
    shifted, spokes = flat - alpha * centre, means.to(x) - centre
    v = alpha**2 * variances.to(x) + sigma**2
    squares = (shifted**2).sum(1, keepdim=True) - 2 * alpha * shifted @ spokes.T + alpha**2 * (spokes**2).sum(1)
    logits = log_weights.to(x) - squares / (2 * v) - flat.shape[1] / 2 * v.log()
    share = logits.softmax(1)
    pull = (share * (alpha * variances.to(x) / v)).sum(1, keepdim=True)
    anchor = (share * (sigma**2 / v)) @ spokes
    # Uses sigma^2 / v = 1 - alpha^2 s / v to write the mean around the centre.
    return (centre + pull * shifted + anchor).reshape(x.shape)


@dataclass(frozen=True)
class GaussianMixture:
    r"""Data from isotropic Gaussians.

    Args:
        means: centres, shape (k, \*d), data units.
        std: standard deviation of the components, a number or shape (k,), data units; 0 is a point.
        weights: shares, shape (k,), positive; equal if omitted. They are normalised.

    Raises:
        ShapeError: if std or weights do not fit the number of components.
        ConfigError: if a std is negative or a weight not positive.
    """

    means: Tensor
    std: Tensor | float
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        k, std = self.means.shape[0] if self.means.ndim else 0, torch.as_tensor(self.std)
        weights = torch.ones(k) if self.weights is None else self.weights
        if k == 0 or self.means.ndim < 2 or std.shape not in ((), (k,)) or weights.shape != (k,):
            raise ShapeError(
                f"Means {tuple(self.means.shape)}, std {tuple(std.shape)}, weights {tuple(weights.shape)}",
                "Means (k, *d) with k >= 1, std () or (k,), weights (k,)",
                "Give one centre, one std and one weight for each component",
            )
        if bool((std < 0).any()) or bool((weights <= 0).any()):
            raise ConfigError(
                f"std {std.tolist()} and weights {weights.tolist()}",
                "Standard deviations are 0 or above, weights above 0",
                "Drop components without weight",
            )

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Exact E[x0 | x], shape and dtype of x (b, *d), at a level () or (b,)."""
        record_evaluation(x)
        log_weights = self._shares.log()
        return _mixture_mean(x, level, self.means.flatten(1), self._spread**2, log_weights)

    def draw(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw n samples of the data, shape (n, *d)."""
        which = torch.multinomial(self._shares, n, replacement=True, generator=generator)
        eps = torch.randn(n, *self.means.shape[1:], dtype=self.means.dtype, generator=generator)
        return self.means[which] + expand(self._spread[which], eps) * eps

    @property
    def _shares(self) -> Tensor:
        return self.means.new_ones(self.means.shape[0]) if self.weights is None else self.weights

    @property
    def _spread(self) -> Tensor:
        return torch.as_tensor(self.std, dtype=self.means.dtype).expand(self.means.shape[0])


@dataclass(frozen=True)
class EmpiricalData:
    """Data that is exactly a finite set: the denoiser that a network without limits would learn from it.

    Args:
        data: the set, shape (n, *d), data units.
    """

    data: Tensor

    def __post_init__(self) -> None:
        self._mixture()

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Exact E[x0 | x], shape and dtype of x (b, *d), at a level () or (b,) with sigma > 0."""
        return self._mixture()(x, level)

    def draw(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw n members of the set with replacement, shape (n, *d)."""
        return self._mixture().draw(n, generator)

    def _mixture(self) -> GaussianMixture:
        return GaussianMixture(self.data, 0.0)


@dataclass(frozen=True)
class KDE:
    """Data from a Gaussian kernel around each member of a finite set.

    Args:
        data: the set, shape (n, *d), data units.
        bandwidth: standard deviation of the kernel, data units, above 0.

    Raises:
        ConfigError: if the bandwidth is not a number above 0.
    """

    data: Tensor
    bandwidth: float

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < math.inf:
            raise ConfigError(f"A bandwidth of {self.bandwidth}", "It is above 0", "Use EmpiricalData for points")
        self._mixture()

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Exact E[x0 | x], shape and dtype of x (b, *d), at a level () or (b,)."""
        return self._mixture()(x, level)

    def draw(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw n samples of the kernel density, shape (n, *d)."""
        return self._mixture().draw(n, generator)

    def _mixture(self) -> GaussianMixture:
        return GaussianMixture(self.data, self.bandwidth)
