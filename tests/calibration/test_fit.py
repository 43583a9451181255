"""Calibration from end to end, on small exact targets: better on fresh noise, and never worse where it can be seen."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.inventory import f64, gap
from contracts.problems import batch
from contracts.refusals import refuses
from torch import Tensor

from calibration.targets import GAUSSIAN, LINE, MIXTURE, SCHEDULES
from fewstep.calibration import (
    Entry,
    Origin,
    Problem,
    Progress,
    Refinement,
    Settings,
    Table,
    calibrate,
    fit,
    load_table,
    problem_of,
)
from fewstep.calibration.problem import levels_at, rms
from fewstep.calibration.trajectories import record
from fewstep.denoisers import Cond, Denoiser, Gaussian, GaussianMixture
from fewstep.errors import ConfigError, NonFiniteError, UnknownName
from fewstep.noise import EDM, NoiseLevel, Schedule
from fewstep.sampling import sample
from fewstep.solvers import DEIS, IPNDM, Multistep

QUICK = Settings(nfe=(5,), teacher_steps=40, grids=("karras:rho=7", "gits"), refinement=Refinement(0), judged=0.0)
TRAINED = replace(QUICK, refinement=Refinement(iterations=20, batch=12))
WIDE = GaussianMixture(batch((8, 16), seed=2), 0.25)  # 16 dimensions


def ring() -> GaussianMixture:
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    return GaussianMixture(torch.stack([angle.cos(), angle.sin()], 1), 0.1)


def made_for(denoiser: Any, d: int, n: int = 32, seed: int = 0, schedule: Schedule | None = None) -> Problem:
    denoisers = denoiser if isinstance(denoiser, tuple) else (denoiser,)
    return Problem(denoisers, schedule or EDM(), batch((n, d), seed), kappa_max=40.0, kappa_min=0.01)


def missed(table: Table, own: Problem, nfe: int) -> float:
    """RMSE of the ends to those of the reference, by the sampling loop."""
    way = table.way(own.schedule, nfe)
    end = sample(own.denoisers[0], way.solver, way.grid, way.grid.at(0).alpha * own.noise, cond=own.cond).x
    return rms(end / way.grid.levels.alpha[-1] - record(own, 80).end)


def missed_by(rule: Multistep, own: Problem, kappa: Tensor) -> float:
    grid = levels_at(own.schedule, kappa)
    end = sample(own.denoisers[0], rule, grid, grid.at(0).alpha * own.noise).x / grid.levels.alpha[-1]
    return rms(end - record(own, 80).end)


@cache
def wide_table(trained: bool) -> Table:
    return fit(made_for(WIDE, 16, 48), replace(TRAINED if trained else QUICK, nfe=(4, 6)))


@pytest.mark.parametrize("trained", [False, True])
def test_it_beats_its_bases_on_fresh_noise(trained: bool) -> None:
    """On every schedule, although it was fitted on one: a table is a statement about the denoiser alone."""
    table = wide_table(trained)
    for schedule in SCHEDULES.values():
        fresh = made_for(WIDE, 16, 64, seed=77, schedule=schedule)
        for nfe in (4, 6):
            steps = torch.linspace(0, 1, nfe + 1, dtype=torch.float64)
            kappa = (40.0 ** (1 / 7) + steps * (0.01 ** (1 / 7) - 40.0 ** (1 / 7))) ** 7  # rho = 7
            mine = missed(table, fresh, nfe)
            for base in (IPNDM(order=3), DEIS(variable="log_kappa")):
                other = missed_by(base, fresh, kappa)
                assert mine <= 0.9 * other, f"{nfe} calls on {schedule}: {mine:.4f} where {base} has {other:.4f}"


def test_a_ring_whose_trajectories_part() -> None:
    own, fresh = made_for(ring(), 2, 64), made_for(ring(), 2, 64, seed=77)
    table = fit(own, replace(TRAINED, nfe=(6,)))
    steps = torch.linspace(0, 1, 7, dtype=torch.float64)
    kappa = (40.0 ** (1 / 7) + steps * (0.01 ** (1 / 7) - 40.0 ** (1 / 7))) ** 7
    mine, other = missed(table, fresh, 6), missed_by(DEIS(variable="log_kappa"), fresh, kappa)
    assert mine < other, f"{mine:.4f} where DEIS has {other:.4f}"


def test_what_the_table_says_is_what_it_does() -> None:
    """Errors in the table are those of sampling with it, on the parts it names."""
    own = made_for(WIDE, 16, 48)
    for trained in (False, True):
        table = wide_table(trained)
        for nfe, entry in table.entries.items():
            way = table.way(EDM(), nfe)
            error = sample(WIDE, way.solver, way.grid, own.noise).x - record(own, 40).end
            for said, part in ((entry.train, error[:36]), (entry.held, error[36:])):
                assert abs(said - rms(part)) <= 1e-6 * rms(part), f"{nfe} calls: {said} instead of {rms(part)}"


def held_error(own: Problem, table: Table, nfe: int) -> float:
    """RMSE over the last quarter of the trajectories."""
    way = table.way(EDM(), nfe)
    error = sample(WIDE, way.solver, way.grid, own.noise).x - record(own, QUICK.teacher_steps).end
    return rms(error[-(len(own) // 4) :])


def test_refinement_is_never_worse_on_held_out_trajectories() -> None:
    """Neither where it helps, nor where rates are so large that it harms: then the closed form stays as it is."""
    easy = made_for(MIXTURE, 3, 48)
    for own, plain, trained in (
        (easy, fit(easy, replace(QUICK, nfe=(4, 6))), fit(easy, replace(TRAINED, nfe=(4, 6)))),
        (None, wide_table(False), wide_table(True)),
    ):
        for nfe, entry in trained.entries.items():
            assert entry.closed_form == plain.entries[nfe].held
            assert entry.held <= (0.9 if own else 1.0) * entry.closed_form, f"{nfe} calls: {entry}"
            assert entry.grid.startswith("learned from ") == (entry.held < entry.closed_form)
    wild = Refinement(iterations=6, batch=12, rate_grid=1.0, rate_weights=30.0)
    own = made_for(WIDE, 16, 48)
    for seed in range(2):
        after, before = (fit(own, replace(QUICK, refinement=how)) for how in (replace(wild, seed=seed), Refinement(0)))
        worse, want = held_error(own, after, 5), held_error(own, before, 5)  # of the rules as written, run anew
        assert worse <= want * (1 + 1e-6), f"seed {seed}: {worse} after {want}"
        assert after.entries[5].held == pytest.approx(worse, rel=1e-6)


def test_the_same_again() -> None:
    own = made_for(WIDE, 16, 24)
    one, two = (fit(own, replace(TRAINED, refinement=Refinement(iterations=4, batch=8))) for _ in range(2))
    assert one.entries == two.entries
    assert {**one.facts, "seconds": 0} == {**two.facts, "seconds": 0}


# Calls


class Counted:
    """Counts rows, as a network would be billed."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.rows, self.calls = denoiser, 0, 0

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        self.calls += 1
        self.rows += len(x)
        return self.denoiser(x, level, cond)


