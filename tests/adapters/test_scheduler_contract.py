"""The contract of a scheduler of diffusers, in our own words: whatever a pipeline or a script asks for, it gives."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from tests.adapters.scheduler_loops import CONFIG, STEPS, calibrated, gap, loop, network, ramp, set_up

from fewstep.errors import ConfigError
from fewstep.schedulers import EVODiffScheduler

# Stock schedulers hand tensors to numpy in a way that numpy 2 frowns at.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{name}:DeprecationWarning")
    for name in ("__array__ implementation doesn't accept", "__array_wrap__ must accept")
]


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
    flow = {"use_flow_sigmas": True} if kind == "flow_prediction" else {}  # as from_config of a flow says it
    # Written down, as in every checkpoint: what is not, some siblings fill in with betas of their own.
    betas = {"beta_start": 0.0001, "beta_end": 0.02}
    first = EVODiffScheduler(**{**betas, **CONFIG}, prediction_type=kind, **flow)
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
    if "sigma_data" in stock.config:
        with pytest.raises(ConfigError, match="continuous EDM"):
            EVODiffScheduler.from_config(stock.config)
        return
    if "timestep_spacing" not in stock.config:
        pytest.skip(f"{name} has no spacings")
    said.clear()
    config = EVODiffScheduler.from_config(stock.config).config
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
    assert ["'trailing' is used" in line for line in said] == [True] * (spacing == "leading")
