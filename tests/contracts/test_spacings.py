"""Spacings of discrete models and out of tables: each against its rule, parity with diffusers, refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contracts.inventory import SCHEDULES_HERE, f64, gap
from contracts.problems import TwoBumps, batch
from contracts.refusals import refuses
from fewstep._chain import Chain
from fewstep._part import Part
from fewstep.errors import ConfigError, GridError, LevelError
from fewstep.noise import (
    AYS,
    EDM,
    SCHEDULES,
    SPACINGS,
    Explicit,
    Grid,
    Karras,
    LinearFlow,
    NoiseLevel,
    Quadratic,
    Schedule,
    ShiftedFlow,
    TableOfLevels,
    Tabulated,
    Timesteps,
    Trailing,
    UniformLam,
    UniformTime,
    VPLinear,
    check_grid,
)
from fewstep.sampling import resolve, sample
from fewstep.solvers import DDIM

DDPM, SD = Tabulated(), Tabulated.scaled_linear()
schedules = pytest.mark.parametrize("schedule", SCHEDULES_HERE.values(), ids=list(SCHEDULES_HERE))
parity = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy 2 in diffusers, not ours


def is_discrete(schedule: Schedule) -> bool:
    return isinstance(schedule, Tabulated)


@schedules
def test_trailing_is_its_rule(schedule: Schedule) -> None:
    """Equal steps back from the noisy end to clean data, whole timesteps on a table."""
    clean, noisy = schedule.t_range()
    for steps in (1, 2, 3, 4, 7, 30):
        want = noisy * (1 - np.arange(steps + 1) / steps)
        want = np.round(want) if is_discrete(schedule) else want
        zero, limit = Trailing()(schedule, steps), Trailing(end="limit")(schedule, steps)
        assert gap(zero.t, torch.tensor(want)) <= 1e-14 * noisy, f"{steps} steps: {zero.t.tolist()}"
        assert zero.at(-1).sigma.item() == 0.0
        assert limit.t.tolist() == [*zero.t.tolist()[:-1], clean]
        assert gap(zero.levels.sigma, schedule.level(zero.t).sigma) == 0


@schedules
def test_quadratic_is_its_rule(schedule: Schedule) -> None:
    """The square roots of the clock are evenly spaced."""
    clean, noisy = schedule.t_range()
    for end, last in (("limit", clean), ("zero", 0.0)):
        for steps in (1, 2, 5, 12):
            grid = Quadratic(end=end)(schedule, steps)  # type: ignore[arg-type]
            i = np.arange(steps + 1) / steps
            want = ((1 - i) * math.sqrt(noisy) + i * math.sqrt(last)) ** 2
            want = np.round(want) if is_discrete(schedule) else want
            assert gap(grid.t, torch.tensor(want)) <= 1e-15 * noisy, f"{end}, {steps} steps: {grid.t.tolist()}"
            assert grid.t.max().item() <= noisy


@parity
def test_trailing_timesteps_are_those_of_diffusers() -> None:
    """Every number of steps; for some of them diffusers' own list has one timestep too many, timestep -1."""
    diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'diffusers'")
    theirs = diffusers.DDIMScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing")
    surplus: list[int] = []
    for steps in range(1, 1001):
        theirs.set_timesteps(steps)
        want = theirs.timesteps.tolist()
        surplus += [steps] * (len(want) - steps)
        got = (Trailing()(SD, steps).t[:-1] - 1).int().tolist()
        assert got == want[:steps], f"{steps} steps: {got} and {want}"
    print(f"diffusers makes one timestep too many for {len(surplus)} numbers of steps, {surplus[:3]} ...")
    assert (len(surplus), surplus[:1]) in ((62, [61]), (0, [])), "the page says for how many numbers of steps"


@parity
def test_ddim_on_trailing_steps_is_that_of_diffusers() -> None:
    """The whole loop, in float64, on a table of our own making: levels, rule and end are theirs."""
    diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'diffusers'")
    theirs = diffusers.DDIMScheduler(
        clip_sample=False, set_alpha_to_one=True, prediction_type="sample", timestep_spacing="trailing"
    )
    bars = theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    theirs.final_alpha_cumprod = theirs.final_alpha_cumprod.double()
    schedule = Tabulated(tuple(bars.tolist()))
    for steps in (1, 4, 5, 10):
        theirs.set_timesteps(steps)
        x = start = batch((3, 2, 4, 4))
        for t in theirs.timesteps:
            level = NoiseLevel(bars[t].sqrt(), (1 - bars[t]).sqrt())
            x = theirs.step(TwoBumps()(x, level), t, x).prev_sample
        for spacing in (Trailing(), Timesteps(tuple(theirs.timesteps.tolist()))):
            error = gap(sample(TwoBumps(), DDIM(), spacing(schedule, steps), start).x, x)
            assert error <= 1e-12, f"{spacing}, {steps} steps: max|a-b| = {error:.2e}"


