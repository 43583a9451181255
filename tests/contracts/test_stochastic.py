"""T1c: rules that draw noise. Their mean and variance on exact Gaussians, without any sampling error.

A linear rule, on a linear denoiser, is linear in its start and in every draw. Feeding it units, one by one, reads off
all its coefficients, and the variance of its samples is the sum of their squares: no simulation.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.inventory import STOCHASTIC_HERE, gap
from contracts.problems import ENDS, LAM, TwoBumps, batch, start_of
from contracts.refusals import refuses
from fewstep.errors import ConfigError
from fewstep.noise import (
    EDM,
    Grid,
    Karras,
    LinearFlow,
    NoiseLevel,
    UniformLam,
    UniformTime,
    VPCosine,
    VPLinear,
)
from fewstep.sampling import Full, SeededNoise, sample
from fewstep.solvers import DDIM, Churn, DPMpp2M, DPMpp2MSDE, Euler, EulerAncestral, Heun, Renoise
from fewstep.solvers.churn import starts
from fewstep.solvers.coeffs import Level

stochastic = pytest.mark.parametrize("name", STOCHASTIC_HERE)


def scalar_gaussian(mean: float, std: float) -> Any:
    """E[x0 | x] of one Gaussian, number by number."""

    def denoise(x: Tensor, level: NoiseLevel, cond: object = None) -> Tensor:
        gain = level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2)
        return mean + gain * (x - level.alpha * mean)

    return denoise


def response(rule: Any, grid: Grid, std: float) -> tuple[float, list[float]]:
    """Coefficients of the start and of every draw in the last sample, for Gaussian data around 0."""
    units = torch.eye(grid.steps + 1, dtype=torch.float64)
    out = sample(scalar_gaussian(0.0, std), rule, grid, units[:, :1], noise=lambda i, like: units[:, i + 1 : i + 2]).x
    first, *rest = out[:, 0].tolist()
    return first, rest


def variance(rule: Any, grid: Grid, std: float) -> float:
    """Of the last sample, started from the exact law of the first level."""
    first, draws = response(rule, grid, std)
    alpha, sigma = (part.item() for part in grid.at(0))
    return first**2 * (alpha**2 * std**2 + sigma**2) + sum(c**2 for c in draws)


@stochastic
def test_says_that_it_draws(name: str) -> None:
    rule = STOCHASTIC_HERE[name]
    assert rule.stochastic is True
    grid = LAM(VPLinear(), 3)
    refuses(ConfigError, "noise", lambda: sample(TwoBumps(), rule, grid, start_of(grid)))


@stochastic
def test_a_step_by_hand_says_that_its_noise_is_missing(name: str) -> None:
    """Weights that count on noise, without it, would shrink the sample in silence."""
    rule, grid = STOCHASTIC_HERE[name], Karras(kappa_max=20.0, kappa_min=0.1)(VPLinear(), 4)
    x = start_of(grid)

    def by_hand_without() -> None:
        state, at = rule.init(x, grid), x
        for i in range(4):
            at, state = rule.step(TwoBumps(), at, grid, i, state)

    refuses(ConfigError, "without a noise source", by_hand_without)


def test_churn_by_its_amount_alone() -> None:
    assert Heun(churn=8) == Heun(Churn(8.0))
    assert Euler(churn=0.5) == Euler(Churn(0.5))
    assert not Heun(churn=None).stochastic
    grid = Karras(kappa_max=20.0, kappa_min=0.1)(VPLinear(), 6)
    for bound in ("kappa_min", "kappa_max"):
        here = grid.at(3)
        sharp = Churn(3.0, **{"kappa_min": 1e-9, "kappa_max": 1e9, bound: (here.sigma / here.alpha).item()})
        # kappa * alpha may differ from sigma by a rounding, so the level itself is asked.
        level = sharp.raise_level(Level(1.0, getattr(sharp, bound)), 6)
        assert level[1] > 0, f"a level on {bound} is inside"


@stochastic
@pytest.mark.parametrize("end", ENDS)
def test_certain_data_get_the_variance_of_the_level(name: str, end: str) -> None:
    """Data without spread: whatever was replaced by fresh noise, x' = alpha' c + sigma' * (unit variance)."""
    spacing, schedule = ENDS[end]
    for steps in (1, 2, 5):
        grid = spacing(schedule, steps)
        level = grid.at(-1)
        got = variance(STOCHASTIC_HERE[name], grid, 0.0)
        error = abs(got - level.sigma.item() ** 2)
        assert error <= 1e-12 * max(1.0, got), f"{name}, {end}, {steps} steps: variance off by {error:.1e}"


