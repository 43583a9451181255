"""A table for a pipeline: the pipeline runs with it as the core does, and ends nearer to its network's solution.

The weights are random: the denoisers are smooth and what they draw is noise. This is about mechanics, and about one
thing that holds for any network: a rule that was fitted to it beats one that was not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from contracts.refusals import refuses
from reference.tiny_pipelines import PROMPTS, arguments, pipeline, run

from fewstep.adapters.encoding import encode
from fewstep.adapters.wrap import wrap
from fewstep.calibration import Table, fit
from fewstep.calibration.problem import levels_at
from fewstep.denoisers import ClassifierFree, Denoiser
from fewstep.errors import ConfigError
from fewstep.experiments.calibrate import CalibratePlan, settings_of
from fewstep.experiments.calibrate_pipeline import PLAN, described, evaluations, own_guidance, prepared
from fewstep.noise import EDM, Karras, UniformLam
from fewstep.sampling import sample, start_noise
from fewstep.schedulers import CalibratedScheduler
from fewstep.solvers import DDIM, DEIS

# Stock schedulers make numpy arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CALLS, SCALE = 4, 4.0
BASES, GRIDS = ("deis:variable=log_kappa",), ("karras:rho=7", "gits")
QUICK = settings_of((CALLS,), teacher_steps=16, bases=BASES, grids=GRIDS, first="network", iterations=0)
FITTED = ("sd", "sd3", "flux", "ddpm")
ENDS = {"sd": (14.6146, 0.029167), "sd3": (500, 0.002), "flux": (500, 0.002), "ddpm": (157.407, 0.0100005)}
SHAPES = {"sd": (4, 8, 8), "sd3": (4, 8, 8), "flux": (16, 16), "ddpm": (3, 8, 8)}


def plan_for(name: str, *scales: float) -> CalibratePlan:
    plan = replace(PLAN, settings=QUICK, trajectories=16, batch_size=16)
    return plan if name in ("ddpm", "dit") else replace(plan, captions=(*PROMPTS,), guidance=scales or (SCALE,))


def size_for(name: str) -> int | None:
    return 16 if name == "flux" else None  # what its pipeline makes by itself is a thousand pixels wide


@cache
def fitted(name: str, dtype: torch.dtype | None = None) -> Table:
    ready = prepared(pipeline(name, dtype), plan_for(name), size_for(name))
    return fit(ready.problem, QUICK, ready.origin)


class Core(NamedTuple):
    """The network of a pipeline in the core, put together by hand."""

    denoiser: Denoiser
    cond: Any


def core_of(pipe: Any, name: str, n: int = 2) -> Core:
    if name == "ddpm":
        return Core(wrap(pipe), None)
    cond, uncond = encode(pipe, (PROMPTS * n)[:n], size=(16, 16))
    if name == "flux":
        return Core(wrap(pipe), {**cond, "guidance": torch.full((n,), SCALE)})
    return Core(ClassifierFree(wrap(pipe), SCALE, uncond), cond)


def asked(name: str) -> dict[str, Any]:
    """Arguments of the pipeline's call, without the negative prompt that the fit knows nothing of."""
    told = arguments(name, SCALE)
    told.pop("negative_prompt", None)
    if name == "flux":
        told.pop("true_cfg_scale")
        told["guidance_scale"] = SCALE
    return told


@pytest.mark.parametrize("name", FITTED)
def test_the_scheduler_runs_the_table_as_the_core_does(name: str) -> None:
    table, pipe = fitted(name), pipeline(name)
    pipe.scheduler = CalibratedScheduler.from_config(pipe.scheduler.config, calibration=table.to_json())
    assert pipe.scheduler.steps == [CALLS]
    made = run(pipe, CALLS, **asked(name))
    core, schedule = core_of(pipe, name), wrap(pipe).schedule
    solver, grid = table.way(schedule, CALLS)
    ours = sample(core.denoiser, solver, grid, made.first[:2], cond=core.cond)
    worst = float((ours.x - made.last).abs().max() / made.last.abs().max())
    assert worst < 1e-5, f"max|a-b| = {worst} of the largest number"
    assert made.evals == ours.network_evals == CALLS * (2 if name in ("sd", "sd3") else 1)


