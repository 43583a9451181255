"""Levels and kinds of networks, as configurations of diffusers say them; the reference is diffusers itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    IPNDMScheduler,
    UniPCMultistepScheduler,
)

from fewstep.adapters.diffusers_config import described, shift_of
from fewstep.adapters.diffusers_levels import Asked, visited
from fewstep.denoisers import PREDICTIONS
from fewstep.errors import ConfigError, GridError, LevelError, UnknownName
from fewstep.noise import LinearFlow

# Of diffusers, under numpy 2: "__array__ implementation doesn't accept a copy keyword".
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TABLES = {
    "ddpm": {},
    "stable_diffusion": SD,
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero_snr": {**SD, "rescale_betas_zero_snr": True},
    "short": {"num_train_timesteps": 25},
}


def levels(config, **asked):
    return visited(config, described(config), Asked(**asked))


@pytest.mark.parametrize("config", TABLES.values(), ids=TABLES)
def test_tables_are_those_of_diffusers(config):
    stock = DPMSolverMultistepScheduler(**config)
    table = torch.tensor(described(stock.config).schedule.alphas_cumprod)
    # Theirs are products of a thousand float32; the cosine's last beta, 0.999, costs 1 - beta three digits.
    torch.testing.assert_close(table.float(), stock.alphas_cumprod, rtol=1e-4, atol=0)


def test_zero_snr_of_ddpm_betas_still_falls():
    """Diffusers' 2 ** -24 would lie above the timestep before it: their last two levels are the wrong way round."""
    config = {"beta_schedule": "linear", "rescale_betas_zero_snr": True}
    stock = DPMSolverMultistepScheduler(**config).alphas_cumprod
    assert stock[-1] > stock[-2]
    *_, before, last = described(config).schedule.alphas_cumprod
    assert 0 < last < before


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("config", [{}, SD], ids=["ddpm", "stable_diffusion"])
def test_timesteps_are_those_of_diffusers(spacing, config):
    for steps in range(1, 101):
        stock = DPMSolverMultistepScheduler(**config, timestep_spacing=spacing)
        stock.set_timesteps(steps)
        ours = levels(stock.config, steps=steps)
        if (
            len(stock.timesteps) == steps
        ):  # where rounding adds none: at 61 trailing steps diffusers has 62, the last -1
            assert ours.timesteps.tolist() == stock.timesteps.tolist()
            torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=1e-4, atol=0)  # theirs are of float32
        assert len(ours.timesteps) == steps


@pytest.mark.parametrize("ramp", ["use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas", "use_beta_sigmas"])
def test_ramps_are_those_of_diffusers_with_the_end_as_their_last(ramp):
    if ramp == "use_beta_sigmas":
        pytest.importorskip("scipy")
    stock = DPMSolverMultistepScheduler(**SD, **{ramp: True})
    stock.set_timesteps(8)  # 8 sigmas of the ramp, and 0
    ours = levels(stock.config, steps=7)
    torch.testing.assert_close(ours.sigmas[:-1], stock.sigmas[:7], rtol=1e-4, atol=0)
    assert ours.sigmas[-1] == 0
    to_the_end = levels({**stock.config, "final_sigmas_type": "sigma_min"}, steps=7)
    torch.testing.assert_close(to_the_end.sigmas, stock.sigmas[:8], rtol=1e-4, atol=0)
    # Rounded, theirs may be one off; ours are exact.
    assert (ours.timesteps - stock.timesteps[:7]).abs().max() < 1.01


