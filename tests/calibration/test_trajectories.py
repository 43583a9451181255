"""The teacher: states exact at their levels and of order 4 between, and denoisers that nobody can be held to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from contracts.inventory import f64, gap
from contracts.refusals import refuses
from torch import Tensor

from calibration.targets import GAUSSIAN, MIXTURE, SCHEDULES, exact, problem
from fewstep.calibration.problem import rms
from fewstep.calibration.trajectories import record
from fewstep.errors import ConfigError, NonFiniteError
from fewstep.noise import EDM, NoiseLevel


def test_at_a_level_it_is_what_was_recorded() -> None:
    own = problem(GAUSSIAN)
    found = exact(own, GAUSSIAN, 9)
    for kappa, x in zip(found.kappa, found.x, strict=True):
        error = gap(found.at(kappa), x)
        assert error == 0, f"kappa {float(kappa):.3g}: max|a-b| = {error:.2e}"


def test_between_levels_the_error_is_of_order_four() -> None:
    """Of a cubic through right values and right slopes, on the solved ODE of a Gaussian."""
    own, schedule = problem(GAUSSIAN, kappa_max=10.0, kappa_min=0.05), EDM(sigma_min=1e-3, sigma_max=1e3)
    wanted, errors, steps = torch.linspace(-2.9, 2.2, 200, dtype=torch.float64).exp(), [], (8, 16, 32, 64)
    for n in steps:
        found = exact(own, GAUSSIAN, n)
        true = [GAUSSIAN.flow(own.noise, schedule.level(f64(10.0)), schedule.level(k)) for k in wanted]
        errors.append(max(gap(found.at(k), x) for k, x in zip(wanted, true, strict=True)))
    slope = -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
    assert slope >= 3.7, f"order {slope:.2f}, errors {errors}"


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_reference_solves_the_ode(name: str) -> None:
    """Its end meets the solved ODE of a Gaussian, the better the more steps, whatever the schedule."""
    own = problem(GAUSSIAN, schedule=SCHEDULES[name])
    end = exact(own, GAUSSIAN, 2).end
    steps = (32, 64, 128)
    errors = [rms(record(own, n).end - end) for n in steps]
    slope = -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
    assert slope >= 1.85, f"{name}: order {slope:.2f}, errors {errors}"  # 2: DEIS of order 3 begun by one step of DDIM
    assert errors[1] <= 5e-3, f"{name}: 64 steps miss by {errors[1]:.2e}"


def test_estimates_were_made_at_the_states() -> None:
    own = problem()
    found = record(own, 20)
    for kappa, x, m in zip(found.kappa, found.x, found.denoised, strict=True):
        error = gap(m, MIXTURE(x, NoiseLevel(f64(1.0), kappa)))
        assert error <= 1e-10, f"kappa {float(kappa):.3g}: max|a-b| = {error:.2e}"
    assert len(found.kappa) == len(found.x) == len(found.denoised) == 21
    assert gap(found.kappa[[0, -1]], f64([own.kappa_max, own.kappa_min])) <= 1e-12 * own.kappa_max


def test_the_gap_is_to_half_as_many_steps() -> None:
    own = problem(n=20)
    found, half = record(own, 20), record(own, 10)
    want = rms(found.end[:16] - half.end[:16])
    assert abs(found.gap - want) <= 1e-12, f"{found.gap} instead of {want}"


def broken(spoil: Callable[[Tensor, float], Tensor]) -> Any:
    def denoise(x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        return spoil(MIXTURE(x, level), float(level.sigma / level.alpha))

    return denoise


def test_a_denoiser_that_draws_is_refused() -> None:
    noise = torch.Generator().manual_seed(0)

    def spoil(m: Tensor, kappa: float) -> Tensor:
        return m * (torch.rand(m.shape, generator=noise, dtype=m.dtype) < 0.9) / 0.9

    error = refuses(ConfigError, "two answers to one question", lambda: record(problem((broken(spoil),)), 20))
    assert "network.eval()" in error.todo


def test_one_of_several_denoisers_that_draws_is_refused() -> None:
    noise = torch.Generator().manual_seed(0)

    def spoil(m: Tensor, kappa: float) -> Tensor:
        return m + 0.1 * torch.randn(m.shape, generator=noise, dtype=m.dtype)

    refuses(ConfigError, "two answers", lambda: record(problem((MIXTURE, MIXTURE, broken(spoil))), 20))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["everywhere", "early", "late", "last"])
def test_a_trajectory_that_is_not_finite_is_refused(where: str, bad: float) -> None:
    own = problem()
    hit = {"everywhere": 0.0, "early": 10.0, "late": 0.0, "last": 0.0}[where]
    top = {"everywhere": 1e3, "early": 1e3, "late": 0.1, "last": 1.0000001 * own.kappa_min}[where]

    def spoil(m: Tensor, kappa: float) -> Tensor:
        return m * bad if hit <= kappa <= top else m

    refuses(NonFiniteError, "A trajectory of the teacher", lambda: record(problem((broken(spoil),)), 20))


def test_trajectories_that_do_not_settle_are_refused() -> None:
    """An estimate that swings with the state faster than the steps can follow, as under far too much guidance."""

    def denoise(x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        return 3 * torch.sin(40 * x / (level.alpha + level.sigma))

    error = refuses(ConfigError, "after 20 and after 10 steps", lambda: record(problem((denoise,)), 20))
    assert "guidance" in error.todo
    assert "teacher steps" in error.todo
