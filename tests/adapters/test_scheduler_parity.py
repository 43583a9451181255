"""The scheduler is the core: whole loops of a pipeline against `sample`, in float64.

The loops are those whose results diffusers' own tests state for DPM-Solver++ alone (`benchmarks/diffusers_tests.py`
names each): the same toy network and configuration, and what comes out has to be what the core makes on the same
levels. Nothing here asks the scheduler for its levels: they are spacings of the core.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from tests.adapters.scheduler_loops import CONFIG, STEPS, calibrated, gap, loop, made_table, network, ramp, set_up
from torch import Tensor

from fewstep.errors import ConfigError
from fewstep.noise import (
    Grid,
    Karras,
    LinearFlow,
    NoiseLevel,
    Spacing,
    Tabulated,
    Trailing,
    UniformLam,
    UniformTime,
    perturb,
)
from fewstep.sampling import sample
from fewstep.schedulers import EVODiffScheduler
from fewstep.solvers import EVODiff, Solver

TABLE = Tabulated.linear()
CLOSE = 1e-11  # float64 through ten steps


def denoised_of(prediction: str, clip: Callable[[Tensor], Tensor] = lambda x0: x0) -> Any:
    """The denoised estimate of the toy network, by the formulas of each prediction; clock and network as in VP."""

    def denoise(x: Tensor, level: NoiseLevel, cond: object = None) -> Tensor:
        alpha, sigma = level
        out = network(x, TABLE.t_of_lam(level.lam) - 1)
        x0 = {
            "epsilon": lambda: (x - sigma * out) / alpha,
            "v_prediction": lambda: alpha * x - sigma * out,
            "sample": lambda: out,
        }[prediction]()
        return clip(x0)

    return denoise


def thresholded(x0: Tensor) -> Tensor:
    """Dynamic thresholding as diffusers computes it."""
    options = {"thresholding": True, "dynamic_thresholding_ratio": 0.87, "sample_max_value": 0.5}
    made: Tensor = diffusers.DPMSolverMultistepScheduler(**options)._threshold_sample(x0)
    return made


CASES: dict[str, tuple[dict[str, Any], Spacing, str]] = {
    "plain": ({}, Trailing(end="limit"), "epsilon"),
    "zero": ({"final_sigmas_type": "zero"}, Trailing(), "epsilon"),
    "sample": ({"prediction_type": "sample"}, Trailing(end="limit"), "sample"),
    "thresholding": (
        {"thresholding": True, "dynamic_thresholding_ratio": 0.87, "sample_max_value": 0.5},
        Trailing(end="limit"),
        "epsilon",
    ),
    "v": ({"prediction_type": "v_prediction"}, Trailing(end="limit"), "v_prediction"),
    "karras-v": ({"prediction_type": "v_prediction", "use_karras_sigmas": True}, Karras(), "v_prediction"),
    "lu-v": ({"prediction_type": "v_prediction", "use_lu_lambdas": True}, UniformLam(), "v_prediction"),
    "exponential": ({"use_exponential_sigmas": True}, UniformLam(), "epsilon"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loop_is_the_core(name: str) -> None:
    config, spacing, prediction = CASES[name]
    denoiser = denoised_of(prediction, thresholded if name == "thresholding" else lambda x0: x0)
    expected = sample(denoiser, EVODiff(), spacing(TABLE, STEPS), ramp()).x
    apart = gap(loop(set_up(**config), ramp()), expected)
    # A network is told float32 timesteps: between whole ones they are rounded.
    most = CLOSE if name not in ("karras-v", "lu-v", "exponential") else 1e-6
    assert apart <= most, f"differs by {apart:.1e}"


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # the stock one's
def test_linspace_is_the_core_on_the_timesteps_of_the_stock_scheduler() -> None:
    stock = diffusers.DPMSolverMultistepScheduler(**CONFIG, timestep_spacing="linspace")
    stock.set_timesteps(STEPS)
    t = torch.cat([stock.timesteps.double() + 1, torch.ones(1, dtype=torch.float64)])
    expected = sample(denoised_of("epsilon"), EVODiff(), Grid(TABLE.level(t), t), ramp()).x
    apart = gap(loop(set_up(timestep_spacing="linspace"), ramp()), expected)
    assert apart <= CLOSE, f"differs by {apart:.1e}"


def rest(grid: Grid, first: int) -> Grid:
    return Grid(NoiseLevel(grid.levels.alpha[first:], grid.levels.sigma[first:]), grid.t[first:])


@pytest.mark.parametrize("told", [True, False], ids=["set_begin_index", "by the timestep"])
def test_a_run_from_an_image_is_the_core(told: bool) -> None:
    start, scheduler = 5, set_up()
    if told:
        scheduler.set_begin_index(start)
    image, noise = ramp(), ramp().flip(0)
    grid = rest(Trailing(end="limit")(TABLE, STEPS), start)
    begun = scheduler.add_noise(image, noise, scheduler.timesteps[start : start + 1])
    apart = gap(begun, perturb(image, noise, grid.at(0)))
    assert apart <= CLOSE, f"the start differs by {apart:.1e}"
    expected = sample(denoised_of("epsilon"), EVODiff(), grid, begun).x
    apart = gap(loop(scheduler, begun, start), expected)
    assert apart <= CLOSE, f"differs by {apart:.1e}"


def test_the_way_through_siblings() -> None:
    first = set_up()
    there: Any = first
    for name in ("DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"):
        there = getattr(diffusers, f"{name}Scheduler").from_config(there.config)
    back = EVODiffScheduler.from_config(there.config)
    back.set_timesteps(STEPS)
    expected = sample(denoised_of("epsilon"), EVODiff(), Trailing(end="limit")(TABLE, STEPS), ramp()).x
    assert torch.equal(loop(first, ramp()), loop(back, ramp()))
    apart = gap(loop(set_up(), ramp()), expected)
    assert apart <= CLOSE, f"differs by {apart:.1e}"


def test_a_flow_is_the_core() -> None:
    scheduler = EVODiffScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0).config)
    scheduler.set_timesteps(STEPS)
    grid = UniformTime(end="zero")(LinearFlow(), STEPS)

    def denoise(x: Tensor, level: NoiseLevel, cond: object = None) -> Tensor:
        return x - level.sigma * network(x, (1000 * level.sigma).float())

    apart = gap(loop(scheduler, ramp()), sample(denoise, EVODiff(), grid, ramp()).x)
    assert apart <= CLOSE, f"differs by {apart:.1e}"


def test_a_calibrated_loop_is_the_core() -> None:
    solver: Solver[Any]
    solver, grid = made_table().way(TABLE, STEPS)
    expected = sample(denoised_of("epsilon"), solver, grid, ramp()).x
    apart = gap(loop(calibrated(), ramp()), expected)
    assert apart <= 1e-6, f"differs by {apart:.1e}"  # of timesteps between whole ones, told in float32
    assert gap(loop(set_up(), ramp()), expected) > 1e-3, "the table changes nothing"


@pytest.mark.parametrize("asked", [{"timesteps": [900, 500, 100]}, {"num_inference_steps": 1000}])
def test_a_table_has_its_own_levels(asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="calibrated"):
        calibrated().set_timesteps(**asked)
