"""Weights in closed form: against numpy's least squares, the ends of the ridge, constants, and who may have a say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contracts.inventory import f64, gap
from contracts.problems import Constant, batch
from torch import Tensor

from calibration.targets import BASES, LINE, MIXTURE, SCHEDULES, ends_of, levels, problem
from fewstep.calibration.closed_form import Fitted, Split, fit_weights, matched
from fewstep.calibration.history import combined, shares_of
from fewstep.calibration.problem import Problem, levels_at, rms
from fewstep.calibration.trajectories import Trajectories, record
from fewstep.denoisers import Gaussian
from fewstep.noise import EDM, NoiseLevel
from fewstep.sampling import sample
from fewstep.solvers import DDIM, DEIS, DPMpp2M, Multistep, TabulatedSolver

SPLIT = Split(12, 4)
NOTHING = (1e30,)  # a ridge that leaves nothing of the residual
bases = pytest.mark.parametrize("name", BASES)


def fitted(own: Problem, rule: Multistep, kappa: Tensor, found: Trajectories | None = None, **more: Any) -> Fitted:
    return fit_weights(own, found or record(own, 40), rule, kappa, SPLIT, **more)


def solver_of(made: Fitted) -> TabulatedSolver:
    weights = tuple(tuple(map(float, row)) for row in shares_of(made.rows, made.kappa))
    return TabulatedSolver(weights, tuple(made.kappa.tolist()), made.first)


def transcribed(own: Problem, found: Trajectories, kappa: Tensor, window: int, ridge: float) -> list[np.ndarray]:
    """The student around DDIM in numpy: every step a least-squares problem with its penalty as more rows; its d."""
    x, said, weights = own.noise.numpy(), list[np.ndarray](), []
    levels_ = kappa.numpy()
    for i in range(len(kappa) - 1):
        said.append(MIXTURE(torch.tensor(x), NoiseLevel(f64(1.0), kappa[i])).numpy())
        r = levels_[i + 1] / levels_[i]
        base = r * x + (1 - r) * said[i]
        if i == 0:
            x = base
            continue
        first = max(0, i - window)
        differences = [said[j] - said[i] for j in range(first, i)]
        a = np.stack([d[: SPLIT.train].ravel() for d in differences], 1)
        b = (found.at(kappa[i + 1]).numpy() - base)[: SPLIT.train].ravel()
        penalty = np.sqrt(ridge * (b @ b)) * np.eye(a.shape[1])
        d = np.linalg.lstsq(np.vstack([a, penalty]), np.concatenate([b, np.zeros(a.shape[1])]), rcond=None)[0]
        weights.append(np.concatenate([np.zeros(first), d]))
        x = base + sum(w * difference for w, difference in zip(d, differences, strict=True))
    return weights


@pytest.mark.parametrize("ridge", [0.0, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("window", [1, 2, 3])
def test_it_is_least_squares(window: int, ridge: float) -> None:
    """Steps are fitted along the student's own states, so a slip in one is seen in all that follow."""
    own = problem()
    kappa, found = levels(own, 5), record(own, 40)
    made = fitted(own, DDIM(), kappa, found, windows=(window,), ridges=(ridge,))
    want = transcribed(own, found, kappa, window, ridge)
    for step, (d, true) in enumerate(zip(made.residuals, want, strict=True), 1):
        error = gap(d, torch.tensor(true)) / max(np.abs(true).max(), 1.0)
        assert error <= 1e-6, f"step {step}: {d.tolist()} instead of {true.tolist()}"


@bases
def test_with_an_infinite_ridge_it_is_the_base(name: str) -> None:
    for schedule in SCHEDULES.values():
        own = problem(schedule=schedule)
        kappa = levels(own, 6)
        made = fitted(own, BASES[name], kappa, ridges=NOTHING)
        largest = max(float(d.abs().max()) for d in made.residuals)
        assert largest <= 1e-12, f"{name} on {schedule}: a residual of {largest:.2e}"
        error = gap(ends_of(solver_of(made), own, kappa)[-1], ends_of(BASES[name], own, kappa)[-1])
        assert error <= 1e-10, f"{name} on {schedule}: max|a-b| = {error:.2e}"


