"""A wrapped network of diffusers is the network: the same call, the same estimate, and everything of fewstep on it."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from contracts.refusals import refuses
from reference import tiny_pipelines
from reference.tiny_pipelines import CLASSES, NEGATIVE, PIPELINES, PROMPTED, PROMPTS, arguments, pipeline, run
from torch import Tensor, nn

from fewstep.adapters.diffusers_config import described
from fewstep.adapters.encoding import decode, encode
from fewstep.adapters.wrap import kind_of, wrap
from fewstep.calibration import Refinement, Settings, fit, problem_of
from fewstep.denoisers import ClassifierFree, NetworkDenoiser, V
from fewstep.errors import CheckpointError, ConfigError, ShapeError, UnknownName
from fewstep.noise import LinearFlow, NoiseLevel, ShiftedFlow, Tabulated, Trailing, VPLinear
from fewstep.sampling import Checkpointed, Full, LastSteps, NoGrad, sample
from fewstep.solvers import DDIM, EVODiff

# Stock schedulers make numpy arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
TABLES = {
    "ddpm": Tabulated.linear(),
    "sd": Tabulated.scaled_linear(),
    "zero terminal snr": Tabulated.scaled_linear(rescale_betas_zero_snr=True),
    "zero terminal snr of diffusers": described(tiny_pipelines.scheduler("sd2-v").config).schedule,
    "cosine": described({"beta_schedule": "squaredcos_cap_v2"}).schedule,
}
SIZES = {"flux": (16, 16), "sana": (32, 32)}


class Spy:
    """A network that remembers what it was told."""

    def __init__(self) -> None:
        self.labels: list[Tensor] = []

    def __call__(self, x: Tensor, label: Tensor, cond: Any = None) -> Tensor:
        self.labels.append(label)
        return torch.zeros_like(x)


def told(schedule: Any, level: NoiseLevel, dtype: torch.dtype = torch.float32) -> Tensor:
    spy = Spy()
    x = torch.zeros(level.sigma.numel(), 1, dtype=dtype)
    NetworkDenoiser(spy, V(), schedule, "timestep")(x, level)
    return spy.labels[0]


@cache
def doubled(name: str) -> Any:
    return pipeline(name, torch.float64)


def conditions(name: str, pipe: Any) -> tuple[Any, Any]:
    if name == "ddpm":
        return None, None
    if name == "dit":
        return {"class_labels": torch.tensor(CLASSES)}, {"class_labels": torch.tensor([1000])}
    return encode(pipe, PROMPTS, NEGATIVE, SIZES.get(name))


def noise(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = {"flux": (16, 16), "ddpm": (3, 8, 8), "sana": (4, 16, 16)}.get(name, (4, 8, 8))
    return torch.randn(2, *shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


# What the network reads


@pytest.mark.parametrize("name", TABLES)
def test_every_timestep_of_a_table_is_told_exactly(name: str) -> None:
    k = torch.arange(1000)
    label = told(TABLES[name], TABLES[name].level((k + 1).double()))
    assert label.dtype == torch.float32
    assert torch.equal(label, k.float())


def test_the_first_timestep_is_exactly_zero_where_the_clock_comes_back_a_bit_above_one() -> None:
    one, above = torch.ones(1, dtype=torch.float64), 0
    for first in torch.logspace(-5, -2, 60).tolist():
        table = Tabulated.linear(first, 0.02 + first, 100)
        above += int(table.t_of_lam(table.level(one).lam) > 1)
        assert told(table, table.level(one)) == 0
    assert above > 5  # else this proves nothing


def test_between_timesteps_the_clock_is_told_and_below_the_first_the_first() -> None:
    table = TABLES["sd"]
    clock = torch.tensor([500.25, 1.5, 0.5, 1e-3], dtype=torch.float64)
    label = told(table, table.level(clock))
    assert (label - torch.tensor([499.25, 0.5, 0.0, 0.0])).abs().max() < 1e-6


def test_a_level_of_another_schedule_is_told_at_equal_kappa() -> None:
    table = TABLES["sd"]
    kappa = table.level(torch.tensor([250.0, 800.0], dtype=torch.float64)).kappa
    straight = NoiseLevel(1 / (1 + kappa), kappa / (1 + kappa))
    assert torch.equal(told(table, straight), torch.tensor([249.0, 799.0]))


@pytest.mark.parametrize("flow", [LinearFlow(), ShiftedFlow(3.0)], ids=str)
def test_a_flow_is_told_a_thousand_sigma_whatever_its_clock(flow: Any) -> None:
    sigma = torch.tensor([1.0, 0.9, 0.5, 0.01], dtype=torch.float64)
    label = told(flow, NoiseLevel(1 - sigma, sigma))
    assert torch.equal(label, torch.tensor([1000.0, 900.0, 500.0, 10.0]))
    curved = NoiseLevel(torch.tensor([0.6], dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64))
    assert torch.equal(told(flow, curved), torch.tensor([1000 * 4 / 7]))


def test_other_schedules_have_no_timesteps() -> None:
    level = VPLinear().level(torch.tensor([0.5], dtype=torch.float64))
    refuses(ConfigError, "label='timestep' for a network of VPLinear", lambda: told(VPLinear(), level))


# The same call


@pytest.mark.parametrize("name", PIPELINES)
def test_denoised_is_what_the_network_says_by_hand(name: str) -> None:
    pipe = doubled(name)
    cond, _ = conditions(name, pipe)
    x, k = noise(name), 600
    network = getattr(pipe, "unet", None) or pipe.transformer
    sigma = torch.tensor(0.6, dtype=torch.float64)
    config = pipe.scheduler.config
    flow = name in ("sd3", "flux", "sana")
    bar = torch.tensor(described(config).schedule.alphas_cumprod[k], dtype=torch.float64) if not flow else None
    level = NoiseLevel(1 - sigma, sigma) if bar is None else NoiseLevel(bar.sqrt(), (1 - bar).sqrt())
    given = dict(cond or {})
    if name == "sdxl":
        given["added_cond_kwargs"] = {key: given.pop(key) for key in ("text_embeds", "time_ids")}
    if name == "flux":
        given |= {key: given[key][0] for key in ("txt_ids", "img_ids")}
    timestep = torch.full((2,), k / 1000 if name == "flux" else k, dtype=torch.float64)
    first = "sample" if hasattr(pipe, "unet") else "hidden_states"
    with torch.no_grad():
        out = network(**{first: x}, timestep=timestep, return_dict=False, **given)[0][:, : x.shape[1]]
        if flow:
            expected = x - sigma * out
        elif config.prediction_type == "v_prediction":
            expected = level.alpha * x - level.sigma * out
        else:
            expected = (x - level.sigma * out) / level.alpha
        denoised = wrap(pipe)(x, level, cond)
    assert (denoised - expected).abs().max() <= 1e-12 * expected.abs().max()


def heard(network: nn.Module, action: Any) -> list[dict[str, Tensor]]:
    """What conditions a network is told in each call, by name."""
    calls: list[dict[str, Tensor]] = []
    wanted = ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections", "txt_ids", "img_ids", "guidance")

    def listen(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        named = {name: kwargs[name] for name in wanted if kwargs.get(name) is not None}
        added = {name: row for name, row in (kwargs.get("added_cond_kwargs") or {}).items() if row is not None}
        calls.append({**named, **added})

    with network.register_forward_pre_hook(listen, with_kwargs=True), torch.no_grad():
        action()
    return calls


@pytest.mark.parametrize("name", PROMPTED)
def test_encode_tells_the_network_what_the_pipeline_tells_it(name: str) -> None:
    pipe = pipeline(name)
    body: Any = wrap(pipe).network
    theirs = heard(body.network, lambda: run(pipe, 1, **arguments(name, guidance=4.0)))
    cond, uncond = encode(pipe, PROMPTS, NEGATIVE, SIZES.get(name))
    nothing = {**cond, **{key: row.expand(2, *row.shape[1:]) for key, row in uncond.items()}}
    x, label = noise(name, torch.float32), torch.full((2,), 500.0)
    for k, conditions in enumerate((nothing, cond)):  # in diffusers, nothing comes first
        (ours,) = heard(body.network, lambda told=conditions: body(x, label, told))
        # Flux's own pipeline makes two calls, and the condition comes first.
        wanted = theirs[1 - k] if name == "flux" else {key: row[2 * k : 2 * k + 2] for key, row in theirs[0].items()}
        assert set(ours) == set(wanted)
        for key, row in ours.items():
            assert torch.equal(row, wanted[key]), key
    assert not torch.equal(cond["encoder_hidden_states"], nothing["encoder_hidden_states"])


@pytest.mark.parametrize("name", PROMPTED)
def test_decode_makes_the_pipelines_own_images(name: str) -> None:
    pipe = pipeline(name)
    made = run(pipe, 2, **{**arguments(name), "output_type": "pt"})
    with torch.no_grad():
        images = decode(pipe, made.last, SIZES.get(name))
    assert (images - (2 * made.images - 1)).abs().max() < 1e-5
    assert images.std() > 0.01  # and not one grey


# Everything of fewstep


def test_guidance_is_the_pipelines() -> None:
    pipe = doubled("sd")
    cond, uncond = conditions("sd", pipe)
    denoiser, x = wrap(pipe), noise("sd")
    level = denoiser.schedule.level(torch.tensor(501.0, dtype=torch.float64))
    alpha, sigma = level
    with torch.no_grad():
        texts = torch.cat([uncond["encoder_hidden_states"].expand(2, -1, -1), cond["encoder_hidden_states"]])
        nothing, given = pipe.unet(torch.cat([x, x]), 500, texts).sample.chunk(2)
        expected = (x - sigma * (nothing + 5 * (given - nothing))) / alpha
        guided = ClassifierFree(denoiser, 5, uncond)(x, level, cond)
    assert (guided - expected).abs().max() < 1e-12 * expected.abs().max()


@cache
def small() -> NetworkDenoiser:
    network = copy.deepcopy(doubled("sd2-v").unet).requires_grad_(True)
    return wrap(network, doubled("sd2-v").scheduler)


def test_gradients_through_the_chain_are_those_of_finite_differences() -> None:
    denoiser, x = small(), noise("sd")
    cond, _ = conditions("sd", doubled("sd2-v"))
    grid = Trailing()(denoiser.schedule, 3)
    weights = dict(denoiser.network.named_parameters())
    assert set(weights) == {f"network.{name}" for name, _ in doubled("sd2-v").unet.named_parameters()}

    def loss(unroll: Any) -> Tensor:
        return sample(denoiser, EVODiff(), grid, x, cond=cond, unroll=unroll).x.square().mean()

    gradients = [torch.autograd.grad(loss(unroll), weights.values()) for unroll in (Full(), Checkpointed(1))]
    for name, full, again in zip(weights, *gradients, strict=True):
        assert torch.equal(full, again), name
    with torch.no_grad():
        weight = weights["network.conv_out.weight"]
        direction, eps = torch.randn(weight.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3)), 1e-6
        ends = []
        for sign in (1, -2):
            weight += sign * eps * direction
            ends.append(loss(NoGrad()))
        weight += eps * direction
    slope = (ends[0] - ends[1]) / (2 * eps)
    expected = (gradients[0][list(weights).index("network.conv_out.weight")] * direction).sum()
    assert abs(slope - expected) < 1e-7 * abs(expected)
    assert loss(LastSteps(1)).requires_grad


def test_a_pipeline_is_not_trained_by_accident() -> None:
    made = sample(
        small(), DDIM(), Trailing()(small().schedule, 2), noise("sd"), cond=conditions("sd", doubled("sd"))[0]
    )
    assert not made.x.requires_grad
    assert (made.nfe, made.network_evals) == (2, 2)


def test_calibration_takes_a_wrapped_network() -> None:
    pipe = doubled("ddpm")
    denoiser = wrap(pipe, {"prediction_type": "flow_prediction"})  # random weights settle on no other
    problem = problem_of(denoiser, denoiser.schedule, (3, 8, 8), seeds=range(16), dtype=torch.float64)
    settings = Settings(nfe=(3,), teacher_steps=20, grids=("karras:rho=7",), refinement=Refinement(0), judged=0.0)
    table = fit(problem, settings)
    way = table.way(denoiser.schedule, 3)
    made = sample(denoiser, way.solver, way.grid, problem.noise)
    assert made.nfe == 3
    assert made.x.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["sd", "sdxl", "flux", "sana"])
def test_half_precision_is_of_the_network_alone(name: str, dtype: torch.dtype) -> None:
    pipe = pipeline(name, dtype)
    network = getattr(pipe, "unet", None) or pipe.transformer
    seen: list[dict[str, Any]] = []
    denoiser, x = wrap(pipe), noise(name, torch.float32)
    cond, _ = encode(pipeline(name), PROMPTS, NEGATIVE, SIZES.get(name))  # conditions in float32
    level = denoiser.schedule.level(torch.tensor(0.5 if name in ("flux", "sana") else 501.0))
    hook = network.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with hook, torch.no_grad():
        half, whole = denoiser(x, level, cond), wrap(pipeline(name))(x, level, cond)
    given = {**seen[0], **seen[0].get("added_cond_kwargs", {})}
    assert given.pop("timestep").dtype == torch.float32
    assert {value.dtype for value in given.values() if isinstance(value, Tensor) and value.is_floating_point()} == {
        dtype
    }
    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.1 * whole.abs().max()


# What can be wrapped


def test_a_scheduler_may_be_an_object_a_configuration_or_a_folder(tmp_path: Any) -> None:
    pipe = pipeline("sd2-v")
    pipe.scheduler.save_pretrained(tmp_path / "scheduler")
    wanted = wrap(pipe)
    for scheduler in (pipe.scheduler, pipe.scheduler.config, tmp_path / "scheduler", tmp_path, str(tmp_path)):
        found = wrap(pipe.unet, scheduler)
        assert (found.schedule, found.prediction, found.label) == (wanted.schedule, wanted.prediction, "timestep")
    other = wrap(pipe, pipeline("sd").scheduler)
    assert other.prediction != wanted.prediction
    refuses(CheckpointError, "No scheduler_config.json", lambda: wrap(pipe.unet, tmp_path / "unet"))


class Own(nn.Module):
    """A body around a network that wrap does not know."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, noise_label: Tensor, cond: Any = None) -> Tensor:
        return self.network(x, 1 - noise_label / 1000)


