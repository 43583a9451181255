"""Grids by dynamic programming: against all paths there are, and against steps that were made."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from contracts.inventory import gap
from contracts.problems import batch
from contracts.refusals import refuses

from calibration.targets import GAUSSIAN, exact, problem
from fewstep.calibration.grids import GITS, grid_named, shortest_path, step_costs
from fewstep.calibration.trajectories import record
from fewstep.errors import ConfigError, UnknownName
from fewstep.noise import EDM, Karras, UniformLam


@pytest.mark.parametrize("steps", range(1, 8))
def test_the_shortest_of_all_paths(steps: int) -> None:
    for seed in range(5):
        costs = torch.where(torch.ones(8, 8).triu(1) > 0, batch((8, 8), seed).abs(), torch.inf)
        paths = [(0, *middle, 7) for middle in combinations(range(1, 7), steps - 1)]
        sums = {path: float(sum(costs[i, j] for i, j in pairwise(path))) for path in paths}
        assert tuple(shortest_path(costs, steps)) == min(sums, key=sums.__getitem__), f"seed {seed}"


def test_costs_are_those_of_steps_that_were_made() -> None:
    found = record(problem(n=6), 9)
    costs = step_costs(found)
    for i in range(10):
        for j in range(10):
            if j <= i:
                assert torch.isinf(costs[i, j]), f"from level {i} to {j}: noise does not decrease"
                continue
            r = found.kappa[j] / found.kappa[i]
            made = r * found.x[i] + (1 - r) * found.denoised[i]
            want = ((made - found.x[j]).square().mean() / found.x[j].square().mean()).sqrt()
            # A difference of squares loses half of the digits.
            assert abs(float(costs[i, j] - want)) <= 1e-7, f"from level {i} to {j}: {float(costs[i, j])} not {want}"


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_a_grid_out_of_the_trajectories(steps: int) -> None:
    own = problem(GAUSSIAN)
    found = exact(own, GAUSSIAN, 12)
    kappa = grid_named(GITS, own, found, steps)
    assert kappa.shape == (steps + 1,)
    assert kappa.dtype == torch.float64
    assert (kappa[0], kappa[-1]) == (found.kappa[0], found.kappa[-1])
    assert bool((kappa.diff() < 0).all())
    assert set(kappa.tolist()) <= set(found.kappa.tolist())


def test_a_named_grid_lies_between_the_ends() -> None:
    own = problem(GAUSSIAN, kappa_max=20.0, kappa_min=0.05)
    found, schedule = exact(own, GAUSSIAN, 12), EDM(sigma_min=0.05, sigma_max=20.0)
    for name, spacing in (("karras:rho=3", Karras(rho=3.0)), ("uniform_lam", UniformLam())):
        want = spacing(schedule, 6).levels.sigma
        assert gap(grid_named(name, own, found, 6), want) <= 1e-12, name
        assert abs(float(want[0] / 20.0) - 1) + abs(float(want[-1] / 0.05) - 1) <= 1e-12, name
    refuses(UnknownName, "karas", lambda: grid_named("karas", own, found, 6))
    refuses(ConfigError, "rho", lambda: grid_named("karras:rho", own, found, 6))
