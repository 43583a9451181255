"""The solver tables: their own oracle, the bases of the rules, the cells that are kept, and what the goals say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks import calibrated_parts, calibrated_tables, evodiff_variants
from benchmarks.calibrated import errors, make_row
from benchmarks.calibrated_parts import KINDS, PartFile, table_of
from benchmarks.calibrated_studies import compared, with_mean_of
from benchmarks.calibrated_subjects import Judged, Noise, exact_subject, fit_seeds, fresh_seeds
from benchmarks.paper_claim import NFE, PlainEnd, frechet_along_axes, last_gain
from benchmarks.quality import Store, better, make_cell, print_tables, ratio
from benchmarks.targets import BUDGETS, GRIDS, PER_CHANNEL, RULES, SCHEDULE, Target, code_of, gaussian, ring

from fewstep.metrics import Estimate, FeatureSet, Moments, contrast_gain, frechet_distance, rmse
from fewstep.noise import NoiseLevel
from fewstep.sampling import SeededNoise, grid_for, sample, start_noise
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


def test_noise_that_is_kept_is_that_of_the_seeds_whatever_the_batch() -> None:
    seeds = fresh_seeds(3, 2)
    assert not {*seeds} & {*fit_seeds(256, 0), *fit_seeds(256, 1)}
    noise, like = Noise(seeds, (2,), torch.float64, torch.device("cpu")), torch.empty(2, 2, dtype=torch.float64)
    for step in (4, 0, 4):
        made = noise.of(slice(2, 4))(step, like)
        assert torch.equal(made, SeededNoise(seeds[2:4])(step, like)), f"step {step} is other noise"


@pytest.mark.parametrize("rule", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_a_subject_samples_as_its_target_does_in_any_batches(rule: str) -> None:
    subject = replace(exact_subject("ring", ring(), 0.003, 2), batch=2)
    seeds, solver = fresh_seeds(subject.n, 2), RULES[rule]()
    grid = subject.grid(solver, "karras", 5)
    x = start_noise(grid, (2,), seeds, dtype=torch.float64)
    gap = apart(subject.run(solver, grid, rule), subject.target.run(rule, solver, grid, x, seeds))
    assert subject.n == 3
    assert gap <= 1e-12, f"differs by {gap:.1e}"


def test_rows_of_the_calibrated_tables_have_the_numbers_of_the_metrics() -> None:
    generator = torch.Generator().manual_seed(0)
    fine, run = (torch.randn(4, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    mean = fine.mean(0)
    found, expected = errors(run, fine, mean), (rmse(run, fine), contrast_gain(run, fine, mean))
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 1e-12, f"{found} instead of {expected}"
    exact, sets = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]], dtype=torch.float64), [slice(0, 2), slice(2, 4)]
    made = make_row([exact * 1.5], exact, torch.zeros(1), sets, lambda x: Estimate(3.0, 2.0, 4.0), False)
    # Errors 0.5 and 1.0; Student's t of one degree of freedom is 12.706 and the error of the mean 0.25.
    assert (made["rmse"], made["rmse_sets"], made["gain"]) == ([0.75], [[0.5, 1.0]], [1.5])
    assert made["rmse_half"] == [pytest.approx(12.706 * 0.25, rel=1e-4)]
    assert (made["distance"], made["distance_low"], made["distance_high"]) == ([3.0], [2.0], [4.0])
    drawing = make_row([exact], exact, torch.zeros(1), sets, lambda x: Estimate(3.0), True)
    assert drawing == {"distance": [3.0]}


def test_rows_and_tables_stay_until_settings_or_code_change(tmp_path) -> None:
    file = PartFile(tmp_path / "cells.json", {"n": 3})
    assert file.due("ddim on karras", "ddim")
    file.put("ddim on karras", "ddim", {"rmse": [1.0]})
    again = PartFile(tmp_path / "cells.json", {"n": 3})
    assert not again.due("ddim on karras", "ddim")
    again.content["rows"]["ddim on karras"]["code"]["hash"] = "other"
    assert again.due("ddim on karras", "ddim")
    assert PartFile(tmp_path / "cells.json", {"n": 4}).content["rows"] == {}
    subject = exact_subject("ring", ring(), 0.003, 1)
    made = table_of(subject, "closed_form", 0, tmp_path, nfe=(3,), trajectories=16)
    (kept,) = (tmp_path / "tables").iterdir()
    written = kept.stat().st_mtime_ns
    assert table_of(subject, "closed_form", 0, tmp_path, nfe=(3,), trajectories=16).entries == made.entries
    assert kept.stat().st_mtime_ns == written
    own = with_mean_of(subject, replace(made, mean=torch.full((2,), 9.0)), 0, 16)
    assert float(own.mean.abs().max()) < 1.0  # the ring's own first estimate is near its middle


def test_the_code_of_a_calibration_is_its_lines_without_words(tmp_path) -> None:
    said, other = tmp_path / "said.py", tmp_path / "other.py"
    said.write_text('"""Words."""\n\n# a remark\nx = 1\n\n\ndef f():\n    """More\n    words."""\n    return "x"\n')
    other.write_text('x = 1\ndef f():\n    return "x"\n')
    assert calibrated_parts._lines(said) == calibrated_parts._lines(other)
    assert calibrated_parts.code_of("calibrated") == calibrated_parts.code_of("closed_form")
    assert calibrated_parts.code_of("calibrated")["hash"] != calibrated_parts.code_of("ddim")["hash"]


def test_the_headline_is_a_percentage_of_the_baseline_with_a_paired_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 2, dtype=torch.float64, generator=generator)
    rows = rows - rows.mean(0)
    sets = {}
    for name, shift in (("dpmpp_2m on uniform_lam", 2.0), ("dpmpp_2m on karras", 4.0), ("calibrated on own", 2.0)):
        sets[name] = FeatureSet(2, keep=0)
        sets[name].update(rows + shift, torch.arange(40))
    found = compared(Judged(None, Moments(rows), ""), sets)["calibrated on own"]
    lower = found["per cent lower than"]
    assert lower["dpmpp_2m on uniform_lam"]["value"] == lower["dpmpp_2m on uniform_lam"]["high"] == 0.0
    # The same covariance, so the distances are those of the means: 2 * 2^2 and 2 * 4^2.
    assert found["distance"]["value"] == pytest.approx(8.0, abs=1e-9)
    assert lower["dpmpp_2m on karras"]["value"] == pytest.approx(75.0, abs=1e-9)


def fitted_row(rule: str, grid: str, *errors: float, high: float = 2.0) -> dict:
    sets = [[error, error] for error in errors]
    spread = {"distance": [1.0] * 7, "distance_low": [0.5] * 7, "distance_high": [high] * 7}
    own = {"from": [["ipndm on karras"] * 2] * 7, "saved": [[False] * 2] * 7} if rule in KINDS else {}
    made = {"rule": rule, "grid": grid, "rmse": list(errors), "rmse_half": [0.0] * 7, "rmse_sets": sets, **own}
    return {**made, "gain": [1.0] * 7, **spread, "code": calibrated_parts.code_of(rule)}


def test_the_calibrated_solver_is_held_to_the_best_fixed_one_of_a_target_and_of_a_cell(capsys) -> None:
    rows = [
        fitted_row("calibrated", "own", 9.0, 0.5, 0.5, 0.5, 0.5, 1.1, 0.5),
        fitted_row("ddim", "karras", *[1.0] * 7),
        fitted_row("evodiff", "karras", 0.1, 0.4, 2.0, 2.0, 2.0, 2.0, 2.0, high=0.9),
    ]
    content = {"part": "cells", "subject": "made up", "seeds": 2, "n": 3, "measure": "distance", "what": "words"}
    content |= {"floor": [0.1], "bias": 0.0, "reference_gap": 0.01}
    content["rows"] = {f"{row['rule']} on {row['grid']}": row for row in rows}
    assert calibrated_tables.best_of_target(content) == "ddim on karras"
    assert calibrated_tables.best_of_cell(content, 1) == "evodiff on karras"
    calibrated_tables.print_all(calibrated_tables.Contents({"made up": content}, {}, {}, {}))
    text = capsys.readouterr().out
    assert "RMSE at most 0.75 of the best fixed solver of a target, geometric mean at 5 to 10 calls: 0.500, rea" in text
    assert "all, geometric mean over 5 to 10 calls: 0.500 [0.500, 0.500]." in text
    # (0.5 / 0.4 * 0.5 * 0.5 * 0.5) ** (1 / 4)
    assert "RMSE at most 0.75 of the best fixed solver of every cell, geometric mean at 5 to 10 calls: 0.629" in text
    assert "RMSE never above the best fixed solver of a target at 5 to 10: reached" in text
    assert "RMSE never above the best fixed solver of every cell at 5 to 10: not reached: made up at 5 (x 1.25)" in text
    assert (
        "RMSE never above the best fixed solver of a target at 15 and 20: not reached: made up at 15 (x 1.10)" in text
    )
    assert "never above the interval of the best fixed solver of a target: reached" in text
