"""The rule that chooses its order: against a transcription in numpy, and on changes whose law is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from contracts.inventory import f64, gap
from contracts.problems import LAM, Constant, TwoBumps, batch, by_hand, start_of
from fewstep.noise import EDM, Grid, Karras, NoiseLevel, UniformLam, VPLinear
from fewstep.sampling import Full, sample
from fewstep.solvers import Automatic


def integral(f: Any, h: float, points: int) -> float:
    """Of exp(tau - h) f(tau) over 0..h, by Gauss's rule of numpy."""
    at, weights = leggauss(points)
    tau = h * (at + 1) / 2
    return float(h / 2 * (weights * np.exp(tau - h) * f(tau)).sum())


def parabola(lam: list[float], tau: float) -> np.ndarray:
    """Lagrange's basis through three levels, at lam[0] + tau."""
    points = np.array(lam) - lam[0]
    others = [[p for j, p in enumerate(points) if j != k] for k in range(3)]
    return np.array([np.prod([(tau - o) / (points[k] - o) for o in others[k]]) for k in range(3)])


def transcribed(denoise: Any, grid: Grid, x: Tensor) -> np.ndarray:
    """The rule as its docstring has it, one sample, numpy, estimate by estimate."""
    alpha, sigma = (part.numpy() for part in grid.levels)
    lam, n, y = np.log(alpha / sigma), len(alpha) - 1, x.numpy()
    m: list[np.ndarray] = []
    start, rho, share = y, [math.nan] * n, [0.0] * n
    for i in range(n):
        m.append(denoise(torch.tensor(y), grid.at(i)).numpy())
        d = [m[i - k] - m[i - k - 1] for k in range(i)]
        w = [lam[i - k] - lam[i - k - 1] for k in range(i)]
        if i:
            r, h = sigma[i] / sigma[i - 1], w[0]
            b = alpha[i] - alpha[i - 1] * r
            trapezoid = r * start + b * (m[i] + m[i - 1]) / 2
            if share[i - 1]:
                known = [lam[i], lam[i - 1], lam[i - 2]]
                own = [
                    integral(np.vectorize(lambda t, k=k, known=known, h=h: parabola(known, t - h)[k]), h, 20)
                    for k in range(3)
                ]
                curved = r * start + alpha[i] * sum(c * m[i - k] for k, c in enumerate(own))
                y = trapezoid + share[i - 1] * (curved - trapezoid)
            else:
                y = trapezoid
        start, h = y, lam[i + 1] - lam[i]
        r = sigma[i + 1] / sigma[i]
        b = alpha[i + 1] - alpha[i] * r
        y = r * y + b * m[i]
        if i == 1:
            y = y + b * h / (2 * w[0]) * d[0]
        if i > 1:
            rho[i] = float((d[0] * d[1]).sum() / (d[1] ** 2).sum()) * w[1] / w[0]
            rate = -2 * math.log(min(max(rho[i], 0.3), 1.0)) / (w[0] + w[1])
            relaxed = relaxation(rate, w[0])
            there = alpha[i + 1] * integral(relaxed, h, 3) * d[0]
            if i > 2:
                before = relaxation(-2 * math.log(min(max(rho[i - 1], 0.3), 1.0)) / (w[1] + w[2]), w[1])
                plain = before(np.array(w[0])) * d[1]
                curved = (
                    sum(c * m[i - 1 - k] for k, c in enumerate(parabola(list(lam[i - 3 : i][::-1]), w[0]))) - m[i - 1]
                )
                apart = curved - plain
                nearest = float(((d[0] - plain) * apart).sum() / (apart**2).sum())
                share[i] = min(max(nearest, 0.0), 1.0) * max(1 - abs(rho[i] - rho[i - 1]), 0.0)
                known = list(lam[i - 2 : i + 1][::-1])
                own = [
                    integral(np.vectorize(lambda t, k=k, known=known: parabola(known, t)[k]), h, 20) for k in range(3)
                ]
                bent = alpha[i + 1] * sum(c * m[i - k] for k, c in enumerate(own)) - b * m[i]
                there = there + share[i] * (bent - there)
            y = y + there
    return y


def relaxation(rate: float, last: float) -> Any:
    """How far a change over `last` goes on, as a share of it; a straight line at rate 0."""
    if rate == 0:
        return lambda tau: tau / last
    return lambda tau: (1 - np.exp(-rate * tau)) / (math.exp(rate * last) - 1)


def test_it_is_its_transcription() -> None:
    """On grids of equal and of unequal steps, for samples whose changes grow, turn and come to rest."""
    x = batch((6, 3, 2, 2), 5)
    for grid in (
        LAM(VPLinear(), 9),
        Karras(kappa_max=20.0, kappa_min=0.05)(EDM(), 8),
        UniformLam(-1.0, 3.0)(EDM(), 12),
    ):
        starts = x * grid.at(0).sigma
        got = sample(TwoBumps(), Automatic(), grid, starts).x
        want = torch.tensor(np.stack([transcribed(TwoBumps(), grid, one) for one in starts]))
        assert gap(got, want) <= 1e-11, f"{grid.steps} steps: max|a-b| = {gap(got, want):.2e}"


