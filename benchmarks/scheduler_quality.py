"""Schedulers in a pipeline of diffusers: how far each ends from the network's own solution, at equal noise and calls.

    python -m benchmarks.scheduler_quality --out benchmarks/results

The bundled models as :class:`fewstep.pipelines.FewstepPipeline`, once as the flow that they are, once at the levels of
Stable Diffusion's betas. Every scheduler is what its class makes of the pipeline's configuration; what is changed
stands in its name. All start from the same noise. The reference is 64 steps of Heun over equal steps of lam from the
same start, ended at clean data; the error is the root mean square over all numbers, data units. The picture
shows the same numbers.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor

import fewstep
from benchmarks.quality_pictures import panels_of, plain
from fewstep._files import output_dir, write_json
from fewstep.adapters.diffusers_config import scheduler_config
from fewstep.experiments.demo import machine
from fewstep.experiments.export import pipeline_of
from fewstep.models import Model
from fewstep.noise import Grid, NoiseLevel, Tabulated, UniformLam
from fewstep.pipelines import FewstepModel, FewstepPipeline
from fewstep.schedulers import CalibratedScheduler, EVODiffScheduler
from fewstep.solvers import Heun

STEPS = (4, 5, 6, 7, 9, 11, 16)  # those of the bundled tables, and 4
IMAGES = {"mnist": 128, "cifar10-small": 32}
KARRAS = {"use_karras_sigmas": True}
FINE, KAPPA = 64, 0.002
COLOURS = {  # Okabe and Ito's, as in the other figures
    "DDIM": "#999999",
    "FlowMatchEuler": "#999999",
    "DPMSolver++": "#E69F00",
    "UniPC": "#009E73",
    "EVODiff": "#D55E00",
    "Calibrated": "#0072B2",
}
# Of each kind of pipeline: title -> class and what is changed. "leading" is what SDXL's configuration says.
SCHEDULERS: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = {
    "flow": {
        "FlowMatchEuler": (diffusers.FlowMatchEulerDiscreteScheduler, {}),
        "DPMSolver++ 2M": (diffusers.DPMSolverMultistepScheduler, {"use_flow_sigmas": True}),
        "UniPC": (diffusers.UniPCMultistepScheduler, {"use_flow_sigmas": True}),
        "EVODiff": (EVODiffScheduler, {}),
        "Calibrated": (CalibratedScheduler, {}),
    },
    "table": {
        "DDIM trailing": (diffusers.DDIMScheduler, {"timestep_spacing": "trailing", "clip_sample": False}),
        "DPMSolver++ 2M": (diffusers.DPMSolverMultistepScheduler, {}),
        "DPMSolver++ 2M leading": (diffusers.DPMSolverMultistepScheduler, {"timestep_spacing": "leading"}),
        "DPMSolver++ 2M karras": (diffusers.DPMSolverMultistepScheduler, KARRAS),
        "UniPC": (diffusers.UniPCMultistepScheduler, {}),
        "UniPC karras": (diffusers.UniPCMultistepScheduler, KARRAS),
        "EVODiff": (EVODiffScheduler, {}),
        "EVODiff karras": (EVODiffScheduler, KARRAS),
    },
}


class Cell(NamedTuple):
    """One scheduler at one number of steps."""

    model: str
    kind: str
    scheduler: str
    steps: int
    calls: int
    rmse: float


def pipeline_as(model: Model, kind: str) -> FewstepPipeline:
    """The model as a flow, or at the levels of Stable Diffusion."""
    whole = pipeline_of(model, "calibrated" if kind == "flow" else "evodiff")
    if kind == "flow":
        return whole
    bar = (1.0, *Tabulated.scaled_linear().alphas_cumprod)
    betas = [1 - after / before for before, after in pairwise(bar)]
    unet = FewstepModel(whole.unet.config.model, betas)
    unet.network.load_state_dict(whole.unet.network.state_dict())
    return FewstepPipeline(unet.eval(), EVODiffScheduler(**scheduler_config(betas)), list(model.config.classes))


def noise_of(model: Model, n: int) -> Tensor:
    """Standard normal noise of the first n seeds."""
    draw = fewstep.SeededNoise(tuple(range(n)))
    return draw(-1, torch.empty(n, *model.shape))


def fine(model: Model, pipeline: FewstepPipeline, x: Tensor, labels: list[int]) -> Tensor:
    """The network's own solution from the level at which the pipeline's scheduler begins."""
    scheduler, schedule = pipeline.scheduler, pipeline.unet.known.schedule
    scheduler.set_timesteps(getattr(scheduler, "steps", STEPS)[0])
    first = scheduler.grid.at(0)
    bounds = {"lam_min": max(first.lam.item(), -7.0), "lam_max": -math.log(KAPPA)}  # e**7 is next to pure noise
    rest = UniformLam(**bounds, end="zero")(schedule, FINE)
    levels = NoiseLevel(*(torch.cat([a[None], b[1:]]) for a, b in zip(first, rest.levels, strict=True)))
    begun, cond = x * scheduler.init_noise_sigma, {"label": torch.tensor(labels)}
    return fewstep.sample(model.denoiser, Heun(), Grid(levels, rest.t), begun, cond=cond).x


def cells(model: Model, kind: str) -> Iterator[Cell]:
    """Every scheduler at every number of steps."""
    name, n = model.config.name, IMAGES[model.config.name]
    pipeline, x, labels = pipeline_as(model, kind), noise_of(model, n), [k % 10 for k in range(n)]
    pipeline.set_progress_bar_config(disable=True)
    own, references = pipeline.scheduler.config, {}
    for make in (EVODiffScheduler, *([CalibratedScheduler] if kind == "flow" else [])):
        pipeline.scheduler = make.from_config(own)
        references[make] = fine(model, pipeline, x, labels)
    for title, (make, changes) in SCHEDULERS[kind].items():
        # A table begins at its own first level; all others begin where EVODiff does.
        reference = references.get(make, references[EVODiffScheduler])
        pipeline.scheduler = make.from_config(own, **changes)
        for steps in getattr(pipeline.scheduler, "steps", STEPS):
            if steps not in STEPS:
                continue
            images, calls = drawn(pipeline, x, labels, steps)
            yield Cell(name, kind, title, steps, calls, (images - reference).double().square().mean().sqrt().item())


def drawn(pipeline: FewstepPipeline, x: Tensor, labels: list[int], steps: int) -> tuple[Tensor, int]:
    """Images, and how often the network was called."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    with pipeline.unet.register_forward_pre_hook(count):
        images = pipeline(latents=x, class_labels=labels, num_inference_steps=steps, output_type="latent").images
    return images, calls


