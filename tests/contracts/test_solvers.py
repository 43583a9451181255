"""T2, T3, T5 and T6: what every solver promises, measured on denoisers whose answers are known."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import pytest
from torch import Tensor

from contracts.inventory import CONSISTENT, SOLVERS_HERE, consistent_solvers, gap, solvers
from contracts.problems import (
    ENDS,
    LAM,
    Constant,
    TwoBumps,
    batch,
    by_hand,
    ends,
    measure_constants,
    measure_equivariance,
    start_of,
)
from fewstep.noise import (
    EDM,
    Grid,
    Karras,
    LinearFlow,
    NoiseLevel,
    UniformLam,
    UniformTime,
    VPLinear,
)
from fewstep.sampling import sample
from fewstep.solvers import DDIM, IPNDM, EVODiff, Heun

# What a solver is


@solvers
def test_is_a_frozen_rule_with_a_closed_signature(name: str) -> None:
    rule = SOLVERS_HERE[name].rule
    assert is_dataclass(rule)
    assert hash(rule) == hash(type(rule)(**{f.name: getattr(rule, f.name) for f in fields(rule) if f.init}))
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        rule.order = 7
    for function in (type(rule).__init__, rule.init, rule.step, rule.nfe):
        kinds = {p.kind for p in inspect.signature(function).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{name}: **kwargs swallows typos"
    with pytest.raises(TypeError):
        type(rule)(ordr=2)


# T2


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 25])
@consistent_solvers
def test_equivariance(name: str, steps: int) -> None:
    error = measure_equivariance(CONSISTENT[name].rule, steps)
    assert error <= 1e-12, f"{name}, {steps} steps: x/alpha differs between schedules by {error:.2e}"


# T3


@ends
@consistent_solvers
def test_constants_are_integrated_exactly(name: str, end: str) -> None:
    spacing, schedule = ENDS[end]
    for steps in (1, 2, 3, 4, 7, 12):
        error = measure_constants(CONSISTENT[name].rule, spacing, schedule, steps)
        assert error <= 1e-12, f"{name}, {end}, {steps} steps: max|a-b| = {error:.2e}"


@consistent_solvers
def test_one_step_is_ddim(name: str) -> None:
    """One step of any one-call rule moves along a straight line, whatever the denoiser."""
    rule = CONSISTENT[name].rule
    for end, (spacing, schedule) in ENDS.items():
        grid = spacing(schedule, 1)
        if rule.nfe(grid) != 1:
            continue
        x = start_of(grid)
        (a0, s0), (a1, s1) = grid.at(0), grid.at(1)
        want = s1 / s0 * x + (a1 - a0 * s1 / s0) * TwoBumps()(x, grid.at(0))
        error = gap(sample(TwoBumps(), rule, grid, x).x, want)
        assert error <= 1e-12, f"{name}, {end}: max|a-b| = {error:.2e}"


def test_levels_of_one_sample_each() -> None:
    """A constant denoiser in a batch of one and any rank: rank is nobody's business."""
    for name, case in CONSISTENT.items():
        for shape in ((1, 3), (2, 3, 4), (2, 1, 2, 2, 2)):
            grid = LAM(VPLinear(), 4)
            x, c = batch(shape, 1), batch(shape, 2)
            (a0, s0), (a1, s1) = grid.at(0), grid.at(-1)
            error = gap(sample(Constant(c), case.rule, grid, x).x, s1 / s0 * x + (a1 - a0 * s1 / s0) * c)
            assert error <= 1e-12, f"{name}, rank {len(shape)}: max|a-b| = {error:.2e}"


# T5


@solvers
def test_measured_nfe_is_declared_nfe(name: str) -> None:
    rule = SOLVERS_HERE[name].rule
    for end, (spacing, schedule) in ENDS.items() if name in CONSISTENT else [("finite", ENDS["finite"])]:
        for steps in range(1 if name in CONSISTENT else 2, 13):
            grid, calls = spacing(schedule, steps), []

            def counted(x: Tensor, level: NoiseLevel, cond: Any = None, calls: list[float] = calls) -> Tensor:
                calls.append(level.sigma.item())
                return TwoBumps()(x, level)

            result = sample(counted, rule, grid, start_of(grid))
            assert len(calls) == result.nfe == rule.nfe(grid), (
                f"{name}, {end}, {steps} steps: {len(calls)} calls, {result.nfe} measured, {rule.nfe(grid)} declared"
            )
            assert result.network_evals == result.nfe
            assert len(result.trajectory) == steps + 1
            assert gap(result.trajectory[-1], result.x) == 0
            known = set(grid.levels.sigma.tolist())
            assert set(calls) <= known, f"{name}: called at sigma not on the grid: {sorted(set(calls) - known)}"
            assert 0.0 not in calls, f"{name}, {end}: the denoiser was called at sigma = 0"


