"""T9: elementwise parity with k-diffusion in float64, the samplers its users run.

Its sigma is our kappa, so both get the very same float64 levels, with alpha = 1. It knows one way to end: its last
step, to sigma = 0, returns denoised. Where the samplers are finite without it, grids that end above 0 are compared too.
Draws are handed to both; nothing else is adjusted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference.k_diffusion import k_diffusion_sampling
from torch import Tensor

from contracts.inventory import gap
from contracts.parity import SHAPE, close, steps_
from contracts.problems import TwoBumps, batch
from fewstep.noise import EDM, Grid, Karras, NoiseLevel, UniformLam
from fewstep.sampling import sample
from fewstep.solvers import (
    DEIS,
    Churn,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp2S,
    DPMpp3M,
    Euler,
    EulerAncestral,
    Heun,
)

k = k_diffusion_sampling()

pytestmark = pytest.mark.skipif(k is None, reason="parity needs k-diffusion's file: pip install --no-deps k-diffusion")

SPACINGS = {
    "karras": Karras(end="zero"),
    "lam": UniformLam(-4.0, 4.0, end="zero"),
    "karras finite": Karras(rho=3.0, kappa_max=20.0, kappa_min=0.02),
}
spacings = pytest.mark.parametrize("spacing", SPACINGS)


def model(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser as k-diffusion calls it: one sigma per sample."""
    return TwoBumps()(x, NoiseLevel(torch.ones_like(sigma), sigma))


def levels(spacing: str, steps: int) -> tuple[Grid, Tensor, Tensor]:
    """A grid, a start at its first level, and a draw for every step."""
    grid = SPACINGS[spacing](EDM(), steps)
    return grid, batch(SHAPE) * grid.at(0).sigma, batch((steps, *SHAPE), seed=4)


def compare(
    rule: Any, name: str, spacing: str, steps: int, allowed: float = 1e-10, draws: bool = False, **options: Any
) -> None:
    grid, x, noise = levels(spacing, steps)
    if draws:
        kept = iter(noise)
        options["noise_sampler"] = lambda sigma, following: next(kept)
    want = getattr(k, name)(model, x, grid.levels.sigma, disable=True, **options)
    close(
        sample(TwoBumps(), rule, grid, x, noise=lambda i, like: noise[i]).x,
        want,
        f"{name}, {spacing}, {steps}",
        allowed,
    )


def path_of(name: str, grid: Grid, x: Tensor, **options: Any) -> list[Tensor]:
    """Every sample of their run, the input first."""
    seen: list[Tensor] = []
    end = getattr(k, name)(
        model, x, grid.levels.sigma, disable=True, callback=lambda info: seen.append(info["x"]), **options
    )
    return [*seen, end]


def fed(monkeypatch: pytest.MonkeyPatch, noise: Tensor) -> None:
    """Let their churn, which draws once in every step, draw what is given."""
    kept = iter(noise)
    monkeypatch.setattr(torch, "randn_like", lambda x: next(kept))


@steps_
@spacings
def test_euler(steps: int, spacing: str) -> None:
    compare(Euler(), "sample_euler", spacing, steps)


@steps_
@spacings
def test_heun(steps: int, spacing: str) -> None:
    """A last step to sigma = 0 is Euler's in both."""
    compare(Heun(), "sample_heun", spacing, steps)


@pytest.mark.parametrize(("rule", "name"), [(Euler, "sample_euler"), (Heun, "sample_heun")])
@steps_
@spacings
def test_churn(
    rule: Callable[[Churn], Any], name: str, steps: int, spacing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amount 3 over 2 steps is cut at sqrt(2) - 1, over 20 it is not; the interval leaves out both ends."""
    fed(monkeypatch, levels(spacing, steps)[2])
    churn = Churn(3.0, kappa_min=0.05, kappa_max=15.0, scale=1.003)
    options = {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 15.0, "s_noise": 1.003}
    compare(rule(churn), name, spacing, steps, **options)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@steps_
@spacings
def test_euler_ancestral(eta: float, steps: int, spacing: str) -> None:
    compare(EulerAncestral(eta), "sample_euler_ancestral", spacing, steps, draws=True, eta=eta)


@steps_
@spacings
def test_dpmpp_2m(steps: int, spacing: str) -> None:
    compare(DPMpp2M(), "sample_dpmpp_2m", spacing, steps)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@steps_
@spacings
def test_dpmpp_2m_sde(eta: float, steps: int, spacing: str) -> None:
    """Its solver_type "midpoint"."""
    compare(DPMpp2MSDE(eta), "sample_dpmpp_2m_sde", spacing, steps, draws=True, eta=eta, solver_type="midpoint")


@steps_
@spacings
def test_dpmpp_2s(steps: int, spacing: str) -> None:
    """Its eta = 0. Its inner point is the middle of a step in lam; for us it is a level, so our grid has those too.

    A step to sigma = 0 has no middle and is one call in both: the odd last step of ours.
    """
    grid, x, _ = levels(spacing, steps)
    kappa = grid.levels.sigma
    middles = (kappa[:-1] * kappa[1:]).sqrt()
    fine = torch.stack([kappa[:-1], middles], dim=1).flatten()
    fine = torch.cat([fine[fine > 0], kappa[-1:]])
    want = k.sample_dpmpp_2s_ancestral(
        model, x, kappa, disable=True, eta=0.0, noise_sampler=lambda sigma, following: torch.zeros_like(x)
    )
    ours = sample(TwoBumps(), DPMpp2S(), Grid(NoiseLevel(torch.ones_like(fine), fine), fine), x)
    close(ours.x, want, f"sample_dpmpp_2s_ancestral, {spacing}, {steps} steps")


@steps_
@spacings
def test_dpmpp_3m(steps: int, spacing: str) -> None:
    """Its eta = 0, step by step along its own path.

    The second step of a run, which has one slope only, differs by design: k-diffusion weighs the slope exactly, with
    phi_2 = 1 - (1 - exp(-h)) / h, and we as DPM-Solver++ 2M and diffusers do, with (1 - exp(-h)) / 2. There the
    difference itself is what is compared. Every other step agrees.
    """
    grid, x, _ = levels(spacing, steps)
    path = path_of("sample_dpmpp_3m_sde", grid, x, eta=0.0, noise_sampler=print)  # never called
    rule = DPMpp3M()
    state, lam, worst = rule.init(x, grid), -grid.levels.sigma.log(), 0.0
    for i in range(steps):
        got, state = rule.step(TwoBumps(), path[i], grid, i, state)
        want = path[i + 1]
        if i == 1 and bool(grid.at(2).sigma > 0):
            h = lam[2] - lam[1]
            slope = (model(path[1], grid.at(1).sigma[None]) - model(path[0], grid.at(0).sigma[None])) / (
                lam[1] - lam[0]
            )
            want = want + ((1 - (-h).exp()) / 2 - (1 - (1 - (-h).exp()) / h)) * slope * h
        worst = max(worst, gap(got, want))
    print(f"sample_dpmpp_3m_sde, {spacing}, {steps}: max|a-b| = {worst:.1e}")
    assert worst <= 1e-10, f"max|a-b| = {worst:.2e}"


@pytest.mark.parametrize("order", [2, 3])
@steps_
@spacings
def test_lms(order: int, steps: int, spacing: str) -> None:
    """Linear multistep is tAB-DEIS: Adams-Bashforth with exact weights in kappa, theirs by scipy's quadrature.

    Gauss-Kronrod is exact for these polynomials, up to rounding.
    """
    compare(DEIS(order=order), "sample_lms", spacing, steps, order=order)