# Tables of levels


@parity
def test_align_your_steps_is_that_of_diffusers() -> None:
    """Ten steps: its sigmas, which end at 0, are our kappas to the last digit; its timesteps are ours, rounded."""
    pytest.importorskip("diffusers", reason="parity needs the extra 'diffusers'")
    from diffusers.schedulers import AysSchedules

    for model, key in (("sd15", "StableDiffusion"), ("sdxl", "StableDiffusionXL"), ("svd", "StableDiffusionVideo")):
        schedule = EDM(sigma_min=0.002, sigma_max=700.0)
        grid = SPACINGS[f"ays_{model}"]()(schedule, 10)
        want = f64(AysSchedules[f"{key}Sigmas"])
        assert gap(grid.levels.kappa, want) <= 1e-12 * want[0].item(), f"{model}: {grid.levels.kappa.tolist()}"
        assert grid.at(-1).sigma.item() == 0.0
        if model != "svd":
            timesteps = f64(AysSchedules[f"{key}Timesteps"])
            ours = SPACINGS[f"ays_{model}"]()(SD, 10).t[:-1] - 1
            # Published kappas and timesteps were each rounded from the same levels.
            assert gap(ours, timesteps) <= 1.5, f"{model}: {ours.tolist()}"


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 17, 40])
def test_tables_are_log_linear(steps: int) -> None:
    """Against numpy's interpolation of the logarithms over the share of the steps."""
    for name, kappas in {**AYS, "own": (9.0, 1.0, 0.2)}.items():
        want = np.exp(np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(kappas)), np.log(kappas)))
        for schedule in (EDM(sigma_max=700.0), LinearFlow(1e-4), SCHEDULES_HERE["tabulated_scaled_linear"]):
            got = TableOfLevels(kappas, end="limit")(schedule, steps).levels.kappa
            error = gap(got / torch.tensor(want), torch.ones(steps + 1).double())
            assert error <= 1e-11, f"{name} on {schedule}, {steps} steps: kappa off by {error:.2e}"
            zero = TableOfLevels(kappas)(schedule, steps)
            assert gap(zero.levels.kappa[:-1], got[:-1]) == 0
            assert zero.at(-1).sigma.item() == 0.0


def test_a_printed_kappa_past_the_end_is_its_end() -> None:
    """Stable Diffusion ends at 14.6146; its table says 14.615. Anything further is refused."""
    grid = SPACINGS["ays_sd15"]()(SD, 10)
    assert abs(grid.t[0].item() - 1000) <= 1e-9
    assert abs(grid.at(0).kappa.item() / SD.level(f64(1000.0)).kappa.item() - 1) <= 1e-12
    error = refuses(LevelError, "700", lambda: SPACINGS["ays_svd"]()(SD, 10))
    assert "14.6" in error.allowed
    refuses(LevelError, "14.7", lambda: TableOfLevels((14.7, 1.0))(SD, 3))
    refuses(LevelError, "14.615", lambda: TableOfLevels()(EDM(sigma_max=10.0), 3))


# Explicit timesteps


def test_timesteps_are_times_one_later() -> None:
    for end, last in (("zero", 0.0), ("limit", 1.0)):
        grid = Timesteps((999, 749, 499, 249), end=end)(DDPM, 4)  # type: ignore[arg-type]
        assert grid.t.tolist() == [1000.0, 750.0, 500.0, 250.0, last]
        alphas = f64([DDPM.alphas_cumprod[k] for k in (999, 749, 499, 249)]).sqrt()
        assert gap(grid.levels.alpha[:-1], alphas) <= 2e-16
    assert Timesteps((0,))(DDPM, 1).t.tolist() == [1.0, 0.0]