class Strange(nn.Module):
    """A network of the usual signature that reads 1 - t."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        return hidden_states * timestep.reshape(-1, 1)


def test_an_unknown_network_is_refused_and_a_body_around_it_taken() -> None:
    flow = pipeline("sd3").scheduler
    refuses(ConfigError, "network of the class Strange. Known are DiTTransformer2DModel", lambda: wrap(Strange(), flow))
    denoiser = wrap(Own(Strange()), flow)
    x, sigma = torch.ones(2, 3), torch.tensor(0.25)
    assert torch.allclose(denoiser(x, NoiseLevel(1 - sigma, sigma)), x - 0.25 * 0.75 * x)


class Compiled(nn.Module):
    """What torch.compile returns: another class around the module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._orig_mod = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod(*args, **kwargs)


def test_a_compiled_network_and_a_class_derived_from_a_known_one_are_known() -> None:
    class Derived(diffusers.UNet2DModel):
        pass

    pipe = pipeline("ddpm")
    assert kind_of(Derived(**{**pipe.unet.config})) == kind_of(pipe.unet)
    x, level = noise("ddpm", torch.float32), wrap(pipe).schedule.level(torch.tensor(501.0))
    with torch.no_grad():
        assert torch.equal(wrap(Compiled(pipe.unet), pipe.scheduler)(x, level), wrap(pipe)(x, level))