@pytest.mark.parametrize("name", FITTED)
def test_it_ends_nearer_to_the_solution_than_ddim(name: str) -> None:
    """On noise that no fit saw, against DDIM on three grids with the same ends."""
    table, pipe = fitted(name), pipeline(name)
    core, schedule = core_of(pipe, name, 6), wrap(pipe).schedule
    solver, grid = table.way(schedule, CALLS)
    kappa = table.entries[CALLS].kappa
    between = EDM(sigma_min=kappa[-1], sigma_max=kappa[0])
    spaced = {"own": torch.tensor(kappa, dtype=torch.float64)}
    for spacing in (Karras(), UniformLam()):
        spaced[type(spacing).__name__] = spacing(between, CALLS).levels.sigma
    x = start_noise(grid, SHAPES[name], range(100, 106))

    def end(rule: Any, levels: Any) -> torch.Tensor:
        return sample(core.denoiser, rule, levels, x, cond=core.cond).x

    want = end(DEIS(variable="log_kappa"), levels_at(schedule, Karras()(between, 48).levels.sigma))
    error = float((end(solver, grid) - want).square().mean().sqrt())
    plain = {
        where: float((end(DDIM(), levels_at(schedule, k)) - want).square().mean().sqrt()) for where, k in spaced.items()
    }
    assert error < 0.75 * min(plain.values()), f"calibrated {error:.4g}, DDIM {plain}"


