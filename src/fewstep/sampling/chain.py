"""From a model's chain to what `sample` takes: a solver and a grid."""

from __future__ import annotations

from typing import NamedTuple

from fewstep._chain import Chain
from fewstep.errors import ConfigError
from fewstep.noise import SPACINGS, Grid, PureNoise, Schedule, Spacing
from fewstep.sampling.learned import from_table
from fewstep.solvers import SOLVERS, Solver

__all__ = ["Chained", "resolve"]


class Chained(NamedTuple):
    """How a chain of some number of steps is run."""

    solver: Solver
    grid: Grid


def resolve(chain: Chain, schedule: Schedule, steps: int | None = None) -> Chained:
    """Build the solver and the grid of a chain; its trainer and its samplers all call this.

    Args:
        chain: what a model was trained through.
        schedule: of the model.
        steps: one of the trained numbers; the largest if omitted.

    Returns:
        Solver and grid. The grid starts at pure noise, unless the chain is leaky.

    Raises:
        ConfigError: if the chain was not trained for that number of steps, or a part cannot be built.
        UnknownName: if there is no such solver or spacing.
        LevelError: if the schedule does not reach a level.
        CheckpointError: if a learned table cannot be read.
    """
    steps = chain.longest if steps is None else steps
    if steps not in chain.steps:
        raise ConfigError(
            f"{steps} steps of a chain",
            f"It was trained for {', '.join(map(str, chain.steps))}",
            "Choose one of them, or name a solver to sample the model in the ordinary way",
        )
    if chain.learned is not None:
        return Chained(*from_table(chain.learned[str(steps)], schedule))
    spacing: Spacing = chain.spacing.build(SPACINGS, "spacing")
    start = spacing if chain.leaky else PureNoise(spacing)
    return Chained(chain.solver.build(SOLVERS, "solver"), start(schedule, steps))
