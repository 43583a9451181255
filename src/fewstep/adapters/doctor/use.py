"""Checks of how a pipeline is used: strength, guidance, and whether the scheduler suits the weights."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from fewstep.adapters.diffusers_config import described
from fewstep.adapters.doctor.facts import BETAS, FLOWS, Case, again, called, few, ours, trailing
from fewstep.adapters.doctor.findings import Finding

__all__ = ["USE", "kept_steps"]

_OFF = 0.02  # of all timesteps: distilled weights answer for their own and near ones
_STRONG = 2.0  # guidance that distilled weights cannot take; a little is survived
_LEVEL = 1e-3  # difference of two sigmas that is none
_ROUNDING = 1e-9
_TAIL = 0.01  # relative difference of two noisiest levels that is none

_OF_CHAINS = "from diffusers import FlowMatchEulerDiscreteScheduler; pipe.scheduler = FlowMatchEulerDiscreteScheduler()"
_OF_EXPORTS = (
    "from fewstep.pipelines import scheduler_config; from fewstep.schedulers import EVODiffScheduler; "
    "pipe.scheduler = EVODiffScheduler(**scheduler_config(pipe.unet.config.get('trained_betas')))"
)


def kept_steps(steps: int, strength: float, *, rounds_up: bool = False) -> int:
    """Count the steps that image-to-image leaves of a number of steps, as diffusers computes it.

    Args:
        steps: asked for.
        strength: 0 keeps the image, 1 begins at noise.
        rounds_up: which of the two ways of diffusers the pipeline has.

    Returns:
        ``int(steps * strength)``, or what ``int(steps - steps * strength)`` leaves.
    """
    if rounds_up:
        return steps - int(max(steps - min(steps * strength, steps), 0))
    return min(int(steps * strength), steps)


def _strength(case: Case) -> Iterator[Finding]:
    """D05: rounding takes a step away, or all of them."""
    steps, strength, up = case.run.steps, case.strength, case.habits.rounds_up
    if strength is None:
        return
    kept = kept_steps(steps, strength, rounds_up=up)
    if kept and not _loses(steps, strength, up):
        return
    left = f"{kept} steps are left, one less than was meant" if kept else "no step is left to change the image"
    yield Finding(
        "D05",
        "warning" if kept else "error",
        "Strength rounds a step away" if kept else "Strength rounds to no step at all",
        f"int({steps} * {strength:g}) = int({steps * strength!r}) = {kept}: {left}",
        _stronger(steps, strength, kept + 1 if kept else steps, up),
    )


def _loses(steps: int, strength: float, rounds_up: bool) -> bool:
    """Whether the product is a whole number on paper, and below it in the machine."""
    meant = round(steps * strength)
    return not rounds_up and abs(meant - steps * strength) < _ROUNDING and int(steps * strength) < meant


def _stronger(steps: int, strength: float, wanted: int, up: bool) -> str:
    """The call that leaves as many steps as are wanted."""
    if steps * strength == 0:
        return called(num_inference_steps=2 * steps, strength=0.5)
    least = int(wanted / strength)
    enough = (n for n in range(least, least + 100) if not _loses(n, strength, up))
    n = next(n for n in enough if kept_steps(n, strength, rounds_up=up) >= wanted)
    return called(num_inference_steps=n, strength=strength)


def _guidance(case: Case) -> Iterator[Finding]:
    """D06: distilled weights have their guidance inside."""
    scale = case.scale
    if not (case.guided and case.distilled) or scale is None or case.keeps_guidance:
        return
    whose = "is asked for" if case.guidance is not None else f"is what {case.subject.pipeline} takes unless told"
    yield Finding(
        "D06",
        "error" if scale > _STRONG else "warning",
        "Guidance on distilled weights, which have it inside already",
        f"guidance_scale={scale:g} {whose}; distilled, because of {'; '.join(case.distilled)}. Colours burn out, and "
        "every step costs two evaluations",
        called(num_inference_steps=case.run.steps, guidance_scale=1.0),
    )


def _spacing(case: Case) -> Iterator[Finding]:
    """D08: distilled weights are asked at timesteps that they were not distilled at."""
    run, n = case.run, case.run.steps
    total = case.config.get("num_train_timesteps", 1000)
    if not case.distilled or case.flow or case.sigmas is not None or not run.angles or n > 8:
        return
    visited = list(dict.fromkeys(run.timesteps))
    wanted = [total - 1 - round(i * total / n) for i in range(n)]
    far = max((abs(a - b) for a, b in zip(visited, wanted, strict=False)), default=0)
    if far <= _OFF * total:
        return
    yield Finding(
        "D08",
        "error",
        "Distilled weights are asked at timesteps that they do not know",
        f"{n} steps visit {few(visited)}; they were distilled at, or near, {few(wanted)}, trailing. Distilled, because "
        f"of {'; '.join(case.distilled)}",
        trailing(case),
    )


def _untrained(case: Case) -> Iterator[Finding]:
    """D08 of an exported model: steps that its chain was not trained for."""
    chain, n = case.subject.chain, case.run.steps
    if chain and str(n) not in chain and case.sigmas is None:
        near = min(map(int, chain), key=lambda known: abs(known - n))
        yield Finding(
            "D08",
            "error",
            "The model was not trained for this number of steps",
            f"{n} steps of a chain that was trained for {', '.join(chain)}; {case.subject.pipeline} refuses them",
            called(num_inference_steps=near),
        )


def _kind(case: Case) -> Iterator[Finding]:
    """D09: flow or not."""
    flows = case.network.startswith(FLOWS)
    if case.network and flows and not case.flow:
        kind = case.config.get("prediction_type", "epsilon")
        yield Finding(
            "D09",
            "error",
            "The weights are a flow, and the scheduler is not",
            f"{case.network} predicts eps - x0 on a straight path; {case.subject.scheduler_name} takes it for "
            f"{kind} on a table of betas, without use_flow_sigmas",
            _of_flows(case),
        )
    elif case.latent and case.flow:
        yield Finding(
            "D09",
            "warning",
            "The scheduler is for flows, and the weights look like Stable Diffusion's",
            f"{case.network or 'The network'} has {case.subject.network.get('in_channels')} channels and "
            f"cross_attention_dim={case.subject.network.get('cross_attention_dim')}, {case.subject.scheduler_name} "
            "samples eps - x0 on a straight path",
            "from diffusers import DPMSolverMultistepScheduler; pipe.scheduler = DPMSolverMultistepScheduler("
            f"{', '.join(f'{key}={value!r}' for key, value in BETAS.items())}, timestep_spacing='trailing')",
        )
    else:
        yield from _exported(case)
        yield from _betas(case)
        yield from _prediction(case)


def _exported(case: Case) -> Iterator[Finding]:
    """What an exported model predicts and at which levels lies beside its weights."""
    known = case.subject.network
    if known.get("_class_name") != "FewstepModel":
        return
    told = importlib.import_module("fewstep.pipelines").scheduler_config(known.get("trained_betas"))
    trained, here = described(told), described(case.config)
    chain = case.subject.chain.get(str(case.run.steps), ())
    visited = [math.sin(angle) / (math.sin(angle) + math.cos(angle)) for angle in case.run.angles[: len(chain)]]
    moved = any(abs(level - wanted) > _LEVEL for level, wanted in zip(visited, chain, strict=False))
    if trained == here and not (moved and case.sigmas is None):
        return
    seen = f"{here.schedule} and takes the output for {here.prediction}"
    if trained == here:
        seen = f"sigmas {few(visited)} where the chain was trained at {few(list(chain))}"
    yield Finding(
        "D09",
        "error",
        "The schedule is not the one that travels with the weights",
        f"The network is on {trained.schedule} and predicts {trained.prediction}; {case.subject.scheduler_name} "
        f"samples {seen}",
        _OF_CHAINS if case.subject.chain else _OF_EXPORTS,
    )


def _of_flows(case: Case) -> str:
    """A scheduler of diffusers that shifts once: one takes the levels of pipelines that pass them, one its own."""
    shift = float(case.said.get("flow_shift") or 3.0)
    made = f"DPMSolverMultistepScheduler(prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift={shift})"
    if case.habits.sigmas:
        made = f"FlowMatchEulerDiscreteScheduler(shift={shift})"
    return f"from diffusers import {made.partition('(')[0]}; pipe.scheduler = {made}"


def _betas(case: Case) -> Iterator[Finding]:
    """Betas that nobody wrote down, so that the class filled in its own."""
    missing = [key for key in BETAS if key not in case.said]
    terminal = case.terminal
    if not (case.latent and missing) or terminal is None or case.config.get("trained_betas") is not None:
        return
    ends, own = math.tan(terminal), _noisiest(BETAS)
    if case.config.get("rescale_betas_zero_snr") or abs(ends / own - 1) < _TAIL:
        return
    filled = ", ".join(f"{key}={case.config.get(key)!r}" for key in missing)
    yield Finding(
        "D09",
        "error",
        "The schedule is not the one that the weights were trained with",
        f"The configuration does not name {', '.join(missing)}, so {case.subject.scheduler_name} fills in {filled}: "
        f"the noisiest level has kappa {ends:.4g}, Stable Diffusion's {own:.4g}. The network is one of its kind "
        f"(cross_attention_dim={case.subject.network.get('cross_attention_dim')})",
        again(**BETAS),
    )


def _noisiest(betas: Mapping[str, Any]) -> float:
    """Kappa of the last timestep."""
    schedule = described(betas).schedule
    return math.exp(-schedule.lam_range()[0])


def _prediction(case: Case) -> Iterator[Finding]:
    """Stable Diffusion 2 of 768 pixels predicts v, and its U-Net can be told from the one of 512 by its size."""
    known = case.subject.network
    big = known.get("cross_attention_dim") == 1024 and known.get("sample_size") == 96
    kind = case.config.get("prediction_type", "epsilon")
    if case.latent and big and kind == "epsilon" and not case.distilled:
        yield Finding(
            "D09",
            "error",
            "The weights predict v, and the scheduler takes it for noise",
            "A U-Net with cross_attention_dim=1024 and sample_size=96 is Stable Diffusion 2 of 768 pixels, trained "
            f"with v_prediction; the scheduler has prediction_type={kind!r}",
            again(prediction_type="v_prediction"),
        )


def _refused(case: Case) -> Iterator[Finding]:
    """A calibrated table that was fitted on another schedule, which our scheduler says itself."""
    if case.subject.refused:
        yield Finding("D09", "error", "The scheduler refuses its own configuration", case.subject.refused, ours())


def _calls(case: Case) -> Iterator[Finding]:
    """D10: what an image really costs."""
    run = case.run
    calls = len(run.timesteps)
    evaluations = calls * (2 if case.guided else 1)
    if not calls or evaluations == run.steps:
        return
    doubled = f", and guidance {case.scale:g} doubles them to {evaluations} evaluations" if case.guided else ""
    more = f"{run.steps} steps are {calls} calls per image" if calls != run.steps else f"{calls} calls per image"
    yield Finding(
        "D10",
        "note",
        "An image costs more than its number of steps says",
        f"{more}{doubled}. State evaluations where methods are compared",
        called(num_inference_steps=max(1, run.steps * run.steps // evaluations)) + "  # for equal cost",
    )


USE = (_strength, _guidance, _spacing, _untrained, _kind, _refused, _calls)
