"""The work for one number of calls: every choice by the error on trajectories that are held out.

The closed form is fitted around every base rule on the first grid, then, with the better one, with the first estimate
given instead of called for, then on every other grid; what has the least error on held-out trajectories is refined
through its own chain, and kept only if that made it better there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.calibration.closed_form import Fitted, Split, fit_weights
from fewstep.calibration.grids import grid_named
from fewstep.calibration.history import base_rule, shares_of
from fewstep.calibration.problem import Problem, rms
from fewstep.calibration.refine import LearnedTable, refined, run
from fewstep.calibration.settings import Settings
from fewstep.calibration.table import Entry
from fewstep.calibration.trajectories import Trajectories

__all__ = ["Fitting"]

_LOOKS = 3  # times that a refinement is judged on held-out trajectories


class Fitting:
    """One number of calls, from the closed form to a line of the table.

    Args:
        problem: what is sampled.
        trajectories: of the teacher.
        split: of the trajectories.
        settings: what to choose from.
        mean: what the first estimate may be taken to be, if anything.
        nfe: calls.
    """

    def __init__(
        self,
        problem: Problem,
        trajectories: Trajectories,
        split: Split,
        settings: Settings,
        mean: Tensor | None,
        nfe: int,
    ) -> None:
        self.problem, self.trajectories, self.split = problem, trajectories, split
        self.settings, self.mean, self.nfe = settings, mean, nfe
        self.best: Fitted | None = None
        self.named = ("", "")
        self.learned: LearnedTable | None = None
        self.held = float("inf")
        self.train = float("inf")

    def closed_form(self) -> Iterator[str]:
        """Try what is to be chosen, one thing after the other."""
        known = self.settings
        grid, *others = known.grids
        for base in known.bases if self.nfe > 1 else known.bases[:1]:
            yield self._try(base, grid, self.mean if known.first == "analytic" else None)
        if known.first == "auto" and self.mean is not None:
            yield self._try(self.named[0], grid, self.mean)
        for grid in others if self._chosen.kappa.shape[0] > 2 else ():
            yield self._try(self.named[0], grid, self._chosen.first)

    @property
    def _chosen(self) -> Fitted:
        if self.best is None:
            raise RuntimeError("nothing has been fitted")
        return self.best

    def _try(self, base: str, grid: str, first: Tensor | None) -> str:
        seen = self.trajectories.part(slice(self.split.train))
        kappa = grid_named(grid, self.problem, seen, self.nfe + (first is not None))
        made = fit_weights(
            self.problem,
            self.trajectories,
            base_rule(base),
            kappa,
            self.split,
            first=first,
            match_variance=self.settings.match_variance,
        )
        if self.best is None or made.held < self.best.held:
            self.best, self.named, self.held, self.train = made, (base, grid), made.held, made.train
        saved = ", first estimate given" if first is not None else ""
        return f"{self.nfe} calls: {base} on {grid}{saved}: {made.held:.4g}"

    def refine(self) -> Iterator[str]:
        """Train the best through its own chain; what was best on held-out trajectories stays."""
        how = self.settings.refinement
        every = max(how.iterations // _LOOKS, 1)
        training = refined(self.problem, self.trajectories, self._chosen, self.split, how)
        for iteration, table in enumerate(training, 1):
            if iteration % every == 0 or iteration == how.iterations:
                held = self._error(table, slice(self.split.train, None))
                if held < self.held:
                    self.learned, self.held = copy.deepcopy(table), held
                yield f"{self.nfe} calls: after {iteration} iterations: {held:.4g}"
        if self.learned is not None:
            self.train = self._error(self.learned, slice(0, self.split.train))

    def _error(self, table: LearnedTable, part: slice) -> float:
        """RMSE of the student's ends over one part of the trajectories."""
        chosen, problem = set(range(len(self.problem))[part]), self.problem
        missed = []
        with torch.no_grad():
            for k in range(len(problem.denoisers)):
                own = torch.tensor([row for row in problem.led_by(k) if row in chosen], dtype=torch.int64)
                for rows in torch.split(own, problem.batch) if len(own) else ():
                    missed.append(run(table, problem, rows) - self.trajectories.end[rows])
        return rms(torch.cat(missed))

    def entry(self) -> Entry:
        """Write the best down."""
        fitted, learned = self._chosen, self.learned
        with torch.no_grad():
            kappa = fitted.kappa if learned is None else learned.kappa()
            weights = shares_of(fitted.rows, kappa) if learned is None else learned.solver().weights
        base, grid = self.named
        return Entry(
            tuple(kappa.tolist()),
            tuple(tuple(map(float, row)) for row in weights),
            fitted.first is not None,
            base,
            grid if learned is None else f"learned from {grid}",
            self.train,
            self.held,
            fitted.held,
        )
