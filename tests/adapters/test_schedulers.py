"""Schedulers of diffusers around our core: the same numbers, noise and gradients; and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import diffusers
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.utils import logging
from torch.utils.checkpoint import checkpoint

import fewstep
from fewstep.calibration import Entry, Origin, Table, said_schedule
from fewstep.denoisers import NetworkDenoiser
from fewstep.errors import CheckpointError, ConfigError, FewstepError, GridError, LevelError, UnknownName
from fewstep.noise import LinearFlow, Tabulated
from fewstep.schedulers import CalibratedScheduler, EVODiffScheduler
from fewstep.solvers import DDIM, EVODiff, TabulatedSolver

# Of diffusers, under numpy 2: "__array__ implementation doesn't accept a copy keyword".
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
KINDS = {
    "eps": SD,
    "v": {**SD, "prediction_type": "v_prediction"},
    "v zero snr": {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "sample": {**SD, "prediction_type": "sample"},
    "flow": FLOW,
    "karras": {**SD, "use_karras_sigmas": True},
    "sigma_min": {**SD, "final_sigmas_type": "sigma_min"},
}


class Net(torch.nn.Module):
    """A network of the timestep, unlike any denoiser, so that every step and level leaves its trace."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.3, 0.7, -0.2]))

    def forward(self, x, t):
        t = torch.as_tensor(t, dtype=torch.float32) / 1000
        a, b, c = self.weight.to(x)
        return a * x + b * torch.tanh(3 * x.roll(1, -1) - t.to(x)) + c * t.to(x)


def noise(shape=(2, 4, 8, 8), seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(scheduler, net, x, start=0):
    for t in scheduler.timesteps[start:]:
        x = scheduler.step(net(scheduler.scale_model_input(x, t), t), t, x, return_dict=False)[0]
    return x


def core_of(scheduler, net):
    """The same network as a denoiser of the core, told the scheduler's own timesteps."""
    told = {level.item(): t for level, t in zip(scheduler.grid.levels.sigma, scheduler.timesteps, strict=False)}
    known = scheduler._known

    def denoise(x, level, cond=None):
        out = net(x, told[level.sigma.item()])
        return known.prediction.to_denoised(out, x, level)

    return denoise


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_a_run_is_that_of_the_core_bit_for_bit(config, steps):
    scheduler, net = EVODiffScheduler(**config), Net()
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        through = run(scheduler, net, noise())
        core = fewstep.sample(core_of(scheduler, net), EVODiff(), scheduler.grid, noise())
    assert core.nfe == steps
    assert torch.equal(through, core.x)


@pytest.mark.parametrize(("config", "label"), [(SD, "eps"), (KINDS["v"], "v"), (FLOW, "flow")])
def test_a_network_denoiser_on_the_same_grid_gives_the_same(config, label):
    """Through the core's own way from network to denoised: another route to the same levels."""
    scheduler, net = EVODiffScheduler(**config), Net()
    scheduler.set_timesteps(6)
    known = scheduler._known
    assert said_schedule(known.schedule) == (said_schedule(LinearFlow()) if label == "flow" else repr(known.schedule))

    def body(x, angle, cond=None):
        near = (torch.atan2(*scheduler.grid.levels[::-1]) * (2 / torch.pi) - angle[0].double()).abs().argmin()
        return net(x, scheduler.timesteps[near])

    denoiser = NetworkDenoiser(body, known.prediction, known.schedule)
    with torch.no_grad():
        core = fewstep.sample(denoiser, EVODiff(), scheduler.grid, noise()).x
        assert (run(scheduler, net, noise()) - core).abs().max() < 1e-5 * core.abs().max()


def test_half_precision_goes_out_as_it_came_in_and_is_computed_in_float32():
    net, scheduler = Net(), EVODiffScheduler(**SD)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        scheduler.set_timesteps(4)
        x = noise(dtype=dtype)
        with torch.no_grad():
            out = run(scheduler, net, x)
        assert out.dtype == dtype
    scheduler.set_timesteps(1)
    t, x = scheduler.timesteps[0], noise(dtype=torch.float16)
    out = net(x, t)
    expected = EVODiffScheduler(**SD)
    expected.set_timesteps(1)
    assert torch.equal(scheduler.step(out, t, x)[0], expected.step(out.float(), t, x.float())[0].half())


def test_a_learned_variance_is_left_out():
    scheduler = EVODiffScheduler(**SD, variance_type="learned_range")
    scheduler.set_timesteps(3)
    x, out = noise(), noise(seed=1)
    doubled = torch.cat([out, noise(seed=2)], 1)
    first = scheduler.step(doubled, scheduler.timesteps[0], x).prev_sample
    scheduler.set_timesteps(3)
    assert torch.equal(first, scheduler.step(out, scheduler.timesteps[0], x).prev_sample)


def test_thresholding_is_that_of_diffusers():
    stock = DPMSolverMultistepScheduler(**SD, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.7)
    ours = EVODiffScheduler.from_config(stock.config)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(1)
    x, out = noise(), noise(seed=1)
    # One step to sigma = 0 returns the thresholded estimate itself.
    left, right = (scheduler.step(out, scheduler.timesteps[0], x).prev_sample for scheduler in (ours, stock))
    assert left.abs().max() <= 1
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda: EVODiffScheduler(**SD), lambda: EVODiffScheduler(**FLOW), lambda: calibrated(4)]
)
def test_no_step_waits_for_a_device(make):
    """On a device whose numbers cannot be read at all; pipelines say where they begin, so no timestep is looked up."""
    scheduler = make()
    scheduler.set_timesteps(4, device="meta")
    scheduler.set_begin_index(0)
    x = torch.empty(2, 4, 8, 8, device="meta", dtype=torch.float16)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(torch.empty_like(x), t, scheduler.scale_model_input(x, t)).prev_sample
    assert (x.shape, x.device.type, x.dtype) == ((2, 4, 8, 8), "meta", torch.float16)