@stochastic
def test_mean_is_the_mean(name: str) -> None:
    """Draws of 0 from the mean of the first level end at the mean of the last, exactly: the rule is affine."""
    for spacing, schedule in ENDS.values():
        grid = spacing(schedule, 6)
        x = torch.full((1, 1), 0.7, dtype=torch.float64) * grid.at(0).alpha
        still = sample(
            scalar_gaussian(0.7, 0.4), STOCHASTIC_HERE[name], grid, x, noise=lambda i, like: torch.zeros_like(like)
        )
        error = gap(still.x, 0.7 * grid.at(-1).alpha * torch.ones_like(x))
        assert error <= 1e-12, f"{name}: mean off by {error:.1e}"


@pytest.mark.parametrize("name", [name for name in STOCHASTIC_HERE if name != "renoise"])
def test_variance_converges(name: str) -> None:
    """The law at the end is that of the data: its error falls at least with the first power of the step."""
    std, steps = 0.5, (32, 64, 128, 256)
    for spacing in (UniformLam(-3.0, 3.0), Karras(kappa_max=20.0, kappa_min=0.05)):
        errors = []
        for n in steps:
            grid = spacing(VPLinear(), n)
            rule = STOCHASTIC_HERE[name]
            alpha, sigma = (part.item() for part in grid.at(-1))
            errors.append(abs(variance(rule, grid, std) - (alpha**2 * std**2 + sigma**2)))
        slope = -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
        print(f"{name}: slope {slope:.2f}, errors {errors}")
        assert slope >= 0.85, f"{name} on {spacing}: slope {slope:.2f}, errors {errors}"


def test_variance_that_renoising_loses() -> None:
    """It keeps of x what the posterior mean keeps: one step in closed form; exact data would need a consistency map."""
    std, grid = 0.5, LAM(VPLinear(), 1)
    (a0, s0), (a1, s1) = ((part.item() for part in grid.at(k)) for k in (0, 1))
    kept = a0 * std**2 / (a0**2 * std**2 + s0**2)
    want = a1**2 * kept**2 * (a0**2 * std**2 + s0**2) + s1**2
    assert abs(variance(Renoise(), grid, std) - want) <= 1e-14
    assert want < a1**2 * std**2 + s1**2


@stochastic
def test_equivariance(name: str) -> None:
    """The same draws give the same x / alpha in every schedule that visits the same lam."""
    y, eps = batch((3, 1, 2, 2)) * 20, batch((12, 3, 1, 2, 2), 5)
    ends = []
    for schedule in (EDM(), VPLinear(), VPCosine(), LinearFlow()):
        grid = UniformLam(-3.0, 3.0)(schedule, 10)
        run = sample(TwoBumps(), STOCHASTIC_HERE[name], grid, grid.at(0).alpha * y, noise=lambda i, like: eps[i])
        ends.append(run.x / grid.at(-1).alpha)
    error = max(gap(end, ends[0]) for end in ends)
    assert error <= 1e-12, f"{name}: x/alpha differs between schedules by {error:.2e}"


@stochastic
def test_counts_and_reentrancy(name: str) -> None:
    rule = STOCHASTIC_HERE[name]
    for end, (spacing, schedule) in ENDS.items():
        for steps in (1, 2, 3, 6):
            grid = spacing(schedule, steps)
            x, noise = start_of(grid), SeededNoise((4, 7))
            run = sample(TwoBumps(), rule, grid, x, noise=noise)
            assert run.nfe == rule.nfe(grid), f"{name}, {end}, {steps} steps: {run.nfe} calls"
            again = sample(TwoBumps(), rule, grid, x, noise=noise)
            assert gap(run.x, again.x) == 0
            alone = sample(TwoBumps(), rule, grid, x[1:], noise=SeededNoise((7,)))
            assert gap(run.x[1:], alone.x) == 0, f"{name}: image 1 alone differs by {gap(run.x[1:], alone.x):.1e}"


@stochastic
@pytest.mark.parametrize("end", ["finite", "zero_last", "noise_first_zero_last", "flow_edm"])
def test_values_and_gradients_are_finite_at_every_end(name: str, end: str) -> None:
    spacing, schedule = ENDS[end]
    for steps in (1, 2, 4):
        flat = spacing(schedule, steps)
        alpha, sigma = (part.clone().requires_grad_(True) for part in flat.levels)
        x = start_of(flat).requires_grad_(True)
        grid = Grid(NoiseLevel(alpha, sigma), flat.t)
        out = sample(TwoBumps(), STOCHASTIC_HERE[name], grid, x, noise=SeededNoise((1, 2)), unroll=Full()).x
        for value in (out, *torch.autograd.grad(out.square().sum(), (x, alpha, sigma), allow_unused=True)):
            assert value is None or bool(value.isfinite().all()), f"{name}, {end}, {steps} steps: {value}"