class Course:
    """A denoiser that follows a function of lam, whatever x is."""

    def __init__(self, *of_lam: Any) -> None:
        self.of_lam = of_lam

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        return torch.stack([f(level.lam) for f in self.of_lam]).to(x)


def states(denoise: Any, grid: Grid, x: Tensor) -> list[Any]:
    rule, found = Automatic(), []
    state = rule.init(x, grid)
    for i in range(grid.steps):
        x, state = rule.step(denoise, x, grid, i, state)
        found.append((x, state))
    return found


def test_a_relaxation_is_integrated_and_a_parabola_is_seen_per_sample() -> None:
    c, a, q = batch((5,), 1), batch((5,), 2), batch((5,), 3)
    rate, grid = 0.4, LAM(VPLinear(), 10)
    denoise = Course(lambda lam: c + a * (-rate * lam).exp(), lambda lam: c + a * lam + 0.05 * q * lam**2)
    path = states(denoise, grid, batch((2, 5), 4))
    lam, h = grid.levels.lam, 0.6
    for i in range(3, 10):
        there, state = path[i]
        alpha, sigma = grid.at(i + 1)
        # The integral of exp(tau - h) (c + a exp(-rate (lam + tau))) over 0..h.
        m = c * (1 - math.exp(-h)) + a * torch.exp(-rate * lam[i]) * (math.exp(-rate * h) - math.exp(-h)) / (1 - rate)
        want = sigma / grid.at(i).sigma * state.start[0] + alpha * m
        assert gap(there[0], want) <= 1e-6, f"relaxation, step {i}: max|a-b| = {gap(there[0], want):.2e}"
        assert state.share[0].item() <= 1e-9, f"step {i}: a relaxation is {state.share[0].item():.2e} of a parabola"
        settled = 1 - (state.rho[1] - path[i - 1][1].rho[1]).abs()
        error = gap(state.share[1], settled)
        assert error <= 1e-9, f"step {i}: a parabola's share is off by {error:.2e}"
        assert settled.item() > 0.9


def test_where_nothing_changes_the_plain_rule_is_taken() -> None:
    """0 / 0 is 1; one sample at rest does not touch its neighbour, in value or gradient."""
    grid, x = LAM(VPLinear(), 6), start_of(LAM(VPLinear(), 6), (2, 3))
    rest = torch.zeros(2, 3, dtype=torch.float64)
    rest[1] = 1.0

    def denoise(x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        return rest * TwoBumps()(x, level)

    x.requires_grad_(True)
    out = sample(denoise, Automatic(), grid, x, unroll=Full()).x
    assert gap(out[0], grid.at(-1).sigma / grid.at(0).sigma * x[0]) <= 1e-14
    assert gap(out[1], by_hand(Automatic(), TwoBumps(), grid, x[1:])[-1][0]) == 0
    assert bool(torch.autograd.grad(out.sum(), x)[0].isfinite().all())
    for state in [state for _, state in states(Constant(torch.zeros(1, 3)), grid, x.detach())][2:]:
        assert gap(state.rho, torch.ones_like(state.rho)) == 0


def test_it_knows_no_scale() -> None:
    """Every number of it is a ratio: data a thousand times as large give pictures a thousand times as large."""
    grid, x = Karras(kappa_max=20.0, kappa_min=0.05)(EDM(), 9), batch((4, 6), 8)
    for scale in (1e-3, 1e3):
        levels = NoiseLevel(grid.levels.alpha, grid.levels.sigma * scale)
        got = sample(TwoBumps(0.8 * scale, 0.4 * scale), Automatic(), Grid(levels, grid.t), 20 * scale * x).x / scale
        want = sample(TwoBumps(), Automatic(), grid, 20 * x).x
        assert gap(got, want) <= 1e-11, f"scale {scale:g}: max|a-b| = {gap(got, want):.2e}"


def test_rates_stay_in_their_bounds() -> None:
    """Changes that jump back, or grow, are taken for fast and for straight ones: weights stay bounded."""
    grid, x = LAM(VPLinear(), 8), batch((2, 1), 1)
    wild = Course(lambda lam: f64([1.0]) * torch.cos(9 * lam), lambda lam: f64([1.0]) * torch.exp(3 * lam))
    for i, (_, state) in enumerate(states(wild, grid, x)):
        if state.share is not None:
            assert bool(((state.share >= 0) & (state.share <= 1)).all()), f"step {i}: shares {state.share.flatten()}"
