"""The scheduler is the core: whole loops of a pipeline against `sample`, in float64, and the contract of diffusers.

The loops are those whose results diffusers' own tests state for DPM-Solver++ alone (`benchmarks/diffusers_tests.py`
names each): the same toy network and configuration, and what comes out has to be what the core makes on the same
levels. Nothing here asks the scheduler for its levels: they are spacings of the core.
"""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

from fewstep.calibration import Entry, Origin, Table  # noqa: E402
from fewstep.errors import ConfigError  # noqa: E402
from fewstep.noise import (  # noqa: E402
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
from fewstep.sampling import sample  # noqa: E402
from fewstep.schedulers import CalibratedScheduler, EVODiffScheduler  # noqa: E402
from fewstep.solvers import EVODiff, Solver  # noqa: E402

# Stock schedulers hand tensors to numpy in a way that numpy 2 frowns at.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{name}:DeprecationWarning")
    for name in ("__array__ implementation doesn't accept", "__array_wrap__ must accept")
]

CONFIG = {"beta_schedule": "linear", "lower_order_final": False, "final_sigmas_type": "sigma_min"}
TABLE = Tabulated.linear()
STEPS = 10
SHAPE = (4, 3, 8, 8)
CLOSE = 1e-11  # float64 through ten steps
Loop = Callable[[Any, Tensor], Tensor]


def network(x: Tensor, timestep: Tensor | float) -> Tensor:
    """Half a network: it leaves more of the sample the noisier that is."""
    t = torch.as_tensor(timestep).to(x.dtype)
    return x * t / (t + 1)


def ramp(shape: tuple[int, ...] = SHAPE) -> Tensor:
    numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (numbers / len(numbers)).reshape(shape)


def loop(scheduler: Any, x: Tensor, start: int = 0) -> Tensor:
    for t in scheduler.timesteps[start:]:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


def set_up(steps: int = STEPS, **config: Any) -> Any:
    scheduler = EVODiffScheduler(**{**CONFIG, **config})
    scheduler.set_timesteps(steps)
    return scheduler


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


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


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


# Calibrated


def made_table(steps: int = STEPS) -> Table:
    """A table that is nobody's: levels and weights from a formula."""
    kappa = tuple(torch.logspace(2, -1.9, steps + 1, dtype=torch.float64).tolist())
    weights = tuple(tuple(0.1 / (1 + i - j) for j in range(i)) for i in range(1, steps))
    return Table(Origin(), {steps: Entry(kappa, weights, False, "none", "formula", 0.0, 0.0, 0.0)})


def calibrated(steps: int = STEPS) -> Any:
    scheduler = CalibratedScheduler(**CONFIG, calibration=made_table(steps).to_json())
    scheduler.set_timesteps(steps)
    return scheduler


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


# The contract


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What diffusers and fewstep log; diffusers' logger keeps its records from pytest."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("diffusers", "fewstep")]
    for logger in loggers:
        logger.addHandler(handler)
    yield lines
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 50, 100, 999, 1000])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_any_number_of_steps_runs(steps: int, end: str) -> None:
    scheduler = set_up(steps, final_sigmas_type=end)
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == len(scheduler.sigmas) - 1 == steps
    assert bool((scheduler.timesteps.diff() < 0).all()), "timesteps repeat"
    assert bool((scheduler.sigmas.diff() < 0).all()), "sigmas repeat"
    assert bool(loop(scheduler, ramp((1, 1, 2, 2))).isfinite().all())
    assert scheduler.step_index == steps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_as_it_went_in(dtype: torch.dtype) -> None:
    """And is no worse than its own rounding, as the arithmetic is in float32."""
    scheduler = set_up(thresholding=True, dynamic_thresholding_ratio=0.9)
    t, x = scheduler.timesteps[0], ramp()
    out = network(x, t).to(dtype)
    half = scheduler.step(out, t, x.to(dtype)).prev_sample
    scheduler.set_timesteps(STEPS)
    whole = scheduler.step(out.float(), t, x.to(dtype).float()).prev_sample
    assert half.dtype == dtype
    assert torch.equal(half, whole.to(dtype))


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_its_own_timesteps_given_back_change_nothing(end: str, prediction: str) -> None:
    config = {"final_sigmas_type": end, "prediction_type": prediction}
    scheduler, given = set_up(**config), set_up(**config)
    given.set_timesteps(timesteps=scheduler.timesteps)
    assert torch.equal(loop(given, ramp()), loop(scheduler, ramp()))