def test_known_costs() -> None:
    """The declared costs themselves, from the papers."""
    grid, zero = LAM(EDM(), 7), Karras(end="zero")(EDM(), 7)
    for name, case in SOLVERS_HERE.items():
        want = {"heun": (14, 13), "dualfast_heun": (14, 13), "evodiff_paper": (8, 8)}.get(name, (7, 7))
        got = (case.rule.nfe(grid), case.rule.nfe(zero))
        assert got == want, f"{name}: {got}, not {want}"
    assert EVODiff(variant="paper").nfe(grid) == 7


# T6


@solvers
def test_interleaved_trajectories(name: str) -> None:
    rule = SOLVERS_HERE[name].rule
    grids = LAM(VPLinear(), 6), UniformLam(lam_min=-2.0, lam_max=2.5)(EDM(), 6)
    starts = start_of(grids[0], (2, 1, 2, 2), 3), start_of(grids[1], (3, 2, 2, 2), 4)
    alone = [by_hand(rule, TwoBumps(), g, x)[-1] for g, x in zip(grids, starts, strict=True)]
    xs, states = list(starts), [rule.init(x, g) for g, x in zip(grids, starts, strict=True)]
    for i in range(6):
        for j in (0, 1):
            xs[j], states[j] = rule.step(TwoBumps(), xs[j], grids[j], i, states[j])
    for j in (0, 1):
        assert gap(xs[j], alone[j]) == 0, f"{name}: trajectory {j} differs by {gap(xs[j], alone[j]):.2e}"
        again = sample(TwoBumps(), rule, grids[j], starts[j]).x
        assert gap(again, alone[j]) == 0, f"{name}: the loop and the hand differ by {gap(again, alone[j]):.2e}"


@solvers
def test_a_step_run_again_gives_the_same(name: str) -> None:
    """State goes in and comes out: nothing is changed in place."""
    rule, grid = SOLVERS_HERE[name].rule, LAM(VPLinear(), 5)
    x = start_of(grid)
    state = rule.init(x, grid)
    for i in range(5):
        before = x.clone()
        first, _ = rule.step(TwoBumps(), x, grid, i, state)
        second, after = rule.step(TwoBumps(), x, grid, i, state)
        changed = max(gap(first, second), gap(x, before))
        assert changed == 0, f"{name}, step {i}: {changed:.2e}"
        x, state = second, after


# The first step from pure noise, by hand


def test_heun_from_pure_noise_is_the_trapezoid_in_u() -> None:
    grid = UniformTime()(LinearFlow(), 2)
    x = start_of(grid)
    here, there = grid.at(0), grid.at(1)
    r, b = there.sigma / here.sigma, there.alpha - here.alpha * there.sigma / here.sigma
    m = TwoBumps()(x, here)
    end = TwoBumps()(r * x + b * m, there)
    error = gap(sample(TwoBumps(), Heun(), grid, x).trajectory[1], r * x + b * (m + end) / 2)
    assert error <= 1e-15, f"max|a-b| = {error:.2e}"


def test_ipndm_forgets_pure_noise() -> None:
    """The estimate made at alpha = 0 enters no later step: the second step is DDIM, the third Adams-Bashforth 2."""
    grid = UniformTime()(LinearFlow(), 4)
    path = sample(TwoBumps(), IPNDM(), grid, start_of(grid)).trajectory
    alone = sample(TwoBumps(), DDIM(), Grid(NoiseLevel(*(p[1:] for p in grid.levels)), grid.t[1:]), path[1]).trajectory
    assert gap(path[2], alone[1]) <= 1e-15, f"second step: max|a-b| = {gap(path[2], alone[1]):.2e}"
    assert gap(path[3], alone[2]) > 1e-4, "the third step has no history"
