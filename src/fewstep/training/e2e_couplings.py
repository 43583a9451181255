"""Couplings and gradient rules of an end-to-end run by name, as a configuration writes them.

A coupling's recipe is called with the arguments of the configuration and returns what makes the coupling out of the
run's materials.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from fewstep.errors import choose
from fewstep.models import Model
from fewstep.noise import SCHEDULES, Karras, UniformFlow
from fewstep.objectives import Gradient, RandomExit, RandomSteps, Through
from fewstep.objectives.couplings import (
    OT,
    Coupling,
    Independent,
    Inversion,
    Leaky,
    NearestNoise,
    Teacher,
    read_pairs,
)
from fewstep.sampling import Checkpointed, Full, LastSteps, grid_for
from fewstep.solvers import SOLVERS
from fewstep.training.e2e_materials import Materials

__all__ = ["COUPLINGS", "GRADIENTS", "PAIRS", "CouplingRecipe", "teacher_of"]

PAIRS = "pairs.safetensors"  # in the run's folder, where the coupling "pairs" looks by itself
CouplingRecipe: TypeAlias = Callable[[Materials], Coupling]


def _independent() -> CouplingRecipe:
    return lambda given: Independent()


def _teacher(solver: str = "evodiff", nfe: int = 10, guidance: float = 1.0, data_free: bool = False) -> CouplingRecipe:
    return lambda given: teacher_of(given.teacher, solver, nfe, guidance, data_free)


def teacher_of(model: Model, solver: str, nfe: int, guidance: float = 1.0, data_free: bool = False) -> Teacher:
    """Make a teacher of a model, on the usual grid of sampling.

    Args:
        model: what is sampled.
        solver: a name in SOLVERS, of a deterministic one.
        nfe: calls that may be made per sample.
        guidance: scale; 1 is none.
        data_free: whether its samples stand in for the data.

    Returns:
        The teacher.

    Raises:
        UnknownName: if there is no such solver.
        ConfigError: if it draws noise, or the model cannot be guided.
        BudgetError: if it needs more calls.
    """
    schedule, rule = model.denoiser.schedule, choose(solver, SOLVERS, "solver")()
    noisiest, cleanest = (math.exp(-lam) for lam in schedule.lam_range())
    spacing = Karras(kappa_max=min(80.0, noisiest), kappa_min=max(0.002, cleanest))
    return Teacher(model.guided(guidance), rule, grid_for(rule, spacing, schedule, nfe), data_free)


def _pairs(path: str = "", data_free: bool = True) -> CouplingRecipe:
    return lambda given: replace(read_pairs(path or given.folder / PAIRS), data_free=data_free)


def _inversion(steps: int = 50) -> CouplingRecipe:
    def make(given: Materials) -> Coupling:
        denoiser = given.teacher.denoiser
        return Inversion(denoiser, UniformFlow()(denoiser.schedule, steps))

    return make


def _ot() -> CouplingRecipe:
    return lambda given: OT()


def _nearest(k: int = 4) -> CouplingRecipe:
    return lambda given: NearestNoise(k)


def _leaky(lam: float = -2.7) -> CouplingRecipe:
    return lambda given: Leaky(given.described.schedule.build(SCHEDULES, "schedule"), lam)


COUPLINGS: dict[str, Callable[..., CouplingRecipe]] = {
    "independent": _independent,
    "teacher": _teacher,
    "pairs": _pairs,
    "inversion": _inversion,
    "ot": _ot,
    "nearest": _nearest,
    "leaky": _leaky,
}


def _full(every: int = 0) -> Gradient:
    return Through(Checkpointed(every) if every else Full())


def _last_k(k: int = 1) -> Gradient:
    return Through(LastSteps(k))


def _random_k(k: int = 8) -> Gradient:
    return RandomSteps(k)


GRADIENTS: dict[str, Callable[..., Gradient]] = {
    "full": _full,
    "last_k": _last_k,
    "random_k": _random_k,
    "exit": RandomExit,
}