@stochastic
def test_gradcheck(name: str) -> None:
    grid = LAM(VPLinear(), 3)
    x = start_of(grid).requires_grad_(True)

    def run(x: Tensor) -> Tensor:
        return sample(TwoBumps(), STOCHASTIC_HERE[name], grid, x, noise=SeededNoise((1, 2)), unroll=Full()).x

    assert torch.autograd.gradcheck(run, (x,), eps=1e-6, atol=1e-7, rtol=1e-5)


def test_no_noise_is_the_deterministic_rule() -> None:
    grid = LAM(VPCosine(), 7)
    x = start_of(grid)
    plain = sample(TwoBumps(), DDIM(), grid, x).x
    for rule in (DDIM(eta=0.0), EulerAncestral(eta=0.0), Euler()):
        assert not rule.stochastic
        assert gap(sample(TwoBumps(), rule, grid, x).x, plain) <= 1e-14, f"{rule}"
    tiny = sample(TwoBumps(), DPMpp2MSDE(eta=1e-12), grid, x, noise=SeededNoise((1, 2))).x
    assert gap(tiny, sample(TwoBumps(), DPMpp2M(), grid, x).x) <= 1e-4
    outside = Churn(8.0, kappa_min=30.0, kappa_max=40.0)
    for rule in (Heun(outside), Euler(outside)):
        quiet = sample(TwoBumps(), rule, grid, x, noise=SeededNoise((1, 2))).x
        assert gap(quiet, sample(TwoBumps(), type(rule)(), grid, x).x) == 0


def test_ddim_with_eta_one_is_ddpm() -> None:
    """The posterior of the diffusion, q(x' | x, x0 = m), from the betas of a VP chain: mean and variance by Bayes."""
    grid = UniformTime()(VPLinear(), 5)
    rows = DDIM(eta=1.0).plan(grid).predict
    for i, row in enumerate(rows):
        (a, s), (a1, s1) = ((part.item() for part in grid.at(k)) for k in (i, i + 1))
        # x = (a / a1) x' + noise of variance s^2 - (a / a1)^2 s1^2, and x' = a1 m + s1 * noise
        jump = s**2 - (a / a1) ** 2 * s1**2
        precision = 1 / s1**2 + (a / a1) ** 2 / jump
        want = (a / a1 / jump / precision, a1 / s1**2 / precision, math.sqrt(1 / precision))
        for got, exact in zip((row.x, row.now, row.noise), want, strict=True):
            assert abs(got - exact) <= 1e-12, f"step {i}: {got} for {exact}"


def test_churn_raises_the_level_and_no_more() -> None:
    """EDM's Algorithm 2: (1 + gamma) sigma, reached by noise of exactly the missing variance; nothing outside."""
    grid = Karras(kappa_max=20.0, kappa_min=0.1)(VPLinear(), 6)
    for amount, gamma in ((3.0, math.sqrt(2) - 1), (0.6, 0.1)):
        for i, start in enumerate(starts(grid, Churn(amount, kappa_min=0.5, kappa_max=10.0, scale=1.1))):
            here = grid.at(i)
            inside = 0.5 <= here.kappa.item() <= 10.0
            raised = (1 + gamma if inside else 1.0) * here.sigma.item()
            assert abs(start.level.sigma.item() - raised) <= 1e-14, f"level {i}"
            assert start.level.alpha.item() == here.alpha.item()
            missing = raised**2 - here.sigma.item() ** 2
            assert abs(start.noise - 1.1 * math.sqrt(missing)) <= 1e-13, f"level {i}: {start.noise}"
    assert [start.noise for start in starts(grid, None)] == [0.0] * 6


@pytest.mark.parametrize(
    ("make", "shows"),
    [
        (lambda: DDIM(eta=1.5), "eta=1.5"),
        (lambda: DDIM(eta=-0.1), "eta=-0.1"),
        (lambda: EulerAncestral(eta=2.0), "EulerAncestral"),
        (lambda: DPMpp2MSDE(eta=0.0), "eta=0"),
        (lambda: DPMpp2MSDE(eta=float("nan")), "eta=nan"),
        (lambda: Churn(0.0), "amount=0.0"),
        (lambda: Churn(40.0, kappa_min=2.0, kappa_max=1.0), "kappa_min=2.0"),
        (lambda: Churn(40.0, scale=0.0), "scale=0.0"),
        (lambda: Heun(churn="a lot"), "a lot"),
        (lambda: Euler(churn=-1), "amount=-1"),
    ],
)
def test_refusals(make: Any, shows: str) -> None:
    refuses(ConfigError, shows, make)
