"""T3 for polynomials: weights that claim to be exact are, against quadrature; and what 3M's weights are instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from contracts.problems import GRIDS
from fewstep.noise import Grid
from fewstep.solvers import DDIM, DEIS, DPMpp2S, DPMpp3M, Plan, Row, UniPC
from fewstep.solvers.coeffs import exponential_moments, lagrange, levels_of

NODES, WEIGHTS = np.polynomial.legendre.leggauss(60)


def quadrature(f: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> float:
    """Integral by 60 Gauss points."""
    return float((high - low) / 2 * (WEIGHTS * f((NODES + 1) / 2 * (high - low) + low)).sum())


def of_denoised(row: Row, values: list[float]) -> float:
    """What a row adds to the decayed sample if its estimates are these, newest first."""
    return row.now * values[0] + sum(w * v for w, v in zip(row.earlier, values[1:], strict=False))


def exact_integral(grid: Grid, i: int, power: int, origin: int) -> float:
    """sigma' int (lam - lam_origin)^power du over step i, by quadrature in lam: du = u dlam."""
    lam, there = grid.levels.lam.numpy(), grid.at(i + 1)
    return there.sigma.item() * quadrature(lambda x: (x - lam[origin]) ** power * np.exp(x), lam[i], lam[i + 1])


@pytest.mark.parametrize("grid_name", GRIDS)
def test_unipc_integrates_polynomials(grid_name: str) -> None:
    spacing, schedule = GRIDS[grid_name]
    grid = spacing(schedule, 10)
    lam = grid.levels.lam.tolist()
    for variant in ("bh1", "bh2"):
        plan: Plan = UniPC(order=3, variant=variant).plan(grid)
        for i in range(10):
            exact_up_to = 2 if i >= 2 else 0  # two estimates take half of B(h), which is not exact
            for power in range(exact_up_to + 1):
                values = [(lam[k] - lam[i]) ** power for k in range(i, -1, -1)]
                error = abs(of_denoised(plan.predict[i], values) - exact_integral(grid, i, power, i))
                assert error <= 1e-13, f"{variant} predictor, step {i}, power {power}: {error:.1e}"
        for i in range(9):
            for power in range((min(i + 1, 3) if i else 0) + 1):
                values = [(lam[k] - lam[i]) ** power for k in range(i + 1, -1, -1)]
                error = abs(of_denoised(plan.correct[i], values) - exact_integral(grid, i, power, i))
                assert error <= 1e-12, f"{variant} corrector, step {i}, power {power}: {error:.1e}"


def test_dpmpp_3m_has_half_the_weight_of_the_second_difference() -> None:
    """Exact for constants and lines; of a parabola it takes half of what is needed, on every grid."""
    for spacing, schedule in GRIDS.values():
        grid = spacing(schedule, 10)
        lam, rows = grid.levels.lam.tolist(), DPMpp3M().plan(grid).predict
        for i in range(2, 10):
            for power, share in ((0, 1.0), (1, 1.0), (2, 0.5)):
                values = [(lam[k] - lam[i]) ** power for k in range(i, -1, -1)]
                error = abs(of_denoised(rows[i], values) - share * exact_integral(grid, i, power, i))
                assert error <= 1e-13, f"step {i}, power {power}: {error:.1e}"


@pytest.mark.parametrize("grid_name", GRIDS)
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("variable", ["kappa", "log_kappa"])
def test_deis_integrates_polynomials_of_the_noise_estimate(variable: Any, order: int, grid_name: str) -> None:
    """x / alpha grows by the integral of eps in kappa, for eps a polynomial in the rule's own variable."""
    spacing, schedule = GRIDS[grid_name]
    grid = spacing(schedule, 8)
    plan, levels = DEIS(order=order, variable=variable).plan(grid), levels_of(grid)
    kappa = grid.levels.kappa.numpy()
    clock = kappa if variable == "kappa" else np.log(kappa)
    for i in range(8):
        for power in range(min(i + 1, order)):
            eps = (clock - clock[i]) ** power
            x, here = 0.7, levels[i]
            m = (x - here.sigma * eps[i]) / here.alpha
            row = plan.predict[i]
            got = row.x * x + row.now * m + sum(w * e for w, e in zip(row.earlier, eps[:i][::-1], strict=False))

            def integrand(s: np.ndarray, power: int = power, i: int = i) -> np.ndarray:
                return ((s if variable == "kappa" else np.log(s)) - clock[i]) ** power

            want = levels[i + 1].alpha * (x / here.alpha + quadrature(integrand, kappa[i], kappa[i + 1]))
            assert abs(got - want) <= 1e-12, f"step {i}, power {power}: {abs(got - want):.1e}"