def draw(found: list[Cell], path: Path) -> None:
    """Error against calls: a panel for each model and kind."""
    keys = list(dict.fromkeys((cell.model, cell.kind) for cell in found))
    figure, axes = panels_of(len(keys), 3)
    for axis, key in zip(axes.flat, keys, strict=False):
        rows = [cell for cell in found if (cell.model, cell.kind) == key]
        for title in dict.fromkeys(cell.scheduler for cell in rows):
            own = [cell for cell in rows if cell.scheduler == title]
            colour, style = COLOURS[title.split()[0]], ":" if "leading" in title else "--" if "karras" in title else "-"
            thick = 2.6 if title.split()[0] in ("EVODiff", "Calibrated") else 1.4
            x, y = [cell.steps for cell in own], [cell.rmse for cell in own]
            axis.plot(x, y, color=colour, linestyle=style, linewidth=thick, marker="o", markersize=4, label=title)
        axis.set(title=", ".join(key), xscale="log", yscale="log", xticks=STEPS, xlabel="calls")
        axis.set_ylabel("RMSE to the network's own solution", fontsize=9)
        plain(axis)
    handles = {line.get_label(): line for axis in axes.flat[: len(keys)] for line in axis.get_lines()}
    for axis in axes.flat[len(keys) :]:
        axis.set_axis_off()
    axes.flat[len(keys)].legend(handles.values(), handles, loc="center", frameon=False, fontsize=10)
    figure.savefig(path, dpi=80)


def table(found: list[Cell]) -> str:
    """A table for each model and kind, with the least error of each column in bold."""
    lines = []
    for key in dict.fromkeys((cell.model, cell.kind) for cell in found):
        rows = [cell for cell in found if (cell.model, cell.kind) == key]
        least = {steps: min(cell.rmse for cell in rows if cell.steps == steps) for steps in STEPS}
        lines += [f"\n{key[0]}, {key[1]}, {IMAGES[key[0]]} images\n"]
        lines += ["| scheduler | " + " | ".join(f"{steps} calls" for steps in STEPS) + " |"]
        lines += ["|---" * (len(STEPS) + 1) + "|"]
        for title in dict.fromkeys(cell.scheduler for cell in rows):
            errors = {cell.steps: cell.rmse for cell in rows if cell.scheduler == title}
            lines.append(f"| {title} | " + " | ".join(_said(errors.get(steps), least[steps]) for steps in STEPS) + " |")
    return "\n".join(lines)


def _said(error: float | None, least: float) -> str:
    if error is None:
        return "-"
    return f"**{error:.4f}**" if error == least else f"{error:.4f}"


def main() -> None:
    """Measure, and write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = output_dir(parser.parse_args().out)
    torch.set_num_threads(1)
    found: list[Cell] = []
    for name in IMAGES:
        for kind in SCHEDULERS:
            for cell in cells(fewstep.load_model(name), kind):
                found.append(cell)
                print(cell, flush=True)
    versions = {"diffusers": diffusers.__version__, "torch": torch.__version__}
    write_json(
        out / "scheduler_quality.json",
        {"machine": machine(torch.device("cpu")), **versions, "seeds": "0..n-1", "cells": [c._asdict() for c in found]},
    )
    draw(found, out / "scheduler_quality.png")
    print(table(found))


if __name__ == "__main__":
    main()
