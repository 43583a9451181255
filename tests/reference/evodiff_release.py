"""What the reference release of EVODiff computes, transcribed in plain float64 numpy: an answer sheet for the tests.

A transcription of the order-2, data-prediction, multistep sampler of Li, Chen, Zeng, "EVODiff: Entropy-aware Variance
Optimized Diffusion Inference" (NeurIPS 2025, arXiv 2509.26096), oddities included, as the authors' release computes it.
It was written from the written formulas alone and shares no line with the package: it imports numpy and nothing else,
and it loops over samples and channels so that every scalar weight is visibly one number for one (h, w) plane.
There are no guards: a zero or constant channel divides zero by zero here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

__all__ = ["corrector", "evodiff_release", "last_step", "predictor"]

Array = np.ndarray
Denoise = Callable[[Array, float, float], Array]


def dot(p: Array, q: Array) -> float:
    return float((p * q).sum())


def clamp2(z: float) -> float:
    return min(2.0, max(-2.0, z))


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z))


def predictor(x: Array, m: Array, m_before: Array, c: dict[str, float]) -> tuple[Array, Array, Array, float]:
    """One plane: the first-order point, the predicted point, D1 and rp."""
    x_first = c["a"] * x + c["b"] * m
    rho1 = (1.0 - c["w"]) * c["beta"] + c["w"] * clamp2(dot(m, m_before) / dot(m_before, m_before))
    d1 = m - rho1 * m_before
    rp = sigmoid(0.25 * abs(rho1)) * c["r"]
    rp = min(max(rp, 0.25 * c["r"]), 1.5 * c["r"])
    x_predicted = x_first + 0.5 * c["b"] * d1 / rp
    return x_first, x_predicted, d1, rp


def corrector(
    x_first: Array, x_predicted: Array, d1: Array, rp: float, m_next: Array, m: Array, m_before: Array,
    c: dict[str, float], steps: int,
) -> Array:  # fmt: skip
    """One plane: the corrected point, from the prediction at the predicted point."""
    a, b, h, r = c["a"], c["b"], c["h"], c["r"]
    rho2 = (1.0 - c["w"]) * c["beta"] + c["w"] * clamp2(dot(m_next, m) / dot(m, m))
    d2 = m_next - rho2 * m
    b_past = d1 / (r * h)
    b_next = r * d2 / h
    gap = b_next - b_past
    eta_star = 0.5 * clamp2(dot(b_next + b_past, gap) / dot(gap, gap))
    eta = 0.5 * sigmoid(abs(eta_star))
    slope = -(eta / r) * d1 + r * (1.0 - eta) * d2
    rest = x_predicted - x_first - 0.5 * b * slope / rp
    zeta_star = clamp2(dot(rest, d1) / dot(d1, d1)) / (h * c["sigma_next"])
    if steps <= 20:
        zeta = sigmoid(abs(zeta_star) - 0.5)
    else:
        d = (m - m_before) / h
        trend = sigmoid(clamp2(dot(m, d) / dot(d, d)) * (2.0 - a * a))
        zeta = sigmoid(-(abs(zeta_star) - 0.5) * trend)
    return x_first + 0.5 * b * slope / zeta


def last_step(x: Array, m: Array, m_before: Array, a: float, b: float, sigma: float, sigma_before: float) -> Array:
    """The "lower order final" step, which every plane takes alike."""
    s = 1.0 - math.sqrt(sigma * sigma_before)
    rf = 1.0 - 0.5 * math.sqrt(a) if a < 0.5 else 1.0 - 0.5 * math.sqrt(a - 0.5)
    return s * (a * x + b * m) + 0.5 * b * (m - rf * m_before)


def evodiff_release(
    denoise: Denoise, x: Array, alpha: Array, sigma: Array, t: Array, denoise_to_zero: bool = False
) -> Array:
    """Run the release's sampler.

    Args:
        denoise: (x, alpha, sigma) -> estimate of x0, for a whole batch of shape (b, c, h, w).
        x: noisy samples at level 0, shape (b, c, h, w).
        alpha: shape (N + 1,), noisy first.
        sigma: shape (N + 1,), all of them positive.
        t: the schedule's own clock at the levels, shape (N + 1,); sigma itself for EDM.
        denoise_to_zero: end with one more prediction at the last level.

    Returns:
        Samples at level N, or their denoised estimate; N or N + 1 predictions were made.
    """
    x = np.array(x, dtype=np.float64)
    alpha, sigma, t = (np.asarray(v, dtype=np.float64) for v in (alpha, sigma, t))
    steps = len(sigma) - 1
    lam = np.log(alpha / sigma)
    u = alpha / sigma  # the reciprocal of kappa

    def a_and_b(i: int) -> tuple[float, float]:
        return float(sigma[i + 1] / sigma[i]), float(sigma[i + 1] * (u[i + 1] - u[i]))

    # Step 0: one first-order step.
    a, b = a_and_b(0)
    m_before = denoise(x, alpha[0], sigma[0])
    x = a * x + b * m_before
    m = denoise(x, alpha[1], sigma[1])

    # Steps 1 .. N - 2: predict, call the network once, correct, keep the prediction of the predicted point.
    for i in range(1, steps - 1):
        a, b = a_and_b(i)
        tau = (t[i + 1] + t[-1]) / (t[0] + t[-1])
        c = {
            "a": a,
            "b": b,
            "h": float(u[i + 1] - u[i]),
            "r": float((lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i])),
            "w": float(0.5 * (1.0 - tau**2)),
            "beta": math.sqrt((sigma[i + 1] / sigma[i]) / (sigma[i] / sigma[i - 1])),
            "sigma_next": float(sigma[i + 1]),
        }
        planes = [(n, k) for n in range(x.shape[0]) for k in range(x.shape[1])]
        kept = {}
        x_predicted = np.empty_like(x)
        for n, k in planes:
            kept[n, k] = predictor(x[n, k], m[n, k], m_before[n, k], c)
            x_predicted[n, k] = kept[n, k][1]
        m_next = denoise(x_predicted, alpha[i + 1], sigma[i + 1])
        x_next = np.empty_like(x)
        for n, k in planes:
            x_first, x_pred, d1, rp = kept[n, k]
            x_next[n, k] = corrector(x_first, x_pred, d1, rp, m_next[n, k], m[n, k], m_before[n, k], c, steps)
        x, m_before, m = x_next, m, m_next

    # Step N - 1.
    a, b = a_and_b(steps - 1)
    x = last_step(x, m, m_before, a, b, float(sigma[-1]), float(sigma[-2]))
    return denoise(x, alpha[-1], sigma[-1]) if denoise_to_zero else x
