"""What is fitted to: the same estimates in every schedule's coordinates, the right rows of everything, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from contracts.inventory import SCHEDULES_HERE, f64, gap
from contracts.refusals import refuses
from torch import Tensor

from calibration.targets import GAUSSIAN, MIXTURE, SCHEDULES, levels, problem
from fewstep.calibration import Problem, problem_of
from fewstep.calibration.problem import levels_at, rms
from fewstep.denoisers import Cond, Denoiser
from fewstep.errors import ConfigError, GridError, LevelError, ShapeError
from fewstep.noise import EDM, NoiseLevel, VPLinear
from fewstep.sampling import SeededNoise


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_estimate_is_the_denoisers(name: str) -> None:
    """x / alpha at kappa is one point, in whatever coordinates the denoiser lives: E[x0 | x] there is one number."""
    own = problem(schedule=SCHEDULES[name])
    for kappa in (30.0, 1.0, 0.02):
        want = MIXTURE(kappa * own.start, NoiseLevel(f64(1.0), f64(kappa)))
        error = gap(own.estimate(kappa * own.start, kappa), want)
        assert error <= 1e-10, f"kappa {kappa} on {name}: max|a-b| = {error:.2e}"


def told(scale: float) -> Denoiser:
    """Says its scale plus what it is told."""

    def denoise(x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        return torch.full_like(x, scale) + (0.0 if cond is None else cond["label"].to(x)[:, None])

    return denoise


def test_every_row_has_its_denoiser_and_its_condition() -> None:
    """Also in small batches, and for the first few rows alone."""
    label = torch.arange(7)
    for size in (1, 2, 64):
        own = problem((told(100.0), told(200.0), told(300.0)), 7, cond={"label": label}, batch=size)
        want = f64([100, 201, 302, 103, 204, 305, 106])[:, None].expand(7, 3)
        for n in (7, 4, 1):
            error = gap(own.estimate(own.noise[:n], 1.0), want[:n])
            assert error == 0, f"batches of {size}, {n} rows: max|a-b| = {error}"


def test_calls_have_at_most_a_batch_of_rows() -> None:
    sizes: list[int] = []

    def denoise(x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        sizes.append(len(x))
        return x

    own = problem((denoise,), 10, batch=4)
    own.estimate(own.noise, 1.0)
    assert sizes == [4, 4, 2]


def test_a_problem_begins_as_sampling_does() -> None:
    own = problem_of(GAUSSIAN, EDM(), (2,), seeds=(5, 9), dtype=torch.float64)
    assert torch.equal(own.start, SeededNoise((5, 9))(-1, torch.empty(2, 2, dtype=torch.float64)))
    assert gap(own.noise, own.kappa_max * own.start) == 0


@pytest.mark.parametrize("name", SCHEDULES_HERE)
def test_ends_lie_inside_the_schedule(name: str) -> None:
    """And all of the grid between them can be reached."""
    schedule = SCHEDULES_HERE[name]
    own = problem_of(GAUSSIAN, schedule, (2,), seeds=range(2))
    low, high = schedule.lam_range()
    assert own.kappa_max == min(80.0, math.exp(-low)) or abs(own.kappa_max / math.exp(-low) - 1) <= 1e-12
    assert own.kappa_min == 0.002 or abs(own.kappa_min / math.exp(-high) - 1) <= 1e-12
    kappa = levels(own, 5)
    alpha, sigma = levels_at(schedule, kappa).levels
    error = float((sigma / alpha / kappa - 1).abs().max())
    assert error <= 1e-8, f"kappa off by {error:.2e}"


def test_refusals() -> None:
    def make(**more: Any) -> Problem:
        return problem(GAUSSIAN, 4, **more)

    for high, low in ((1.0, 2.0), (1.0, 1.0), (1.0, 0.0), (math.inf, 1.0), (math.nan, 1.0), (1.0, -1.0)):
        refuses(
            ConfigError, f"kappa {high:g} to {low:g}", lambda high=high, low=low: make(kappa_max=high, kappa_min=low)
        )
    refuses(ConfigError, "Batches of 0 rows", lambda: make(batch=0))
    refuses(ShapeError, "3 rows of the condition 'label'", lambda: make(cond={"label": torch.arange(3)}))
    refuses(GridError, "", lambda: levels_at(EDM(), f64([1.0, 2.0])))
    refuses(LevelError, "", lambda: levels_at(VPLinear(), f64([1e4, 2.0])))


def test_rms() -> None:
    assert abs(rms(f64([3.0, -4.0, 0.0, 0.0])) - 2.5) <= 1e-15