# Noise


def test_noise_of_any_timestep_is_that_of_the_training_table():
    """Diffusers looks in the few timesteps that are set, and takes the last sigma for any other."""
    scheduler = EVODiffScheduler(**SD)
    scheduler.set_timesteps(4)
    x0, eps, t = noise(), noise(seed=1), torch.tensor([3, 500])
    bar = torch.tensor(scheduler.alphas_cumprod[t].tolist()).reshape(2, 1, 1, 1)
    expected = bar.sqrt() * x0 + (1 - bar).sqrt() * eps
    torch.testing.assert_close(scheduler.add_noise(x0, eps, t), expected, rtol=1e-5, atol=1e-6)
    flow = EVODiffScheduler(**FLOW)
    flow.set_timesteps(4)
    torch.testing.assert_close(flow.scale_noise(x0, torch.tensor([250.0]), eps), 0.75 * x0 + 0.25 * eps)
    for made, wrong in ((scheduler, 1000), (scheduler, -1), (flow, 1001.0)):
        with pytest.raises(LevelError, match="knows the timesteps"):
            made.add_noise(x0, eps, torch.tensor([wrong]))


@pytest.mark.parametrize("config", [SD, FLOW], ids=["table", "flow"])
def test_noise_for_image_to_image_and_inpainting_is_that_of_the_step(config):
    scheduler, net = EVODiffScheduler(**config), Net()
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(2)
    x0, eps = noise(), noise(seed=1)

    def noised(k):
        alpha, sigma = scheduler.grid.at(k)
        return alpha * x0 + sigma * eps

    begun = scheduler.add_noise(x0, eps, scheduler.timesteps[2:3].repeat(2))
    assert torch.equal(begun, noised(2))
    x = begun
    with torch.no_grad():
        for k, t in enumerate(scheduler.timesteps[2:], start=2):
            x = scheduler.step(net(x, t), t, x).prev_sample
            assert scheduler.step_index == k + 1
            # Whatever timestep is named: pipelines name the next one.
            assert torch.equal(scheduler.add_noise(x0, eps, torch.tensor([7.0])), noised(k + 1))