def test_karras_levels_of_a_cosine_schedule_are_told_apart():
    """diffusers#12771: rounded to whole timesteps, two of them are one."""
    config = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
    stock = DPMSolverMultistepScheduler(**config)
    stock.set_timesteps(20)
    assert len(set(stock.timesteps.tolist())) < 20
    assert len(set(levels(config, steps=20).timesteps.tolist())) == 20


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 50, 100, 999, 1000, 1500])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_any_number_of_steps_has_levels_that_fall(steps, end, spacing):
    ours = levels({**SD, "timestep_spacing": spacing, "final_sigmas_type": end}, steps=steps)
    assert len(ours.timesteps) == steps == len(ours.sigmas) - 1
    assert bool((ours.sigmas.diff() < 0).all())
    assert ours.timesteps[0] == 999
    smallest = ((1 - 0.99915) / 0.99915) ** 0.5
    assert ours.sigmas[-1].item() == pytest.approx(0 if end == "zero" else smallest, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_a_shift_is_applied_once(steps):
    """diffusers#13243: the stock scheduler shifts the smallest level twice, from 1 / 1000 to .0089."""
    stock = FlowMatchEulerDiscreteScheduler(shift=3.0)
    stock.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    ours = levels(stock.config, steps=steps)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.timesteps, stock.timesteps, rtol=1e-6, atol=0)
    stock.set_timesteps(4)
    assert stock.sigmas[-2].item() == pytest.approx(0.0089, abs=1e-4)
    assert levels(stock.config, steps=4).sigmas.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("terminal", [None, 0.1])
def test_dynamic_shift_and_terminal_are_those_of_diffusers(kind, terminal):
    stock = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind, shift_terminal=terminal)
    given = np.linspace(1, 1 / 6, 6)
    stock.set_timesteps(sigmas=given, mu=1.15)
    torch.testing.assert_close(levels(stock.config, sigmas=given, mu=1.15).sigmas, stock.sigmas, rtol=1e-6, atol=1e-7)
    assert levels(stock.config, steps=6, mu=1.15).sigmas.tolist() == pytest.approx(stock.sigmas.tolist(), abs=1e-6)


def test_flow_sigmas_of_dpm_solver_are_the_same_path():
    """Sana's scheduler: its levels begin at .9997, ours at pure noise, which is what a pipeline feeds."""
    stock = DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    stock.set_timesteps(4)
    ours = levels(stock.config, steps=4)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, atol=5e-4, rtol=0)
    assert ours.sigmas[0] == 1


def test_published_sigmas_and_timesteps_are_taken_as_they_are():
    from diffusers.schedulers import AysSchedules

    sigmas = AysSchedules["StableDiffusionXLSigmas"]
    ours = levels(SD, sigmas=sigmas)
    assert ours.sigmas.tolist() == pytest.approx(sigmas, rel=1e-4)
    assert (ours.timesteps - torch.tensor(AysSchedules["StableDiffusionXLTimesteps"])).abs().max() < 1.5
    given = levels(SD, timesteps=[999, 500, 3])
    assert given.timesteps.tolist() == [999, 500, 3]
    assert levels({**SD, "final_sigmas_type": "sigma_min"}, timesteps=[999, 500, 0]).sigmas[-1] == 0


def test_a_level_below_the_first_timestep_is_told_as_timestep_0():
    ours = levels(SD, sigmas=[14.6, 1.0, 0.01])
    assert ours.timesteps[-1] == 0
    assert ours.sigmas[2].item() == pytest.approx(0.01, rel=1e-5)


def test_the_noisy_end_can_be_cut_off():
    stock = DPMSolverMultistepScheduler(**SD, lambda_min_clipped=-2.0, timestep_spacing="trailing")
    stock.set_timesteps(6)
    assert levels(stock.config, steps=6).timesteps.tolist()[0] == stock.timesteps.tolist()[0] == 876


PREDICTED = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


@pytest.mark.parametrize("said", PREDICTED)
def test_predictions(said):
    known = described({"beta_schedule": "linear", "prediction_type": said})
    assert known.prediction == PREDICTIONS[PREDICTED[said]]()
    assert known.flow == (said == "flow_prediction")


@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_flow_schedulers_are_flows_also_without_a_name(kind):
    known = described(kind(shift=3.0).config)
    assert known.flow
    assert known.schedule == LinearFlow()
    assert described({"_class_name": kind.__name__}).flow
    for stock in (DDIMScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler):
        assert not described(stock().config).flow


