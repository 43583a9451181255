"""The solver tables: their own oracle, the bases of the rules, the cells that are kept, and what the goals say."""

from __future__ import annotations

import pytest
import torch
from benchmarks import evodiff_variants
from benchmarks.paper_claim import NFE, PlainEnd, frechet_along_axes, last_gain
from benchmarks.quality import Store, better, make_cell, print_tables, ratio
from benchmarks.targets import BUDGETS, GRIDS, PER_CHANNEL, RULES, SCHEDULE, Target, code_of, gaussian

from fewstep.metrics import Moments, frechet_distance
from fewstep.noise import NoiseLevel
from fewstep.sampling import grid_for, sample, start_noise
from fewstep.solvers import EVODiff, Solver

ENDS = GRIDS["uniform_lam"](SCHEDULE, 1)


@pytest.fixture(scope="module")
def target() -> Target:
    """A Gaussian whose covariance mixes 2 channels of 3x2 pixels."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(12, 12, dtype=torch.float64, generator=generator)
    images = torch.randn(200, 12, dtype=torch.float64, generator=generator) @ mix * 0.3 + 0.2
    return gaussian(images.reshape(200, 2, 3, 2))


@pytest.fixture(scope="module")
def start() -> torch.Tensor:
    return start_noise(ENDS, (12,), range(5), dtype=torch.float64)


def in_pixels(target: Target, x: torch.Tensor) -> torch.Tensor:
    return (x @ target.pixels.basis.T).reshape(len(x), 2, 3, 2)


def in_axes(target: Target, images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1) @ target.pixels.basis


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def test_the_diagonal_oracle_is_the_gaussian_in_its_eigenbasis(target: Target, start: torch.Tensor) -> None:
    oracle, here, there = target.pixels.oracle, ENDS.at(0), ENDS.at(1)
    gap = apart(target.denoiser(start, here), in_axes(target, oracle(in_pixels(target, start), here)))
    assert gap <= 1e-12, f"denoised differs by {gap:.1e}"
    exact = in_axes(target, oracle.flow(in_pixels(target, start), here, there))
    gap = apart(target.denoiser.flow(start, here, there), exact)
    assert gap <= 1e-12, f"the flow differs by {gap:.1e}"


def solved_twice(target: Target, start: torch.Tensor, solver: Solver) -> float:
    grid = grid_for(solver, GRIDS["karras"], SCHEDULE, 6)
    here = sample(target.denoiser, solver, grid, start).x
    there = sample(target.pixels.oracle, solver, grid, in_pixels(target, start)).x
    return apart(here, in_axes(target, there))


@pytest.mark.parametrize("name", [name for name in RULES if not RULES[name]().stochastic])
def test_only_the_rules_named_per_channel_depend_on_the_basis(name: str, target: Target, start: torch.Tensor) -> None:
    gap = solved_twice(target, start, RULES[name]())
    assert (gap > 1e-3) if name in PER_CHANNEL else (gap <= 1e-9), f"the two bases differ by {gap:.1e}"


@pytest.mark.parametrize("name", PER_CHANNEL)
def test_rules_named_per_channel_are_run_in_pixels(name: str, target: Target, start: torch.Tensor) -> None:
    solver = RULES[name]()
    grid = grid_for(solver, GRIDS["uniform_lam"], SCHEDULE, 6)
    expected = in_axes(target, sample(target.pixels.oracle, solver, grid, in_pixels(target, start)).x)
    gap = apart(target.run(name, solver, grid, start, (0, 1, 2, 3, 4)), expected)
    assert gap <= 1e-12, f"differs by {gap:.1e}"


def test_the_plain_end_takes_the_gain_of_the_papers_last_step_away() -> None:
    grid = grid_for(PlainEnd(), GRIDS["uniform_lam"], SCHEDULE, NFE)
    assert grid.steps == NFE - 1
    # The closed form of the last step for a constant estimate: s (a + b) + b/2 (1 - rf), with x = 1 before it.
    sigma = grid.levels.sigma
    a = float(sigma[-1] / sigma[-2])
    share = 0.5 * a**0.5 if a < 0.5 else 0.5 * (a - 0.5) ** 0.5
    expected = (1 - float(sigma[-1] * sigma[-2]) ** 0.5) + (1 - a) / 2 * share
    gap = abs(last_gain(grid) - expected)
    assert gap <= 1e-12, f"the gain {last_gain(grid):.4f} differs by {gap:.1e} from its closed form"
    paper = EVODiff(variant="paper", denoise_to_zero=True)
    seen: list[torch.Tensor] = []

    def constant(x: torch.Tensor, level: object, cond: object = None) -> torch.Tensor:
        seen.append(x)
        return torch.ones_like(x)

    for solver, gain in ((PlainEnd(paper), 1.0), (paper, expected)):
        sample(constant, solver, grid, torch.ones(1, 1, dtype=torch.float64))
        assert len(seen) % NFE == 0
        gap = abs(float(seen[-1]) - gain)
        assert gap <= 1e-12, f"{solver} comes to its last call {gap:.1e} beside {gain:.4f}"


def test_the_plain_end_extrapolates_to_the_middle_of_the_last_step() -> None:
    grid = grid_for(PlainEnd(), GRIDS["karras"], SCHEDULE, NFE)
    seen: list[torch.Tensor] = []

    def line(x: torch.Tensor, level: NoiseLevel, cond: object = None) -> torch.Tensor:
        seen.append(x)
        return level.lam * torch.ones_like(x)

    run = sample(line, PlainEnd(), grid, torch.ones(1, 1, dtype=torch.float64))
    here, there = grid.at(-2), grid.at(-1)
    a = there.sigma / here.sigma
    expected = a * run.trajectory[-2] + (1 - a) * (here.lam + there.lam) / 2
    gap = apart(seen[-1], expected)
    assert gap <= 1e-12, f"the last step differs by {gap:.1e}"


def test_frechet_distance_along_the_axes_of_a_stretched_and_moved_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    variances = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    exact = variances.sqrt() * torch.randn(50, 3, dtype=torch.float64, generator=generator)
    stretch, move = (torch.tensor(row, dtype=torch.float64) for row in ([1.1, 0.5, 1.0], [0.0, 0.3, -0.2]))
    zero = torch.zeros(3, dtype=torch.float64)
    there = Moments.from_statistics(move, torch.diag(variances * stretch**2), 10)
    expected = frechet_distance(there, Moments.from_statistics(zero, torch.diag(variances), 10))
    centre = exact.mean(0)
    found = frechet_along_axes(centre + stretch * (exact - centre) + move, exact, variances)
    assert abs(found - expected) <= 1e-12, f"{found} instead of {expected}"


def cell(*errors: float) -> dict:
    return {"rmse": list(errors), "gain": [1.0] * 6, "distance": [1.0] * 6, "code": code_of("ddim")}


def test_cells_stay_until_settings_or_code_change(tmp_path) -> None:
    path, facts = tmp_path / "cells.json", {"n": 3}
    store = Store(path, {"seeds": 2}, {})
    store.target("ring", facts)
    assert store.due("ring", "ddim", "karras")
    store.put("ring", "ddim", "karras", {"rmse": [1.0]})
    again = Store(path, {"seeds": 2}, {})
    again.target("ring", facts)
    assert not again.due("ring", "ddim", "karras")
    again.content["targets"]["ring"]["rules"]["ddim"]["karras"]["code"]["solvers"] = "other"
    assert again.due("ring", "ddim", "karras")
    again.target("ring", {"n": 4})
    assert again.content["targets"]["ring"]["rules"] == {}
    assert Store(path, {"seeds": 3}, {}).content["targets"] == {}


def test_code_of_a_rule_is_that_of_its_own_modules() -> None:
    assert code_of("evodiff")["solvers"] != code_of("ddim")["solvers"]
    assert code_of("unipc")["solvers"] == code_of("unipc_3")["solvers"]


def test_a_cell_measures_each_set_of_seeds_and_then_averages() -> None:
    exact = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]], dtype=torch.float64)
    runs = [exact * 1.5]
    made = make_cell(runs, exact, torch.zeros(1), 2, lambda x: float(x.max()), False)
    # Errors 0.5 and 1.0; Student's t of one degree of freedom is 12.706 and the error of the mean 0.25.
    assert made["rmse"] == [0.75]
    assert made["rmse_half"] == [pytest.approx(12.706 * 0.25, rel=1e-4)]
    assert made["gain"] == [1.5]
    assert made["distance"] == [3.0]
    assert make_cell(runs, exact, torch.zeros(1), 2, lambda x: 7.0, True) == {"distance": [7.0]}


def test_goals_are_said_to_be_reached_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    even = cell(*[1.0] * 6)
    rules = {
        "dpmpp_2m": {"uniform_lam": even, "karras": cell(*[2.0] * 6)},
        "unipc_3": {"uniform_lam": cell(*[0.5] * 6)},
        "ipndm": {"uniform_lam": cell(*[0.9] * 6)},
        # sqrt(0.5 * 0.5 * 0.72 * 0.72) = 0.6 over the budgets that count, whatever follows.
        "evodiff": {"uniform_lam": cell(0.5, 0.72, 0.5, 0.72, 9.0, 0.1)},
    }
    target = {"rules": rules, "reference": "exact solution", "floor": 0.1}
    best = {"made_up": better(rules)}
    assert best["made_up"]["dpmpp_2m"][0] == "uniform_lam"
    assert abs(ratio(best, ["made_up"], "evodiff", ["unipc_3", "ipndm"]) - 1.2) <= 1e-12
    print_tables({"targets": {"made_up": target}}, "distance")
    text = capsys.readouterr().out
    assert "at most 0.75 of dpmpp_2m: 0.60, reached" in text
    assert "at most 1.00 of the better of unipc_3 and ipndm: 1.20, not reached" in text
    assert f"dpmpp_2m at {BUDGETS[4]} (x 9.00); unipc_3 at 6 (x 1.44)" in text
    assert "Made by other solver code" in text  # all but DDIM's cells are marked with DDIM's code


def test_variants_change_the_rule_and_leave_it_as_it_was() -> None:
    grid, x = GRIDS["karras"](SCHEDULE, 6), torch.full((2, 3), 80.0, dtype=torch.float64)

    def made() -> torch.Tensor:
        return sample(lambda x, level, cond=None: x.sin() / (1 + level.sigma**2), EVODiff(), grid, x).x

    plain = made()
    for label, variant in evodiff_variants.VARIANTS.items():
        with evodiff_variants.changed(variant):
            inside = made()
        if label.startswith(("windows", "ridges", "no more ridge", "clustered")):
            assert not torch.equal(inside, plain), f"{label} changes nothing"
        assert torch.equal(made(), plain), f"{label} has left something behind"
