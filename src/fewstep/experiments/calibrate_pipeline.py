"""Calibrating a pipeline of diffusers: from the pipeline to what a solver for its scheduler is fitted to."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fewstep._cond import rows_of
from fewstep._files import fingerprint
from fewstep.adapters.encoding import encode
from fewstep.adapters.wrap import kind_of, network_of, wrap
from fewstep.calibration import Origin, Problem, Refinement, Settings, Table, problem_of, said_schedule
from fewstep.denoisers import ClassifierFree, Denoiser, NetworkDenoiser
from fewstep.errors import ConfigError
from fewstep.experiments.calibrate import CalibratePlan, Prepared, stamped

__all__ = ["PLAN", "described", "evaluations", "own_guidance", "prepared"]

# For large networks. A pipeline calls its network at every timestep, so no first estimate is given; a backward pass
# through a whole chain does not fit into memory; one base on three grids and half of the trajectories and of the
# teacher's steps end as near (docs/calibration.md has the numbers). Pipelines of flows feed pure noise as it is, so the
# first level has to be close to it.
PLAN = CalibratePlan(
    Settings(
        nfe=(5, 8, 10),
        teacher_steps=32,
        bases=("ipndm:order=3",),
        grids=("karras:rho=7", "uniform_lam", "gits"),
        first="network",
        refinement=Refinement(0),
    ),
    trajectories=32,
    kappa_max=500.0,
    batch_size=4,
)


class _Told(NamedTuple):
    """Conditions of a pipeline's network.

    Attributes:
        cond: one row for each prompt or class; None if it takes none.
        uncond: one row of what stands for nothing.
    """

    cond: dict[str, Tensor] | None
    uncond: Mapping[str, Tensor]


def prepared(pipeline: Any, plan: CalibratePlan = PLAN, size: int | None = None, name: str = "") -> Prepared:
    """Set a pipeline up for calibration, as its own call would call its network.

    Args:
        pipeline: of Stable Diffusion 1 or 2, SDXL, SD3, Flux, PixArt, Sana or DiT, or unconditional; on its device.
        plan: prompts as `captions`, or classes; scales, seeds, levels: ``replace(PLAN, captions=("a red fox",))``. Its
            levels are bounded by those that the network was trained at; of a table of betas that is timestep 0.
        size: height and width of the images in pixels; None is the pipeline's own.
        name: of the model in the table; the pipeline's class if empty.

    Returns:
        The problem, and what names the model.

    Raises:
        ConfigError: if the pipeline is none of these, is told too little or what it does not read, cannot be guided
            so, or does not make images of such a size.
    """
    network: Any = network_of(pipeline)
    _check_channels(network)
    _check_size(pipeline, network, size)
    given = _conditions(pipeline, network, plan, size)
    _check_scales(pipeline, network, plan.guidance, given)
    denoiser, n = wrap(pipeline), plan.trajectories
    problem = problem_of(
        [_guided(denoiser, network, scale, given.uncond) for scale in plan.guidance],
        denoiser.schedule,
        _shape(network, given, pipeline, size),
        seeds=range(plan.seed, plan.seed + n),
        cond=_in_turn(given.cond, network, plan),
        kappa_max=plan.kappa_max,
        kappa_min=plan.kappa_min,
        device=next(network.parameters()).device,
        batch=plan.batch_size,
    )
    span = (min(plan.guidance), max(plan.guidance))
    origin = Origin(
        name or type(pipeline).__name__, fingerprint(network.state_dict()), said_schedule(denoiser.schedule), span
    )
    return Prepared(problem, origin)


def own_guidance(pipeline: Any) -> float:
    """Find the scale that a pipeline guides with where it is given none; 1 where it cannot guide."""
    known = inspect.signature(pipeline.__call__).parameters
    # Flux has two: one that its network reads, if it was trained to, and another for two calls.
    name = "guidance_scale" if _embeds(network_of(pipeline)) else "true_cfg_scale"
    parameter = known.get(name, known.get("guidance_scale"))
    return 1.0 if parameter is None else float(parameter.default)


def described(table: Table, pipeline: Any, plan: CalibratePlan, size: int | None = None) -> Table:
    """Write into a table how it was fitted, beyond what the fit knows."""
    in_turn = "classes, evenly spread" if _reads_classes(network_of(pipeline)) else "none"
    chosen = list(plan.captions) or [str(label) for label in plan.classes]
    dtype = str(next(network_of(pipeline).parameters()).dtype).removeprefix("torch.")
    facts = {"pipeline": type(pipeline).__name__, "size": size, "dtype": dtype}
    made = stamped(table, plan, chosen or in_turn)
    return replace(made, facts={**made.facts, **facts})


def evaluations(problem: Problem, settings: Settings) -> int:
    """Count beforehand what a fit asks of the network, one sample each: exactly, but for a refinement.

    Teacher: trajectories * (steps + 1), a few of them twice and again in half of the steps. Every number of calls: one
    run of all that fit and choose for every base and every grid, one of all that judge. Guidance doubles them.

    Args:
        problem: what is fitted to.
        settings: what is fitted.

    Returns:
        Evaluations, without the refinement's.
    """
    n, scales, steps = len(problem), len(problem.denoisers), settings.teacher_steps
    kept = (n - round(settings.judged * n)) // scales * scales
    found = _rows(problem, n) * (steps + 1) + _rows(problem, 16) * (max(steps // 2, 1) + 1)
    found += 2 * _rows(problem, max(16, scales))
    for nfe in settings.nfe:
        tried = (len(settings.bases) + len(settings.grids) - 1 if nfe > 1 else 1) + (settings.first == "auto")
        found += nfe * (tried * _rows(problem, kept) + _rows(problem, n) - _rows(problem, kept))
    return found


def _rows(problem: Problem, n: int) -> int:
    """Evaluations of one call for the first n trajectories."""
    each = [2 if isinstance(d, ClassifierFree) and d.scale != 1 else 1 for d in problem.denoisers]
    return sum(each[k % len(each)] for k in range(min(n, len(problem))))


# What the network is


def _embeds(network: Any) -> bool:
    """Whether a network reads its guidance."""
    return bool(getattr(network.config, "guidance_embeds", False))


def _reads_classes(network: Any) -> bool:
    return "class_labels" in kind_of(network).needs


def _check_channels(network: Any) -> None:
    """Refuse networks that take an image or a mask beside the sample."""
    kind_of(network)  # known, or refused
    config, out = network.config, network.config.out_channels
    if out not in (None, config.in_channels, 2 * config.in_channels):
        raise ConfigError(
            f"A {type(network).__name__} of {config.in_channels} channels that returns {out}",
            "A network takes the sample alone, and returns as many channels, or twice as many with their variance",
            "Calibrate the text-to-image pipeline; networks for inpainting or editing are not supported",
        )


def _check_size(pipeline: Any, network: Any, size: int | None) -> None:
    if size is None:
        return
    if "height" not in inspect.signature(pipeline.__call__).parameters:
        raise ConfigError(
            f"size={size} for a {type(pipeline).__name__}",
            "Its images have the size of its network",
            "Leave --size out",
        )
    flux = "img_ids" in kind_of(network).needs
    unit = pipeline.vae_scale_factor * (2 if flux else getattr(network.config, "patch_size", 1))
    if size < unit or size % unit:
        raise ConfigError(
            f"size={size} for a {type(pipeline).__name__}",
            f"Height and width of its images are multiples of {unit} pixels",
            f"Use for instance --size {max(round(size / unit), 1) * unit}",
        )


def _shape(network: Any, given: _Told, pipeline: Any, size: int | None) -> tuple[int, ...]:
    """Of one sample: latents, Flux's packed tokens, or pixels."""
    config = network.config
    if given.cond is not None and "img_ids" in given.cond:
        return given.cond["img_ids"].shape[1], config.in_channels
    edge = config.sample_size if size is None else size // pipeline.vae_scale_factor
    height, width = (edge, edge) if isinstance(edge, int) else edge
    return config.in_channels, height, width