@pytest.mark.parametrize("name", FITTED)
def test_what_a_table_of_a_pipeline_says(name: str) -> None:
    """Its ends are those of the network's training, and it costs what was said before."""
    ready = prepared(pipeline(name), plan_for(name), size_for(name), "mine")
    problem, table = ready.problem, fitted(name)
    assert (problem.kappa_max, problem.kappa_min) == pytest.approx(ENDS[name], rel=1e-4)
    assert tuple(problem.start.shape) == (16, *SHAPES[name])
    assert table.facts["network_evals"] == evaluations(problem, QUICK)
    assert not table.entries[CALLS].first
    assert (ready.origin.model, ready.origin.fingerprint) == ("mine", table.origin.fingerprint)
    assert ready.origin.guidance == ((1.0, 1.0) if name == "ddpm" else (SCALE, SCALE))
    facts = described(table, pipeline(name), plan_for(name), 16).facts
    assert facts["conditions"] == ("none" if name == "ddpm" else PROMPTS)
    assert (facts["pipeline"], facts["size"], facts["dtype"]) == (type(pipeline(name)).__name__, 16, "float32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Samples stay in float32 while it is fitted; the pipeline rounds between its calls, and is near the core."""
    table, pipe = fitted("sd3", dtype), pipeline("sd3", dtype)
    pipe.scheduler = CalibratedScheduler.from_config(pipe.scheduler.config, calibration=table.to_json())
    made = run(pipe, CALLS, **asked("sd3"))
    assert made.last.dtype == dtype
    solver, grid = table.way(wrap(pipe).schedule, CALLS)
    core = core_of(pipe, "sd3")
    ours = sample(core.denoiser, solver, grid, made.first[:2].float(), cond=core.cond)
    assert (ours.x - made.last).abs().max() < 32 * torch.finfo(dtype).eps * made.last.abs().max()
    assert table.origin.fingerprint != fitted("sd3").origin.fingerprint


def test_every_scale_walks_through_every_prompt() -> None:
    for name in ("sd", "flux"):
        plan = plan_for(name, 1.0, SCALE)
        ready = prepared(pipeline(name), plan, size_for(name))
        first, other = encode(pipeline(name), PROMPTS, size=(16, 16))[0]["encoder_hidden_states"]
        cond = ready.problem.cond or {}
        assert ready.origin.guidance == (1.0, SCALE)
        for k in range(2):
            told = cond["encoder_hidden_states"][ready.problem.led_by(k)]
            assert all(torch.equal(row, (first, other)[i % 2]) for i, row in enumerate(told))
        kinds = [type(denoiser).__name__ for denoiser in ready.problem.denoisers]
        if name == "flux":
            assert kinds == ["NetworkDenoiser"] * 2
            assert cond["guidance"].tolist() == [1.0, SCALE] * 8
        else:
            assert kinds == ["NetworkDenoiser", "ClassifierFree"]
        n = 16 * 17 + 16 * 9 + 2 * 16 + CALLS * (2 * 12 + 4)  # of the kept 13, 12 are shared evenly
        assert evaluations(ready.problem, QUICK) == (n if name == "flux" else n * 3 // 2)


def test_classes_of_a_pipeline() -> None:
    """Evenly over all thousand, or those that are chosen; nothing is class number 1000."""
    pipe, plan = pipeline("dit"), plan_for("dit")
    spread = (prepared(pipe, plan).problem.cond or {})["class_labels"]
    assert spread.tolist() == [1000 * k // 16 for k in range(16)]
    ready = prepared(pipe, replace(plan, classes=(7, 300), guidance=(SCALE,)))
    assert (ready.problem.cond or {})["class_labels"].tolist() == [7, 300] * 8
    (guided,) = ready.problem.denoisers
    assert isinstance(guided, ClassifierFree)
    assert guided.uncond["class_labels"].tolist() == [1000]
    assert described(fitted("ddpm"), pipe, plan).facts["conditions"] == "classes, evenly spread"


def test_the_pipelines_own_guidance() -> None:
    """Defaults of diffusers' calls; the scale of a Flux without a guidance of its own is that of two calls."""
    names = ("sd", "sdxl", "sd3", "flux", "pixart", "sana", "dit", "ddpm")
    assert [own_guidance(pipeline(name)) for name in names] == [7.5, 5.0, 7.0, 3.5, 4.5, 4.5, 4.0, 1.0]
    plain = diffusers.FluxTransformer2DModel(**{**pipeline("flux").transformer.config, "guidance_embeds": False})
    schnell = pipeline("flux")
    schnell.register_modules(transformer=plain)
    assert own_guidance(schnell) == 1.0
    assert isinstance(prepared(schnell, plan_for("flux"), 16).problem.denoisers[0], ClassifierFree)


def editing_network() -> Any:
    pipe = pipeline("sd")
    pipe.register_modules(unet=diffusers.UNet2DConditionModel(**{**pipe.unet.config, "in_channels": 9}))
    return pipe


REFUSED: dict[str, tuple[Callable[[], object], str, str]] = {
    "no prompts": (lambda: prepared(pipeline("sd"), PLAN), "No prompts for a StableDiffusionPipeline", "--captions"),
    "prompts for nothing": (
        lambda: prepared(pipeline("ddpm"), replace(PLAN, captions=("a fox",))),
        "1 captions for a DDPMPipeline",
        "Leave --captions out",
    ),
    "prompts for classes": (
        lambda: prepared(pipeline("dit"), replace(PLAN, captions=("a fox",))),
        "1 captions for a DiTPipeline",
        "It reads class labels",
    ),
    "classes for prompts": (
        lambda: prepared(pipeline("sd"), replace(plan_for("sd"), classes=(3,))),
        "1 classes for a StableDiffusionPipeline",
        "Leave --classes out",
    ),
    "a class": (lambda: prepared(pipeline("dit"), replace(PLAN, classes=(1000,))), "Class 1000", "0 to 999"),
    "negative": (lambda: prepared(pipeline("sd"), plan_for("sd", 2.0, -1.0)), "Guidance -1 for", "above 1; 1 is none"),
    "below one": (lambda: prepared(pipeline("sd"), plan_for("sd", 0.5)), "Guidance 0.5 for", "above 1; 1 is none"),
    "read": (lambda: prepared(pipeline("flux"), plan_for("flux", -1.0), 16), "Guidance -1 for", "a scale of 0 or more"),
    "unguided": (
        lambda: prepared(pipeline("ddpm"), replace(PLAN, guidance=(2.0,))),
        "Guidance 2 for",
        "Use --guidance 1",
    ),
    "size": (lambda: prepared(pipeline("sd"), plan_for("sd"), 17), "size=17", "multiples of 2 pixels"),
    "size of tokens": (lambda: prepared(pipeline("flux"), plan_for("flux"), 18), "size=18", "multiples of 4 pixels"),
    "size of patches": (lambda: prepared(pipeline("sd3"), plan_for("sd3"), 18), "size=18", "--size 16"),
    "no size": (lambda: prepared(pipeline("ddpm"), PLAN, 8), "size=8 for a DDPMPipeline", "Leave --size out"),
    "foreign": (
        lambda: prepared(SimpleNamespace(unet=torch.nn.Linear(1, 1)), PLAN),
        "of the class Linear",
        "Known are",
    ),
    "no network": (lambda: prepared(SimpleNamespace(), PLAN), "without a unet or transformer", "pipeline.unet"),
    "editing": (lambda: prepared(editing_network(), plan_for("sd")), "9 channels that returns 4", "not supported"),
}


@pytest.mark.parametrize(("make", "shows", "hint"), REFUSED.values(), ids=REFUSED)
def test_refusals(make: Callable[[], object], shows: str, hint: str) -> None:
    error = refuses(ConfigError, shows, make)
    assert hint in f"{error.allowed} / {error.todo}"
