"""How a model is sampled: through the chain that it was trained for, by a calibrated solver, or by any on any grid.

This is the one place that decides. A model with a chain is sampled through it unless a solver, a number of calls or a
grid is asked for. Then, as for every other model, the table that lies beside its weights is taken if it was fitted for
that number of calls and that guidance, and an ordinary solver if not. A table that lies there and does not belong to
the weights is refused rather than passed over: somebody believes that it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fewstep._chain import Chain
from fewstep._part import Part
from fewstep.calibration import FILE, Table, load_table
from fewstep.errors import CheckpointError, ConfigError
from fewstep.experiments.runs import GridChoice, make_grid
from fewstep.models import Model
from fewstep.noise import Grid
from fewstep.sampling import resolve
from fewstep.solvers import DEFAULT_NFE, DEFAULT_SOLVER, SOLVERS, Solver

__all__ = [
    "CALIBRATED",
    "Way",
    "check_budget",
    "is_table",
    "labelled",
    "own_table",
    "reads_data",
    "refuse_force",
    "serves",
    "table_of",
    "tabulated",
    "way_of",
]

CALIBRATED = "calibrated"  # a model's own table, where a solver is named
_LEAKY = "leaky start: reads data"
_ANEW = (
    f"Fit it again, fewstep calibrate --model FOLDER; or delete {FILE} from the folder, or name a solver such as "
    f"--solver {DEFAULT_SOLVER}"
)


class Way(NamedTuple):
    """How a model is sampled.

    Attributes:
        rule: the solver.
        grid: the levels.
        solver: the solver in words.
        said: the grid in words; says whether it is a chain's, and whether that one reads data, or which table it is.
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


def refuse_force(force: bool, taken: str) -> None:
    """Refuse to force what is no table, since it would change nothing."""
    if force:
        raise ConfigError(
            f"--force with {taken}",
            "It takes a calibrated table for what the table was not fitted to; no table is taken here",
            "Leave --force out, or name a table: --solver TABLE.json",
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
    *,
    force: bool = False,
) -> Way:
    """Decide how a model is sampled; refuses what cannot be run before anything is sampled.

    Args:
        model: what to sample.
        solver: a name in SOLVERS, the path of a calibrated table, or "calibrated" for the model's own; None for that of
            the chain, the model's own table, or evodiff.
        nfe: calls that may be made per image; None for what the steps need, or 10.
        steps: steps of the grid; of a chain, one of the trained numbers. None for the chain's largest.
        grid: levels; None for those of the chain or the table, or those of GridChoice().
        guidance: scale; 1 is none, and all that a chain was trained with.
        force: take a table for another model, schedule or guidance, and at the next smaller number of calls; the
            model's own if none is named.

    Returns:
        Solver, grid, and what is said of them.

    Raises:
        UnknownName: if there is no such solver or grid.
        GridError: if the solver cannot run on the grid, or there are no steps.
        BudgetError: if the solver needs more calls.
        ConfigError: if both budgets are given, the chain was not trained for these steps, or it would be guided; if a
            table does not fit, or is given levels; if no table is taken that could be forced.
        CheckpointError: if a table cannot be read.
    """
    check_budget(nfe, steps)
    if model.config.chain is not None and (solver, nfe, grid) == (None, None, None):
        refuse_force(force, f"the chain of {model.config.name!r}")
        _refuse_guided(model, guidance)
        return _chained(model, model.config.chain, steps)
    calls = DEFAULT_NFE if nfe is None else nfe
    if solver is not None and is_table(solver):
        _refuse_levels(solver, steps, grid)
        return tabulated(model, solver, calls, guidance, force=force)
    forced = force and model.calibration is not None
    if (solver, steps, grid) == (None, None, None) and (forced or serves(model, (calls,), guidance)):
        return tabulated(model, CALIBRATED, calls, guidance, force=force)
    name, choice = solver or DEFAULT_SOLVER, grid or GridChoice()
    refuse_force(force, name)
    rule = Part.spelled(name).build(SOLVERS, "solver")
    if steps is None:
        levels = make_grid(model, rule, choice, calls)
        return Way(rule, levels, name, _ordinary(model, choice, levels.steps), calls)
    schedule = model.denoiser.schedule
    levels = choice.rule(schedule)(schedule, steps)
    return _checked(model, Way(rule, levels, name, _ordinary(model, choice, steps), 0))