REFUSED = {
    "prediction": ({**SD, "prediction_type": "score"}, UnknownName, "flow_prediction"),
    "betas": ({"beta_schedule": "sigmoid"}, UnknownName, "scaled_linear"),
    "edm": (dict(EDMEulerScheduler().config), ConfigError, "EDM"),
    "continuous": ({"timestep_type": "continuous"}, ConfigError, "EDM"),
    "inverted": ({"shift": 1.0, "invert_sigmas": True}, ConfigError, "inverted sigmas"),
    "shifted table": ({"beta_schedule": "scaled_linear", "snr_shift_scale": 3.0}, ConfigError, "snr_shift_scale"),
    "no betas": (dict(IPNDMScheduler().config), ConfigError, "neither betas nor a flow"),
}


@pytest.mark.parametrize(("config", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_foreign_configurations_are_refused(config, error, said):
    with pytest.raises(error, match=said):
        described(config)


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
WRONG = {
    "nothing": (SD, {}, ConfigError, "One of"),
    "two lists": (SD, {"timesteps": [9], "sigmas": [1.0]}, ConfigError, "One of"),
    "no steps": (SD, {"steps": 0}, GridError, "One step or more"),
    "count": (SD, {"steps": 3, "timesteps": [999, 1]}, GridError, "One for every call"),
    "rising": (SD, {"timesteps": [1, 999]}, GridError, "fall strictly"),
    "repeated": (SD, {"timesteps": [999, 1, 1]}, GridError, "fall strictly"),
    "nan": (SD, {"sigmas": [float("nan")]}, GridError, "Finite"),
    "only the end": (SD, {"sigmas": [0.0]}, GridError, "One for every call"),
    "timestep": (SD, {"timesteps": [1000]}, LevelError, "0 to 999"),
    "flow sigmas on a table": (SD, {"sigmas": [1.0, 0.75, 0.5, 0.25]}, LevelError, "sigmas of a flow"),
    "beyond the table": (SD, {"sigmas": [80.0, 1.0]}, LevelError, "14.615 down"),
    "kappas on a flow": (FLOW, {"sigmas": [14.6, 1.0]}, LevelError, "at most 1"),
    "timesteps of another scale": (FLOW, {"timesteps": [1500.0, 3.0]}, LevelError, "at most 1"),
    "mu on a table": (SD, {"steps": 4, "mu": 1.0}, ConfigError, "mu"),
    "no mu": ({**FLOW, "use_dynamic_shifting": True}, {"steps": 4}, ConfigError, "mu="),
    "two shifts": ({**FLOW, "shift": 3.0, "flow_shift": 2.0}, {"steps": 4}, ConfigError, "applied once"),
    "two ramps": (SD | {"use_karras_sigmas": True, "use_beta_sigmas": True}, {"steps": 4}, ConfigError, "decides"),
    "ramp and list": (SD | {"use_karras_sigmas": True}, {"timesteps": [999]}, ConfigError, "decides"),
    "spacing": (SD | {"timestep_spacing": "cubic"}, {"steps": 4}, ConfigError, "trailing"),
    "end": (SD | {"final_sigmas_type": "one"}, {"steps": 4}, ConfigError, "sigma_min"),
    "all clipped": (SD | {"lambda_min_clipped": 9.0}, {"steps": 4}, ConfigError, "lambda_min_clipped"),
}


@pytest.mark.parametrize(("config", "asked", "error", "said"), WRONG.values(), ids=WRONG)
def test_levels_of_the_wrong_kind_are_refused(config, asked, error, said):
    with pytest.raises(error, match=said):
        levels(config, **asked)


def test_a_mu_that_nobody_asked_for_changes_nothing():
    """Flux's pipeline passes it to every scheduler, and schnell's does not shift."""
    stock = FlowMatchEulerDiscreteScheduler(shift=1.0)
    given = np.linspace(1, 1 / 4, 4)
    stock.set_timesteps(sigmas=given, mu=1.15)
    assert levels(stock.config, sigmas=given, mu=1.15).sigmas.tolist() == pytest.approx(stock.sigmas.tolist())


def test_one_shift_under_two_names_is_one():
    assert shift_of({"shift": 3.0, "flow_shift": 3.0}) == 3
    assert shift_of({"shift": 1.0, "flow_shift": 3.0}) == 3
