"""Solvers against each other on one model: equal noise, equal calls, one table.

Every cell of the table starts from the same noise and is measured three ways: the root mean square error to a fine
solution of the same equation (is it the right picture?), the distance of distributions to real images (is it a good
set of pictures?) and the contrast gain (is the distance flattered by contrast?). A calibrated solver brings its own
levels; where its table lacks a number of calls, there is no cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
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
from fewstep.experiments.ways import (
    CALIBRATED,
    Way,
    is_table,
    labelled,
    own_table,
    refuse_force,
    serves,
    table_of,
    tabulated,
)
from fewstep.metrics import Judge, contrast_gain, load_judge, rmse
from fewstep.metrics.estimate import Estimate
from fewstep.metrics.protocol import Making
from fewstep.models import Model
from fewstep.noise import Grid
from fewstep.solvers import SOLVERS, Heun, Solver

__all__ = ["Cell", "Comparison", "Plan", "judge_of", "with_own_table"]


_ALIKE = 1e-6  # levels that differ by less, relative, are one


@dataclass(frozen=True)
class Plan:
    """What to compare.

    Args:
        solvers: names in SOLVERS, with options as :meth:`~fewstep._part.Part.spelled` reads them; calibrated tables.
        nfe: budgets of calls.
        n: images per cell.
        seed: seed of the first image.
        guidance: scale; 1 is none.
        grid: the grid of every solver but the calibrated ones.
        reference_steps: steps of the fine Heun solution.
        batch_size: images per call.
        force: take tables that were fitted to something else.
    """

    solvers: tuple[str, ...] = ("ddim", "heun", "dpmpp_2m", "unipc", "ipndm", "evodiff", "evodiff_paper")
    nfe: tuple[int, ...] = (5, 6, 8, 10, 15, 20)
    n: int = 500
    seed: int = 0
    guidance: float = 1.0
    grid: GridChoice = GridChoice()
    reference_steps: int = 64
    batch_size: int = 250
    force: bool = False

    def __post_init__(self) -> None:
        for name in self.solvers:
            if not is_table(name):
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
        solver: its name in the plan.
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


def with_own_table(plan: Plan, model: Model) -> Plan:
    """Add the table that lies beside a model's weights to a plan, if it serves it there, or is forced."""
    with_it = replace(plan, solvers=(*plan.solvers, CALIBRATED))
    if plan.force:
        return plan if model.calibration is None else with_it
    if not serves(model, plan.nfe, plan.guidance):
        return plan
    ends, entries = _ends(_reference_grid(model, plan)), own_table(model).entries
    alike = all(_alike((entries[nfe].kappa[0], entries[nfe].kappa[-1]), ends) for nfe in {*plan.nfe} & {*entries})
    return with_it if alike else plan


def _reference_grid(model: Model, plan: Plan) -> Grid:
    schedule = model.denoiser.schedule
    return plan.grid.rule(schedule)(schedule, plan.reference_steps)


def _ends(grid: Grid) -> tuple[float, float]:
    """First and last level, noise per unit of data; infinite where there is no data."""
    kappa = grid.levels.sigma / grid.levels.alpha
    return float(kappa[0]), float(kappa[-1])


def _alike(ends: tuple[float, float], others: tuple[float, float]) -> bool:
    return all(math.isclose(a, b, rel_tol=_ALIKE) for a, b in zip(ends, others, strict=True))


