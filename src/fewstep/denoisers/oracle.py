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
from fewstep.errors import ConfigError, DtypeError, LevelError, ShapeError
from fewstep.noise import NoiseLevel

__all__ = ["KDE", "EmpiricalData", "Gaussian", "GaussianMixture"]


def _check_data(data: Tensor, what: str) -> None:
    """Refuse means and points that are no finite floating-point numbers."""
    if not data.is_floating_point():
        raise DtypeError(f"{what} of dtype {data.dtype}", "Data are floating point", "Call .float() or .double()")
    if not bool(data.isfinite().all()):
        raise ConfigError(f"{what} with NaN or infinity", "Data are finite", "Drop or repair those numbers")


def _check_fit(x: Tensor, shape: torch.Size) -> None:
    """Refuse samples that only broadcasting would fit to the data."""
    if x.ndim < 1 or x.shape[1:] != shape:
        raise ShapeError(
            f"Samples of shape {tuple(x.shape)} for data of shape {tuple(shape)}",
            f"A batch (b, *d) with d = {tuple(shape)}",
            "Reshape the samples, or build the oracle from data of their shape",
        )


def _normal(n: int, like: Tensor, generator: Generator | None) -> Tensor:
    """Standard normal numbers (n, *like.shape), drawn where the generator lives and moved to `like`."""
    device = like.device if generator is None else generator.device
    return torch.randn(n, *like.shape, dtype=like.dtype, device=device, generator=generator).to(like.device)


def _spectrum(cov: Tensor) -> tuple[Tensor, Tensor | None]:
    """Variances and basis of a covariance, () or (n, n); ConfigError if it is none."""
    variances, basis = (cov, None) if cov.ndim == 0 else torch.linalg.eigh(cov.nan_to_num())
    size = 1e3 * torch.finfo(cov.dtype).eps * cov.abs().max()
    problems = {
        "NaN or infinity in it": not bool(cov.isfinite().all()),
        "unlike its transpose": cov.ndim == 2 and bool(((cov - cov.mT).abs() > size).any()),
        f"a variance of {variances.min().item():.4g}": bool(variances.min() < (-size if cov.ndim else 0)),
    }
    wrong = [problem for problem, hit in problems.items() if hit]
    if wrong:
        raise ConfigError(
            f"A covariance with {wrong[0]}" if "unlike" not in wrong[0] else f"A covariance {wrong[0]}",
            "A covariance is finite, symmetric, and has no variance below 0",
            "Symmetrise the matrix, or lift its variances to 0",
        )
    return variances.clamp(min=0), basis