@pytest.mark.parametrize("match", [False, True])
def test_the_errors_are_those_of_the_rule_it_gives(match: bool) -> None:
    own = problem()
    kappa, found = levels(own, 5), record(own, 40)
    for first in (None, found.denoised[0].mean(0)):
        made = fitted(own, DEIS(variable="log_kappa"), kappa, found, first=first, match_variance=match)
        missed = ends_of(solver_of(made), own, kappa)[-1] - found.end
        for said, part in ((made.train, missed[:12]), (made.held, missed[12:])):
            assert abs(said - rms(part)) <= 1e-9, f"{said} instead of {rms(part)}"


@pytest.mark.parametrize("match", [False, True])
@bases
def test_constants_are_exact(name: str, match: bool) -> None:
    """Whatever was fitted, a denoiser that always says c is solved."""
    own, c = problem(), batch((16, 3), seed=4)
    kappa = levels(own, 5)
    rule = solver_of(fitted(own, BASES[name], kappa, match_variance=match))
    r = kappa[-1] / kappa[0]
    got = sample(Constant(c), rule, levels_at(EDM(), kappa), own.noise).x
    size = max(abs(w) for row in rule.weights for w in row)
    error = gap(got, r * own.noise + (1 - r) * c)
    assert error <= 1e-12 * max(size, 1.0), f"{name}: max|a-b| = {error:.2e}"


@bases
def test_on_a_line_the_exact_map_is_reached(name: str) -> None:
    """Data of one Gaussian number: all estimates lie on a line, one weight reaches any point of it."""
    own = problem(LINE)
    kappa, found = levels(own, 5), record(own, 40)
    made = fitted(own, BASES[name], kappa, found, windows=(1,), ridges=(0.0,))
    states = ends_of(solver_of(made), own, kappa)
    for i in range(2, 6):
        error = gap(states[i], found.at(kappa[i]))
        assert error <= 1e-9, f"{name}, level {i}: max|a-b| = {error:.2e}"
    assert max(made.train, made.held) <= 1e-9, f"{name}: errors {made.train:.2e} and {made.held:.2e}"
    assert gap(states[1], found.at(kappa[1])) > 1e-2, "the first step is nobody's to fit"


def test_an_exact_fit_has_units() -> None:
    """Nothing is missed and all estimates lie on a line: still a finite scale to learn on."""
    for own in (problem(LINE), problem(Gaussian(f64([0.3, 0.1]), 0.0))):
        made = fitted(own, DDIM(), levels(own, 5))
        assert all(bool(unit.isfinite().all()) for unit in made.units)
        assert made.train <= 1e-3


def test_held_out_trajectories_have_no_say_in_the_weights() -> None:
    own, other = problem(), problem(seed=9)
    changed = replace(own, start=torch.cat([own.start[:12], other.start[12:]]))
    kappa, pinned = levels(own, 5), {"windows": (2,), "ridges": (1e-3,)}
    one, two = (fitted(each, DDIM(), kappa, **pinned) for each in (own, changed))
    for a, b in zip(one.residuals, two.residuals, strict=True):
        assert gap(a, b) <= 1e-9, f"max|a-b| = {gap(a, b):.2e}"
    assert abs(one.train - two.train) <= 1e-9
    assert abs(one.held - two.held) > 1e-6, "they are judged by"


def test_the_choice_is_made_by_held_out_trajectories() -> None:
    """With one step to fit: within a hundredth of the best that any window and any ridge reach there."""
    windows, ridges = (1, 2), (1e9, 1.0, 1e-1, 1e-2, 1e-4)
    for seed in range(5):
        own = problem(seed=seed)
        kappa, found = f64([40.0, 4.0, 1.0, 0.2]), record(own, 40)
        short = replace(own, kappa_min=0.2)
        ends = replace(found, x=(*found.x[:-1], found.at(0.2)))
        single = [
            fit_weights(short, ends, DDIM(), kappa[:3], SPLIT, windows=(w,), ridges=(r,)).residuals[0]
            for w in windows
            for r in ridges
        ]
        chosen = fit_weights(short, ends, DDIM(), kappa[:3], SPLIT, windows=windows, ridges=ridges)

        def missed(d: Tensor, own: Problem = own, found: Trajectories = found, kappa: Tensor = kappa) -> float:
            m0 = own.estimate(own.noise, kappa[0])
            x1 = kappa[1] / kappa[0] * (own.noise - m0) + m0
            m1 = own.estimate(x1, kappa[1])
            x2 = kappa[2] / kappa[1] * (x1 - m1) + m1 + d * (m0 - m1)
            return rms((x2 - found.at(kappa[2]))[12:])

        best, got = min(map(missed, single)), missed(chosen.residuals[0])
        assert got <= 1.02 * best, f"seed {seed}: {got} where {best} can be reached"


