"""EVODiff's default rule in plain numpy, from its written description alone: estimates, residuals and no shortcuts.

Written in y = x / alpha over kappa (alpha = 1), with normal equations, scipy's root finder for the quantile map, and
the surprises as whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

__all__ = ["evodiff_default", "family_weights", "pair_denoised", "pair_exact"]

Array = np.ndarray
WINDOW, MEMORY, WIDTH, DRAW = 5, 3, 0.25, 0.1


def pair_denoised(y: Array, kappa: float, s: Array) -> Array:
    """E[x0 | y] for two clusters at -s and s of standard deviation s / 4."""
    v = (WIDTH * s) ** 2 + kappa**2
    up, down = norm.logpdf(y, s, np.sqrt(v)), norm.logpdf(y, -s, np.sqrt(v))
    p = 1 / (1 + np.exp(np.clip(down - up, -700, 700)))
    gain = (WIDTH * s) ** 2 / v
    return p * (s + gain * (y - s)) + (1 - p) * (-s + gain * (y + s))


def pair_exact(kappa: float, s: Array, z: Array) -> Array:
    """The point whose probability under the noisy mixture is that of z under the normal."""
    found = []
    for one, start in zip(s, z, strict=True):
        spread = np.sqrt((WIDTH * one) ** 2 + kappa**2)

        def missing(y: float, one: float = one, start: float = start, spread: float = spread) -> float:
            return (norm.cdf(y, one, spread) + norm.cdf(y, -one, spread)) / 2 - norm.cdf(start)

        found.append(brentq(missing, 0.0, one + 10 * spread, xtol=1e-14, rtol=1e-15))
    return np.array(found)


def spared(here: float, there: float) -> float:
    """What is left of the ridge for a step from kappa to kappa."""
    h = 1 - there / here
    return h**8 + 1e4 * h**24


def solve(known: list[Array], wanted: Array, total: float, ridge: float) -> Array:
    """Weights of known vectors, with a given sum, nearest to `wanted`; the newest is free of the ridge."""
    if len(known) == 1:
        return np.array([total])
    shifted = np.array([k - known[-1] for k in known[:-1]])
    gram = shifted @ shifted.T + ridge * np.eye(len(shifted))
    free = np.linalg.solve(gram, shifted @ (wanted - total * known[-1]))
    return np.append(free, total - free.sum())


def family_weights(
    kappa: Array, s: Array, z: Array, ridge: float, denoised: Callable[..., Array], exact: Callable[..., Array]
) -> tuple[list[Array], list[Array]]:
    """Weights of every step, and of every foreseen estimate, oldest first."""
    scale = ridge * (s**2).sum()
    ys, ms, steps, foresee = [exact(kappa[0], s, z)], [], [], [np.array([])]
    for i in range(len(kappa) - 1):
        m = denoised(ys[i], kappa[i], s)
        if i:
            foresee.append(solve(ms[-MEMORY:], m, 1.0, scale * spared(kappa[i - 1], kappa[i])))
        ms.append(m)
        a = max(0, i + 1 - WINDOW)
        decay = kappa[i + 1] / kappa[a]
        missing = exact(kappa[i + 1], s, z) - decay * ys[a]
        w = solve(ms[a:], missing, 1 - decay, scale * spared(kappa[i], kappa[i + 1]))
        steps.append(w)
        ys.append(decay * ys[a] + sum(c * q for c, q in zip(w, ms[a:], strict=True)))
    return steps, foresee


def evodiff_default(denoise: Callable[[Array, float], Array], y: Array, kappa: Array) -> list[Array]:
    """All samples of a run, each of shape (b, d), alpha = 1."""
    # What the first step cannot have missed; a first level of 90 or less sees all there is.
    seen = (1 + kappa[1] / 4) * (1 + (160 / kappa[0]) ** 4)
    wide = np.geomspace(0.01, np.clip(seen, 0.03, 10), 32)
    diffuse = family_weights(
        kappa, wide, np.ones(32), 1e-6,
        lambda y, k, s: s**2 / (s**2 + k**2) * y, lambda k, s, z: z * np.sqrt(s**2 + k**2),
    )  # fmt: skip
    s, z = (
        np.repeat(np.geomspace(0.1, np.clip(seen, 0.3, 10), 20), 8),
        np.tile(norm.ppf(0.5 + (np.arange(8) + 0.5) / 16), 20),
    )
    clustered = family_weights(kappa, s, z, 1e-4, pair_denoised, pair_exact)
    ys, ms = [y], []
    above = below = np.zeros((len(y), 1))
    for i in range(len(kappa) - 1):
        m = denoise(ys[i], kappa[i])
        theta = np.zeros((len(y), 1))
        if i:
            told = [sum(c * q for c, q in zip(f[1][i], ms[-MEMORY:], strict=True)) for f in (diffuse, clustered)]
            r, other = m - told[0], m - told[1]
            above = above + (r * (r - other)).sum(1, keepdims=True)
            below = below + ((r - other) ** 2).sum(1, keepdims=True)
            pull = DRAW * ((m - ms[-1]) ** 2).sum(1, keepdims=True)
            theta = np.clip(above / (below + pull), 0, 1)
        ms.append(m)
        a = max(0, i + 1 - WINDOW)
        ends = []
        for steps, _ in (diffuse, clustered):
            moved = sum(c * q for c, q in zip(steps[i], ms[a:], strict=True))
            ends.append(kappa[i + 1] / kappa[a] * ys[a] + moved)
        ys.append((1 - theta) * ends[0] + theta * ends[1])
    return ys