def test_given_sigmas_are_visited() -> None:
    scheduler = set_up(use_karras_sigmas=True, final_sigmas_type="zero")
    given = set_up(final_sigmas_type="zero")
    given.set_timesteps(sigmas=scheduler.sigmas[:-1].double())
    torch.testing.assert_close(given.sigmas, scheduler.sigmas, rtol=1e-6, atol=0)
    apart = gap(loop(given, ramp()), loop(scheduler, ramp()))
    assert apart <= 1e-5, f"differs by {apart:.1e}"


@pytest.mark.parametrize("make", [set_up, calibrated])
@pytest.mark.parametrize("way", ["saved", "copied", "pickled", "config"])
def test_a_scheduler_survives(make: Callable[[], Any], way: str, tmp_path: Any) -> None:
    scheduler = make()
    if way == "saved":
        scheduler.save_pretrained(tmp_path)
        other = type(scheduler).from_pretrained(tmp_path)
    elif way == "config":
        other = type(scheduler).from_config(scheduler.config)
    else:
        other = copy.deepcopy(scheduler) if way == "copied" else pickle.loads(pickle.dumps(scheduler))
    assert {**other.config, "_use_default_values": 0} == {**scheduler.config, "_use_default_values": 0}
    other.set_timesteps(STEPS)
    assert torch.equal(loop(other, ramp()), loop(scheduler, ramp()))


def test_a_tuple_holds_the_same() -> None:
    x, outputs = ramp(), []
    for as_dict in (True, False):
        scheduler = set_up()
        t = scheduler.timesteps[0]
        outputs.append(scheduler.step(network(x, t), t, x, return_dict=as_dict))
    assert isinstance(outputs[1], tuple)
    assert torch.equal(outputs[0].prev_sample, outputs[1][0])


SIBLINGS = [kind.name for kind in diffusers.schedulers.KarrasDiffusionSchedulers]


def sibling(name: str, **config: Any) -> Any:
    """A stock scheduler; the one that needs torchsde is a test where that is installed."""
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    return getattr(diffusers, name).from_config(config)


@pytest.mark.parametrize("name", [*SIBLINGS, "FlowMatchEulerDiscreteScheduler"])
def test_there_and_back_through_any_sibling(name: str, said: list[str]) -> None:
    """The configuration comes back as it was, and nobody complains on the way but those that know no betas."""
    kind = "flow_prediction" if name.startswith("Flow") else "v_prediction"
    first = EVODiffScheduler(**CONFIG, prediction_type=kind)
    back = EVODiffScheduler.from_config(sibling(name, **first.config).config)
    own = {key: value for key, value in first.config.items() if not key.startswith("_")}
    assert {key: back.config[key] for key in own} == own
    if name in (
        "EDMEulerScheduler",
        "FlowMatchEulerDiscreteScheduler",
    ):  # diffusers cannot look up whose keys these are
        assert ["are not expected and will be ignored" in line for line in said] == [True]
    else:
        assert said == []


@pytest.mark.parametrize("name", SIBLINGS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_a_stock_configuration_becomes_ours(name: str, spacing: str, said: list[str]) -> None:
    """And is told once, and only then, that it does not get its leading timesteps."""
    stock = sibling(name, prediction_type="v_prediction", timestep_spacing=spacing)
    if "timestep_spacing" not in stock.config:  # of continuous models
        pytest.skip(f"{name} has no spacings")
    said.clear()
    config = EVODiffScheduler.from_config(stock.config).config
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
    assert ["'trailing' is used" in line for line in said] == [True] * (spacing == "leading")