def test_refusals_of_wrap() -> None:
    pipe = pipeline("sd")
    refuses(ConfigError, "A UNet2DConditionModel with no scheduler. A bare network does not", lambda: wrap(pipe.unet))
    refuses(ConfigError, "scheduler=7", lambda: wrap(pipe.unet, 7))
    refuses(ConfigError, "A dict without a unet or transformer", lambda: wrap({}))
    refuses(ConfigError, "continuous EDM", lambda: wrap(pipe.unet, diffusers.EDMEulerScheduler()))
    refuses(UnknownName, "epsilom", lambda: wrap(pipe.unet, {"beta_schedule": "linear", "prediction_type": "epsilom"}))
    short = {"prediction_type": "flow_prediction", "num_train_timesteps": 500}
    refuses(ConfigError, "flow with num_train_timesteps=500", lambda: wrap(pipeline("sd3"), short))


def test_refusals_of_conditions_and_channels() -> None:
    pipe = pipeline("sdxl")
    cond, _ = conditions("sdxl", pipe)
    denoiser, x = wrap(pipe), noise("sd", torch.float32)
    level = denoiser.schedule.level(torch.tensor(501.0))
    refuses(ConfigError, "No condition 'encoder_hidden_states' for a UNet2DConditionModel", lambda: denoiser(x, level))
    refuses(
        ConfigError,
        "A condition 'prompt' for a UNet2DConditionModel",
        lambda: denoiser(x, level, {**cond, "prompt": x}),
    )
    nine = torch.zeros(2, 9, 8, 8)
    refuses(ShapeError, "(2, 9, 8, 8) for a network of 4 channels", lambda: denoiser(nine, level, cond))
    bare = {key: value for key, value in conditions("flux", pipeline("flux"))[0].items() if key != "guidance"}
    flux, packed, middle = wrap(pipeline("flux")), noise("flux", torch.float32), torch.tensor(0.5)
    refuses(ConfigError, "No condition 'guidance'", lambda: flux(packed, NoiseLevel(middle, middle), bare))


