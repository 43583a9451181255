"""Calibration: from a denoiser to a table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.calibration.closed_form import WINDOWS, Split
from fewstep.calibration.fitting import Fitting
from fewstep.calibration.problem import Problem, rms
from fewstep.calibration.settings import Settings
from fewstep.calibration.table import Entry, Origin, Table
from fewstep.calibration.trajectories import Trajectories, record
from fewstep.denoisers import Cond, Denoiser, evaluate, metered
from fewstep.errors import ConfigError
from fewstep.noise import Grid, NoiseLevel, Schedule
from fewstep.sampling import SeededNoise, sample
from fewstep.sampling.noise import START
from fewstep.solvers import Solver

__all__ = ["Progress", "calibrate", "fit", "problem_of"]


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
    seeds: Sequence[int] = range(160),
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
        origin: names the model in the table; without it, no model, schedule or guidance is refused.

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
    kept = _kept(problem, settings)
    split = _split(problem.part(slice(kept)), settings)
    begun, counted = time.perf_counter(), tuple(map(_Counted, problem.denoisers))
    problem = replace(problem, denoisers=counted)
    trajectories = record(problem, settings.teacher_steps)
    yield Progress(0, f"teacher: {len(problem)} trajectories in {settings.teacher_steps} steps", None)
    seen, judged = ((problem.part(part), trajectories.part(part)) for part in (slice(kept), slice(kept, None)))
    mean = _mean(seen[1], split, settings)
    entries: dict[int, Entry] = {}
    table = None
    for nfe in settings.nfe:
        fitting = Fitting(*seen, split, settings, mean, nfe)
        for words in fitting.closed_form():
            yield Progress(nfe, words, table)
        for words in fitting.refine():
            yield Progress(nfe, words, table)
        entry = fitting.entry()
        needed = mean if entry.first or any(earlier.first for earlier in entries.values()) else None
        way = Table(origin, {nfe: entry}, needed).way(problem.schedule, nfe)
        entries = {**entries, nfe: replace(entry, fresh=_error(*judged, *way))}
        cost = {
            "seconds": round(time.perf_counter() - begun, 1),
            "network_evals": sum(denoiser.samples for denoiser in counted),
        }
        facts = {**_facts(problem, settings, trajectories), **cost}
        table = Table(origin, entries, needed, facts)
        yield Progress(nfe, f"{nfe} calls: held-out error {entries[nfe].held:.4g}", table)


def _kept(problem: Problem, settings: Settings) -> int:
    """How many trajectories fit and choose; the first judged one must be led by the first denoiser."""
    scales = len(problem.denoisers)
    return (len(problem) - round(settings.judged * len(problem))) // scales * scales


def _error(problem: Problem, trajectories: Trajectories, solver: Solver, grid: Grid) -> float | None:
    """RMSE of the ends that a solver reaches; None without a trajectory."""
    missed = []
    for k, denoiser in enumerate(problem.denoisers):
        own = torch.tensor(problem.led_by(k), dtype=torch.int64)
        for rows in torch.split(own, problem.batch) if len(own) else ():
            x = (grid.levels.sigma[0] * problem.start[rows]).to(problem.start.dtype)
            made = sample(denoiser, solver, grid, x, cond=problem.told(rows)).x
            missed.append(made / grid.levels.alpha[-1].to(made.dtype) - trajectories.end[rows])
    return rms(torch.cat(missed)) if missed else None


def _mean(trajectories: Trajectories, split: Split, settings: Settings) -> Tensor | None:
    """What the denoiser says at the first level, on the average, as a table holds it; None where that is no number."""
    exact = trajectories.denoised[0][: split.train].mean(0)
    mean = exact.to(torch.float16).to(exact.dtype)
    if bool(mean.isfinite().all()):
        return mean
    if settings.first == "analytic":
        raise ConfigError(
            f"A mean estimate of up to {float(exact.abs().max()):.3g} at the first level",
            "A table holds it in half precision, up to 65504",
            "Scale the data, or use first='network'",
        )
    return None


def _split(problem: Problem, settings: Settings) -> Split:
    """Hold some trajectories out; refuse fewer than there are coefficients in a step."""
    held = max(round(settings.held * len(problem)), 1)
    train = len(problem) - held
    needed, scales = min(max(WINDOWS), max(settings.nfe)), len(problem.denoisers)
    least = max(needed, 4, 2 * scales)
    if train < least or held < scales:
        raise ConfigError(
            f"{len(problem)} trajectories, {train} of them to fit to and {held} to choose by, for steps with up to "
            f"{needed} coefficients and {scales} denoisers",
            "To fit to at least as many as coefficients, 2 for each denoiser, and 4; one for each to choose by",
            f"Take {4 * least} or more; 160 are usual",
        )
    return Split(train, held)


def _facts(problem: Problem, settings: Settings, trajectories: Trajectories) -> dict[str, Any]:
    refinement = settings.refinement
    return {
        "trajectories": len(problem),
        "held_out": settings.held,
        "judged": settings.judged,
        "kappa": [problem.kappa_max, problem.kappa_min],
        "teacher_steps": settings.teacher_steps,
        "teacher_gap": float(f"{trajectories.gap:.3g}"),
        "spread": float(f"{rms(trajectories.end - trajectories.end.mean(0)):.4g}"),
        "bases": list(settings.bases),
        "grids": list(settings.grids),
        "first": settings.first,
        "match_variance": settings.match_variance,
        "iterations": refinement.iterations,
        "distribution": refinement.distribution,
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