def test_the_default_timesteps_are_four_trailing_steps() -> None:
    ours, trailing = Timesteps()(DDPM, 4), Trailing()(DDPM, 4)
    assert torch.equal(ours.t, trailing.t)
    assert gap(ours.levels.sigma, trailing.levels.sigma) == 0


def test_leading_timesteps_can_be_written_and_do_not_begin_at_the_end() -> None:
    """The trap of the page: four leading steps of Stable Diffusion (offset 1) begin where alpha is 0.24, not 0.07."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    for first, spacing in ((751, Timesteps((751, 501, 251, 1))), (999, Trailing())):
        grid, want = spacing(SD, 4), math.sqrt(np.prod(1 - betas[: first + 1]))
        assert grid.t[0].item() == first + 1
        assert abs(grid.at(0).alpha.item() - want) <= 1e-13, first
        assert round(want, 2) == {751: 0.24, 999: 0.07}[first]


def test_chains_hold_spacings() -> None:
    """As JSON, lists for tuples: a distilled model's timesteps travel with it."""
    for part, steps, want in (
        (Part("timesteps", {"timesteps": [999, 499]}), 2, Timesteps((999, 499))),
        (Part("table_of_levels", {"kappas": [9.0, 1.0, 0.1]}), 3, TableOfLevels((9.0, 1.0, 0.1))),
        (Part("trailing"), 3, Trailing()),
        (Part("quadratic", {"end": "zero"}), 3, Quadratic(end="zero")),
        (Part("ays_sdxl"), 5, TableOfLevels(AYS["sdxl"])),
        (Part("ays_sdxl", {"end": "limit"}), 5, TableOfLevels(AYS["sdxl"], end="limit")),
    ):
        chain = Chain(spacing=part, steps=(steps,))
        assert Chain.from_json(json.loads(json.dumps(dataclasses.asdict(chain)))) == chain
        grid, plain = resolve(chain, DDPM).grid, want(DDPM, steps)
        assert gap(grid.levels.sigma[1:], plain.levels.sigma[1:]) == 0, part
        assert (grid.at(0).alpha.item(), grid.at(0).sigma.item()) == (0.0, 1.0), "a chain starts at pure noise"


# Refusals


SPACED: dict[str, Any] = {"trailing": Trailing(), "quadratic": Quadratic(), "table": TableOfLevels()}


@pytest.mark.parametrize("name", SPACED)
def test_no_steps_and_no_end(name: str) -> None:
    for schedule in (DDPM, EDM(), ShiftedFlow()):
        for steps in (0, -3):
            refuses(GridError, str(steps), lambda steps=steps, schedule=schedule: SPACED[name](schedule, steps))
        refuses(ConfigError, "'zeor'", lambda schedule=schedule: type(SPACED[name])(end="zeor")(schedule, 3))
    refuses(ConfigError, "'zeor'", lambda: Timesteps(end="zeor")(DDPM, 4))


def test_more_steps_than_timesteps() -> None:
    small = Tabulated.linear(num_train_timesteps=10)
    assert Trailing()(small, 10).t.tolist() == [float(t) for t in range(10, -1, -1)]
    error = refuses(GridError, "11 steps", lambda: Trailing()(small, 11))
    assert "timestep" in error.allowed.lower()
    assert "fewer steps" in error.todo
    refuses(GridError, "25 steps", lambda: Trailing()(small, 25))
    refuses(GridError, "as 0 does", lambda: Trailing(end="limit")(small, 10))
    refuses(GridError, "as 1 does", lambda: Quadratic()(small, 9))  # 1.54 and 2.19 are both 2
    assert UniformTime()(small, 25).steps == 25, "what does not round has room"


def test_timesteps_that_are_none() -> None:
    for given, kind, shows in (
        ((999, 999), GridError, "999 is not below"),
        ((249, 499), GridError, "499 is not below"),
        ((9, 5, 5, 1), GridError, "5 is not below"),
        ((999.0, 499.0), ConfigError, "999.0"),
        ((True, False), ConfigError, "True"),
        ("999", ConfigError, "'999'"),
        (999, ConfigError, "999"),
    ):
        refuses(kind, shows, lambda given=given: Timesteps(given))
    error = refuses(GridError, "4 timesteps", lambda: Timesteps()(DDPM, 5))
    assert "4 steps" in error.todo
    refuses(GridError, "0 timesteps", lambda: Timesteps(())(DDPM, 3))
    error = refuses(LevelError, "Timestep 1000", lambda: Timesteps((1000, 500))(DDPM, 2))
    assert "0 to 999" in error.allowed
    refuses(LevelError, "Timestep -1", lambda: Timesteps((500, -1))(DDPM, 2))
    refuses(GridError, "1.0", lambda: Timesteps((500, 0), end="limit")(DDPM, 2))
    for spacing in (Trailing(), Quadratic(), Karras(), UniformLam()):
        refuses(GridError, "2.5 steps", lambda spacing=spacing: spacing(DDPM, 2.5))
    for schedule in (EDM(), VPLinear(), ShiftedFlow()):
        error = refuses(ConfigError, str(schedule), lambda schedule=schedule: Timesteps()(schedule, 4))
        assert "Tabulated" in error.allowed


