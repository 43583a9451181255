"""Inversion: sampling what was found gives the image back, and what did not converge is said."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contracts.inventory import SOLVERS_HERE, STOCHASTIC_HERE, f64, gap
from contracts.problems import ENDS, Constant, TwoBumps, batch, column, ends
from contracts.refusals import refuses
from torch import Tensor

from fewstep.denoisers import ClassifierFree, Gaussian
from fewstep.errors import ConfigError, DtypeError, GridError, NonFiniteError, ShapeError
from fewstep.noise import EDM, Grid, Karras, LinearFlow, NoiseLevel, UniformFlow, UniformLam, VPLinear
from fewstep.sampling import invert, sample
from fewstep.solvers import DDIM, Heun, Solver

IMAGE = batch((3, 1, 4, 4)).tanh()
ONE_STEP = {"ddim", "dualfast_heun", "euler", "heun"}  # Heun's second call leans on its first alone
one_step_rules = pytest.mark.parametrize("rule", [SOLVERS_HERE[name].rule for name in sorted(ONE_STEP)], ids=str)
F64 = torch.float64


def grid_of(end: str, steps: int) -> Grid:
    spacing, schedule = ENDS[end]
    return spacing(schedule, steps)


def misses(rule: Solver, grid: Grid, path: tuple[Tensor, ...]) -> list[Tensor]:
    """How far each step lands from the next sample of a path."""
    steps = range(grid.steps)
    return [rule.step(TwoBumps(), path[i], grid, i, rule.init(path[i], grid))[0] - path[i + 1] for i in steps]


@ends
def test_estimates_that_do_not_change_are_inverted_exactly(end: str) -> None:
    """x_0 = (s_0 / s_N) x_N + (a_0 - a_N s_0 / s_N) c. Where s_N = 0, an image that is not c is not reached."""
    grid, c = grid_of(end, 6), batch((1, 4, 4), 1)
    if grid.at(-1).sigma > 0:
        (a0, s0), (a1, s1) = grid.at(0), grid.at(-1)
        got, want = invert(Constant(c), grid, IMAGE).x, s0 / s1 * IMAGE + (a0 - a1 * s0 / s1) * c
        error = gap(got, want) / want.abs().max().item()
        assert error <= 1e-12, f"max|a-b| = {error:.2e}"
    else:
        found = invert(Constant(c), grid, IMAGE, iterations=3)
        want = (grid.at(-1).alpha * c - IMAGE).flatten(1).abs().amax(1)
        assert gap(found.residual, want) <= 1e-14, "what is not reached is reported"


@pytest.mark.parametrize(("rule", "order"), [(DDIM(), 1), (Heun(), 2)], ids=["ddim", "heun"])
def test_plain_inversion_has_the_order_of_the_rule(rule: Solver, order: int) -> None:
    """Against the exact flow of a Gaussian, and against the round trip by the rule itself."""
    mean, cov = batch((3,), 1), f64([[0.5, 0.2, 0.0], [0.2, 0.4, 0.1], [0.0, 0.1, 0.3]])
    gauss, image, steps = Gaussian(mean, cov), batch((4, 3), 2), (32, 64, 128, 256)
    exact, back = [], []
    for n in steps:
        grid = UniformLam(-2, 2)(VPLinear(), n)
        x = invert(gauss, grid, image, solver=rule).x
        exact.append(gap(x, gauss.flow(image, grid.at(-1), grid.at(0))))
        back.append(gap(sample(gauss, rule, grid, x).x, image))
    for what, errors in (("exact", exact), ("round trip", back)):
        slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
        assert slope >= order - 0.15, f"{what}: slope {slope:.2f}, errors {errors}"
    if order == 1:
        assert exact[-1] > 1e-5, "it is not exact, either"


@one_step_rules
@ends
def test_the_round_trip_tends_to_rounding(rule: Solver, end: str) -> None:
    """Also where the grid begins at pure noise. A step to clean data is not solved, and misses by what is reported."""
    grid = grid_of(end, 8)
    errors, residuals = [], []
    for iterations in (0, 4, 12, 80):
        found = invert(TwoBumps(), grid, IMAGE, solver=rule, iterations=iterations)
        back = sample(TwoBumps(), rule, grid, found.x)
        solved = -1 if grid.at(-1).sigma > 0 else -2
        errors.append(gap(back.trajectory[solved], found.trajectory[solved]))
        residuals.append(math.inf if found.residual is None else found.residual.max().item())
    print(f"{rule}, {end}: {errors}, {residuals}")
    assert residuals == sorted(residuals, reverse=True)
    assert errors[-1] <= 1e-10, f"errors {errors}"
    assert errors[-1] < 1e-3 * errors[0]
    if grid.at(-1).sigma > 0:
        assert residuals[-1] <= 1e-11, f"residuals {residuals}"
    else:
        assert residuals[-1] == pytest.approx(gap(back.x, IMAGE), abs=1e-9)


def test_it_converges_where_the_plain_fixed_point_diverges() -> None:
    """A Gaussian of spread 1 and steps that divide kappa by ten: the plain iteration multiplies its error by -9."""
    gauss, grid = Gaussian(torch.zeros(2, dtype=F64), 1.0), Karras(rho=1e6, kappa_min=1e-3, kappa_max=1e-1)(EDM(), 2)
    here, there = grid.at(1), grid.at(2)
    assert here.kappa / there.kappa == pytest.approx(10, rel=1e-3)
    image = batch((2, 2))
    r = there.sigma / here.sigma
    z, plain = image, []
    for _ in range(6):
        z = (image - (there.alpha - here.alpha * r) * gauss(z, here)) / r
        plain.append(gap(r * z + (there.alpha - here.alpha * r) * gauss(z, here), image))
    assert plain[-1] > 1e3 * plain[0]
    found = invert(gauss, grid, image, iterations=6)
    assert found.residual.max() <= 1e-12, f"{found.residual}"


@one_step_rules
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_the_residual_is_the_largest_miss_of_the_steps(rule: Solver, iterations: int) -> None:
    grid = Karras(kappa_max=20.0)(EDM(), 5)
    found = invert(TwoBumps(), grid, IMAGE, solver=rule, iterations=iterations)
    sizes = [miss.flatten(1).abs().amax(1) for miss in misses(rule, grid, found.trajectory)]
    assert gap(found.residual, torch.stack(sizes).amax(0)) == 0
    assert len(found.trajectory) == 6
    assert found.trajectory[-1] is IMAGE
    assert found.trajectory[0] is found.x


@pytest.mark.parametrize("steps", [3, 10])
def test_iterations_never_make_a_sample_worse(steps: int) -> None:
    grid = Karras(kappa_max=20.0)(EDM(), steps)
    residuals = torch.stack([invert(TwoBumps(), grid, IMAGE, iterations=k).residual for k in (1, 2, 3, 6, 12)])
    first = invert(TwoBumps(), grid, IMAGE, iterations=1).trajectory[-2]
    assert gap(first, invert(TwoBumps(), grid, IMAGE).trajectory[-2]) == 0, "the first iteration measures"
    assert (residuals[-1] < 1e-2 * residuals[0]).all(), f"{residuals}"


@pytest.mark.parametrize("iterations", [0, 1, 7])
def test_calls_are_counted(iterations: int) -> None:
    """Plain: one a step. An iteration: what the rule calls. A step to clean data: none, and one if there are any."""
    cond = {"label": torch.tensor([0, 1, 2])}

    def told(x: Tensor, level: NoiseLevel, cond: dict[str, Tensor]) -> Tensor:
        return TwoBumps()(x, level) + 0.01 * column(cond["label"], x)

    for w, per_call in ((1.0, 1), (2.0, 2)):
        guided = ClassifierFree(told, w, {"label": torch.tensor([9])})
        for end, plain in (("limit", 5), ("zero", 4)):
            grid = Karras(end=end)(EDM(), 5)
            found = invert(guided, grid, IMAGE, iterations=iterations, cond=cond)
            calls = plain + iterations * plain + (end == "zero" and iterations > 0)
            assert (found.nfe, found.network_evals) == (calls, per_call * calls), f"w={w}, {end}"
            assert (found.residual is None) == (iterations == 0)
    heun = invert(TwoBumps(), Karras()(EDM(), 5), IMAGE, solver=Heun(), iterations=iterations)
    assert heun.nfe == 10 + iterations * 10


def test_the_first_step_back_from_clean_data_adds_no_noise() -> None:
    grid = UniformLam(-3, 3, "zero")(VPLinear(), 4)
    found = invert(TwoBumps(), grid, IMAGE)
    assert gap(found.trajectory[-2], grid.at(-2).alpha / grid.at(-1).alpha * IMAGE) == 0


def test_the_last_step_back_to_pure_noise_is_the_noise_estimate_of_the_level_before() -> None:
    grid = UniformFlow()(LinearFlow(), 4)
    for rule in (DDIM(), Heun()):
        found = invert(TwoBumps(), grid, IMAGE, solver=rule)
        x, level = found.trajectory[1], grid.at(1)
        error = gap(found.x, (x - level.alpha * TwoBumps()(x, level)) / level.sigma)
        assert error <= 1e-14, f"{rule}: max|a-b| = {error:.2e}"


def test_samples_do_not_see_each_other() -> None:
    grid = Karras(end="zero")(EDM(), 5)
    whole = invert(TwoBumps(), grid, IMAGE, iterations=4)
    alone = invert(TwoBumps(), grid, IMAGE[1:2], iterations=4)
    assert gap(whole.x[1:2], alone.x) == 0
    assert gap(whole.residual[1:2], alone.residual) == 0


def test_other_ranks_and_dtypes() -> None:
    grid = Karras()(EDM(), 5)
    for shape in ((2, 3), (2,), (2, 1, 2, 2, 2)):
        image = batch(shape).tanh()
        x = invert(TwoBumps(), grid, image, iterations=60).x
        assert gap(sample(TwoBumps(), DDIM(), grid, x).x, image) <= 1e-10
    single = invert(lambda x, level, cond: 0.5 * x, grid, IMAGE.float(), iterations=4)
    assert single.x.dtype == single.residual.dtype == torch.float32
    assert not single.x.requires_grad


@pytest.mark.parametrize("name", STOCHASTIC_HERE)
def test_stochastic_rules_are_refused(name: str) -> None:
    grid, rule = Karras()(EDM(), 4), STOCHASTIC_HERE[name]
    error = refuses(ConfigError, str(rule), lambda: invert(TwoBumps(), grid, IMAGE, solver=rule, iterations=3))
    assert "fresh noise" in error.allowed


@pytest.mark.parametrize("name", sorted(set(SOLVERS_HERE) - ONE_STEP))
def test_rules_with_memory_are_refused_before_anything_is_called(name: str) -> None:
    def never(x: Tensor, level: NoiseLevel, cond: object = None) -> Tensor:
        raise AssertionError("called")

    grid, rule = Karras()(EDM(), 4), SOLVERS_HERE[name].rule
    error = refuses(ConfigError, str(rule), lambda: invert(never, grid, IMAGE, solver=rule))
    assert "remember" in error.allowed


def test_one_step_from_noise_to_data_is_refused() -> None:
    grid = UniformFlow()(LinearFlow(), 1)
    error = refuses(GridError, "pure noise", lambda: invert(TwoBumps(), grid, IMAGE, iterations=3))
    assert "forgets" in error.allowed


def test_other_bad_input() -> None:
    grid = Karras()(EDM(), 4)
    refuses(ConfigError, "-1 iterations", lambda: invert(TwoBumps(), grid, IMAGE, iterations=-1))
    refuses(DtypeError, "int64", lambda: invert(TwoBumps(), grid, IMAGE.long()))
    refuses(ShapeError, "(0, 1, 4, 4)", lambda: invert(TwoBumps(), grid, IMAGE[:0]))
    refuses(ShapeError, "(2,)", lambda: invert(TwoBumps(), grid, IMAGE, cond={"label": torch.zeros(2)}))
    refuses(ShapeError, "(3, 1, 4)", lambda: invert(lambda x, level, cond: x[..., 0], grid, IMAGE))
    reverse = Grid(NoiseLevel(*(part.flip(0) for part in grid.levels)), grid.t.flip(0))
    refuses(GridError, "strictly", lambda: invert(TwoBumps(), reverse, IMAGE))
    refuses(NonFiniteError, "NaN", lambda: invert(TwoBumps(), grid, IMAGE * math.nan))
    for iterations in (0, 3):
        refuses(
            NonFiniteError,
            "NaN",
            lambda iterations=iterations: invert(
                lambda x, level, cond: x * math.nan, grid, IMAGE, iterations=iterations
            ),
        )
