"""Exact answers in plain float64 numpy, written without a look at the package: what an ideal network would say.

With ``x = alpha x0 + sigma eps`` and ``x0`` drawn from a mixture of ``N(mu_k, C_k)``, the posterior mean ``E[x0 | x]``
is a softmax-weighted sum of ``mu_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (x - alpha mu_k)``. The probability-flow
ODE in ``y = x / alpha`` over ``log kappa`` (``kappa = sigma / alpha``) reads ``dy / dlog kappa = y - E[x0 | x]``; for
one Gaussian it has the closed form of :func:`gaussian_ode`, otherwise scipy's DOP853 solves it to 1e-12.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.integrate import solve_ivp

__all__ = ["Mixture", "gaussian_mean", "gaussian_ode", "mixture_mean", "ode_solution"]

Array = np.ndarray


def gaussian_mean(x: Array, alpha: float, sigma: float, mean: Array, cov: Array) -> Array:
    """E[x0 | x] for x0 ~ N(mean, cov); x of shape (b, d)."""
    total = alpha**2 * cov + sigma**2 * np.eye(len(mean))
    gain = alpha * cov @ np.linalg.inv(total)
    return mean + (x - alpha * mean) @ gain.T


def gaussian_ode(x: Array, here: tuple[float, float], there: tuple[float, float], mean: Array, cov: Array) -> Array:
    """Exact flow from level (alpha, sigma) to another: every principal axis scales with its standard deviation."""
    s2, axes = np.linalg.eigh(cov)
    s2 = np.maximum(s2, 0.0)
    (a0, n0), (a1, n1) = here, there
    scale = np.sqrt((a1**2 * s2 + n1**2) / (a0**2 * s2 + n0**2))
    return a1 * mean + ((x - a0 * mean) @ axes * scale) @ axes.T


def mixture_mean(x: Array, alpha: float, sigma: float, means: Array, std: float | Array, weights: Array) -> Array:
    """E[x0 | x] for a mixture of isotropic Gaussians, sample by sample and component by component.

    x has shape (b, *d), means (k, *d), std () or (k,), weights (k,). With std = 0 it is the empirical distribution.
    """
    k = len(means)
    stds = np.broadcast_to(np.asarray(std, dtype=np.float64), (k,))
    out = np.empty(x.shape, dtype=np.float64)
    for n in range(len(x)):
        log_w, posts = np.empty(k), []
        for j in range(k):
            var = alpha**2 * stds[j] ** 2 + sigma**2
            gap = x[n] - alpha * means[j]
            log_w[j] = np.log(weights[j]) - 0.5 * (gap**2).sum() / var - 0.5 * gap.size * np.log(var)
            posts.append(means[j] + alpha * stds[j] ** 2 / var * gap)
        p = np.exp(log_w - log_w.max())
        p /= p.sum()
        out[n] = sum(p[j] * posts[j] for j in range(k))
    return out


class Mixture:
    """A mixture of isotropic Gaussians as a denoise(x, alpha, sigma), vectorised; equal to :func:`mixture_mean`."""

    def __init__(self, means: Array, std: float | Array, weights: Array | None = None) -> None:
        self.means = np.asarray(means, dtype=np.float64)
        k = len(self.means)
        self.std = np.broadcast_to(np.asarray(std, dtype=np.float64), (k,))
        self.weights = np.full(k, 1.0 / k) if weights is None else np.asarray(weights, dtype=np.float64)

    def __call__(self, x: Array, alpha: float, sigma: float) -> Array:
        mu = self.means.reshape(len(self.means), -1)
        gap = x.reshape(len(x), 1, -1) - alpha * mu
        var = alpha**2 * self.std**2 + sigma**2
        log_w = np.log(self.weights) - 0.5 * (gap**2).sum(-1) / var - 0.5 * mu.shape[1] * np.log(var)
        p = np.exp(log_w - log_w.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        posts = mu + (alpha * self.std**2 / var)[None, :, None] * gap
        return (p[..., None] * posts).sum(1).reshape(x.shape)


def ode_solution(
    denoise: Callable[[Array, float, float], Array],
    x: Array,
    here: tuple[float, float],
    there: tuple[float, float],
    tol: float = 1e-13,
) -> Array:
    """The probability-flow ODE from one level to another by DOP853; alpha > 0 at the first, sigma > 0 at the second."""
    (a0, n0), (a1, n1) = here, there

    def slope(log_kappa: float, y: Array) -> Array:
        y = y.reshape(x.shape)
        return (y - denoise(y, 1.0, float(np.exp(log_kappa)))).reshape(-1)

    span = (float(np.log(n0 / a0)), float(np.log(n1 / a1)))
    found = solve_ivp(slope, span, (x / a0).reshape(-1), method="DOP853", rtol=tol, atol=tol)
    if not found.success:
        raise RuntimeError(found.message)
    return a1 * found.y[:, -1].reshape(x.shape)