@pytest.mark.parametrize("first", ["network", "analytic", "auto"])
def test_a_number_of_calls_is_a_number_of_calls(first: Any) -> None:
    own = made_for(WIDE, 16)
    table = fit(own, replace(QUICK, nfe=(1, 2, 5), first=first))
    for nfe, entry in table.entries.items():
        assert entry.steps == nfe + entry.first
        if first != "auto":
            assert entry.first == (first == "analytic")
        counted, way = Counted(WIDE), table.way(EDM(), nfe)
        made = sample(counted, way.solver, way.grid, own.noise)
        assert counted.calls == made.nfe == way.solver.nfe(way.grid) == nfe
    assert (table.mean is None) == (not any(entry.first for entry in table.entries.values()))
    if table.mean is not None:  # nearly the mean of the data, which is what a denoiser says far out
        error = gap(table.mean.double(), WIDE.means.mean(0))
        assert error <= 0.05, f"max|a-b| = {error:.3f}"


def test_auto_takes_what_has_the_smaller_error() -> None:
    own = made_for(WIDE, 16)
    held = {
        first: fit(own, replace(QUICK, bases=("ddim",), grids=("gits",), first=first)).entries[5].held
        for first in ("network", "analytic", "auto")
    }
    assert held["auto"] == min(held.values()), held


def test_the_choice_is_made_on_held_out_trajectories() -> None:
    """Of two bases the one that is better there, also where the other is better on those that were fitted to."""
    names, torn = ("ipndm:order=3", "deis:variable=log_kappa"), 0
    for denoiser, d in ((WIDE, 16), (MIXTURE, 3)):
        for seed in range(2):
            own, how = made_for(denoiser, d, 24, seed), replace(QUICK, nfe=(4,), grids=("gits",), first="network")
            one, two = (fit(own, replace(how, bases=(name,))).entries[4] for name in names)
            want = min(one, two, key=lambda entry: entry.held)
            assert fit(own, replace(how, bases=names)).entries[4] == want
            torn += (one.train < two.train) != (one.held < two.held)
    assert torn, "no case in which it matters"


def test_the_bill_is_what_was_called() -> None:
    counted = Counted(WIDE)
    for settings in (QUICK, replace(QUICK, refinement=Refinement(iterations=2, batch=8))):
        counted.rows = 0
        table = fit(made_for(counted, 16), settings)
        assert table.facts["network_evals"] == counted.rows
    assert table.facts["trajectories"] == 32
    assert table.facts["teacher_steps"] == 40


