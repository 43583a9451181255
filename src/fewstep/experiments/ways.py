"""How a model is sampled: through the chain that it was trained for, or by a solver on a grid that somebody chose.

This is the one place that decides. A model with a chain is sampled through it unless a solver, a number of calls or a
grid is asked for: then it is sampled in the ordinary way, as every other model is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fewstep._chain import Chain
from fewstep._part import Part
from fewstep.errors import ConfigError
from fewstep.experiments.runs import GridChoice, make_grid
from fewstep.models import Model
from fewstep.noise import Grid
from fewstep.sampling import resolve
from fewstep.solvers import DEFAULT_NFE, DEFAULT_SOLVER, SOLVERS, Solver

__all__ = ["Way", "check_budget", "labelled", "reads_data", "way_of"]

_LEAKY = "leaky start: reads data"


class Way(NamedTuple):
    """How a model is sampled.

    Attributes:
        rule: the solver.
        grid: the levels.
        solver: the solver in words.
        said: the grid in words; says whether it is a chain's, and whether that one reads data.
        nfe: calls that may be made per image.
    """

    rule: Solver
    grid: Grid
    solver: str
    said: str
    nfe: int


def check_budget(nfe: int | None, steps: int | None) -> None:
    """Refuse two budgets at once."""
    if nfe is not None and steps is not None:
        raise ConfigError(
            f"nfe={nfe} and steps={steps}", "One of them: calls that may be made, or steps of the grid", "Leave one out"
        )


def labelled(model: Model) -> str:
    """Name a model in a report; one whose training started from data says so."""
    return f"{model.config.name} ({_LEAKY})" if reads_data(model) else model.config.name


def reads_data(model: Model) -> bool:
    """Whether the training of a model's chain started from data, so that it is no sampler."""
    return model.config.chain is not None and model.config.chain.leaky


def way_of(
    model: Model,
    solver: str | None = None,
    nfe: int | None = None,
    steps: int | None = None,
    grid: GridChoice | None = None,
    guidance: float = 1.0,
) -> Way:
    """Decide how a model is sampled; refuses what cannot be run before anything is sampled.

    Args:
        model: what to sample.
        solver: a name in SOLVERS; None for that of the chain, or evodiff.
        nfe: calls that may be made per image; None for what the steps need, or 10.
        steps: steps of the grid; of a chain, one of the trained numbers. None for the chain's largest.
        grid: levels; None for those of the chain, or those of GridChoice().
        guidance: scale; 1 is none, and all that a chain was trained with.

    Returns:
        Solver, grid, and what is said of them.

    Raises:
        UnknownName: if there is no such solver or grid.
        GridError: if the solver cannot run on the grid, or there are no steps.
        BudgetError: if the solver needs more calls.
        ConfigError: if both budgets are given, the chain was not trained for these steps, or it would be guided.
    """
    check_budget(nfe, steps)
    if model.config.chain is not None and (solver, nfe, grid) == (None, None, None):
        _refuse_guided(model, guidance)
        return _chained(model, model.config.chain, steps)
    name, choice = solver or DEFAULT_SOLVER, grid or GridChoice()
    rule = Part.spelled(name).build(SOLVERS, "solver")
    if steps is None:
        levels = make_grid(model, rule, choice, nfe := DEFAULT_NFE if nfe is None else nfe)
        return Way(rule, levels, name, _ordinary(model, choice, levels.steps), nfe)
    schedule = model.denoiser.schedule
    levels = choice.rule(schedule)(schedule, steps)
    return _checked(model, Way(rule, levels, name, _ordinary(model, choice, steps), 0))


def _ordinary(model: Model, choice: GridChoice, steps: int) -> str:
    return choice.describe(steps) + (f" ({_LEAKY})" if reads_data(model) else "")


def _refuse_guided(model: Model, guidance: float) -> None:
    if guidance != 1:
        raise ConfigError(
            f"Guidance {guidance:g} through the chain of {model.config.name!r}",
            "A chain is trained as it is sampled, which is without guidance",
            "Leave --guidance out; `fewstep convert --guidance 2` of the denoiser that it was made from bakes it in",
        )


def _chained(model: Model, chain: Chain, steps: int | None) -> Way:
    rule, grid = resolve(chain, model.denoiser.schedule, steps)
    kind = f"chain; {_LEAKY}" if chain.leaky else "chain"
    solver, levels = ("learned", "learned") if chain.learned else (str(chain.solver), str(chain.spacing))
    return _checked(model, Way(rule, grid, solver, f"{levels}, {grid.steps} steps ({kind})", 0))


def _checked(model: Model, way: Way) -> Way:
    """Let the solver refuse the grid, and count what it needs."""
    way.rule.init(torch.zeros(1, *model.shape), way.grid)
    return way._replace(nfe=way.rule.nfe(way.grid))
