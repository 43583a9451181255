"""T10: schedules and grids. Levels against formulas in numpy, inverses, derivatives, perturb by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from contracts.inventory import SCHEDULES_HERE, f64, gap
from fewstep import noise
from fewstep.noise import (
    EDM,
    SCHEDULES,
    SPACINGS,
    Explicit,
    Karras,
    LinearFlow,
    NoiseLevel,
    ShiftedFlow,
    UniformLam,
    UniformTime,
    VPCosine,
    VPLinear,
    perturb,
)

SCHEDULE_IDS = list(SCHEDULES_HERE)
schedules = pytest.mark.parametrize("schedule", SCHEDULES_HERE.values(), ids=SCHEDULE_IDS)


def times(schedule: noise.Schedule, n: int = 101) -> torch.Tensor:
    """Times inside the clock, clean to noisy, evenly spread in the logarithm."""
    clean, noisy = schedule.t_range()
    return torch.tensor(np.geomspace(clean, noisy * 0.999, n))


def alpha_sigma(name: str, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels from their definitions: integrals of the rates, cosines and lines."""
    if name == "edm":
        return np.ones_like(t), t
    if name == "vp_linear":
        integral = 0.1 * t + (20.0 - 0.1) * t**2 / 2  # of beta(t) = 0.1 + 19.9 t
        return np.exp(-integral / 2), np.sqrt(-np.expm1(-integral))
    if name == "vp_cosine":
        alpha = np.cos((t + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
        return alpha, np.sqrt((1 - alpha) * (1 + alpha))
    if name == "linear_flow":
        return 1 - t, t
    if name == "ve":
        return np.ones_like(t), np.sqrt(t)
    if name == "shifted_flow":
        tau = 3 * t / (1 + 2 * t)
        return 1 - tau, tau
    if name.startswith("tabulated"):
        return between(table(name), t)
    raise AssertionError(f"write down the definition of {name}")


def table(name: str) -> np.ndarray:
    """The alphas_cumprod of the tables here, from their betas."""
    if name == "tabulated_scaled_linear":
        alpha = np.sqrt(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
        return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    line = np.linspace(1e-4, 0.02, 1000) if name == "tabulated" else np.linspace(1e-3, 0.05, 400)
    return np.cumprod(1 - line)


def between(bars: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels at t = timestep + 1, the angle on straight lines between the timesteps and from clean data on."""
    clock, bars = np.arange(len(bars) + 1), np.concatenate([[1.0], bars])
    sigma_angle = np.interp(t, clock, np.arctan2(np.sqrt(1 - bars), np.sqrt(bars)))
    alpha_angle = np.interp(t, clock, np.arctan2(np.sqrt(bars), np.sqrt(1 - bars)))
    return np.sin(alpha_angle), np.sin(sigma_angle)


def test_the_list_is_complete() -> None:
    assert set(SCHEDULES_HERE) == set(SCHEDULES)


@schedules
def test_level_is_its_definition(schedule: noise.Schedule, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    t = times(schedule)
    level = schedule.level(t)
    alpha, sigma = alpha_sigma(name, t.numpy())
    errors = gap(level.alpha, torch.tensor(alpha)), gap(level.sigma / t, torch.tensor(sigma) / t)
    # The numpy cosine itself loses digits near t = 0: there 1 - alpha is 1e-5 of 1, so 1e-11 is what it can tell. The
    # table multiplies a thousand factors, and 1 - alpha^2 of its first entry is 1e-4 of 1.
    allowed = 1e-9 if name == "vp_cosine" else 1e-13 if name.startswith("tabulated") else 1e-14
    assert max(errors) <= allowed, f"{name}: max|a-b| = {errors}"


@schedules
def test_t_of_lam_inverts_lam(schedule: noise.Schedule) -> None:
    t = times(schedule)
    error = gap(schedule.t_of_lam(schedule.level(t).lam) / t, torch.ones_like(t))
    assert error <= 1e-11, f"{schedule}: relative error of t_of_lam(lam(t)) = {error:.2e}"
    lam = schedule.level(t).lam
    back = gap(schedule.level(schedule.t_of_lam(lam)).lam, lam)
    assert back <= 1e-11, f"{schedule}: lam(t_of_lam(lam)) is off by {back:.2e}"


@schedules
def test_lam_falls_with_time_and_fills_its_range(schedule: noise.Schedule) -> None:
    lam = schedule.level(times(schedule)).lam
    assert bool((lam.diff() < 0).all()), f"{schedule}: lam does not fall: {lam.diff().max():.2e}"
    noisy, clean = schedule.lam_range()
    ends = schedule.level(f64(schedule.t_range())).lam
    assert abs(ends[0].item() - clean) <= 1e-12
    assert ends[1].item() == noisy or abs(ends[1].item() - noisy) <= 1e-12
    alpha_at_end = schedule.level(f64(schedule.t_range()[1])).alpha.item()
    assert math.isinf(noisy) == (alpha_at_end == 0.0), f"lam {noisy} where alpha = {alpha_at_end}"


@schedules
def test_derivatives(schedule: noise.Schedule) -> None:
    t = times(schedule, 21)[1:-1].requires_grad_(True)
    lam = schedule.level(t).lam
    (slope,) = torch.autograd.grad(lam.sum(), t)
    with torch.no_grad():
        step = 1e-6 * t
        # Fourth-order difference, so that rounding and not truncation decides.
        f = [schedule.level(t + k * step).lam for k in (-2, -1, 1, 2)]
        measured = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step)
    error = gap(slope / measured, torch.ones_like(slope))
    assert error <= 1e-7, f"{schedule}: autograd and differences of lam disagree by {error:.2e}"
    (inverse_slope,) = torch.autograd.grad(schedule.t_of_lam(x := lam.detach().requires_grad_(True)).sum(), x)
    error = gap(inverse_slope * slope, torch.ones_like(slope))
    assert error <= 1e-9, f"{schedule}: derivative of the inverse is off by {error:.2e}"


@schedules
def test_dtype_follows_the_clock(schedule: noise.Schedule) -> None:
    t64, t32 = times(schedule, 5), times(schedule, 5).float()
    assert schedule.level(t64).sigma.dtype == torch.float64
    assert schedule.level(t32).sigma.dtype == torch.float32
    error = gap(
        schedule.level(t32).sigma.double() / schedule.level(t32.double()).sigma, torch.ones(5, dtype=torch.float64)
    )
    assert error <= 1e-5, f"{schedule}: float32 levels are off by {error:.2e}"


def test_clean_end_is_clean() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    for name, schedule in SCHEDULES_HERE.items():
        level = schedule.level(zero)
        assert (level.alpha.item(), level.sigma.item()) == (1.0, 0.0), f"{name}: {level} at t = 0"
    shifts = [ShiftedFlow(shift) for shift in (1.0, 3.0, math.exp(0.5), 0.1)]  # 1 + (0.1 - 1) is not 0.1
    stretched = SCHEDULES_HERE["tabulated_scaled_linear"]
    for schedule in (VPCosine(), LinearFlow(), *shifts, stretched):
        level = schedule.level(f64(schedule.t_range()[1]))
        assert level.alpha.item() == 0.0, f"{schedule}: alpha = {level.alpha.item()} at its noisy end"
        assert abs(level.sigma.item() - 1) <= (1e-15 if schedule == VPCosine() else 0), schedule


def test_names_of_a_level() -> None:
    level = NoiseLevel(f64(0.5), f64(2.0))
    assert abs(level.lam.item() - math.log(0.25)) <= 1e-15
    assert abs(level.logsnr.item() - math.log(0.25 / 2.0 * 0.5)) <= 1e-15  # log(alpha^2 / sigma^2)
    assert level.kappa.item() == 4.0


def test_perturb_by_simulation() -> None:
    generator = torch.Generator().manual_seed(0)
    n = 200_000
    x0 = 3 + 0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    eps = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    for name, schedule in SCHEDULES_HERE.items():
        level = schedule.level(times(schedule, 5)[3])
        x = perturb(x0, eps, level)
        mean, var = 3 * level.alpha, 0.25 * level.alpha**2 + level.sigma**2
        z_mean = ((x.mean() - mean) / (var / n).sqrt()).item()
        z_var = ((x.var() - var) / (var * math.sqrt(2 / n))).item()
        assert max(abs(z_mean), abs(z_var)) <= 4, f"{name}: z of mean {z_mean:.2f}, of variance {z_var:.2f}"


def test_perturb_expands_a_level_per_sample() -> None:
    # b = w = 3 is the trap: a (3,) level broadcasts over the columns without a word.
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 2, 3, 3, generator=generator, dtype=torch.float64)
    level = LinearFlow().level(f64([0.1, 0.5, 0.9]))
    got = perturb(x0, eps, level)
    want = torch.stack([(1 - t) * x0[i] + t * eps[i] for i, t in enumerate((0.1, 0.5, 0.9))])
    assert gap(got, want) <= 1e-15, f"max|a-b| = {gap(got, want):.2e}"


# Grids


def test_spacing_list_is_complete() -> None:
    known = {"uniform_lam", "karras", "uniform_time", "uniform_flow", "trailing", "quadratic", "timesteps"}
    assert set(SPACINGS) == known | {"table_of_levels", "ays_sd15", "ays_sdxl", "ays_svd"}  # see test_spacings.py


def test_uniform_lam() -> None:
    for name, schedule in SCHEDULES_HERE.items():
        grid = UniformLam(lam_min=-4.0, lam_max=3.0)(schedule, 7)
        error = gap(grid.levels.lam, torch.linspace(-4, 3, 8, dtype=torch.float64))
        assert error <= 1e-12, f"{name}: lam off by {error:.2e}"
        back = gap(schedule.level(grid.t).sigma, grid.levels.sigma)
        assert back <= 1e-15, f"{name}: the clock and the levels of a grid disagree by {back:.2e}"
    grid = UniformLam()(EDM(sigma_min=0.01, sigma_max=50.0), 4)
    want = torch.tensor(np.geomspace(50, 0.01, 5))
    assert gap(grid.levels.sigma / want, torch.ones(5, dtype=torch.float64)) <= 1e-13


def test_karras() -> None:
    for rho in (1.0, 7.0):
        i = np.arange(9) / 8
        want = torch.tensor((80 ** (1 / rho) + i * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho)
        for schedule in (EDM(), LinearFlow(t_min=1e-4)):
            grid = Karras(rho=rho, kappa_min=0.002, kappa_max=80.0)(schedule, 8)
            error = gap(grid.levels.kappa / want, torch.ones(9).double())
            assert error <= 1e-11, f"{schedule}, rho={rho}: kappa off by {error:.2e}"


def test_uniform_time_reaches_pure_noise() -> None:
    grid = UniformTime(end="zero")(LinearFlow(), 5)
    assert gap(grid.t, torch.linspace(1, 0, 6, dtype=torch.float64)) <= 1e-16
    assert grid.at(0).alpha.item() == 0.0
    assert grid.at(-1).sigma.item() == 0.0
    assert grid.at(-1).alpha.item() == 1.0
    grid = UniformTime()(VPLinear(t_min=0.01), 3)
    assert gap(grid.t, torch.linspace(1, 0.01, 4, dtype=torch.float64)) <= 1e-16


@pytest.mark.parametrize("spacing", ["uniform_lam", "karras"])
def test_end_zero_replaces_the_last_level(spacing: str) -> None:
    for name, schedule in SCHEDULES_HERE.items():
        first = {"lam_min": -4.0} if spacing == "uniform_lam" else {"kappa_max": 50.0}
        limit = SPACINGS[spacing](**first)(schedule, 6)
        zero = SPACINGS[spacing](**first, end="zero")(schedule, 6)
        assert gap(limit.t[:-1], zero.t[:-1]) == 0.0, name
        assert zero.at(-1).sigma.item() == 0.0 < limit.at(-1).sigma.item(), name
        assert zero.steps == limit.steps == 6


def test_explicit() -> None:
    grid = Explicit(t=(80.0, 3.0, 0.5, 0.0))(EDM(), 3)
    assert gap(grid.levels.sigma, f64([80.0, 3.0, 0.5, 0.0])) == 0.0
    assert grid.levels.sigma.dtype == torch.float64


def test_draws() -> None:
    """Quantiles of the training draws against their definitions."""
    assert set(noise.DRAWS) == {"uniform", "logit_normal", "log_normal"}
    u = f64([0.5, 0.15865525393145707, 0.8413447460685429])  # normal 0, -1, 1
    clean, noisy = LinearFlow().t_range()
    for draw, want in (
        (noise.UniformDraw(), [clean + (noisy - clean) * q for q in u.tolist()]),
        (noise.LogitNormalDraw(mean=0.3, std=0.7),
         [clean + (noisy - clean) / (1 + math.exp(-(0.3 + 0.7 * z))) for z in (0, -1, 1)]),
    ):  # fmt: skip
        error = gap(draw(LinearFlow(), u), f64(want))
        assert error <= 1e-12, f"{draw}: {error:.2e}"
    sigma = noise.LogNormalDraw(mean=-1.2, std=1.2)(EDM(), u)
    error = gap(sigma.log(), f64([-1.2, -2.4, 0.0]))
    assert error <= 1e-7, f"log-normal: {error:.2e}"


def test_stratified_has_one_draw_in_each_part() -> None:
    u = noise.stratified(64, torch.Generator().manual_seed(3))
    assert sorted((u * 64).floor().int().tolist()) == list(range(64))
    assert not torch.equal(u, u.sort().values), "the draws came sorted"


def test_stratified_is_uniform_inside_its_parts() -> None:
    parts = torch.cat([noise.stratified(64, torch.Generator().manual_seed(seed)) for seed in range(40)]) * 64 % 1
    n = len(parts)
    z_mean = (parts.mean().item() - 0.5) * math.sqrt(12 * n)
    z_var = (parts.var().item() - 1 / 12) * math.sqrt(180 * n)
    assert max(abs(z_mean), abs(z_var)) <= 4, f"z of mean {z_mean:.1f}, of variance {z_var:.1f}"


def test_log_normal_draws_stay_on_the_clock() -> None:
    u = f64([1e-9, 0.01, 0.5, 0.99, 1 - 1e-9])
    for schedule in (EDM(sigma_min=0.1, sigma_max=1.0), VPLinear(t_min=0.2), LinearFlow(t_min=0.1)):
        clean, noisy = schedule.t_range()
        t = noise.LogNormalDraw()(schedule, u)
        assert t.min().item() == clean, f"{schedule}: {t.tolist()}"
        assert t.max().item() <= noisy, f"{schedule}: {t.tolist()}"
    assert noise.LogNormalDraw()(EDM(sigma_min=0.1, sigma_max=1.0), u).max().item() == 1.0