def test_its_facts_are_of_the_trajectories() -> None:
    own = made_for(WIDE, 16)
    found, facts = record(own, 40), fit(own, QUICK).facts
    assert abs(facts["teacher_gap"] / found.gap - 1) <= 1e-2
    assert abs(facts["spread"] / rms(found.end - found.end.mean(0)) - 1) <= 1e-3


# Whose denoiser


def scaled(s: float) -> Gaussian:
    return Gaussian(f64([0.3, -0.2]), s * f64([[0.5, 0.2], [0.2, 0.3]]))


def test_several_denoisers_share_a_table() -> None:
    """It serves all of them better than a rule does, and lies between those of each alone."""
    several = tuple(scaled(s) for s in (0.5, 1.0, 2.0))
    table = fit(made_for(several, 2, 30), TRAINED)
    steps = torch.linspace(0, 1, 6, dtype=torch.float64)
    kappa = (40.0 ** (1 / 7) + steps * (0.01 ** (1 / 7) - 40.0 ** (1 / 7))) ** 7
    for denoiser in several:
        fresh = made_for(denoiser, 2, 32, seed=77)
        mine, other = missed(table, fresh, 5), missed_by(DEIS(variable="log_kappa"), fresh, kappa)
        assert mine < other, f"{mine:.4f} where DEIS has {other:.4f}"