def test_a_given_first_estimate_is_not_called_for() -> None:
    seen: list[float] = []

    def denoise(x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        seen.append(float(level.sigma))
        return MIXTURE(x, level)

    own = problem((denoise,))
    kappa, found = levels(own, 5), record(own, 40)
    for first, calls in ((None, 5), (found.denoised[0].mean(0), 4)):
        seen.clear()
        fitted(own, DDIM(), kappa, found, first=first)
        assert len(seen) == calls


# Variance


def variance(x: Tensor) -> float:
    return float((x - x.mean(0)).square().sum())


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "ipndm_3"])
def test_every_sample_has_the_variance_of_the_teachers(name: str) -> None:
    own = problem()
    kappa, found = levels(own, 6), record(own, 40)
    rows = fitted(own, BASES[name], kappa, found, match_variance=True).rows
    states = ends_of(solver_of(fitted(own, BASES[name], kappa, found, match_variance=True)), own, kappa)
    assert len(rows) == len(states)
    for i in range(2, 7):
        error = variance(states[i][: SPLIT.train]) / variance(found.at(kappa[i])[: SPLIT.train]) - 1
        assert abs(error) <= 1e-8, f"{name}, level {i}: variance off by {error:.2e} of itself"


def parts(seed: int, share: float) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """A row, DDIM's row, the row before, noise and two estimates."""
    noise, estimates = batch((30, 2), seed), [batch((30, 2), seed + 100), batch((30, 2), seed + 200)]
    before = f64([0.5, 0.5, 0.0])
    plain = 0.4 * before + f64([0.0, 0.0, 0.6])
    return plain + share * f64([0.0, 1.0, -1.0]), plain, before, noise, estimates


# Of these shares the first has the lowest variance below g = 1, the second beyond it, and the third below g = 0.
@pytest.mark.parametrize("share", [0.7, 0.1, -0.7])
@pytest.mark.parametrize("size", [0.0, 0.5, 0.9, 0.95, 0.98, 1.02, 1.5, 5.0])
def test_the_nearest_variance_where_none_is_equal(size: float, share: float) -> None:
    """Against all g on a fine grid: g >= 0, the smallest difference of variances, and of two such g the one near 1."""
    tries = torch.linspace(0, 80, 4001, dtype=torch.float64)
    for seed in range(5):
        row, plain, before, noise, estimates = parts(seed, share)
        wanted = size * combined(plain, noise, estimates)  # a little less than DDIM: two roots on one side, or none
        got = matched(row, before, f64(0.4), noise, estimates, wanted)
        g = float((got - plain)[1] / (row - plain)[1])
        assert gap(got, plain + g * (row - plain)) <= 1e-12, "the row left the line"
        assert g >= 0, f"seed {seed}: g = {g}"
        here, more = (combined(part, noise, estimates) for part in (plain, row - plain))
        here, more = here - here.mean(0), more - more.mean(0)
        off = (here + tries[:, None, None] * more).square().sum((1, 2)) - variance(wanted)
        mine = abs(variance(here + g * more) - variance(wanted))
        assert mine <= float(off.abs().min()) + 1e-9, f"seed {seed}: off by {mine}, could be {float(off.abs().min())}"
        others = tries[1:][off[1:].sign() != off[:-1].sign()]
        if len(others):  # a root: no other is nearer to 1
            assert abs(g - 1) <= float((others - 1).abs().min()) + 0.021, f"seed {seed}: g = {g}, others {others}"


def test_a_row_that_adds_nothing_is_left_alone() -> None:
    _, plain, before, noise, estimates = parts(0, 0.7)
    assert gap(matched(plain, before, f64(0.4), noise, estimates, noise), plain) == 0


def test_several_denoisers_share_one_fit() -> None:
    """Each leads its own trajectories; together they are one least-squares problem."""
    wide = Gaussian(f64([0.0, 0.0, 0.0]), 1.5)
    own = problem((MIXTURE, wide))
    kappa, found = levels(own, 5), record(own, 40)
    made = fitted(own, DPMpp2M(), kappa, found)
    ends = torch.empty_like(own.start)
    for k, denoiser in enumerate(own.denoisers):
        ends[k::2] = ends_of(solver_of(made), problem((denoiser, denoiser)), kappa)[-1][k::2]
    missed = rms((ends - found.end)[:12])
    assert abs(missed - made.train) <= 1e-9, f"{made.train} instead of {missed}"
