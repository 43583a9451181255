"""Couplings and gradient rules of an end-to-end run by name, as a configuration writes them.

A coupling's recipe is called with the arguments of the configuration and returns what makes the coupling out of the
run's materials.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

from fewstep._part import Part
from fewstep.errors import ConfigError
from fewstep.models import Model, ModelConfig
from fewstep.noise import SCHEDULES, Karras, UniformFlow
from fewstep.objectives import Gradient, RandomExit, RandomSteps, Through
from fewstep.objectives.couplings import (
    OT,
    Coupling,
    Independent,
    Inversion,
    Leaky,
    NearestNoise,
    Pairs,
    Teacher,
    read_pairs,
)
from fewstep.sampling import Checkpointed, Full, LastSteps, grid_for, resolve
from fewstep.solvers import DEFAULT_NFE, DEFAULT_SOLVER, SOLVERS
from fewstep.training.e2e_materials import Materials

__all__ = ["COUPLINGS", "GRADIENTS", "PAIRS", "TAUGHT", "CouplingRecipe", "teacher_of"]

PAIRS = "pairs.safetensors"  # in the run's folder, where the coupling "pairs" looks by itself
CouplingRecipe: TypeAlias = Callable[[Materials], Coupling]


def _independent() -> CouplingRecipe:
    return lambda given: Independent()


def _teacher(solver: str = "", nfe: int = 0, guidance: float = 1.0, data_free: bool = False) -> CouplingRecipe:
    return lambda given: teacher_of(_fitting_teacher(given), solver, nfe, guidance, data_free)


def teacher_of(model: Model, solver: str = "", nfe: int = 0, guidance: float = 1.0, data_free: bool = False) -> Teacher:
    """Make a teacher of a model: on the usual grid of sampling, or, of a few-step model, through its longest chain.

    Args:
        model: what is sampled.
        solver: a name in SOLVERS, of a deterministic one; empty for that of the chain, or evodiff.
        nfe: calls that may be made per sample; 0 for those of the chain, or 10.
        guidance: scale; 1 is none.
        data_free: whether its samples stand in for the data.

    Returns:
        The teacher.

    Raises:
        UnknownName: if there is no such solver.
        ConfigError: if it draws noise, or the model cannot be guided.
        BudgetError: if it needs more calls.
    """
    schedule, denoiser = model.denoiser.schedule, model.guided(guidance)
    if model.config.chain is not None and not solver and nfe == 0:
        if guidance != 1:
            raise ConfigError(
                f"Guidance {guidance:g} of the teacher {model.config.name!r}, sampled through its own chain",
                "A chain is trained as it is sampled, which is without guidance",
                "Guide the denoiser that it was made from, or name a solver for the teacher, such as evodiff",
            )
        return Teacher(denoiser, *resolve(model.config.chain, schedule), data_free)
    rule = Part.spelled(solver or DEFAULT_SOLVER).build(SOLVERS, "solver")
    noisiest, cleanest = (math.exp(-lam) for lam in schedule.lam_range())
    spacing = Karras(kappa_max=min(80.0, noisiest), kappa_min=max(0.002, cleanest))
    return Teacher(denoiser, rule, grid_for(rule, spacing, schedule, nfe or DEFAULT_NFE), data_free)


def _pairs(path: str = "", data_free: bool = True) -> CouplingRecipe:
    def make(given: Materials) -> Coupling:
        place = Path(path) if path else given.folder / PAIRS
        if not place.exists():
            raise ConfigError(
                f"The coupling pairs without {place}",
                "It draws from a table of noise and a teacher's samples, which `fewstep convert` makes",
                "Give e2e.coupling.path=FILE, or choose e2e.coupling=teacher, which makes pairs while it trains",
            )
        return replace(_fitting(read_pairs(place), given, place), data_free=data_free)

    return make


class _Told(NamedTuple):
    """What somebody's images are, and what is told of them: name -> shape of a row, and the number of classes."""

    shape: tuple[int, ...]
    rows: dict[str, tuple[int, ...]]
    n_classes: int

    def __str__(self) -> str:
        told = ", ".join(f"{name} {row or ''}".strip() for name, row in self.rows.items()) or "nothing"
        return f"images of shape {self.shape}, told {told}, {self.n_classes} classes"


def _told_by(model: ModelConfig) -> _Told:
    return _Told(model.shape, {name: tuple(value.shape[1:]) for name, value in model.null.items()}, model.n_classes)


def _fitting_teacher(given: Materials) -> Model:
    """Refuse a teacher of other images or other conditions than those of the model in training."""
    own, theirs = _told_by(given.described), _told_by(given.teacher.config)
    if own != theirs:
        raise ConfigError(
            f"The teacher {given.teacher.config.name!r}: {theirs}",
            f"The model in training: {own}",
            "Name a teacher of these images and conditions with e2e.teacher, or start from one with e2e.init",
        )
    return given.teacher


def _fitting(pairs: Pairs, given: Materials, place: Path) -> Pairs:
    """Refuse pairs of other images, of other conditions or of another teacher than the run's."""
    own, cond = _told_by(given.described), pairs.cond or {}
    rows = {name: tuple(value.shape[1:]) for name, value in cond.items()}
    theirs = _Told(tuple(pairs.x.shape[1:]), rows, 1 + int(cond["label"].max()) if "label" in cond else 0)
    if theirs[:2] != own[:2] or theirs.n_classes > own.n_classes:
        raise ConfigError(
            f"{place} holds pairs: {theirs}",
            f"The model in training: {own}",
            "Make pairs with a teacher of these images and conditions, such as the model that the run starts from",
        )
    if pairs.made_by and given.has_teacher and pairs.made_by != given.teacher.fingerprint:
        raise ConfigError(
            f"{place} holds pairs of a model with the fingerprint {pairs.made_by}",
            f"The run's teacher, {given.teacher.config.name!r}, has the fingerprint {given.teacher.fingerprint}",
            "Name the model that made them with e2e.teacher=FOLDER, or make pairs anew",
        )
    return pairs


def _inversion(steps: int = 50) -> CouplingRecipe:
    def make(given: Materials) -> Coupling:
        denoiser = _fitting_teacher(given).denoiser
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
TAUGHT = ("teacher", "pairs", "inversion")  # those that learn from a model


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