def told(x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
    """One Gaussian for each label, far from one another; rows have their own."""
    assert cond is not None
    shift = cond["label"].to(x)[:, None] * 2.0
    return GAUSSIAN(x - level.alpha * shift, level) + shift


def test_every_trajectory_has_its_own_condition() -> None:
    own = replace(made_for(told, 2, 24), cond={"label": torch.arange(24) % 3})
    table = fit(own, replace(TRAINED, refinement=Refinement(iterations=6, batch=8)))
    way = table.way(EDM(), 5)
    ends = sample(told, way.solver, way.grid, own.noise, cond=own.cond).x
    high, low = (EDM().level(f64(k)) for k in (40.0, 0.01))
    shift = 2.0 * f64([k % 3 for k in range(24)])[:, None]
    true = GAUSSIAN.flow(own.noise - shift, high, low) + shift
    error = rms(ends - true)
    assert error <= 0.05, f"ends are {error:.3f} from those of their own condition"
    with pytest.raises(AssertionError):
        fit(made_for(told, 2, 24), QUICK)


def by_numpy(x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
    """Nothing that torch could differentiate."""
    return torch.from_numpy(np.asarray(GAUSSIAN(torch.from_numpy(x.numpy()), level)))


def test_a_denoiser_without_a_gradient() -> None:
    """The closed form needs none."""
    got, want = fit(made_for(by_numpy, 2), QUICK).entries[5], fit(made_for(GAUSSIAN, 2), QUICK).entries[5]
    assert got == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_that_lie_on_a_line_or_in_a_point(dtype: torch.dtype) -> None:
    """Least squares have no unique answer there, and an end that is met leaves no error to divide by."""
    settings = replace(QUICK, nfe=(1, 3, 6), refinement=Refinement(iterations=6, batch=6))
    for data in (LINE, Gaussian(f64([0.3, 0.1]), 0.0)):
        single = Gaussian(data.mean.to(dtype), 0.0 if len(data.mean) == 2 else 0.4)
        own = replace(made_for(single, len(data.mean), 16), start=batch((16, len(data.mean))).to(dtype))
        for nfe, entry in fit(own, settings).entries.items():
            if nfe > 1:
                assert entry.held <= 1e-3, f"{nfe} calls: an error of {entry.held:.2e}"


def test_data_far_from_the_origin() -> None:
    """A mean of a thousand spreads: differences of estimates are small beside the estimates they are taken of."""
    far = Gaussian(f64([100.0, -100.0]), f64([[0.02, 0.005], [0.005, 0.01]]))
    for first in ("network", "analytic"):
        entry = fit(made_for(far, 2), replace(TRAINED, first=first)).entries[5]
        assert entry.held <= 0.01, f"first from the {first}: an error of {entry.held:.3f} where data spread over 0.12"


@pytest.mark.parametrize("checkpointed", [False, True])
def test_with_the_variance_matched_and_the_distribution_scored(checkpointed: bool) -> None:
    how = Refinement(iterations=6, batch=32, distribution=0.1, checkpointed=checkpointed)
    own = made_for(WIDE, 16, 24)
    table = fit(own, replace(QUICK, match_variance=True, refinement=how))
    assert table.facts["match_variance"] is True
    assert table.entries[5].held == pytest.approx(held_error(own, table, 5), rel=1e-6)


def test_seeds_make_a_problem_to_fit(tmp_path: Path) -> None:
    own = problem_of(MIXTURE, EDM(), (3,), seeds=range(16), dtype=torch.float64)
    table = fit(own, QUICK, Origin("mixture", "", "", (1.0, 1.0)))
    table.save(tmp_path / "table.json")
    assert load_table(tmp_path / "table.json") == table
    assert table.origin.model == "mixture"


# On the way


def test_the_caller_has_the_loop() -> None:
    own = made_for(WIDE, 16)
    steps = list(calibrate(own, replace(TRAINED, nfe=(3, 5), refinement=Refinement(iterations=3, batch=8))))
    assert all(isinstance(step, Progress) and step.words for step in steps)
    assert (steps[0].nfe, steps[0].table) == (0, None)
    assert [step.nfe for step in steps] == sorted(step.nfe for step in steps)
    last = steps[-1].table
    assert last is not None
    assert sorted(last.entries) == [3, 5]
    first = next(step.table for step in steps if step.table is not None)
    assert sorted(first.entries) == [3]


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, no table, no gradient mode, no meter; and what was finished before is whole."""
    monkeypatch.chdir(tmp_path)
    for after in (3, 60, 90, 260):
        calls = 0

        def denoise(x: Tensor, level: NoiseLevel, cond: Cond = None, after: int = after) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > after:
                raise KeyboardInterrupt
            return WIDE(x, level)

        seen: list[Progress] = []
        with pytest.raises(KeyboardInterrupt):
            seen.extend(calibrate(made_for(denoise, 16), replace(TRAINED, nfe=(3, 5))))
        assert torch.is_grad_enabled()
        assert list(tmp_path.iterdir()) == []
        for progress in seen:
            if progress.table is not None:
                assert Table.from_json(progress.table.to_json()) == progress.table
    assert any(progress.table is not None for progress in seen), "the last was interrupted too early to show anything"
    with pytest.raises(KeyboardInterrupt):
        fit(made_for(denoise, 16), TRAINED)


# Refusals


def test_fewer_trajectories_than_coefficients() -> None:
    for n, nfe, fits in ((4, 3, False), (6, 3, True), (9, 10, False), (11, 10, True)):
        settings = replace(QUICK, nfe=(nfe,), bases=("ddim",), grids=("gits",), first="network")
        if fits:
            fit(made_for(WIDE, 16, n), settings)
        else:
            error = refuses(ConfigError, f"{n} trajectories", lambda n=n, s=settings: fit(made_for(WIDE, 16, n), s))
            assert "coefficients" in error.given
    several = tuple(scaled(1.0) for _ in range(6))
    refuses(ConfigError, "6 denoisers", lambda: fit(made_for(several, 2, 12), replace(TRAINED, nfe=(3,))))


def test_the_refusal_comes_before_any_call() -> None:
    counted = Counted(WIDE)
    refuses(ConfigError, "trajectories", lambda: fit(made_for(counted, 16, 3), QUICK))
    assert counted.calls == 0


def test_denoisers_that_nobody_can_be_held_to() -> None:
    generator = torch.Generator().manual_seed(0)

    def draws(x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        return WIDE(x, level) + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    def breaks(x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        return WIDE(x, level) / (0.0 if float(level.sigma) < 1.0 else 1.0)

    refuses(ConfigError, "two answers to one question", lambda: fit(made_for(draws, 16), QUICK))
    refuses(NonFiniteError, "A trajectory of the teacher", lambda: fit(made_for(breaks, 16), QUICK))


def test_settings_that_cannot_be() -> None:
    for wrong, shows in (
        ({"nfe": ()}, "nfe=()"),
        ({"nfe": (5, 0)}, "nfe=(5, 0)"),
        ({"nfe": (2.5,)}, "nfe=(2.5,)"),
        ({"teacher_steps": 12}, "12 steps for 6 steps"),
        ({"bases": ()}, "No base"),
        ({"grids": ()}, "no grid"),
        ({"first": "given"}, "first='given'"),
        ({"held": 0.0}, "held=0.0"),
        ({"held": 1.0}, "held=1.0"),
        ({"held": float("nan")}, "held=nan"),
    ):
        refuses(ConfigError, shows, lambda wrong=wrong: replace(QUICK, **wrong))
    own = made_for(WIDE, 16)
    refuses(UnknownName, "ipdnm", lambda: fit(own, replace(QUICK, bases=("ipdnm",))))
    refuses(UnknownName, "karas", lambda: fit(own, replace(QUICK, grids=("karas",))))
    for base in ("unipc", "heun", "ddim:eta=1", "evodiff"):
        error = refuses(ConfigError, "base rule", lambda base=base: fit(own, replace(QUICK, bases=(base,))))
        assert "ipndm" in error.todo


def test_an_entry_knows_its_calls() -> None:
    made = Entry((2.0, 1.0), (), False, "ddim", "gits", 0.1, 0.1, 0.1)
    assert (made.steps, made.nfe) == (1, 1)
