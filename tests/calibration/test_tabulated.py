"""TabulatedSolver: its formula, the first estimate that is given, and grids it was not made for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.inventory import f64, gap
from contracts.problems import Constant, batch
from contracts.refusals import refuses
from torch import Tensor

from calibration.targets import MIXTURE, SCHEDULES, ends_of, levels, problem
from fewstep.calibration.problem import levels_at
from fewstep.errors import ConfigError, GridError, ShapeError
from fewstep.noise import EDM, NoiseLevel, Schedule, VPLinear
from fewstep.sampling import Checkpointed, Full, sample
from fewstep.solvers import DDIM, TabulatedSolver

WEIGHTS = ((0.4,), (-0.2, 0.7), (0.1, -0.3, 0.2))
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))


def transcribed(own: Any, kappa: Tensor, first: Tensor | None = None) -> Tensor:
    """Four steps in x / alpha, written out."""
    x, known = own.noise, list[Tensor]()
    for i in range(4):
        known.append(MIXTURE(x, NoiseLevel(f64(1.0), kappa[i])) if i or first is None else first.expand_as(x))
        mixed = known[i]
        for j in range(i):
            mixed = mixed + WEIGHTS[i - 1][j] * (known[j] - known[i])
        r = kappa[i + 1] / kappa[i]
        x = r * x + (1 - r) * mixed
    return x


@schedules
def test_the_rule_is_its_formula(schedule: Schedule) -> None:
    own = problem(schedule=schedule)
    kappa, first = levels(own, 4), batch((3,), seed=1)
    for given in (None, first):
        rule = TabulatedSolver(WEIGHTS, tuple(kappa.tolist()), given)
        error = gap(ends_of(rule, own, kappa)[-1], transcribed(own, kappa, given))
        assert error <= 1e-10, f"max|a-b| = {error:.2e}"


@schedules
def test_without_weights_it_is_ddim_bit_for_bit(schedule: Schedule) -> None:
    own = problem(schedule=schedule)
    kappa = levels(own, 4)
    plain = TabulatedSolver(tuple((0.0,) * i for i in (1, 2, 3)), tuple(kappa.tolist()))
    assert torch.equal(ends_of(plain, own, kappa)[-1], ends_of(DDIM(), own, kappa)[-1])


def test_constants_are_exact_whatever_the_weights() -> None:
    own, c = problem(), batch((16, 3), seed=4)
    kappa = levels(own, 4)
    rule = TabulatedSolver(tuple(tuple(map(float, 5 * batch((i,), i))) for i in (1, 2, 3)), tuple(kappa.tolist()))
    grid = levels_at(EDM(), kappa)
    r = kappa[-1] / kappa[0]
    error = gap(sample(Constant(c), rule, grid, own.noise).x, r * own.noise + (1 - r) * c)
    assert error <= 1e-12, f"max|a-b| = {error:.2e}"


def test_a_given_first_estimate_saves_a_call() -> None:
    own = problem()
    kappa = levels(own, 4)
    grid, seen = levels_at(EDM(), kappa), list[float]()

    def denoise(x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        seen.append(float(level.sigma))
        return MIXTURE(x, level)

    for first, calls in ((None, 4), (batch((3,), seed=1), 3)):
        seen.clear()
        rule = TabulatedSolver(WEIGHTS, tuple(kappa.tolist()), first)
        made = sample(denoise, rule, grid, own.noise)
        assert len(seen) == made.nfe == made.network_evals == rule.nfe(grid) == calls
        assert seen == kappa[4 - calls : -1].tolist()


def test_gradients_of_weights_and_of_the_levels() -> None:
    """Against differences, with a given first estimate and without; Full and Checkpointed are one."""
    own = problem(n=4)
    kappa, flat = levels(own, 4, rho=3.0), f64([w for row in WEIGHTS for w in row])
    for first in (None, batch((3,), seed=1)):

        def value(flat: Tensor, kappa: Tensor, unroll: Any = None, first: Tensor | None = first) -> Tensor:
            w = flat.unbind()
            rule = TabulatedSolver(((w[0],), (w[1], w[2]), (w[3], w[4], w[5])), first=first)
            made = sample(MIXTURE, rule, levels_at(EDM(), kappa), own.noise, unroll=unroll or Full())
            return made.x.square().sum()

        inside = kappa[1:-1].clone().requires_grad_(True)
        leaf = flat.clone().requires_grad_(True)
        whole = torch.cat([kappa[:1], inside, kappa[-1:]])
        slopes = torch.autograd.grad(value(leaf, whole), (leaf, inside))
        again = torch.autograd.grad(
            value(leaf, torch.cat([kappa[:1], inside, kappa[-1:]]), Checkpointed()), (leaf, inside)
        )
        for a, b in zip(slopes, again, strict=True):
            assert gap(a, b) <= 1e-10, f"Full and Checkpointed differ by {gap(a, b):.2e}"
        for part, (start, slope) in enumerate(zip((flat, kappa[1:-1]), slopes, strict=True)):
            for k in range(len(start)):
                step = torch.zeros_like(start)
                step[k] = 1e-5 * max(float(start[k]), 0.1)
                moved = [start + step, start - step]
                made = [
                    value(m, kappa) if part == 0 else value(flat, torch.cat([kappa[:1], m, kappa[-1:]])) for m in moved
                ]
                want = float(made[0] - made[1]) / (2 * float(step[k]))
                error = abs(float(slope[k]) - want) / max(abs(want), 1.0)
                assert error <= 1e-5, f"number {k} of part {part}: {float(slope[k])} instead of {want}"


def test_rows_that_are_no_table_are_refused() -> None:
    for weights in (((0.1, 0.2),), ((0.1,), (0.2,)), ((),), ((0.1,), (0.1, 0.2, 0.3))):
        refuses(ConfigError, f"rows of {[len(row) for row in weights]}", lambda w=weights: TabulatedSolver(w))
    for kappa in ((2.0, 1.0), (3.0, 2.0, 1.0, 0.5)):
        refuses(ConfigError, f"2 steps with {len(kappa)} levels", lambda k=kappa: TabulatedSolver(((0.1,),), k))


def test_other_grids_are_refused() -> None:
    own = problem()
    kappa = levels(own, 4)
    rule = TabulatedSolver(WEIGHTS, tuple(kappa.tolist()))
    for other in (levels(own, 4, rho=5.0), levels(own, 3), kappa * (1 + 1e-5)):
        refuses(GridError, "were made for kappa", lambda k=other: ends_of(rule, own, k))
    refuses(GridError, "weights for 4", lambda: ends_of(rule, own, levels(own, 5)))
    refuses(GridError, "weights for 4", lambda: ends_of(TabulatedSolver(WEIGHTS), own, levels(own, 5)))
    close = kappa * (1 + 1e-8)  # written down and read again
    assert gap(ends_of(rule, own, close)[-1], ends_of(rule, own, kappa)[-1]) <= 1e-5
    ends_of(rule, problem(schedule=VPLinear()), kappa)
    ends_of(TabulatedSolver(WEIGHTS), own, levels(own, 3))  # a chain that exits early


def test_samples_of_another_shape_are_refused() -> None:
    own = problem()
    kappa = levels(own, 4)
    rule = TabulatedSolver(WEIGHTS, tuple(kappa.tolist()), torch.zeros(2))
    refuses(ShapeError, "(2,)", lambda: ends_of(rule, own, kappa))
