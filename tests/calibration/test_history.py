"""Rows and shares: every rule that remembers becomes a table, with the samples and the gradient of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.inventory import f64, gap
from contracts.problems import batch
from contracts.refusals import refuses
from torch import Tensor

from calibration.targets import BASES, MIXTURE, SCHEDULES, ends_of, levels, problem, shares
from fewstep.calibration.history import Base, combined, start_row
from fewstep.calibration.problem import plain_grid
from fewstep.errors import ConfigError
from fewstep.noise import NoiseLevel
from fewstep.sampling import sample
from fewstep.solvers import DDIM, DPMpp2MSDE, Heun, TabulatedSolver, UniPC

bases = pytest.mark.parametrize("name", BASES)


def rows_of(name: str, kappa: Tensor) -> list[Tensor]:
    base, rows = Base.of(BASES[name], kappa), [start_row(len(kappa) - 1)]
    for i in range(len(kappa) - 1):
        rows.append(base.row(i, rows))
    return rows


@bases
def test_a_rule_written_as_shares_gives_its_own_samples(name: str) -> None:
    """On every schedule the same table, and at every level, not only the last."""
    own = problem()
    for steps in (1, 2, 3, 7):
        kappa = levels(own, steps)
        table = TabulatedSolver(tuple(tuple(map(float, row)) for row in shares(BASES[name], kappa)), tuple(kappa))
        for schedule in SCHEDULES.values():
            there = problem(schedule=schedule)
            got, want = ends_of(table, there, kappa), ends_of(BASES[name], there, kappa)
            errors = [gap(a, b) / max(float(k), 1.0) for a, b, k in zip(got, want, kappa, strict=True)]
            assert max(errors) <= 1e-10, f"{name}, {steps} steps on {schedule}: max|a-b| = {max(errors):.2e}"


@bases
def test_a_row_is_the_sample(name: str) -> None:
    """Noise and estimates of a run, put together by the rows, are the samples of that run."""
    own, seen = problem(), list[Tensor]()
    kappa = levels(own, 6)

    def denoise(x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        seen.append(MIXTURE(x, level))
        return seen[-1]

    made = sample(denoise, BASES[name], plain_grid(kappa), own.noise).trajectory
    rows = rows_of(name, kappa)
    for i, row in enumerate(rows):
        error = gap(combined(row, own.noise, seen[:i]), made[i]) / max(float(kappa[i]), 1.0)
        assert error <= 1e-10, f"{name}, level {i}: max|a-b| = {error:.2e}"
        assert not row[i + 1 :].any(), f"{name}: level {i} knows estimates that are not yet made"


@bases
def test_constants_are_exact(name: str) -> None:
    """Of the noise kappa_i / kappa_0 is left, and the estimates make up the rest."""
    own = problem()
    kappa = levels(own, 6)
    for i, row in enumerate(rows_of(name, kappa)):
        error = abs(float(row[0] - kappa[i] / kappa[0]))
        assert error <= 1e-12, f"{name}, level {i}: the noise's weight is off by {error:.2e}"
        error = abs(float(row[1:].sum() - (1 - kappa[i] / kappa[0])))
        assert error <= 1e-12, f"{name}, level {i}: sum of weights off by {error:.2e}"


@bases
def test_gradient_of_shares_in_the_levels(name: str) -> None:
    start = levels(problem(), 5, rho=3.0)
    weights = batch((10,), seed=2)

    def value(kappa: Tensor) -> Tensor:
        flat = [torch.as_tensor(share, dtype=torch.float64) for row in shares(BASES[name], kappa) for share in row]
        return (torch.stack(flat) * weights).sum()

    kappa = start.clone().requires_grad_(True)
    made = value(kappa)
    if not made.requires_grad:
        assert name in ("ddim", "ipndm_1"), f"{name}: shares that know nothing of the levels"
        return
    (slopes,) = torch.autograd.grad(made, kappa)
    for k in range(len(start)):
        h = 1e-5 * float(start[k])
        step = torch.zeros_like(start)
        step[k] = h
        want = float(value(start + step) - value(start - step)) / (2 * h)
        error = abs(float(slopes[k]) - want) / max(abs(want), 1.0)
        assert error <= 1e-6, f"{name}, level {k}: {float(slopes[k])} instead of {want}"


@pytest.mark.parametrize(
    "rule", [UniPC(), UniPC(order=3), DDIM(eta=0.5), DPMpp2MSDE(), Heun()], ids=lambda rule: type(rule).__name__
)
def test_rules_that_correct_or_draw_are_no_bases(rule: Any) -> None:
    error = refuses(ConfigError, type(rule).__name__, lambda: Base.of(rule, f64([3.0, 2.0, 1.0, 0.5])))
    assert "neither corrects its steps nor draws noise" in error.allowed
