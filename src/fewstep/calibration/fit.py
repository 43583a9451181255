"""Calibration: from a denoiser to a table, choosing everything that can be chosen by the error on held-out noise.

For each number of calls the closed form is fitted around every base rule on the first grid, then, with the better one,
with the first estimate given instead of called for, then on every other grid; what has the least error on the
trajectories that were held out is refined through its own chain, and kept only if that made it better there.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fewstep._part import Part
from fewstep.calibration.closed_form import WINDOWS, Fitted, Split, fit_weights
from fewstep.calibration.grids import grid_named
from fewstep.calibration.history import shares_of
from fewstep.calibration.problem import Problem, rms
from fewstep.calibration.refine import LearnedTable, Refinement, refined, run
from fewstep.calibration.table import Entry, Origin, Table
from fewstep.calibration.trajectories import Trajectories, record
from fewstep.denoisers import Cond, Denoiser, evaluate, metered
from fewstep.errors import ConfigError
from fewstep.noise import NoiseLevel, Schedule
from fewstep.sampling import SeededNoise
from fewstep.sampling.noise import START
from fewstep.solvers import SOLVERS, Multistep

__all__ = ["NFE", "Progress", "Settings", "calibrate", "fit", "problem_of"]

NFE = (4, 5, 6, 8, 10, 15, 20)
_LOOKS = 3  # times that a refinement is judged on held-out trajectories


@dataclass(frozen=True)
class Settings:
    """What to fit and how.

    Args:
        nfe: numbers of calls.
        teacher_steps: of the reference ODE.
        bases: rules to fit a residual around, as on the command line.
        grids: levels to begin with, as on the command line; "gits" is dynamic programming on the trajectories.
        first: whether the first estimate is called for ("network"), is the mean of what the denoiser says there
            ("analytic"), or whichever has the smaller error ("auto").
        match_variance: whether the closed form gives every sample the variance of the teacher's.
        refinement: of the closed form; with 0 iterations no gradient is asked of the denoiser.
        held: part of the trajectories that is held out.

    Raises:
        ConfigError: if a value cannot be.
    """

    nfe: tuple[int, ...] = NFE
    teacher_steps: int = 64
    bases: tuple[str, ...] = ("ipndm:order=3", "deis:variable=log_kappa")
    grids: tuple[str, ...] = ("karras:rho=10", "karras:rho=7", "karras:rho=5", "uniform_lam", "gits")
    first: Literal["network", "analytic", "auto"] = "auto"
    match_variance: bool = False
    refinement: Refinement = field(default_factory=Refinement)
    held: float = 0.25

    def __post_init__(self) -> None:
        whole = self.nfe and all(type(nfe) is int and nfe >= 1 for nfe in self.nfe)
        longest = max(self.nfe) + 1 if whole else 1
        _require(bool(whole), f"nfe={self.nfe}", "Numbers of calls from 1 on", "Write for instance nfe=(5, 8, 10)")
        _require(
            self.teacher_steps > 2 * longest,
            f"A teacher of {self.teacher_steps} steps for {longest} steps of a student",
            "More than twice as many",
            "Raise teacher_steps, or fit fewer calls",
        )
        _require(bool(self.bases and self.grids), "No base rule or no grid", "One of each, or more", "Use Settings()")
        known = ("network", "analytic", "auto")
        _require(self.first in known, f"first={self.first!r}", f"One of {', '.join(known)}", "Use 'auto'")
        _require(0 < self.held < 1, f"held={self.held}", "A part of the trajectories, between 0 and 1", "Use 0.25")


def _require(holds: bool, given: str, allowed: str, todo: str) -> None:
    if not holds:
        raise ConfigError(given, allowed, todo)


class Progress(NamedTuple):
    """What has just been done.

    Attributes:
        nfe: the number of calls that is being fitted; 0 for the teacher.
        words: what.
        table: what there is so far; None before the first number of calls is done.
    """

    nfe: int
    words: str
    table: Table | None


def problem_of(
    denoiser: Denoiser | Sequence[Denoiser],
    schedule: Schedule,
    shape: tuple[int, ...],
    *,
    seeds: Sequence[int] = range(128),
    cond: Cond = None,
    kappa_max: float = 80.0,
    kappa_min: float = 0.002,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int = 64,
) -> Problem:
    """Set a problem up from seeds, as `sample` would be called.

    Args:
        denoiser: one, or several that share the trajectories, such as a model under several guidance scales.
        schedule: of the denoiser.
        shape: of one sample, without the batch.
        seeds: one per trajectory; the noise is that of `start_noise`.
        cond: conditions, one row per seed.
        kappa_max: first level, noise per unit of data; bounded by the schedule.
        kappa_min: last level, likewise.
        device: of the networks.
        dtype: of the samples.
        batch: rows per call.

    Returns:
        The problem.
    """
    denoisers = tuple(denoiser) if isinstance(denoiser, Sequence) else (denoiser,)
    source = SeededNoise(tuple(seeds))
    start = source(START, torch.empty(len(source.seeds), *shape, dtype=dtype)).to(device)
    lowest, highest = (torch.tensor(lam, dtype=torch.float64).neg().exp().item() for lam in schedule.lam_range())
    return Problem(denoisers, schedule, start, cond, min(kappa_max, lowest), max(kappa_min, highest), batch)


def fit(problem: Problem, settings: Settings | None = None, origin: Origin | None = None) -> Table:
    """Calibrate a solver.

    Args:
        problem: denoiser, noise and conditions; see :func:`problem_of`.
        settings: what to fit and how.
        origin: names the model in the table; without it, the table is refused nowhere.

    Returns:
        The table; ``table.way(schedule, nfe)`` has solver and grid.

    Raises:
        ConfigError: if there are fewer trajectories than coefficients, the denoiser is not deterministic, or the
            trajectories do not settle.
        UnknownName: if a base or a grid does not exist.
        NonFiniteError: if a trajectory is NaN or infinite.
    """
    table = None
    for progress in calibrate(problem, settings, origin):
        table = progress.table
    if table is None:
        raise ConfigError("No number of calls", "One or more", "Give nfe=(10,)")
    return table


def calibrate(problem: Problem, settings: Settings | None = None, origin: Origin | None = None) -> Iterator[Progress]:
    """Do what :func:`fit` does, giving the caller the loop; raises what it raises.

    Args:
        problem: denoiser, noise and conditions.
        settings: what to fit and how.
        origin: names the model in the table.

    Yields:
        What has been done, after the teacher and after every fit and refinement.
    """
    settings, origin = settings or Settings(), origin or Origin()
    split = _split(problem, settings)
    begun, counted = time.perf_counter(), tuple(map(_Counted, problem.denoisers))
    problem = replace(problem, denoisers=counted)
    trajectories = record(problem, settings.teacher_steps)
    yield Progress(0, f"teacher: {len(problem)} trajectories in {settings.teacher_steps} steps", None)
    mean = trajectories.denoised[0].mean(0).to(torch.float16).to(trajectories.denoised[0].dtype)
    entries: dict[int, Entry] = {}
    table = None
    for nfe in settings.nfe:
        fitting = _Fitting(problem, trajectories, split, settings, mean, nfe)
        for words in fitting.closed_form():
            yield Progress(nfe, words, table)
        for words in fitting.refine():
            yield Progress(nfe, words, table)
        entries = {**entries, nfe: fitting.entry()}
        cost = {
            "seconds": round(time.perf_counter() - begun, 1),
            "network_evals": sum(denoiser.samples for denoiser in counted),
        }
        facts = {**_facts(problem, settings, trajectories), **cost}
        needed = mean if any(entry.first for entry in entries.values()) else None
        table = Table(origin, entries, needed, facts)
        yield Progress(nfe, f"{nfe} calls: held-out error {entries[nfe].held:.4g}", table)


def _split(problem: Problem, settings: Settings) -> Split:
    """Hold some trajectories out; refuse fewer than there are coefficients in a step."""
    held = max(round(settings.held * len(problem)), 1)
    train = len(problem) - held
    needed, scales = min(max(WINDOWS), max(settings.nfe)), len(problem.denoisers)
    least = max(needed, 4, 2 * scales)
    if train < least:
        raise ConfigError(
            f"{len(problem)} trajectories, {train} of them to fit to, for steps with up to {needed} coefficients "
            f"and {scales} denoisers",
            "At least as many as coefficients, 2 for each denoiser, and 4",
            f"Take {2 * least} or more; 128 are usual",
        )
    return Split(train, held)


def _facts(problem: Problem, settings: Settings, trajectories: Trajectories) -> dict[str, Any]:
    return {
        "trajectories": len(problem),
        "held_out": settings.held,
        "teacher_steps": settings.teacher_steps,
        "teacher_gap": float(f"{trajectories.gap:.3g}"),
        "spread": float(f"{rms(trajectories.end - trajectories.end.mean(0)):.4g}"),
        "iterations": settings.refinement.iterations,
        "match_variance": settings.match_variance,
    }


class _Counted:
    """A denoiser that knows how many samples its network has seen."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.samples = denoiser, 0

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        with metered() as meter:
            denoised = evaluate(self.denoiser, x, level, cond)
        self.samples += meter.samples
        return denoised


class _Fitting:
    """The work for one number of calls."""

    def __init__(
        self, problem: Problem, trajectories: Trajectories, split: Split, settings: Settings, mean: Tensor, nfe: int
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
        if known.first == "auto":
            yield self._try(self.named[0], grid, self.mean)
        for grid in others if self._chosen.kappa.shape[0] > 2 else ():
            yield self._try(self.named[0], grid, self._chosen.first)

    @property
    def _chosen(self) -> Fitted:
        if self.best is None:
            raise RuntimeError("nothing has been fitted")
        return self.best

    def _try(self, base: str, grid: str, first: Tensor | None) -> str:
        rule = Part.spelled(base).build(SOLVERS, "base rule")
        kappa = grid_named(grid, self.problem, self.trajectories, self.nfe + (first is not None))
        made = fit_weights(
            self.problem,
            self.trajectories,
            _multistep(rule),
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


def _multistep(rule: Any) -> Multistep:
    if not isinstance(rule, Multistep):
        raise ConfigError(f"The base rule {rule}", "A multistep rule", "Take ddim, dpmpp_2m, dpmpp_3m, deis or ipndm")
    return rule