class Comparison:
    """A table that is filled one cell at a time.

    Args:
        model: what is sampled.
        plan: what is compared.
        judge: measures distances; None leaves them out.
        show: images of each cell that are kept for pictures.

    Attributes:
        cells: what was measured so far.
        pictures: the first `show` images of every cell, by (solver, budget); grey where there is no cell.
        reference: the fine solution, shape (n, c, h, w).
        fine: what the fine solution measures and costs.
    """

    def __init__(self, model: Model, plan: Plan, judge: Judge | None = None, show: int = 10) -> None:
        self.model, self.plan, self.judge, self.show = model, plan, judge, show
        self.seeds = seeds_of(plan.seed, plan.n)
        self.labels, self.captions = conditions(model, self.seeds), captions_of(model, self.seeds)
        check_guidance(model, plan.guidance)
        refuse_force(plan.force and not any(map(is_table, plan.solvers)), ", ".join(plan.solvers))
        self._grid = _reference_grid(model, plan)
        # All grids are made before the first image, so that a budget no solver can meet fails at once.
        self._ways = {(s, nfe): way for s in plan.solvers for nfe, way in self._row(s).items()}
        self.cells: list[Cell] = []
        self.pictures: dict[tuple[str, int], Tensor] = {}
        self.reference = torch.empty(0)
        self.fine: Cell | None = None

    def __len__(self) -> int:
        return sum(way is not None for way in self._ways.values()) + 1

    @property
    def rows(self) -> list[tuple[str, int, Cell | None]]:
        """Solver, budget and what was measured, in the order of the plan; None where a table lacks the budget."""
        cells = iter(self.cells)
        return [(s, nfe, None if way is None else next(cells, None)) for (s, nfe), way in self._ways.items()]

    def run(self) -> Iterator[Cell]:
        """Measure the reference, then every cell; yields each as soon as it is known."""
        fine = Way(Heun(), self._grid, "heun", self.plan.grid.describe(self.plan.reference_steps), 0)
        drawn = self._draw(fine.rule, fine.grid)
        self.reference = drawn.images
        self.fine = self._cell("heun", fine, drawn)
        yield self.fine
        for (solver, nfe), way in self._ways.items():
            if way is None:
                self.pictures[solver, nfe] = torch.zeros_like(self.reference[: self.show])
                continue
            drawn = self._draw(way.rule, way.grid)
            self.pictures[solver, nfe] = drawn.images[: self.show]
            self.cells.append(self._cell(solver, way, drawn))
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
            "missing": [{"solver": solver, "nfe": nfe} for (solver, nfe), way in self._ways.items() if way is None],
        }

    def _row(self, solver: str) -> dict[int, Way | None]:
        """How one solver is run at every budget; refuses a table that serves none of them."""
        plan = self.plan
        if not is_table(solver):
            return {nfe: self._ordinary(solver, nfe) for nfe in plan.nfe}
        known = set(table_of(self.model, solver).entries)
        served = {nfe for nfe in plan.nfe if nfe in known or (plan.force and min(known) < nfe)}
        served = served or set(plan.nfe)  # of none, the table itself says what it was fitted for
        return {nfe: self._tabulated(solver, nfe) if nfe in served else None for nfe in plan.nfe}

    def _ordinary(self, solver: str, nfe: int) -> Way:
        rule = Part.spelled(solver).build(SOLVERS, "solver")
        try:
            grid = make_grid(self.model, rule, self.plan.grid, nfe)
        except BudgetError as error:
            raise BudgetError(f"{solver} at {nfe} calls: {error.given}", error.allowed, error.todo) from error
        return Way(rule, grid, solver, self.plan.grid.describe(grid.steps), nfe)

    def _tabulated(self, solver: str, nfe: int) -> Way:
        way = tabulated(self.model, solver, nfe, self.plan.guidance, force=self.plan.force)
        own, ends = _ends(way.grid), _ends(self._grid)
        if not _alike(own, ends):
            raise ConfigError(
                f"{solver} from kappa {own[0]:.9g} to {own[1]:.9g} at {nfe} calls, beside a grid from {ends[0]:.9g} to "
                f"{ends[1]:.9g}",
                "All that is compared starts from the same noise and ends at the same level",
                f"Use --kappa-max {own[0]:.9g} --kappa-min {own[1]:.9g} with --grid karras, or fit a table to "
                "these levels: fewstep calibrate --kappa-max .. --kappa-min .. --out TABLE",
            )
        return way

    def _draw(self, solver: Solver, grid: Grid) -> Drawn:
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

    def _cell(self, solver: str, way: Way, drawn: Drawn) -> Cell:
        results = judge_results(self.judge, drawn.images, self._making(way, drawn)) if self.judge else []
        quality = {result.name: result.estimate for result in results}
        return Cell(
            solver=solver,
            nfe=drawn.nfe,
            network_evals=drawn.network_evals,
            steps=way.grid.steps,
            rmse=rmse(drawn.images, self.reference),
            distance=quality["fd"].value if quality else None,
            contrast_gain=contrast_gain(drawn.images, self.reference, self.reference.mean(0)),
            seconds=drawn.seconds,
            quality=quality,
            lines=tuple(result.line() for result in results),
        )

    def _making(self, way: Way, drawn: Drawn) -> Making:
        plan, model = self.plan, self.model
        return Making(
            f"fewstep model {labelled(model)}",
            model.fingerprint,
            f"{self.seeds[0]}..{self.seeds[-1]}",
            way.solver,
            way.said,
            drawn.nfe,
            drawn.network_evals,
            plan.guidance,
            said_of(self.labels, self.captions),
        )