def test_a_later_start_is_a_run_of_the_core_from_there():
    scheduler, net = EVODiffScheduler(**SD), Net()
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(2)
    with torch.no_grad():
        through = run(scheduler, net, noise(), start=2)
        start = fewstep.start_from(torch.zeros(2, 4, 8, 8), 4 / 6, scheduler.grid, lambda *_: noise())
        scheduler.set_timesteps(6)
        assert torch.equal(start.grid.levels.sigma, scheduler.grid.levels.sigma[2:])
        core = fewstep.sample(core_of(scheduler, net), EVODiff(), start.grid, noise())
    assert torch.equal(through, core.x)


def test_a_start_is_found_by_its_timestep_where_no_pipeline_sets_it():
    scheduler, net = EVODiffScheduler(**SD), Net()
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(3)
    with torch.no_grad():
        set_by_pipeline = run(scheduler, net, noise(), start=3)
        scheduler.set_timesteps(6)
        assert torch.equal(run(scheduler, net, noise(), start=3), set_by_pipeline)


def test_velocity_is_the_target_of_v_prediction():
    ours, stock = EVODiffScheduler(**SD), DDPMScheduler(**SD)
    x0, eps, t = noise(), noise(seed=1), torch.tensor([10, 900])
    torch.testing.assert_close(ours.get_velocity(x0, eps, t), stock.get_velocity(x0, eps, t), rtol=1e-4, atol=1e-5)


# State


def test_set_timesteps_forgets_the_last_run():
    scheduler, net = EVODiffScheduler(**SD), Net()
    with torch.no_grad():
        scheduler.set_timesteps(5)
        first = run(scheduler, net, noise())
        scheduler.set_timesteps(5)
        assert torch.equal(run(scheduler, net, noise()), first)
    assert (scheduler.step_index, scheduler.begin_index) == (5, None)
    with pytest.raises(ConfigError, match="after the last of 5"):
        scheduler.step(noise(), scheduler.timesteps[-1], noise())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["deepcopy", "pickle"])
def test_a_copy_in_the_middle_of_a_run_goes_on_alone(copied):
    scheduler, net = EVODiffScheduler(**SD), Net()
    with torch.no_grad():
        scheduler.set_timesteps(5)
        whole = run(scheduler, net, noise())
        scheduler.set_timesteps(5)
        x = noise()
        for t in scheduler.timesteps[:2]:
            x = scheduler.step(net(x, t), t, x).prev_sample
        assert torch.equal(run(copied(scheduler), net, x, start=2), whole)
        assert scheduler.step_index == 2


@pytest.mark.parametrize("make", [lambda: EVODiffScheduler(**SD), lambda: calibrated(4)], ids=["evodiff", "calibrated"])
def test_checkpointed_steps_have_the_gradient_of_the_core(make):
    """Activation checkpointing runs a step again; stock multistep schedulers have moved on by then, and raise."""
    net = Net()
    scheduler = make()
    scheduler.set_timesteps(4)

    def step(x, t):
        return scheduler.step(net(x, t), t, x, return_dict=False)[0]

    x = noise()
    for t in scheduler.timesteps:
        x = checkpoint(step, x, t, use_reentrant=False)
    (through,) = torch.autograd.grad(x.square().sum(), net.weight)
    solver = EVODiff() if isinstance(scheduler, EVODiffScheduler) else TabulatedSolver(WEIGHTS)
    core = fewstep.sample(core_of(scheduler, net), solver, scheduler.grid, noise(), unroll=fewstep.Full()).x
    (expected,) = torch.autograd.grad(core.square().sum(), net.weight)
    assert torch.equal(x, core)
    torch.testing.assert_close(through, expected, rtol=1e-5, atol=0)


def test_the_stock_scheduler_fails_under_checkpointing():
    """The reason for the test before this one; it goes when diffusers mends it."""
    scheduler, net, x = DPMSolverMultistepScheduler(**SD), Net(), noise()
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps:
        x = checkpoint(lambda x, t: scheduler.step(net(x, t), t, x, return_dict=False)[0], x, t, use_reentrant=False)
    with pytest.raises((IndexError, RuntimeError)):
        x.sum().backward()