# What it is told


def _conditions(pipeline: Any, network: Any, plan: CalibratePlan, size: int | None) -> _Told:
    """Encode every prompt once, or number the classes."""
    if _reads_classes(network):
        _refuse_told(pipeline, "captions", plan.captions, "It reads class labels")
        return _classes(network, plan)
    _refuse_told(pipeline, "classes", plan.classes, "It reads no class labels")
    if not kind_of(network).needs:
        _refuse_told(pipeline, "captions", plan.captions, "It reads no prompts")
        return _Told(None, {})
    if not plan.captions:
        raise ConfigError(
            f"No prompts for a {type(pipeline).__name__}",
            "Its trajectories are told prompts, of the kind that it will be asked for",
            "Pass --captions 'a red fox', again for each, or --captions FILE with one prompt per line",
        )
    return _Told(*encode(pipeline, plan.captions, size=None if size is None else (size, size)))


def _refuse_told(pipeline: Any, what: str, values: tuple[Any, ...], allowed: str) -> None:
    if values:
        raise ConfigError(f"{len(values)} {what} for a {type(pipeline).__name__}", allowed, f"Leave --{what} out")


def _classes(network: Any, plan: CalibratePlan) -> _Told:
    """The classes of the plan, or as many as each scale has trajectories, evenly over all; the last is none."""
    count = network.config.num_embeds_ada_norm
    wrong = [label for label in plan.classes if not 0 <= label < count]
    if wrong:
        raise ConfigError(f"Class {wrong[0]}", f"The network has classes 0 to {count - 1}", "Choose among them")
    turns = min(-(-plan.trajectories // len(plan.guidance)), count)
    labels = plan.classes or tuple(k * count // turns for k in range(turns))
    return _Told({"class_labels": torch.tensor(labels)}, {"class_labels": torch.tensor([count])})


def _in_turn(cond: dict[str, Tensor] | None, network: Any, plan: CalibratePlan) -> dict[str, Tensor] | None:
    """One row a trajectory; of several scales, each walks through all prompts."""
    if cond is None:
        return None
    n, scales = plan.trajectories, len(plan.guidance)
    rows = len(next(iter(cond.values())))
    made = cast("dict[str, Tensor]", rows_of(cond, torch.tensor([k // scales % rows for k in range(n)])))
    if _embeds(network):
        made["guidance"] = torch.tensor([plan.guidance[k % scales] for k in range(n)])
    return made


# Guidance


def _check_scales(pipeline: Any, network: Any, scales: tuple[float, ...], given: _Told) -> None:
    """Refuse scales at which the pipeline would not guide as we do."""
    least = 0.0 if _embeds(network) else 1.0
    wrong = [scale for scale in scales if not least <= scale < float("inf")]
    if given.cond is None:
        wrong = [scale for scale in scales if scale != 1]
    if wrong:
        guides = "Its network reads a scale of 0 or more" if _embeds(network) else "It guides by a scale above 1"
        raise ConfigError(
            f"Guidance {wrong[0]:g} for a {type(pipeline).__name__}",
            "It has nothing to guide by; 1 is none" if given.cond is None else f"{guides}; 1 is none",
            "Use --guidance 1" if given.cond is None else "Name the scales that it will be called with",
        )


def _guided(denoiser: NetworkDenoiser, network: Any, scale: float, uncond: Mapping[str, Tensor]) -> Denoiser:
    return denoiser if scale == 1 or _embeds(network) else ClassifierFree(denoiser, scale, uncond)
