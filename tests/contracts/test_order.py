"""T1 and T1b: the error falls with the power of the step that each solver declares.

The truth is the probability-flow ODE of a five-component mixture in four dimensions, solved in numpy by scipy's DOP853
to 1e-13. Slopes are fitted over 32, 64, 128 and 256 steps in float64, on grids that differ in shape and in schedule.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference.oracles import gaussian_ode, ode_solution
from torch import Tensor

from contracts.inventory import CONSISTENT, SOLVERS_HERE, STOCHASTIC_HERE, Case, consistent_solvers, f64, gap
from contracts.problems import GRIDS, KAPPA, STEPS, measure_local_slope, measure_slope, mixture_problem
from fewstep.noise import LinearFlow, NoiseLevel, UniformTime
from fewstep.sampling import sample
from fewstep.solvers import IPNDM, SOLVERS, DPMpp3M

SLACK = 0.15


def expected_order(case: Case, grid: str) -> int:
    if not case.uniform_kappa_only or grid == "uniform_kappa":
        return case.cold_order or case.order
    # Weights of equal steps are wrong by the ratio of steps less one: harmless where it tends to 0, else of order 1.
    return 1 if grid == "zigzag" else case.off_order


def report(name: str, grid: str, slope: float, errors: list[float]) -> str:
    return f"{name} on {grid}: slope {slope:.2f}, errors " + " ".join(f"{e:.1e}" for e in errors)


def test_the_list_is_complete() -> None:
    """Every name of the table is in one of the two lists, with the very same rule."""
    stochastic = set(STOCHASTIC_HERE.values())
    for name, make in SOLVERS.items():
        rule = make()
        assert rule in stochastic if rule.stochastic else rule == SOLVERS_HERE[name].rule, f"{name} is {rule}"


@pytest.mark.parametrize("name", SOLVERS_HERE)
def test_declared_order_is_the_proven_one(name: str) -> None:
    case = SOLVERS_HERE[name]
    assert case.rule.order == case.order
    assert case.rule.stochastic is False


def evenly_only(name: str) -> bool:
    return CONSISTENT[name].uniform_kappa_only


# A rule for equal steps of kappa is of order above 2 there: a cold start is then its own test, and so is a warm one.
@pytest.mark.parametrize(
    ("name", "grid"), [(n, g) for n in CONSISTENT for g in GRIDS if not (evenly_only(n) and g == "uniform_kappa")]
)
def test_order(name: str, grid: str) -> None:
    case = CONSISTENT[name]
    slope, errors = measure_slope(case.rule, grid)
    print(report(name, grid, slope, errors))
    assert slope >= expected_order(case, grid) - SLACK, report(name, grid, slope, errors)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", [n for n, case in CONSISTENT.items() if not (evenly_only(n) or case.in_pairs)])
def test_order_of_one_step(name: str, ratio: float) -> None:
    """The error of a single step falls with one power more, whatever the ratio of the steps before."""
    case = CONSISTENT[name]
    slope, errors = measure_local_slope(case.rule, ratio)
    print(report(name, f"one step after one {ratio} times as long", slope, errors))
    # The second step of a run: no rule of more than two estimates has its full history there.
    assert slope >= min(case.order, 2) + 1 - SLACK, report(name, f"ratio {ratio}", slope, errors)


def warm_slope(rule: Any, on: str) -> tuple[float, list[float]]:
    """Slope with an exact history: the first steps put the sample back onto the exact trajectory."""
    mixture, denoise, y, exact = mixture_problem(on)
    spacing, schedule = GRIDS[on]
    errors = []
    for n in STEPS:
        grid = spacing(schedule, n)
        kappa = grid.levels.kappa.tolist()
        x, state = grid.at(0).alpha * y, rule.init(y, grid)
        truth = y.numpy()
        for i in range(n):
            x, state = rule.step(denoise, x, grid, i, state)
            if i + 1 < rule.order:
                truth = ode_solution(mixture, truth, (1.0, kappa[i]), (1.0, kappa[i + 1]))
                x = grid.at(i + 1).alpha * torch.tensor(truth)
        errors.append((x / grid.at(-1).alpha - exact).square().mean().sqrt().item())
    return -float(np.polyfit(np.log(STEPS), np.log(errors), 1)[0]), errors


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_warm_on_uniform_kappa(order: int) -> None:
    slope, errors = warm_slope(IPNDM(order=order), "uniform_kappa")
    print(report(f"ipndm-{order} warm", "uniform_kappa", slope, errors))
    assert slope >= order - SLACK, report(f"ipndm-{order} warm", "uniform_kappa", slope, errors)


@pytest.mark.parametrize("grid", ["uniform_lam", "karras", "zigzag"])
@pytest.mark.parametrize("name", [name for name, case in CONSISTENT.items() if case.cold_order])
def test_full_history_has_the_declared_order(name: str, grid: str) -> None:
    """Rules that one step of first order holds back show their order once their history is exact (T1, T1b)."""
    rule = CONSISTENT[name].rule
    slope, errors = warm_slope(rule, grid)
    print(report(f"{name} warm", grid, slope, errors))
    assert slope >= rule.order - SLACK, report(f"{name} warm", grid, slope, errors)


def test_dpmpp_3m_is_of_order_two() -> None:
    """Half the weight of its second difference (test_coefficients.py) costs it the third order, history or not."""
    slope, errors = warm_slope(DPMpp3M(), "uniform_lam")
    assert 1.7 <= slope <= 2.3, report("dpmpp_3m warm", "uniform_lam", slope, errors)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_cold_on_uniform_kappa(order: int) -> None:
    """Started by one first-order step, orders above 2 keep 2 (T1b)."""
    slope, errors = measure_slope(IPNDM(order=order), "uniform_kappa")
    print(report(f"ipndm-{order} cold", "uniform_kappa", slope, errors))
    assert slope >= min(order, 2) - SLACK, report(f"ipndm-{order} cold", "uniform_kappa", slope, errors)


@consistent_solvers
def test_order_from_pure_noise_to_clean_data(name: str) -> None:
    """The whole way, alpha = 0 to sigma = 0, on equal steps of a straight path; one Gaussian, solved in closed form.

    Both outermost steps are of first order and the steps beside them are never short in lam, which leaves 2 with a
    factor log N: measured 1.8 to 2.0 at 512 to 4096 steps, and less at 32 to 256. Half an order above 1 is asked here.
    """
    rng = np.random.default_rng(3)
    root, mean = rng.normal(size=(4, 4)), rng.normal(size=4)
    turn = np.linalg.qr(root)[0]
    cov = turn * np.array([0.1, 0.2, 0.4, 0.8]) @ turn.T  # no direction so thin that 32 steps cannot see it
    x = rng.normal(size=(6, 4))
    exact = torch.tensor(gaussian_ode(x, (0.0, 1.0), (1.0, 0.0), mean, cov))
    axes = torch.tensor(np.linalg.eigh(cov)[1])
    s2, mu = torch.tensor(np.linalg.eigvalsh(cov)), torch.tensor(mean)

    def denoise(x: Tensor, level: NoiseLevel, cond: object = None) -> Tensor:
        gain = level.alpha * s2 / (level.alpha**2 * s2 + level.sigma**2)
        return mu + ((x - level.alpha * mu) @ axes * gain) @ axes.T

    errors = []
    for n in STEPS:
        grid = UniformTime(end="zero")(LinearFlow(), n)
        got = sample(denoise, CONSISTENT[name].rule, grid, torch.tensor(x)).x
        errors.append((got - exact).square().mean().sqrt().item())
    slope = -float(np.polyfit(np.log(STEPS), np.log(errors), 1)[0])
    print(report(name, "noise to clean", slope, errors))
    assert slope >= (1 - SLACK if CONSISTENT[name].order == 1 else 1.5), report(name, "noise to clean", slope, errors)


def test_the_exact_solution_is_exact() -> None:
    """The truth itself: two tolerances of DOP853 agree far below the smallest error above."""
    for grid, (first, last) in KAPPA.items():
        mixture, denoise, y, exact = mixture_problem(grid)
        loose = torch.tensor(ode_solution(mixture, y.numpy(), (1.0, first), (1.0, last), tol=1e-11))
        assert gap(loose, exact) <= 1e-9, f"{grid}: max|a-b| = {gap(loose, exact):.2e}"
    level = NoiseLevel(f64(0.6), f64(0.8))
    error = gap(denoise(y, level), torch.tensor(mixture(y.numpy(), 0.6, 0.8)))
    assert error <= 1e-13, f"torch and numpy mixtures: max|a-b| = {error:.2e}"
