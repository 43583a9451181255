"""Checks against what the weights were trained with: their schedule, their timesteps, and their kind of steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fewstep.adapters.diffusers_config import described, scheduler_config
from fewstep.adapters.doctor.facts import BETAS, FLOWS, Case, again, called, few, ours, trailing
from fewstep.adapters.doctor.findings import Finding
from fewstep.adapters.doctor.runs import OURS
from fewstep.adapters.doctor.use import kept_steps

__all__ = ["TRAINED"]

_OFF = 0.02  # of all timesteps: distilled weights answer for their own and near ones
_LEVEL = 1e-3  # difference of two sigmas that is none
_MOST = 8  # steps that weights are distilled to, unless their name says another number
_DEFAULTS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}  # of most classes of diffusers
_DYNAMIC = ("use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
_OF_TABLES = ("epsilon", "v_prediction", "sample")
_STEPS = re.compile(r"(?<!\d)(\d{1,2})-?steps?(?![a-z])", re.IGNORECASE)
_MULTISTEP = re.compile(r"(DPMSolver(Multi|Single)step|UniPC|DEIS|SASolver|I?PNDM|LMS|EVODiff)")

_OF_CHAINS = "from diffusers import FlowMatchEulerDiscreteScheduler; pipe.scheduler = FlowMatchEulerDiscreteScheduler()"
_OF_EXPORTS = (
    "from fewstep.pipelines import scheduler_config; from fewstep.schedulers import EVODiffScheduler; "
    "pipe.scheduler = EVODiffScheduler(**scheduler_config(pipe.unet.config.get('trained_betas')))"
)


def _spacing(case: Case) -> Iterator[Finding]:
    """D08: distilled weights are asked at timesteps that they were not distilled at."""
    run, n = case.run, case.run.steps
    total = case.config.get("num_train_timesteps", 1000)
    if not case.distilled or case.flow or case.sigmas is not None or not run.angles or n > _MOST:
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


def _many(case: Case) -> Iterator[Finding]:
    """D08: more steps than weights are distilled to."""
    strength = 1.0 if case.strength is None else case.strength
    n, said = _made(case), " ".join(case.subject.names)
    most = max([_MOST, *(int(found) for found in _STEPS.findall(said))])
    if case.distilled and not case.subject.chain and n > most:
        yield Finding(
            "D08",
            "note" if case.consistent else "warning",
            "Distilled weights are asked for more steps than they were distilled to",
            f"{n} steps; such weights know up to {most}. Distilled, because of {'; '.join(case.distilled)}",
            called(case, num_inference_steps=int(most / strength)),
        )


def _made(case: Case) -> int:
    """Number of steps that strength leaves."""
    steps, strength = case.run.steps, case.strength
    return steps if strength is None else kept_steps(steps, strength, rounds_up=case.habits.rounds_up)


def _multistep(case: Case) -> Iterator[Finding]:
    """D15: a rule that draws curves through earlier estimates, which those of single long steps do not lie on."""
    name, n = case.subject.scheduler_name, _made(case)
    curved = _MULTISTEP.match(name) and (name in OURS or case.config.get("solver_order", 2) > 1)
    if curved and case.distilled and n > 1 and not case.config.get("calibration"):
        yield Finding(
            "D15",
            "warning",
            "The weights were trained for single long steps, and the rule is a multistep one",
            f"{n} steps of {name} combine each estimate with earlier ones. Distilled, because of "
            f"{'; '.join(case.distilled)}",
            _single(case),
        )


def _single(case: Case) -> str:
    """The scheduler that such weights were trained for."""
    if case.subject.chain:
        return _OF_CHAINS
    if case.flow:
        return _flow_euler(case, 1.0)
    if case.consistent:
        return _remade("LCMScheduler", "")
    return _remade("EulerDiscreteScheduler", ", timestep_spacing='trailing'")


def _remade(kind: str, options: str) -> str:
    return f"from diffusers import {kind}; pipe.scheduler = {kind}.from_config(pipe.scheduler.config{options})"


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
            called(case, num_inference_steps=near),
        )


def _kind(case: Case) -> Iterator[Finding]:
    """D09: flow or not."""
    flows, kind = case.network.startswith(FLOWS), case.config.get("prediction_type", "epsilon")
    if _half(case):
        yield Finding(
            "D09",
            "error",
            "The scheduler is half one of flows",
            f"prediction_type={kind!r} and use_flow_sigmas={case.config['use_flow_sigmas']!r}: "
            f"{case.subject.scheduler_name} visits the levels of one kind and reads outputs of the other",
            again(prediction_type="epsilon", use_flow_sigmas=False)
            if case.latent
            else again(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=_shift(case, 1.0)),
        )
    elif flows and not case.flow and kind in _OF_TABLES:  # another kind, such as trigflow, is one of its own
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


def _half(case: Case) -> bool:
    """Whether only one of two options says flow. Schedulers of diffusers need both; ours take either for the other."""
    name = case.subject.scheduler_name
    if "use_flow_sigmas" not in case.config or name in OURS or name.startswith("FlowMatch"):
        return False
    predicts: bool = case.config.get("prediction_type") == "flow_prediction"
    return predicts != bool(case.config["use_flow_sigmas"])


def _exported(case: Case) -> Iterator[Finding]:
    """What an exported model predicts and at which levels lies beside its weights."""
    known = case.subject.network
    if known.get("_class_name") != "FewstepModel":
        return
    told = scheduler_config(known.get("trained_betas"))
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
    if case.habits.sigmas:
        return _flow_euler(case, 3.0)
    made = "prediction_type='flow_prediction', use_flow_sigmas=True"
    return _made_anew("DPMSolverMultistepScheduler", f"{made}, flow_shift={_shift(case, 3.0)}")


def _flow_euler(case: Case, otherwise: float) -> str:
    """Made anew: a use_flow_sigmas that was carried along would keep pipelines from passing their levels."""
    dynamic = {key: case.said[key] for key in _DYNAMIC if case.said.get("use_dynamic_shifting") and key in case.said}
    options = dynamic or {"shift": _shift(case, otherwise)}
    return _made_anew(
        "FlowMatchEulerDiscreteScheduler", ", ".join(f"{key}={value!r}" for key, value in options.items())
    )


def _made_anew(kind: str, options: str) -> str:
    return f"from diffusers import {kind}; pipe.scheduler = {kind}({options})"


def _shift(case: Case, otherwise: float) -> float:
    """What the configuration says, by either of two names."""
    return float(case.said.get("flow_shift") or case.said.get("shift") or otherwise)


def _betas(case: Case) -> Iterator[Finding]:
    """Betas that a class fills in where nobody says any, and `save_pretrained` then writes down."""
    betas = {key: case.config.get(key) for key in BETAS}
    usual = all(value in (BETAS[key], _DEFAULTS[key]) for key, value in betas.items())
    # AnimateDiff was trained on a line of betas, with Stable Diffusion's ends.
    other = case.network != "UNet2DConditionModel" or case.subject.pipeline.startswith("AnimateDiff")
    if not case.latent or other or not usual or betas == BETAS or case.config.get("trained_betas") is not None:
        return
    told = ", ".join(f"{key}={value!r}" for key, value in betas.items())
    yield Finding(
        "D09",
        "error",
        "The schedule is not the one that the weights were trained with",
        f"{told} of {case.subject.scheduler_name} make kappa {_noisiest(betas):.4g} of the noisiest level, Stable "
        f"Diffusion's {_noisiest(BETAS):.4g}. The network is one of its kind "
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


TRAINED = (_spacing, _many, _untrained, _multistep, _kind, _refused)