def test_tables_that_are_none() -> None:
    for kappas in ((), (1.0,), (1.0, 1.0), (0.1, 3.0), (3.0, 0.0), (3.0, -1.0), (math.inf, 1.0), (3.0, math.nan),
                   ("a", "b"), 5.0, None):  # fmt: skip
        error = refuses(ConfigError, repr(kappas), lambda kappas=kappas: TableOfLevels(kappas))
        assert "zero" in error.todo


def test_a_long_grid_is_refused_briefly() -> None:
    """A thousand levels are no message: those around the first fault are."""
    times = [float(t) for t in range(999, 0, -1)]
    times[500:502] = [times[501], times[501]]
    error = refuses(GridError, "498.0, 498.0", lambda: Explicit(tuple(times))(EDM(sigma_max=999.0), 998))
    assert len(str(error)) < 600, len(str(error))
    sigma = torch.linspace(9, 1, 40, dtype=torch.float64)
    sigma[0] = math.nan
    refuses(GridError, "nan", lambda: check_grid(Grid(NoiseLevel(torch.ones_like(sigma), sigma), sigma)))


def test_the_command_line_names_every_grid() -> None:
    """Help is written by hand, so that it costs no import; here it is held to the table."""
    app = pytest.importorskip("fewstep.cli.app", reason="the command line needs the extra 'cli'")
    for option in (app.GridOption, app.GridNameChoice):
        said = set(re.findall(r"\w+", option.__metadata__[0].help))
        assert set(SPACINGS) <= said, set(SPACINGS) - said


@pytest.mark.parametrize("name", SPACINGS)
def test_grids_by_name(name: str) -> None:
    """What --grid makes is the spacing itself; only two of them take a range, and the others refuse one."""
    runs = pytest.importorskip("fewstep.experiments.runs", reason="sampling by names needs the extra 'cli'")
    schedule = Tabulated() if name != "ays_svd" else SCHEDULES_HERE["tabulated_scaled_linear"]
    ranged = name in ("karras", "uniform_lam")
    choice = runs.GridChoice(name, 50.0, 0.05) if ranged else runs.GridChoice(name)
    bounds = {"karras": {"kappa_max": 50.0, "kappa_min": 0.05},
              "uniform_lam": {"lam_min": -math.log(50.0), "lam_max": -math.log(0.05)}}  # fmt: skip
    got, want = choice.rule(schedule)(schedule, 4), SPACINGS[name](**bounds.get(name, {}))(schedule, 4)
    assert gap(got.t, want.t) <= 1e-9, f"{got.t.tolist()} and {want.t.tolist()}"
    said = f"{name}, kappa 50 to 0.05, 4 steps" if ranged else f"{name}, 4 steps"
    assert choice.describe(4) == said
    if not ranged:
        for other in (runs.GridChoice(name, kappa_max=5.0), runs.GridChoice(name, kappa_min=0.1)):
            error = refuses(ConfigError, name, lambda other=other: other.rule(schedule))
            assert "karras" in error.todo


# The page


PAGE = Path(__file__).resolve().parents[2] / "docs" / "schedules.md"


def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Its block, as a reader would paste it; the numbers in its comments are what it prints."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(block, PAGE.name, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1000.0, 750.0, 500.0, 250.0, 0.0]"
    assert "[1.0, 0.9, 0.75, 0.5, 0.0]" in lines
    assert abs(ShiftedFlow.of_tokens(4096).shift - math.exp(1.15)) <= 1e-14


def test_the_page_names_every_schedule_and_spacing() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in (*SCHEDULES, *SPACINGS) if f"`{name}`" not in text] == []