# Calibrated

WEIGHTS = ((-0.2,), (0.1, -0.3), (0.0, 0.2, -0.25))
KAPPA = (14.0, 4.0, 1.5, 0.4, 0.05)


def table_of(nfe=4, *, first=False, schedule=""):
    kappa = KAPPA if nfe == 4 else tuple(14.0 * 0.3**i for i in range(nfe + 1))
    weights = WEIGHTS if nfe == 4 else tuple(tuple([0.0] * (i + 1)) for i in range(nfe - 1))
    entry = Entry(kappa, weights, first, "ddim", "by hand", 0.1, 0.1, 0.1)
    return Table(Origin(schedule=schedule), {entry.nfe: entry}, torch.zeros(4, 8, 8) if first else None)


def calibrated(nfe=4, **config):
    return CalibratedScheduler(**{**SD, **config}, calibration=table_of(nfe).to_json())


@pytest.mark.parametrize("config", [SD, FLOW], ids=["table", "flow"])
def test_a_calibrated_run_is_that_of_the_core(config):
    scheduler, net = calibrated(**config), Net()
    scheduler.set_timesteps(4)
    assert scheduler.grid.levels.kappa.tolist() == pytest.approx(KAPPA)
    with torch.no_grad():
        core = fewstep.sample(core_of(scheduler, net), TabulatedSolver(WEIGHTS, KAPPA), scheduler.grid, noise()).x
        assert torch.equal(run(scheduler, net, noise()), core)


def test_a_first_estimate_that_saves_a_call_is_a_call_here():
    """A pipeline calls its network at every timestep: 3 calls and a given estimate are 4 steps."""
    scheduler, net = CalibratedScheduler(**SD, calibration=table_of(4, first=True).to_json()), Net()
    with pytest.raises(ConfigError, match="steps: 4"):
        scheduler.set_timesteps(3)
    scheduler.set_timesteps(4)
    ordinary = calibrated()
    ordinary.set_timesteps(4)
    with torch.no_grad():
        assert torch.equal(run(scheduler, net, noise()), run(ordinary, net, noise()))


def test_noise_is_scaled_to_where_a_run_begins():
    """Pipelines multiply their noise by it: 1 on a circle and at pure noise, less on a straight path begun later."""
    for scheduler, expected in ((calibrated(), 1.0), (calibrated(**FLOW), (1 + 14.0**2) ** 0.5 / 15)):
        scheduler.set_timesteps(4)
        assert scheduler.init_noise_sigma == pytest.approx(expected)


def test_zero_weights_are_ddim():
    scheduler, net = calibrated(3), Net()
    scheduler.set_timesteps(3)
    with torch.no_grad():
        core = fewstep.sample(core_of(scheduler, net), DDIM(), scheduler.grid, noise()).x
        torch.testing.assert_close(run(scheduler, net, noise()), core)


def test_a_later_start_keeps_the_weights_of_what_is_there():
    scheduler, net = calibrated(), Net()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(2)
    rest = fewstep.start_from(torch.zeros(2, 4, 8, 8), 0.5, scheduler.grid, lambda *_: noise()).grid
    with torch.no_grad():
        # Steps 2 and 3; of the last row only the share of estimate 2 is left.
        core = fewstep.sample(core_of(scheduler, net), TabulatedSolver(((-0.25,),)), rest, noise()).x
        assert torch.equal(run(scheduler, net, noise(), start=2), core)


def test_the_table_travels_with_the_configuration(tmp_path):
    path = tmp_path / "calibration.json"
    table_of().save(path)
    scheduler = CalibratedScheduler.from_config(EulerDiscreteScheduler(**SD).config, calibration=str(path))
    path.unlink()
    scheduler.save_pretrained(tmp_path)
    loaded = CalibratedScheduler.from_pretrained(tmp_path)
    loaded.set_timesteps(4)
    assert loaded.sigmas.tolist() == pytest.approx(KAPPA)
    there = EVODiffScheduler.from_config(DPMSolverMultistepScheduler.from_config(loaded.config).config)
    assert CalibratedScheduler.from_config(there.config).config.calibration == table_of().to_json()


