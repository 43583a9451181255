"""Test problems in torch, written apart from the package's own oracles, and the measured numbers the suites judge.

Each ``measure_*`` returns one number for one solver, so that a mutated solver can be measured by the same code (T14).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from reference.oracles import Mixture, ode_solution
from torch import Tensor, nn

from contracts.inventory import f64, gap
from fewstep.noise import (
    EDM,
    Explicit,
    Grid,
    Karras,
    LinearFlow,
    NoiseLevel,
    Schedule,
    Spacing,
    UniformFlow,
    UniformLam,
    UniformTime,
    VPCosine,
    VPLinear,
)
from fewstep.sampling import sample

__all__ = [
    "ENDS",
    "GRIDS",
    "KAPPA",
    "LAM",
    "STEPS",
    "Constant",
    "MixtureDenoiser",
    "TinyNetwork",
    "TwoBumps",
    "Zigzag",
    "batch",
    "by_hand",
    "column",
    "ends",
    "measure_constants",
    "measure_equivariance",
    "measure_local_slope",
    "measure_slope",
    "mixture_problem",
    "start_of",
    "value_and_gradients",
]

F64 = torch.float64
STEPS = (32, 64, 128, 256)
# Where the order is measured: noise well above and well below the data; for equal steps of kappa, which are long steps
# of lam at the clean end, the stretch in which 32 of them are already short.
KAPPA = {"uniform_lam": (20.0, 0.05), "karras": (20.0, 0.05), "zigzag": (20.0, 0.05), "uniform_kappa": (3.0, 1.0)}


def column(level: Tensor, x: Tensor) -> Tensor:
    """A level () or (b,) ready to multiply x, without the package's own helper."""
    return level.reshape(level.shape + (1,) * (x.ndim - 1)) if level.ndim else level


class MixtureDenoiser:
    """E[x0 | x] of a mixture of isotropic Gaussians, by plain differences; differentiable."""

    def __init__(self, mixture: Mixture) -> None:
        self.means = torch.tensor(mixture.means)
        self.var = torch.tensor(mixture.std**2)
        self.log_weights = torch.tensor(np.log(mixture.weights))

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        mu = self.means.flatten(1)
        alpha, sigma = (v.reshape(-1, 1) if v.ndim else v for v in level)
        gaps = x.reshape(len(x), 1, -1) - column(level.alpha, x.reshape(len(x), 1, -1)) * mu
        v = alpha**2 * self.var + sigma**2
        logits = self.log_weights - (gaps**2).sum(-1) / (2 * v) - mu.shape[1] / 2 * v.log()
        posts = mu + (alpha * self.var / v).reshape(-1, len(mu), 1) * gaps
        return (logits.softmax(-1)[..., None] * posts).sum(1).reshape(x.shape)


class TwoBumps:
    """Every number on its own: data at -m or m with spread s. Elementwise, exact, finite at alpha = 0 and sigma = 0.

    E[x0 | x] = (alpha s^2 x + sigma^2 m tanh(alpha m x / v)) / v with v = alpha^2 s^2 + sigma^2.
    """

    def __init__(self, m: float | Tensor = 0.8, s: float | Tensor = 0.4) -> None:
        self.m, self.s = m, s

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        alpha, sigma = column(level.alpha, x), column(level.sigma, x)
        v = alpha**2 * self.s**2 + sigma**2
        return (alpha * self.s**2 * x + sigma**2 * self.m * torch.tanh(alpha * self.m * x / v)) / v


class Constant:
    """A denoiser that has made up its mind."""

    def __init__(self, c: Tensor) -> None:
        self.c = c

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        return self.c.to(x).expand_as(x)


