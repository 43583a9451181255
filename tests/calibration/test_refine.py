"""Refinement: it begins as the closed form, any parameters are a rule, and its gradient is that of the chain."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from contracts.inventory import gap
from contracts.problems import Constant, TinyNetwork, batch
from contracts.refusals import refuses
from torch import Tensor

from calibration.targets import BASES, MIXTURE, SCHEDULES, ends_of, levels, problem
from fewstep.calibration import Problem, Refinement, problem_of
from fewstep.calibration.closed_form import Fitted, Split, fit_weights
from fewstep.calibration.history import shares_of
from fewstep.calibration.refine import LearnedTable, refined, run
from fewstep.calibration.trajectories import Trajectories, record
from fewstep.denoisers import Gaussian, GaussianMixture, NetworkDenoiser, V
from fewstep.errors import ConfigError
from fewstep.features import PixelMaps, RandomMaps
from fewstep.losses import EnergyScore, Outcome, energy_score
from fewstep.noise import EDM, VPLinear
from fewstep.sampling import sample

SPLIT = Split(12, 4)
PINNED: dict[str, Any] = {"windows": (3,), "ridges": (1e-3,)}


def closed(own: Problem, base: str = "deis_log", steps: int = 4, **more: Any) -> tuple[Trajectories, Fitted]:
    found = record(own, 40)
    return found, fit_weights(own, found, BASES[base], levels(own, steps), SPLIT, **{**PINNED, **more})


def moved(fitted: Fitted, size: float, seed: int = 0) -> LearnedTable:
    """A table that has been somewhere."""
    table = LearnedTable(fitted)
    with torch.no_grad():
        for i, parameter in enumerate(table.parameters()):
            parameter += size * batch(tuple(parameter.shape), 10 * seed + i)
    return table


@pytest.mark.parametrize("base", BASES)
def test_it_begins_as_the_closed_form(base: str) -> None:
    own = problem()
    for first in (None, batch((3,), seed=1)):
        _, fitted = closed(own, base, first=first)
        table = LearnedTable(fitted)
        error = gap(table.kappa().detach() / fitted.kappa, torch.ones(5, dtype=torch.float64))
        assert error <= 1e-12, f"{base}: levels off by {error:.2e}"
        for mine, want in zip(table.solver().weights, shares_of(fitted.rows, fitted.kappa), strict=True):
            error = gap(torch.stack(mine).detach(), torch.stack(want))
            assert error <= 1e-9, f"{base}: weights off by {error:.2e}"
        ends = run(table, own, torch.arange(16))
        missed = (ends - record(own, 40).end)[:12].square().mean().sqrt().item()
        assert abs(missed - fitted.train) <= 1e-9, f"{base}: an error of {missed} instead of {fitted.train}"


@pytest.mark.parametrize("base", ["ddim", "dpmpp_3m", "deis_log", "ipndm_4"])
def test_any_parameters_are_a_rule(base: str) -> None:
    """Levels that fall between the same two ends, on every schedule, and constants exact."""
    own, c = problem(), batch((16, 3), seed=4)
    _, fitted = closed(own, base, 5)
    for seed in range(10):
        table = moved(fitted, 2.0, seed)
        kappa = table.kappa().detach()
        assert (float(kappa[0]), float(kappa[-1])) == pytest.approx((own.kappa_max, own.kappa_min), rel=1e-12)
        for schedule in SCHEDULES.values():
            table.grid(schedule)  # check_grid is inside
        with torch.no_grad():
            grid, rule = table.grid(EDM()), table.solver()
            r = kappa[-1] / kappa[0]
            size = max(abs(float(w)) for row in rule.weights for w in row)
            error = gap(sample(Constant(c), rule, grid, own.noise).x, r * own.noise + (1 - r) * c)
        assert error <= 1e-12 * max(size, 1.0), f"{base}, seed {seed}: max|a-b| = {error:.2e} (weights to {size:.1e})"


def slopes(table: LearnedTable, own: Problem, rows: Tensor, checkpointed: bool = False) -> tuple[Tensor, list[Tensor]]:
    value = run(table, own, rows, checkpointed).square().sum()
    return value.detach(), list(torch.autograd.grad(value, [*table.parameters()]))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
@pytest.mark.parametrize("base", ["ddim", "dpmpp_3m", "deis_log", "ipndm_4"])
def test_its_gradient_is_that_of_the_chain(base: str, schedule: Any) -> None:
    own, rows = problem(schedule=schedule), torch.tensor([1, 4, 6])
    _, fitted = closed(own, base)
    table = moved(fitted, 0.1)
    _, got = slopes(table, own, rows)
    for which, (parameter, slope) in enumerate(zip(table.parameters(), got, strict=True)):
        direction = batch(tuple(parameter.shape), seed=50 + which)
        made = []
        for sign in (1, -1):
            other = copy.deepcopy(table)
            with torch.no_grad():
                [*other.parameters()][which].add_(sign * 1e-5 * direction)
            made.append(float(run(other, own, rows).detach().square().sum()))
        want, mine = (made[0] - made[1]) / 2e-5, float((slope * direction).sum())
        assert abs(mine - want) <= 1e-5 * max(abs(want), 1.0), f"{base}, parameter {which}: {mine} instead of {want}"


def test_checkpointed_is_full() -> None:
    own, rows = problem(), torch.arange(8)
    table = moved(closed(own)[1], 0.1)
    (value, one), (again, two) = slopes(table, own, rows), slopes(table, own, rows, checkpointed=True)
    error = max(gap(a, b) for a, b in zip([value, *one], [again, *two], strict=True))
    assert error <= 1e-10, f"max|a-b| = {error:.2e}"


def last(steps: Iterator[LearnedTable]) -> LearnedTable:
    *_, table = steps
    return table


def trained(own: Problem, **how: Any) -> tuple[Trajectories, Fitted, LearnedTable]:
    found, fitted = closed(own)
    return found, fitted, last(refined(own, found, fitted, SPLIT, Refinement(**{"iterations": 10, "batch": 6, **how})))


def values(table: LearnedTable) -> Tensor:
    return torch.cat([parameter.detach() for parameter in table.parameters()])


def test_it_lowers_the_error_it_is_trained_on() -> None:
    found, fitted, table = trained(problem(), iterations=40, batch=12)
    with torch.no_grad():
        error = (run(table, problem(), torch.arange(12)) - found.end[:12]).square().mean().sqrt().item()
    assert error < 0.8 * fitted.train, f"{error} after {fitted.train}"


def test_a_seed_is_a_result() -> None:
    for more in ({}, {"distribution": 0.1}):
        one, two, other = (values(trained(problem(), seed=seed, **more)[2]) for seed in (3, 3, 4))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)


def test_checkpointed_training_is_the_same_training() -> None:
    one, two = (values(trained(problem(), checkpointed=each)[2]) for each in (False, True))
    assert gap(one, two) <= 1e-8, f"max|a-b| = {gap(one, two):.2e}"


def test_held_out_trajectories_train_nothing() -> None:
    own = problem()
    other = replace(own, start=torch.cat([own.start[:12], problem(seed=9).start[12:]]))
    found, fitted = closed(own)
    foreign = record(other, 40)
    for how in (Refinement(iterations=5, batch=6), Refinement(iterations=5, batch=6, distribution=1.0)):
        one, two = last(refined(own, found, fitted, SPLIT, how)), last(refined(other, foreign, fitted, SPLIT, how))
        assert gap(values(one), values(two)) <= 1e-8, f"max|a-b| = {gap(values(one), values(two)):.2e}"


@pytest.mark.parametrize("size", [6, 12, 32])
def test_the_distribution_term_lowers_the_energy_score(size: int) -> None:
    """Whatever the batch: the score needs other trajectories than those of the batch."""
    own = problem()
    found, fitted, table = trained(own, distribution=100.0, iterations=30, batch=size)

    def score(table: LearnedTable) -> float:
        """Of all ends that are fitted to, against those of the teacher."""
        with torch.no_grad():
            ends = run(table, own, torch.arange(12))
        return float(energy_score(ends[None], found.end[:12], torch.zeros(12, dtype=torch.int64)).mean())

    before, after = score(LearnedTable(fitted)), score(table)
    assert after < before, f"batches of {size}: {after} after {before}"


def pictures() -> Problem:
    """Trajectories of small grey images."""
    return Problem(
        (GaussianMixture(0.5 * batch((4, 1, 4, 4), seed=5), 0.2),), EDM(), batch((16, 1, 4, 4)), None, 40.0, 0.01
    )


def test_the_distribution_is_looked_at_in_the_features() -> None:
    """Pixels are the default; in other maps the score is another, and it is theirs that falls."""
    maps = RandomMaps(1, dim=8).double()
    how: dict[str, Any] = {"distribution": 100.0, "iterations": 30, "batch": 6}
    found, fitted, table = trained(pictures(), **how, features=[maps])
    plain, pixels = (values(trained(pictures(), **how, features=each)[2]) for each in (None, [PixelMaps()]))
    assert torch.equal(plain, pixels)
    assert bool(values(table).isfinite().all())
    assert gap(values(table), plain) > 1e-3, "the features changed nothing"
    score, others = EnergyScore([maps], draws=1).fitted(found.end[:12]), found.end[:12]

    def of(table: LearnedTable) -> float:
        with torch.no_grad():
            ends = run(table, pictures(), torch.arange(12))
        return float(score(Outcome(ends[None], others, others), torch.Generator()))

    before, after = of(LearnedTable(fitted)), of(table)
    assert after < before, f"{after} after {before}"


def test_a_network_keeps_its_weights_and_no_gradient() -> None:
    network = TinyNetwork()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    own = problem_of(
        NetworkDenoiser(network, V(), VPLinear()), VPLinear(), (1, 3, 3), seeds=range(16), dtype=torch.float64
    )
    for checkpointed in (False, True):
        trained(own, checkpointed=checkpointed)
    for old, parameter in zip(before, network.parameters(), strict=True):
        assert torch.equal(old, parameter)
        assert parameter.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_that_are_met_exactly_stay_finite(dtype: torch.dtype) -> None:
    """Data that are one point: every rule meets its end, and an error of 0 over a median of 0 is no number."""
    point = Gaussian(torch.tensor([0.3, 0.1, 0.2], dtype=dtype), 0.0)
    own = replace(problem(), denoisers=(point,), start=problem().start.to(dtype))
    _, _, table = trained(own)
    assert bool(values(table).isfinite().all())


def test_several_denoisers_take_turns() -> None:
    """Batches are of one denoiser each, and all of them are trained on."""
    seen: list[int] = []

    def told(k: int) -> Any:
        def denoise(x: Tensor, level: Any, cond: Any = None) -> Tensor:
            if torch.is_grad_enabled():
                seen.append(k)
                assert sorted(cond["row"].tolist()) == sorted(set(cond["row"].tolist()))
                assert bool((cond["row"] % 3 == k).all()), f"denoiser {k} leads rows {cond['row'].tolist()}"
                assert int(cond["row"].max()) < 12, "a trajectory that is held out"
            return MIXTURE(x, level)

        return denoise

    own = problem((told(0), told(1), told(2)), cond={"row": torch.arange(16)})
    trained(own, iterations=6, batch=4)
    assert sorted(seen) == sorted([0, 1, 2] * 4 * 2), "four calls a chain, two chains each"


def test_one_step_has_nothing_to_learn() -> None:
    own = problem()
    found, fitted = closed(own, steps=1)
    assert list(refined(own, found, fitted, SPLIT, Refinement())) == []
    assert (
        gap(
            ends_of(LearnedTable(fitted).solver(), own, fitted.kappa)[-1],
            run(LearnedTable(fitted), own, torch.arange(16)),
        )
        <= 1e-12
    )


def test_refusals() -> None:
    for wrong in (
        {"iterations": -1},
        {"batch": 1},
        {"rate_grid": -0.1},
        {"rate_weights": -0.1},
        {"distribution": -1.0},
    ):
        (name,) = wrong
        refuses(ConfigError, f"{name}={wrong[name]}", lambda wrong=wrong: Refinement(**wrong))