def test_remembered_noise_estimate_is_the_noise() -> None:
    spacing, schedule = GRIDS["karras"]
    grid = spacing(schedule, 5)
    for rule in (DEIS(), DEIS(order=2, variable="log_kappa")):
        for level, row in zip(levels_of(grid), rule.plan(grid).remember, strict=False):
            x0, eps = 0.3, -1.2
            assert abs(row.x * (level.alpha * x0 + level.sigma * eps) + row.now * x0 - eps) <= 1e-13


def test_pairs_of_dpmpp_2s_are_algorithm_1() -> None:
    """The published step, with its inner point, from the start of the pair, against the row that starts in between."""
    for spacing, schedule in GRIDS.values():
        grid = spacing(schedule, 6)
        rows = DPMpp2S().plan(grid).predict
        for i in (1, 3, 5):
            (a0, s0), (a1, s1), (a2, s2) = ((v.item() for v in grid.at(k)) for k in (i - 1, i, i + 1))
            lam0, lam1, lam2 = (np.log(a / s) for a, s in ((a0, s0), (a1, s1), (a2, s2)))
            x0, m0, m1, h = 0.9, -0.4, 0.25, lam2 - lam0
            rho = (lam1 - lam0) / h
            x1 = s1 / s0 * x0 - a1 * np.expm1(-rho * h) * m0
            mixed = (1 - 1 / (2 * rho)) * m0 + m1 / (2 * rho)
            want = s2 / s0 * x0 - a2 * np.expm1(-h) * mixed
            got = rows[i].x * x1 + of_denoised(rows[i], [m1, m0])
            assert abs(got - want) <= 1e-13, f"pair ending at {i + 1}: {abs(got - want):.1e}"


def test_lagrange_and_moments() -> None:
    """Weights of the polynomial through any points, and moments against quadrature, also of negative widths."""
    for h in (2.0, 0.3, -0.7):
        for j, moment in enumerate(exponential_moments(h, 4)):
            want = quadrature(lambda t, h=h, j=j: np.exp(-(h - t)) * t**j, 0.0, h)
            assert abs(moment - want) <= 1e-13, f"h={h}, power {j}: {abs(moment - want):.1e}"
    points, moments = [0.3, -0.5, 1.4, -2.0], [1.1, -0.2, 0.7, 2.5]
    weights = lagrange(points, moments)
    for j, moment in enumerate(moments):
        got = sum(w * p**j for w, p in zip(weights, points, strict=True))
        assert abs(got - moment) <= 1e-13, f"power {j}: {got} for {moment}"


def test_no_more_is_remembered_than_is_used() -> None:
    """The state does not grow with the run."""
    spacing, schedule = GRIDS["karras"]
    grid, x = spacing(schedule, 12), torch.ones(2, 3, dtype=torch.float64)
    for rule, reach in ((DPMpp3M(), 2), (UniPC(order=3), 3), (DEIS(), 2), (DPMpp2S(), 1), (DDIM(), 0)):
        state = rule.init(x, grid)
        for i in range(12):
            _, state = rule.step(lambda x, level: x / 2, x, grid, i, state)
        assert len(state.earlier) == reach, f"{rule} keeps {len(state.earlier)}"


def test_numbers_are_floats_unless_the_grid_is_learned() -> None:
    spacing, schedule = GRIDS["karras"]
    grid = spacing(schedule, 4)
    rows = UniPC(order=3).plan(grid).predict
    assert all(type(w) is float for row in rows for w in (row.x, row.now, *row.earlier))
    alpha, sigma = (part.clone().requires_grad_(True) for part in grid.levels)
    learned = UniPC(order=3).plan(Grid(type(grid.levels)(alpha, sigma), grid.t)).predict
    for row, same in zip(rows, learned, strict=True):
        for w, v in zip((row.x, row.now, *row.earlier), (same.x, same.now, *same.earlier), strict=True):
            assert isinstance(v, torch.Tensor)
            assert v.requires_grad
            assert abs(v.item() - w) <= 1e-13