def test_refusals_of_encode_and_decode() -> None:
    refuses(ConfigError, "A DDPMPipeline with a UNet2DModel", lambda: encode(pipeline("ddpm"), PROMPTS))
    refuses(ConfigError, "A DiTPipeline", lambda: decode(pipeline("dit"), noise("dit")))
    refiner = pipeline("sdxl-img2img")
    refiner.register_to_config(requires_aesthetics_score=True)
    refuses(ConfigError, "SDXL's refiner", lambda: encode(refiner, PROMPTS))
    refuses(ConfigError, "negative=['x']", lambda: encode(pipeline("sd"), PROMPTS, negative=["x"]))
    refuses(ConfigError, "prompts='a fox'", lambda: encode(pipeline("sd"), "a fox"))
    refuses(ShapeError, "for 8 x 8 tokens", lambda: decode(pipeline("flux"), noise("flux"), (32, 32)))


def test_sizes_are_told_as_height_and_width() -> None:
    cond, _ = encode(pipeline("sdxl"), PROMPTS, size=(64, 32))
    assert cond["time_ids"].tolist() == [[64, 32, 0, 0, 64, 32]] * len(PROMPTS)
    cond, _ = encode(pipeline("flux"), PROMPTS, size=(64, 32))
    assert cond["img_ids"][0].max(0).values.tolist() == [
        0,
        64 / 2 / pipeline("flux").vae_scale_factor - 1,
        32 / 2 / pipeline("flux").vae_scale_factor - 1,
    ]


def test_a_configuration_may_come_from_json(tmp_path: Any) -> None:
    text = json.dumps(dict(pipeline("sdxl").scheduler.config))
    assert wrap(pipeline("sdxl").unet, json.loads(text)).schedule == wrap(pipeline("sdxl")).schedule


def test_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "diffusers.md").read_text(encoding="utf-8")
    section = page.split("## Any diffusers model in fewstep")[1].split("\n## ")[0]
    pipe = pipeline("sd")
    pipe.register_modules(unet=copy.deepcopy(pipe.unet))
    names: dict[str, Any] = {"pipe": pipe}
    for block in re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL):
        exec(compile(block, "docs/diffusers.md", "exec"), names)
    assert names["images"].shape == (2, 3, 128, 128)
    assert (names["images"].abs() <= 1).all()
    assert all(weight.grad is not None for weight in pipe.unet.parameters())