def batch(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


@cache
def mixture_problem(grid: str = "uniform_lam") -> tuple[Mixture, MixtureDenoiser, Tensor, Tensor]:
    """A mixture in four dimensions, eight samples x / alpha at the noisy end of KAPPA, and where its ODE takes them."""
    rng = np.random.default_rng(7)
    mixture = Mixture(
        rng.uniform(-1, 1, size=(5, 2, 1, 2)), rng.uniform(0.3, 0.5, size=5), rng.uniform(0.5, 1.5, size=5) / 5
    )
    first, last = KAPPA[grid]
    y = rng.normal(size=(8, 2, 1, 2)) * first
    exact = ode_solution(mixture, y, (1.0, first), (1.0, last))
    return mixture, MixtureDenoiser(mixture), torch.tensor(y), torch.tensor(exact)


def _bounds(grid: str) -> dict[str, float]:
    return {"kappa_max": KAPPA[grid][0], "kappa_min": KAPPA[grid][1]}


@dataclass(frozen=True)
class Zigzag:
    """Steps of lam that are short and twice as long in turn: here alone the ratio of steps does not tend to 1."""

    lam_min: float
    lam_max: float

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        parts = torch.tensor([1.0 + i % 2 for i in range(steps)], dtype=F64).cumsum(0) / (steps + steps // 2)
        lam = self.lam_min + (self.lam_max - self.lam_min) * torch.cat([torch.zeros(1, dtype=F64), parts])
        return Explicit(tuple(schedule.t_of_lam(lam).tolist()))(schedule, steps)


def _lams(grid: str) -> tuple[float, float]:
    return -float(np.log(KAPPA[grid][0])), -float(np.log(KAPPA[grid][1]))


GRIDS: dict[str, tuple[Spacing, Schedule]] = {
    "uniform_lam": (UniformLam(*_lams("uniform_lam")), VPCosine()),
    "karras": (Karras(rho=7.0, **_bounds("karras")), VPLinear()),
    "zigzag": (Zigzag(*_lams("zigzag")), VPLinear()),
    "uniform_kappa": (Karras(rho=1.0, **_bounds("uniform_kappa")), LinearFlow()),
}


def run(rule: Any, denoise: Callable[..., Tensor], grid: Grid, y: Tensor) -> Tensor:
    """From x / alpha at the first level to x / alpha at the last."""
    return sample(denoise, rule, grid, grid.at(0).alpha * y).x / grid.at(-1).alpha


def measure_slope(rule: Any, grid: str = "uniform_lam", steps: tuple[int, ...] = STEPS) -> tuple[float, list[float]]:
    """T1: slope of log error against log step, and the errors (RMS over all numbers, in x / alpha)."""
    _, denoise, y, exact = mixture_problem(grid)
    spacing, schedule = GRIDS[grid]
    errors = [(run(rule, denoise, spacing(schedule, n), y) - exact).square().mean().sqrt().item() for n in steps]
    slope = -float(np.polyfit(np.log(steps), np.log(errors), 1)[0]) if np.isfinite(errors).all() else float("nan")
    return slope, errors


def measure_local_slope(rule: Any, ratio: float) -> tuple[float, list[float]]:
    """T1 for one step: slope of the error of the second of two steps, the first `ratio` times as long, from the truth.

    An inverted ratio of steps is an error of ``slope * (h_i^2 - h_{i-1}^2)`` in every step of a two-step rule. It
    telescopes: the order of a whole run stays 2 on any grid, and only the error of a single step shows it.
    """
    mixture, denoise, y, _ = mixture_problem()
    middle, widths, errors = 0.6, (0.04, 0.02, 0.01, 0.005), []
    for h in widths:
        kappas = [middle * float(np.exp(ratio * h)), middle, middle * float(np.exp(-h))]
        grid = Explicit(tuple(VPLinear().t_of_lam(-torch.tensor(kappas, dtype=F64).log()).tolist()))(VPLinear(), 2)
        path, at = [], (KAPPA["uniform_lam"][0], y.numpy())
        for kappa in kappas:
            at = (kappa, ode_solution(mixture, at[1], (1.0, at[0]), (1.0, kappa)))
            path.append(torch.tensor(at[1]) * grid.at(len(path)).alpha)
        _, state = rule.step(denoise, path[0], grid, 0, rule.init(path[0], grid))
        got, _ = rule.step(denoise, path[1], grid, 1, state)
        errors.append(((got - path[2]) / grid.at(2).alpha).square().mean().sqrt().item())
    return float(np.polyfit(np.log(widths), np.log(errors), 1)[0]), errors


def measure_equivariance(rule: Any, steps: int = 10) -> float:
    """T2: max|a - b| of x / alpha over schedules that visit the same lam."""
    _, denoise, y, _ = mixture_problem()
    spacing = UniformLam(lam_min=-3.0, lam_max=3.0)
    ends = [run(rule, denoise, spacing(s, steps), y) for s in (EDM(), VPLinear(), VPCosine(), LinearFlow())]
    return max(gap(end, ends[0]) for end in ends)


def measure_constants(rule: Any, spacing: Spacing, schedule: Schedule, steps: int) -> float:
    """T3: distance from (s_N / s_0) x_0 + (a_N - a_0 s_N / s_0) c for a denoiser that always says c."""
    c, grid = batch((3, 2, 2, 2), seed=1), spacing(schedule, steps)
    x = batch((3, 2, 2, 2), seed=2) * grid.at(0).sigma
    (a0, s0), (a1, s1) = grid.at(0), grid.at(-1)
    want = s1 / s0 * x + (a1 - a0 * s1 / s0) * c
    return gap(sample(Constant(c), rule, grid, x).x, want)


LAM = UniformLam(lam_min=-3.0, lam_max=3.0)

# Every way a grid may begin and end: finite, sigma = 0 last, alpha = 0 first.
ENDS: dict[str, tuple[Spacing, Schedule]] = {
    "finite": (LAM, VPLinear()),
    "finite_edm": (Karras(), EDM()),
    "zero_last": (UniformLam(lam_min=-3.0, lam_max=3.0, end="zero"), VPLinear()),
    "zero_last_edm": (Karras(end="zero"), EDM()),
    "noise_first": (UniformTime(), LinearFlow()),
    "noise_first_zero_last": (UniformTime(end="zero"), LinearFlow()),
    "cosine_both": (UniformTime(end="zero"), VPCosine()),
    "flow_edm": (UniformFlow(), EDM()),
    "flow_vp_linear": (UniformFlow(), VPLinear()),
}
ends = pytest.mark.parametrize("end", ENDS)


def start_of(grid: Grid, shape: tuple[int, ...] = (2, 1, 2, 2), seed: int = 3) -> Tensor:
    return batch(shape, seed) * grid.at(0).sigma + 0.3 * grid.at(0).alpha


def by_hand(rule: Any, denoise: Callable[..., Tensor], grid: Grid, x: Tensor) -> list[Tensor]:
    """Every sample of a run, made with init and step alone."""
    state, seen = rule.init(x, grid), [x]
    for i in range(grid.steps):
        x, state = rule.step(denoise, x, grid, i, state)
        seen.append(x)
    return seen


def value_and_gradients(rule: Any, grid: Grid, unroll: Any) -> list[Tensor]:
    x = start_of(grid).requires_grad_(True)
    m = f64(0.8).requires_grad_(True)
    s = f64([0.4, 0.5]).requires_grad_(True)
    result = sample(TwoBumps(m, s), rule, grid, x, unroll=unroll)
    grads = torch.autograd.grad((result.x**2).sum() + result.x.sum(), (x, m, s), allow_unused=True)
    return [
        result.x.detach(),
        *(torch.zeros_like(p) if g is None else g for g, p in zip(grads, (x, m, s), strict=True)),
    ]


class TinyNetwork(nn.Module):
    """One convolution that listens to its noise label."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.mix = nn.Conv2d(1, 1, 3, padding=1, dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.mix.weight.copy_(torch.randn(self.mix.weight.shape, generator=generator) / 3)
            self.mix.bias.zero_()

    def forward(self, x: Tensor, noise_label: Tensor, cond: Any = None) -> Tensor:
        return torch.tanh(self.mix(x) + noise_label.reshape(-1, 1, 1, 1))