@dataclass(frozen=True)
class Gaussian:
    r"""Data from one Gaussian.

    .. math:: E[x_0|x] = \mu + \alpha\Sigma(\alpha^2\Sigma + \sigma^2 I)^{-1}(x - \alpha\mu)

    Args:
        mean: :math:`\mu`, shape (\*d), data units.
        cov: :math:`\Sigma` of the flattened data, shape (n, n) with n the product of d; or a number, times identity.

    Raises:
        ShapeError: if cov is neither a scalar nor n x n.
        DtypeError: if the mean is not floating point.
        ConfigError: if the mean is not finite, or cov is no covariance: not finite, not symmetric, or indefinite.
    """

    mean: Tensor
    cov: Tensor | float
    _spectrum: tuple[Tensor, Tensor | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_data(self.mean, "A mean")
        n, cov = self.mean.numel(), torch.as_tensor(self.cov, dtype=self.mean.dtype)
        if cov.ndim not in (0, 2) or (cov.ndim == 2 and cov.shape != (n, n)):
            raise ShapeError(
                f"A covariance of shape {tuple(cov.shape)} for a mean of {n} numbers",
                f"A scalar (), or ({n}, {n})",
                "Build the covariance of the flattened data",
            )
        object.__setattr__(self, "_spectrum", _spectrum(cov))

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Exact E[x0 | x], shape and dtype of x (b, *d), at a level () or (b,); ShapeError if x does not fit."""
        _check_fit(x, self.mean.shape)
        record_evaluation(x)
        flat = x.reshape(x.shape[0], -1)
        alpha, sigma = expand(level.alpha, flat), expand(level.sigma, flat)
        centred = x - expand(level.alpha, x) * self.mean.to(x)
        return self.mean.to(x) + self._in_eigenbasis(centred, lambda s: _quotient(alpha * s, alpha**2 * s + sigma**2))

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
            Samples at `there`, shape and dtype of x. Where the data have no spread, clean samples are the mean.

        Raises:
            ShapeError: if x does not have the shape of the data.
        """
        _check_fit(x, self.mean.shape)
        centred = x - here.alpha * self.mean.to(x)
        moved = self._in_eigenbasis(
            centred,
            lambda s: _quotient(there.alpha**2 * s + there.sigma**2, here.alpha**2 * s + here.sigma**2).sqrt(),
        )
        return there.alpha * self.mean.to(x) + moved

    def draw(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw n samples of the data, shape (n, *d)."""
        eps = _normal(n, self.mean, generator)
        return self.mean + self._in_eigenbasis(eps, torch.sqrt)

    def _in_eigenbasis(self, x: Tensor, scale: Callable[[Tensor], Tensor]) -> Tensor:
        """Multiply x by a function of the covariance."""
        variances, basis = self._spectrum
        flat = x.reshape(x.shape[0], -1)
        factor = scale(variances.to(x))
        if basis is None:
            return (factor * flat).reshape(x.shape)
        basis = basis.to(x)
        return ((flat @ basis * factor) @ basis.T).reshape(x.shape)


def _quotient(top: Tensor, bottom: Tensor) -> Tensor:
    """Quotient of two numbers from 0 up; 0 where the bottom is 0: no spread of the data and no noise, nothing moves."""
    known = bottom > 0
    return torch.where(known, top / torch.where(known, bottom, 1.0), 0.0)


def _mixture_mean(x: Tensor, level: NoiseLevel, means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    r"""Posterior mean under :math:`\sum_k w_k N(\mu_k, s_k I)`, the one formula behind all mixtures.

    Component k has responsibility :math:`\propto w_k N(x; \alpha\mu_k, v_k)` with :math:`v_k = \alpha^2 s_k + \sigma^2`
    and posterior mean :math:`(\alpha s_k x + \sigma^2\mu_k) / v_k`.
    """
    # In float64: a responsibility is the exponential of a small difference of distances, over sigma^2.
    flat, means = x.reshape(x.shape[0], -1).double(), means.flatten(1).to(x.device).double()
    variances, log_weights = variances.to(flat), weights.to(flat).log()
    centre = means.mean(0)
    alpha, sigma = expand(level.alpha, flat), expand(level.sigma, flat)
    # Distances are taken around the common centre: |a - b|^2 by expansion would cancel for data far from the origin.
    shifted, spokes = flat - alpha * centre, means - centre
    v = alpha**2 * variances + sigma**2
    squares = (shifted**2).sum(1, keepdim=True) - 2 * alpha * shifted @ spokes.T + alpha**2 * (spokes**2).sum(1)
    logits = log_weights - squares / (2 * v) - flat.shape[1] / 2 * v.log()
    share = logits.softmax(1)
    pull = (share * (alpha * variances / v)).sum(1, keepdim=True)
    anchor = (share * (sigma**2 / v)) @ spokes
    # Uses sigma^2 / v = 1 - alpha^2 s / v to write the mean around the centre.
    return (centre + pull * shifted + anchor).reshape(x.shape).to(x.dtype)


@dataclass(frozen=True)
class GaussianMixture:
    r"""Data from isotropic Gaussians.

    Args:
        means: centres, shape (k, \*d), data units.
        std: standard deviation of the components, a number or shape (k,), data units; 0 is a point.
        weights: shares, shape (k,), positive; equal if omitted. They are normalised.

    Raises:
        ShapeError: if std or weights do not fit the number of components.
        DtypeError: if the means are not floating point.
        ConfigError: if a mean is not finite, a std not finite or negative, or a weight not finite or not positive.
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
        _check_data(self.means, "Means")
        if not bool(((std >= 0) & std.isfinite()).all() and ((weights > 0) & weights.isfinite()).all()):
            raise ConfigError(
                f"std {std.tolist()} and weights {weights.tolist()}",
                "Standard deviations are 0 or above, weights above 0, all finite",
                "Drop components without weight",
            )

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Exact E[x0 | x], shape and dtype of x (b, *d), computed in float64.

        Args:
            x: noisy samples, shape (b, *d).
            level: () or (b,); sigma > 0 unless every std is.
            cond: ignored.

        Returns:
            Denoised, shape and dtype of x, data units.

        Raises:
            ShapeError: if x does not have the shape of the data.
            LevelError: if sigma is 0 and a component is a point: no other sample than the point itself is possible.
        """
        _check_fit(x, self.means.shape[1:])
        if level.sigma.device.type == "cpu" and bool((level.sigma == 0).any()) and bool((self._spread == 0).any()):
            raise LevelError(
                "Points were asked for the data behind samples at sigma = 0",
                "Without noise a sample that is no member of the set has no data behind it",
                "Ask at sigma > 0, or use KDE, which has data everywhere",
            )
        record_evaluation(x)
        return _mixture_mean(x, level, self.means, self._spread**2, self._shares)

    def draw(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw n samples of the data, shape (n, *d)."""
        shares = self._shares if generator is None else self._shares.to(generator.device)
        which = torch.multinomial(shares, n, replacement=True, generator=generator).to(self.means.device)
        eps = _normal(n, self.means[0], generator)
        return self.means[which] + expand(self._spread[which], eps) * eps

    @property
    def _shares(self) -> Tensor:
        return self.means.new_ones(self.means.shape[0]) if self.weights is None else self.weights.to(self.means)

    @property
    def _spread(self) -> Tensor:
        return torch.as_tensor(self.std, dtype=self.means.dtype, device=self.means.device).expand(self.means.shape[0])


@dataclass(frozen=True)
class EmpiricalData:
    """Data that is exactly a finite set: the denoiser that a network without limits would learn from it.

    Args:
        data: the set, shape (n, *d), data units.
    """

    data: Tensor
    _mixture: GaussianMixture = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_mixture", GaussianMixture(self.data, 0.0))

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Exact E[x0 | x], shape and dtype of x (b, *d), at a level () or (b,) with sigma > 0."""
        return self._mixture(x, level)

    def draw(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw n members of the set with replacement, shape (n, *d)."""
        return self._mixture.draw(n, generator)


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
    _mixture: GaussianMixture = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < math.inf:
            raise ConfigError(f"A bandwidth of {self.bandwidth}", "It is above 0", "Use EmpiricalData for points")
        object.__setattr__(self, "_mixture", GaussianMixture(self.data, self.bandwidth))

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Exact E[x0 | x], shape and dtype of x (b, *d), at a level () or (b,)."""
        return self._mixture(x, level)

    def draw(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw n samples of the kernel density, shape (n, *d)."""
        return self._mixture.draw(n, generator)
