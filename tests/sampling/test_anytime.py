"""Anytime sampling: what is shown, that it costs nothing, and that stopping stops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.inventory import CONSISTENT, SOLVERS_HERE, STOCHASTIC_HERE, gap
from contracts.problems import ENDS, LAM, Constant, TwoBumps, batch, ends, start_of
from contracts.refusals import GRID, X, refuses
from torch import Tensor

from fewstep.errors import ConfigError, DtypeError, GridError, NonFiniteError, ShapeError
from fewstep.noise import EDM, Grid, Karras, NoiseLevel, VPLinear
from fewstep.sampling import SeededNoise, anytime, sample
from fewstep.solvers import DDIM, EulerAncestral, EVODiff, Heun, TabulatedSolver, UniPC

NOISE = SeededNoise((4, 7))
GIVEN = TabulatedSolver(((0.2,), (0.1, -0.3), (0.0, 0.1, 0.2), (0.1, 0.0, 0.0, -0.1)), first=batch((1, 2, 2), 6))
RULES = {**{name: case.rule for name, case in SOLVERS_HERE.items()}, **STOCHASTIC_HERE, "first_given": GIVEN}


@pytest.mark.parametrize("name", RULES)
def test_the_last_picture_is_the_sample(name: str) -> None:
    rule, grid = RULES[name], LAM(VPLinear(), 5)
    x = start_of(grid)
    shown = list(anytime(TwoBumps(), rule, grid, x, noise=NOISE))
    whole = sample(TwoBumps(), rule, grid, x, noise=NOISE)
    assert torch.equal(shown[-1].x, whole.x), f"{name}: max|a-b| = {gap(shown[-1].x, whole.x):.2e}"
    assert shown[-1].nfe == whole.nfe
    assert [picture.finished for picture in shown] == [False] * 4 + [True]
    assert [picture.nfe for picture in shown] == sorted(picture.nfe for picture in shown)
    assert shown[0].nfe >= (0 if name == "first_given" else 1)


@ends
def test_a_denoiser_that_has_made_up_its_mind_is_shown_at_once(end: str) -> None:
    """Every picture is the exact solution at the last level, (s_N / s_0) x + (a_N - a_0 s_N / s_0) c."""
    spacing, schedule = ENDS[end]
    grid, c = spacing(schedule, 5), batch((2, 1, 2, 2), 1)
    x, (a0, s0), (a1, s1) = start_of(grid), grid.at(0), grid.at(-1)
    want = s1 / s0 * x + (a1 - a0 * s1 / s0) * c
    for name, case in CONSISTENT.items():
        for i, picture in enumerate(anytime(Constant(c), case.rule, grid, x)):
            assert gap(picture.x, want) <= 1e-11, f"{name}, {end}, step {i}: max|a-b| = {gap(picture.x, want):.2e}"


def test_what_is_shown_by_hand() -> None:
    """Heun's step as a whole held (m + m') / 2 in its own variable; with DDIM both estimates are one."""
    grid = LAM(EDM(), 4)  # alpha is 1: kappa is sigma
    x, (_, s0), (_, s1), (_, last) = start_of(grid), grid.at(0), grid.at(1), grid.at(-1)
    m = TwoBumps()(x, grid.at(0))
    first = next(anytime(TwoBumps(), DDIM(), grid, x)).x
    want = last / s0 * x + (1 - last / s0) * m
    assert gap(first, want) <= 1e-14, f"DDIM: max|a-b| = {gap(first, want):.2e}"
    end = x + (s1 - s0) * (x - m) / s0
    newest = TwoBumps()(end, grid.at(1))
    there = x + (s1 - s0) * ((x - m) / s0 + (end - newest) / s1) / 2
    held = (there - s1 / s0 * x) / (1 - s1 / s0)
    want = last / s0 * x + (1 - last / s0) * (newest + held) / 2
    got = next(anytime(TwoBumps(), Heun(), grid, x)).x
    assert gap(got, want) <= 1e-13, f"Heun: max|a-b| = {gap(got, want):.2e}"


def test_a_first_estimate_that_is_given_is_shown() -> None:
    """A step without a call has no denoised estimate, and x at its level is none: it is noise."""
    grid = LAM(EDM(), 5)  # alpha is 1
    x, (_, s0), (_, last) = start_of(grid), grid.at(0), grid.at(-1)
    pictures = anytime(TwoBumps(), GIVEN, grid, x)
    first, second = next(pictures), next(pictures)
    want = last / s0 * x + (1 - last / s0) * batch((1, 2, 2), 6)
    assert (first.nfe, first.finished) == (0, False)
    assert gap(first.x, want) <= 1e-13, f"max|a-b| = {gap(first.x, want):.2e}"
    here = grid.at(1)
    r = here.sigma / s0
    there = r * x + (1 - r) * batch((1, 2, 2), 6)
    m = TwoBumps()(there, here)
    mean = m + 0.2 * (batch((1, 2, 2), 6) - m) / 2  # of the newest and of what the step held
    want = last / here.sigma * there + (1 - last / here.sigma) * mean
    assert second.nfe == 1
    assert gap(second.x, want) <= 1e-13, f"max|a-b| = {gap(second.x, want):.2e}"


def test_noise_drawn_in_a_step_is_not_shown() -> None:
    """The picture of a rule that draws is a DDIM step with the denoised estimate alone."""
    grid = LAM(VPLinear(), 4)
    x, (a0, s0), (a1, s1) = start_of(grid), grid.at(0), grid.at(-1)
    want = s1 / s0 * x + (a1 - a0 * s1 / s0) * TwoBumps()(x, grid.at(0))
    for seeds in ((0, 1), (2, 3)):
        got = next(anytime(TwoBumps(), EulerAncestral(), grid, x, noise=SeededNoise(seeds))).x
        assert gap(got, want) <= 1e-14, f"seeds {seeds}: max|a-b| = {gap(got, want):.2e}"


def test_pictures_get_better() -> None:
    grid, x = Karras(kappa_max=20.0, kappa_min=0.05)(EDM(), 10), 20 * batch((64, 4), 2)
    fine = sample(TwoBumps(), UniPC(order=3), Karras(kappa_max=20.0, kappa_min=0.05)(EDM(), 300), x).x
    errors = [(picture.x - fine).square().mean().sqrt().item() for picture in anytime(TwoBumps(), EVODiff(), grid, x)]
    assert all(later < sooner for sooner, later in zip(errors, errors[2:], strict=False)), errors
    assert errors[-1] < errors[0] / 10, errors


def test_stopping_stops() -> None:
    """Nothing is called before a picture is asked for, and nothing after the last one that is."""
    calls: list[float] = []

    def counted(x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        calls.append(level.sigma.item())
        return TwoBumps()(x, level)

    grid = LAM(VPLinear(), 6)
    pictures = anytime(counted, EVODiff(), grid, start_of(grid))
    assert calls == []
    for picture in pictures:
        assert picture.nfe == len(calls)
        if picture.nfe == 3:
            break
    assert len(calls) == 3


def test_no_graph_is_kept_and_the_caller_keeps_its_own_mode() -> None:
    grid = LAM(VPLinear(), 3)
    x = start_of(grid).requires_grad_(True)
    for picture in anytime(TwoBumps(), EVODiff(), grid, x):
        assert torch.is_grad_enabled()
        assert not picture.x.requires_grad


def test_conditions_reach_the_denoiser() -> None:
    def shifted(x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        return TwoBumps()(x, level) + cond["shift"][:, None, None, None]

    grid, shift = LAM(VPLinear(), 3), {"shift": torch.tensor([0.0, 1.0], dtype=torch.float64)}
    x = start_of(grid)
    *_, last = anytime(shifted, EVODiff(), grid, x, cond=shift)
    assert torch.equal(last.x, sample(shifted, EVODiff(), grid, x, cond=shift).x)


def test_what_is_refused_is_refused_at_once() -> None:
    """Not when the first picture is asked for."""
    refuses(ConfigError, "noise source", lambda: anytime(TwoBumps(), EulerAncestral(), GRID, X))
    refuses(DtypeError, "torch.int64", lambda: anytime(TwoBumps(), DDIM(), GRID, X.long()))
    refuses(ShapeError, "'label'", lambda: anytime(TwoBumps(), DDIM(), GRID, X, cond={"label": torch.zeros(3)}))
    levels = NoiseLevel(GRID.levels.alpha, GRID.levels.sigma.flip(0))
    refuses(GridError, "strictly decreases", lambda: anytime(TwoBumps(), DDIM(), Grid(levels, GRID.t), X))


def test_pictures_that_are_not_finite_are_refused() -> None:
    def broken(x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        return x * torch.nan if level.sigma < GRID.at(1).sigma else x

    pictures = anytime(broken, DDIM(), GRID, X)
    assert [next(pictures).nfe, next(pictures).nfe] == [1, 2]
    refuses(NonFiniteError, "after step 2", lambda: next(pictures))
    refuses(ShapeError, "returned shape", lambda: next(anytime(lambda x, level, cond: x[:1], DDIM(), GRID, X)))
