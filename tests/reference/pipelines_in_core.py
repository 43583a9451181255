"""What a tiny pipeline does, done by the core instead: the same network, conditions, levels and start."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fewstep.adapters.encoding import encode
from fewstep.adapters.wrap import wrap
from fewstep.calibration import Entry, Origin, Table
from fewstep.denoisers import ClassifierFree, Denoiser
from fewstep.noise import Grid, NoiseLevel
from fewstep.sampling import Sample, sample

from .tiny_pipelines import CLASSES, EDGE, NEGATIVE, PROMPTS, family


class Core(NamedTuple):
    """What the core samples with."""

    denoiser: Denoiser
    cond: Any


def core_of(pipe: Any, name: str, guidance: float) -> Core:
    if family(name) == "ddpm":
        return Core(wrap(pipe), None)
    if family(name) == "dit":
        cond, uncond = {"class_labels": torch.tensor(CLASSES)}, {"class_labels": torch.tensor([1000])}
    else:
        cond, uncond = encode(pipe, PROMPTS, NEGATIVE, (EDGE[family(name)],) * 2)
    return Core(wrap(pipe) if guidance == 1 else ClassifierFree(wrap(pipe), guidance, uncond), cond)


def rest_of(grid: Grid, steps: int) -> Grid:
    """The last steps of a grid."""
    first = grid.steps - steps
    return Grid(NoiseLevel(grid.levels.alpha[first:], grid.levels.sigma[first:]), grid.t[first:])


def in_core(pipe: Any, name: str, guidance: float, made: Any, solver: Any) -> Sample:
    """Do a pipeline's run again: from the same start, over the same levels, in float32 or better."""
    core = core_of(pipe, name, guidance)
    grid = rest_of(pipe.scheduler.grid, len(made.timesteps))
    return sample(core.denoiser, solver, grid, made.first[:2].float(), cond=core.cond)  # a guided DiT has each twice


def by_hand(nfe: int) -> Table:
    """A table that no fit made: its weights leave their trace in every step."""
    kappa = tuple(12.0 * 0.3**i for i in range(nfe + 1))
    weights = tuple(tuple(0.1 * (j + 1) / nfe for j in range(i + 1)) for i in range(nfe - 1))
    return Table(Origin(), {nfe: Entry(kappa, weights, False, "ddim", "by hand", 0.1, 0.1, 0.1)})
