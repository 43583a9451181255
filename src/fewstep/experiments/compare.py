"""Solvers against each other on one model: equal noise, equal calls, one table.

Every cell of the table starts from the same noise and is measured three ways: the root mean square error to a fine
solution of the same equation (is it the right picture?), the distance of distributions to real images (is it a good
set of pictures?) and the contrast gain (is the distance flattered by contrast?).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep._part import Part
from fewstep.errors import BudgetError, ConfigError
from fewstep.experiments.evaluation.quality import judge_results
from fewstep.experiments.runs import (
    Drawn,
    GridChoice,
    captions_of,
    check_guidance,
    conditions,
    draw,
    make_grid,
    said_of,
    seeds_of,
)
from fewstep.experiments.ways import labelled
from fewstep.metrics import Judge, contrast_gain, load_judge, rmse
from fewstep.metrics.estimate import Estimate
from fewstep.metrics.protocol import Making
from fewstep.models import Model
from fewstep.noise import Grid
from fewstep.solvers import SOLVERS, Heun

__all__ = ["Cell", "Comparison", "Plan", "judge_of"]


@dataclass(frozen=True)
class Plan:
    """What to compare.

    Args:
        solvers: names in SOLVERS, with options as :meth:`~fewstep._part.Part.spelled` reads them.
        nfe: budgets of calls.
        n: images per cell.
        seed: seed of the first image.
        guidance: scale; 1 is none.
        grid: the grid of every solver.
        reference_steps: steps of the fine Heun solution.
        batch_size: images per call.
    """

    solvers: tuple[str, ...] = ("ddim", "heun", "dpmpp_2m", "unipc", "ipndm", "evodiff", "evodiff_paper")
    nfe: tuple[int, ...] = (5, 6, 8, 10, 15, 20)
    n: int = 500
    seed: int = 0
    guidance: float = 1.0
    grid: GridChoice = GridChoice()
    reference_steps: int = 64
    batch_size: int = 250

    def __post_init__(self) -> None:
        for name in self.solvers:
            Part.spelled(name).build(SOLVERS, "solver")
        if not (self.solvers and self.nfe):
            raise ConfigError(
                f"A comparison of {len(self.solvers)} solvers at {len(self.nfe)} budgets",
                "One of each or more",
                "Write for instance --solvers ddim,evodiff --nfe 5,10",
            )
        if self.n < 2:
            raise ConfigError(f"{self.n} images a cell", "Two or more, to see a spread", "Ask for --n 2 or more")


@dataclass(frozen=True)
class Cell:
    """One solver at one budget.

    Attributes:
        solver: its name.
        nfe: calls that were made, counted.
        network_evals: evaluations of the network per image, counted.
        steps: intervals of the grid.
        rmse: to the reference, data units.
        distance: to the judge's reference; None without a judge.
        quality: what the judge says, with intervals: "fd", "kid", "precision", "recall"; empty without one.
        lines: the same with their protocols, one line each.
        contrast_gain: slope on the reference.
        seconds: of sampling all images.
    """

    solver: str
    nfe: int
    network_evals: int
    steps: int
    rmse: float
    distance: float | None
    contrast_gain: float
    seconds: float
    quality: Mapping[str, Estimate] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


def judge_of(model: Model) -> Judge | None:
    """Load the judge that a model's configuration names, if it names one."""
    name = model.config.facts.get("judge")
    return load_judge(name) if name else None


class Comparison:
    """A table that is filled one cell at a time.

    Args:
        model: what is sampled.
        plan: what is compared.
        judge: measures distances; None leaves them out.
        show: images of each cell that are kept for pictures.

    Attributes:
        cells: what was measured so far.
        pictures: the first `show` images of every cell, by (solver, budget).
        reference: the fine solution, shape (n, c, h, w).
        fine: what the fine solution measures and costs.
    """

    def __init__(self, model: Model, plan: Plan, judge: Judge | None = None, show: int = 10) -> None:
        self.model, self.plan, self.judge, self.show = model, plan, judge, show
        self.seeds = seeds_of(plan.seed, plan.n)
        self.labels, self.captions = conditions(model, self.seeds), captions_of(model, self.seeds)
        check_guidance(model, plan.guidance)
        # All grids are made before the first image, so that a budget no solver can meet fails at once.
        self._grids = {(s, nfe): self._grid(s, nfe) for s in plan.solvers for nfe in plan.nfe}
        self.cells: list[Cell] = []
        self.pictures: dict[tuple[str, int], Tensor] = {}
        self.reference = torch.empty(0)
        self.fine: Cell | None = None

    def __len__(self) -> int:
        return len(self._grids) + 1

    def run(self) -> Iterator[Cell]:
        """Measure the reference, then every cell; yields each as soon as it is known."""
        steps = self.plan.reference_steps
        grid = self.plan.grid.rule(self.model.denoiser.schedule)(self.model.denoiser.schedule, steps)
        drawn = self._draw(Heun(), grid)
        self.reference = drawn.images
        self.fine = self._cell("heun", steps, drawn)
        yield self.fine
        for (solver, nfe), grid in self._grids.items():
            drawn = self._draw(solver, grid)
            self.pictures[solver, nfe] = drawn.images[: self.show]
            self.cells.append(self._cell(solver, grid.steps, drawn))
            yield self.cells[-1]

    def report(self) -> dict[str, Any]:
        """Everything that was measured, and how, JSON-able."""
        return {
            "model": labelled(self.model),
            "model_fingerprint": self.model.fingerprint,
            "plan": asdict(self.plan),
            "measure": self.judge.describe(self.plan.n) if self.judge else None,
            "floors": dict(self.judge.facts.get("floors", {})) if self.judge else {},
            "reference": asdict(self.fine) if self.fine else None,
            "cells": [asdict(cell) for cell in self.cells],
        }

    def _grid(self, solver: str, nfe: int) -> Grid:
        try:
            return make_grid(self.model, Part.spelled(solver).build(SOLVERS, "solver"), self.plan.grid, nfe)
        except BudgetError as error:
            raise BudgetError(f"{solver} at {nfe} calls: {error.given}", error.allowed, error.todo) from error

    def _draw(self, solver: str | Heun, grid: Grid) -> Drawn:
        return draw(
            self.model,
            solver,
            grid,
            self.seeds,
            labels=self.labels,
            cond=None if self.captions is None else self.model.cond_of_captions(self.captions),
            guidance=self.plan.guidance,
            batch_size=self.plan.batch_size,
        )

    def _cell(self, solver: str, steps: int, drawn: Drawn) -> Cell:
        results = judge_results(self.judge, drawn.images, self._making(solver, steps, drawn)) if self.judge else []
        quality = {result.name: result.estimate for result in results}
        return Cell(
            solver=solver,
            nfe=drawn.nfe,
            network_evals=drawn.network_evals,
            steps=steps,
            rmse=rmse(drawn.images, self.reference),
            distance=quality["fd"].value if quality else None,
            contrast_gain=contrast_gain(drawn.images, self.reference, self.reference.mean(0)),
            seconds=drawn.seconds,
            quality=quality,
            lines=tuple(result.line() for result in results),
        )

    def _making(self, solver: str, steps: int, drawn: Drawn) -> Making:
        plan, model = self.plan, self.model
        return Making(
            f"fewstep model {labelled(model)}",
            model.fingerprint,
            f"{self.seeds[0]}..{self.seeds[-1]}",
            solver,
            plan.grid.describe(steps),
            drawn.nfe,
            drawn.network_evals,
            plan.guidance,
            said_of(self.labels, self.captions),
        )