CALIBRATION = {
    "none": (lambda: CalibratedScheduler(**SD), ConfigError, "calibration=None"),
    "no file": (
        lambda: CalibratedScheduler.from_config(SD, calibration="nowhere.json"),
        CheckpointError,
        r"nowhere\.json",
    ),
    "a file that a configuration names": (
        lambda: CalibratedScheduler.from_config({**SD, "calibration": "/dev/zero"}),
        ConfigError,
        "path in from_config",
    ),
    "no table": (lambda: CalibratedScheduler(calibration={"a": 1}), CheckpointError, "fewstep calibrate"),
    "other calls": (lambda: calibrated().set_timesteps(5), ConfigError, "steps: 4"),
    "timesteps": (lambda: calibrated().set_timesteps(timesteps=[9]), ConfigError, "own levels"),
    "other model": (
        lambda: CalibratedScheduler(**SD, calibration=table_of(schedule="EDM(80)").to_json()),
        ConfigError,
        "fitted on EDM",
    ),
    "beyond": (lambda: calibrated(trained_betas=[0.1, 0.2, 0.3]).set_timesteps(4), LevelError, "clock"),
}


@pytest.mark.parametrize(("make", "error", "said"), CALIBRATION.values(), ids=CALIBRATION)
def test_tables_that_do_not_fit_are_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()


# Configurations


def test_from_any_configuration_and_back():
    flow = EVODiffScheduler.from_config(FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    assert flow.config.prediction_type == "flow_prediction"
    flow.set_timesteps(4)
    back = FlowMatchEulerDiscreteScheduler.from_config(flow.config)
    assert back.config.shift == 3
    sibling = DPMSolverMultistepScheduler.from_config(flow.config)
    sibling.set_timesteps(4)
    torch.testing.assert_close(sibling.sigmas, flow.sigmas, atol=5e-4, rtol=0)
    named = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "stochastic_sampling": False}
    assert EVODiffScheduler.from_config(named).config.shift == 3


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("length", [500, 1000])
def test_before_set_timesteps_a_flow_has_the_levels_of_its_training(shift, length):
    """Training scripts read them."""
    stock = FlowMatchEulerDiscreteScheduler(num_train_timesteps=length, shift=shift)
    ours = EVODiffScheduler.from_config(stock.config)
    assert len(ours.timesteps) == length
    torch.testing.assert_close(ours.sigmas, stock.sigmas)
    torch.testing.assert_close(ours.timesteps, stock.timesteps, rtol=1e-6, atol=1e-4)


def test_sigmas_that_only_count_are_a_number_of_steps():
    """Flux's image-to-image pipeline always passes 1, 1 - 1/n ... 1/n."""
    scheduler = calibrated(**FLOW)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=1.15)
    assert scheduler.grid.levels.kappa.tolist() == pytest.approx(KAPPA)
    with pytest.raises(ConfigError, match="own levels"):
        scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.5, 0.25])


def test_clipping_is_said_not_to_be_done():
    with Logged() as said:
        EVODiffScheduler.from_config({**SD, "clip_sample": True})
    assert len(said.lines) == 1
    assert "thresholding=True" in said.lines[0]


def test_what_is_not_done_is_said_once():
    with Logged() as said:
        scheduler = EVODiffScheduler.from_config({**SD, "solver_order": 3, "timestep_spacing": "leading"})
    assert len(said.lines) == 1
    assert all(word in said.lines[0] for word in ("solver_order=3", "leading", "pure noise"))
    assert (scheduler.config.solver_order, scheduler.config.timestep_spacing) == (2, "trailing")
    with Logged() as said:
        EVODiffScheduler.from_config(DPMSolverMultistepScheduler(**SD).config)
        EVODiffScheduler.from_config(FlowMatchEulerDiscreteScheduler().config)
    assert said.lines == []