def is_table(solver: str) -> bool:
    """Whether a solver is spelled as a table: "calibrated", a file, or a folder that has one."""
    named = solver.partition(":")[0].strip() in SOLVERS  # also where a file of that name happens to lie about
    if named or not solver:
        return False
    return solver == CALIBRATED or solver.endswith(".json") or any(map(os.path.isfile, (solver, _inside(solver))))


def _inside(folder: str) -> str:
    return os.path.join(folder, FILE)


def own_table(model: Model) -> Table:
    """Read the table that lies beside a model's weights.

    Args:
        model: what it was loaded with.

    Returns:
        The table; whether it belongs to these weights is checked where it is used.

    Raises:
        ConfigError: if there is none.
        CheckpointError: if it cannot be read.
    """
    content, whose = model.calibration, f"the model {model.config.name!r}"
    if content is None:
        raise ConfigError(
            f"A calibrated solver for {whose}",
            f"Its folder has a table, {FILE}; this one has none",
            "Fit one, fewstep calibrate --model FOLDER; or name a table: --solver TABLE.json",
        )
    if isinstance(content, CheckpointError):
        raise CheckpointError(content.given, content.allowed, _ANEW)
    try:
        return Table.from_json(content, f"{FILE} of {whose}")
    except CheckpointError as error:
        raise CheckpointError(error.given, error.allowed, _ANEW) from error


def table_of(model: Model, solver: str) -> Table:
    """Read the table that a solver is spelled as; see :func:`is_table`."""
    if solver == CALIBRATED:
        return own_table(model)
    return load_table(_inside(solver) if os.path.isdir(solver) else solver)


def serves(model: Model, budgets: Sequence[int], guidance: float) -> bool:
    """Whether a model has a table of its own for one of these budgets, under this guidance."""
    if model.calibration is None:
        return False
    table = own_table(model)
    return table.covers(guidance) and any(nfe in table.entries for nfe in budgets)


def tabulated(model: Model, solver: str, nfe: int, guidance: float = 1.0, *, force: bool = False) -> Way:
    """Sample with a calibrated solver.

    Args:
        model: what to sample.
        solver: "calibrated", or the path of a table.
        nfe: calls per image.
        guidance: scale; 1 is none.
        force: take a table for another model, schedule or guidance, and at the next smaller number of calls.

    Returns:
        Solver and grid of the table.

    Raises:
        ConfigError: if the table was fitted to something else, or not for that number of calls.
        CheckpointError: if it cannot be read.
        ShapeError: if a first estimate that is given has another shape than the model's images.
    """
    table = table_of(model, solver)
    schedule, notes = model.denoiser.schedule, [f"table {_digest(table)}"]
    try:
        table.check(model.fingerprint, schedule, guidance)
    except ConfigError as error:
        if not force:
            todo = f"{_ANEW}; --force uses it at your own risk" if solver == CALIBRATED else error.todo
            raise ConfigError(error.given, error.allowed, todo) from error
        notes.append("forced")
    rule, grid = table.way(schedule, nfe, force=force)
    entry = table.entries[rule.nfe(grid)]
    if nfe not in table.entries and "forced" not in notes:
        notes.append("forced")
    notes += [_LEAKY] if reads_data(model) else []
    span = f"kappa {entry.kappa[0]:g} to {entry.kappa[-1]:g}"
    said = f"{entry.grid}, {span}, {grid.steps} steps ({'; '.join(notes)})"
    return _checked(model, Way(rule, grid, CALIBRATED, said, 0))._replace(nfe=nfe)


def _digest(table: Table) -> str:
    """Name the numbers of a table, so that images of two fits are never taken for one another."""
    content = table.to_json()
    told = json.dumps([content["entries"], content["mean"]])
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def _refuse_levels(solver: str, steps: int | None, grid: GridChoice | None) -> None:
    if steps is not None or grid is not None:
        given = f"steps={steps}" if steps is not None else "a grid"
        raise ConfigError(
            f"{given} for the calibrated solver {solver}",
            "A table has its own levels for every number of calls",
            "Leave --steps, --grid, --kappa-max and --kappa-min out; --nfe chooses among its numbers of calls",
        )


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