class Logged:
    """What diffusers' logger says meanwhile."""

    def __enter__(self):
        import logging as standard

        self.lines = []
        self.handler = standard.Handler()
        self.handler.emit = lambda record: self.lines.append(record.getMessage())
        logging.get_logger("diffusers").addHandler(self.handler)
        logging.get_logger("fewstep.adapters.scheduler_levels").addHandler(self.handler)
        return self

    def __exit__(self, *_):
        logging.get_logger("diffusers").removeHandler(self.handler)
        logging.get_logger("fewstep.adapters.scheduler_levels").removeHandler(self.handler)


@pytest.mark.parametrize(
    "wrong",
    [{"algorithm_type": "magic"}, {"solver_type": "magic"}, {"prediction_type": "magic"}, {"beta_schedule": "magic"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_unknown_words_are_refused(wrong):
    with pytest.raises(FewstepError, match="magic"):
        EVODiffScheduler(**wrong)


def test_a_step_before_set_timesteps_is_refused():
    with pytest.raises(ConfigError, match="set_timesteps"):
        EVODiffScheduler().step(noise(), 3, noise())


def test_the_public_path_is_what_a_saved_pipeline_names(tmp_path):
    from diffusers import DDPMPipeline, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, EVODiffScheduler()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == [
        "fewstep.schedulers",
        "EVODiffScheduler",
    ]
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is EVODiffScheduler
    loaded.set_progress_bar_config(disable=True)
    images = loaded(num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (1, 8, 8, 3)


def test_tables_of_both_kinds_are_described():
    assert isinstance(EVODiffScheduler(**SD)._known.schedule, Tabulated)
    assert len(EVODiffScheduler(**FLOW).betas) == 0
    assert len(EVODiffScheduler(**SD)) == 1000


FOREIGN = {
    "EDM": diffusers.EDMDPMSolverMultistepScheduler(),
    "EDM Euler": diffusers.EDMEulerScheduler(),
    "SVD": EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
    "CogVideoX": diffusers.CogVideoXDDIMScheduler(snr_shift_scale=3.0),
    "trigflow": diffusers.SCMScheduler(),
    "consistency": diffusers.CMStochasticIterativeScheduler(),
    "Mochi": FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    "nothing": None,
}


@pytest.mark.parametrize("stock", FOREIGN.values(), ids=FOREIGN)
def test_configurations_of_other_models_are_refused_before_their_keys_are_lost(stock, tmp_path):
    with pytest.raises(ConfigError, match="Supported are"):
        EVODiffScheduler.from_config({} if stock is None else stock.config)
    if stock is not None:
        stock.save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="Supported are"):
            EVODiffScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name", ["LCMScheduler", "TCDScheduler", "UnCLIPScheduler", "DDPMScheduler", "EulerDiscreteScheduler"]
)
def test_a_network_keeps_the_betas_that_another_class_filled_in(name):
    """LCM's are Stable Diffusion's by default, and diffusers hands on only what was written down."""
    stock = getattr(diffusers, name)()
    bar = EVODiffScheduler.from_config(stock.config).alphas_cumprod
    torch.testing.assert_close(bar, stock.alphas_cumprod, rtol=1e-4, atol=1e-9)


def test_a_flow_stays_one_at_stock_schedulers_and_on_the_way_back():
    """SD3's configuration through DPM-Solver++, which says epsilon by default, and ours at it."""
    sd3 = FlowMatchEulerDiscreteScheduler(shift=3.0)
    there = DPMSolverMultistepScheduler.from_config(sd3.config)
    back = EVODiffScheduler.from_config(there.config)
    back.set_timesteps(4)
    assert back.sigmas.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    for kind in (DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler):
        stock = kind.from_config(EVODiffScheduler.from_config(sd3.config).config)
        stock.set_timesteps(4)
        torch.testing.assert_close(stock.sigmas, back.sigmas, atol=5e-3, rtol=0)
        assert (stock.config.prediction_type, stock.config.flow_shift) == ("flow_prediction", 3.0)


@pytest.mark.parametrize("name", ["shift", "flow_shift"])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_a_shift_that_is_typed_counts(name, shift, tmp_path):
    sd3 = FlowMatchEulerDiscreteScheduler(shift=3.0).config
    sd3_ours = EVODiffScheduler.from_config(sd3)
    sd3_ours.save_pretrained(tmp_path)
    made = [EVODiffScheduler.from_config(config, **{name: shift}) for config in (sd3, sd3_ours.config)]
    for scheduler in (*made, EVODiffScheduler.from_pretrained(tmp_path, **{name: shift})):
        scheduler.set_timesteps(4)
        assert scheduler.sigmas[2].item() == pytest.approx(shift / (1 + shift))
    with pytest.raises(ConfigError, match="Two names"):
        EVODiffScheduler.from_config(sd3, shift=2.0, flow_shift=4.0)


def test_an_option_of_a_flow_survives_being_saved(tmp_path):
    sd3 = FlowMatchEulerDiscreteScheduler(shift=3.0).config
    EVODiffScheduler.from_config(sd3, use_flow_sigmas=False).save_pretrained(tmp_path)
    assert EVODiffScheduler.from_pretrained(tmp_path).config.use_flow_sigmas is False
    assert EVODiffScheduler.from_config(sd3).config.use_flow_sigmas is True


def test_slips_of_the_pen_are_refused():
    with pytest.raises(UnknownName, match=r"use_karas_sigmas.*use_karras_sigmas"):
        EVODiffScheduler.from_config(SD, use_karas_sigmas=True)
    with pytest.raises(UnknownName, match="shfit"):
        EVODiffScheduler.from_config(SD, shfit=5.0)
    with pytest.raises(ConfigError, match=r"pipe\.scheduler\.config"):
        EVODiffScheduler.from_config(EVODiffScheduler(**SD))


def test_two_runs_at_once_are_refused_under_gradients_instead_of_mixed():
    scheduler, net = EVODiffScheduler(**SD), Net()
    scheduler.set_timesteps(4)

    def step(x, t):
        return scheduler.step(net(x, t), t, x, return_dict=False)[0]

    ends = []
    for seed in (0, 1):
        x = noise(seed=seed)
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps:
            x = checkpoint(step, x, t, use_reentrant=False)
        ends.append(x.square().sum())
    with pytest.raises(ConfigError, match="two runs at once need two schedulers"):
        torch.autograd.grad(sum(ends), net.weight)
    scheduler.set_timesteps(4)
    run(scheduler, net, noise())
    with pytest.raises(ConfigError, match="Call set_timesteps before every run"):
        run(scheduler, net, noise(seed=1))


def test_a_step_in_the_middle_may_be_run_again():
    scheduler, net = EVODiffScheduler(**SD), Net()
    scheduler.set_timesteps(4)
    x, seen = noise(), []
    for t in scheduler.timesteps[:3]:
        seen.append(x)
        x = scheduler.step(net(x, t), t, x).prev_sample
    t = scheduler.timesteps[1]
    assert torch.equal(scheduler.step(net(seen[1], t), t, seen[1]).prev_sample, seen[2])
    assert scheduler.step_index == 3


def test_a_timestep_that_is_not_set_begins_at_the_next_one_below():
    scheduler = EVODiffScheduler(**SD)
    scheduler.set_timesteps(4)  # 999, 749, 499, 249
    with Logged() as said:
        assert scheduler.index_for_timestep(600) == 2
        assert scheduler.index_for_timestep(3) == 3
    assert len(said.lines) == 2


def test_of_two_entries_of_a_length_the_one_that_calls_is_taken():
    called, given = table_of(4).entries[4], table_of(4, first=True).entries[3]
    other = dataclasses.replace(given, kappa=(13.0, *KAPPA[1:]))
    both = Table(Origin(), {3: other, 4: called}, torch.zeros(4, 8, 8))
    scheduler = CalibratedScheduler(**SD, calibration=both.to_json())
    scheduler.set_timesteps(4)
    assert scheduler.sigmas.tolist() == pytest.approx(KAPPA)


@pytest.mark.parametrize("steps", [2.5, True, "4"])
def test_numbers_of_steps_are_whole(steps):
    with pytest.raises(GridError, match="One step or more"):
        EVODiffScheduler(**SD).set_timesteps(steps)
