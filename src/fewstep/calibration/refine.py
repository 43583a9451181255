r"""Refinement through the unrolled sampler: the grid and the weights, trained by what comes out of the end.

The closed form serves the teacher step by step; what counts is the last sample. So its levels and residuals become
parameters, the chain is one call of :func:`fewstep.sampling.sample` with gradient, as in end-to-end training, and only
the solver is trained:

.. math:: L = \operatorname{mean}_b \frac{e_b}{1 + e_b / (c^2 \operatorname{median} e)} \Big/ e_0
              + w\, S\big(F, x\big), \qquad e_b = \|F_b - \hat x_b\|_{rms}^2

with F the student's ends, :math:`\hat x` the teacher's from the same noise, and :math:`e_0` the mean square error of
the closed form. A trajectory close to a watershed of the ODE, which ends somewhere else after the smallest change,
has an error and a gradient beyond all others and teaches nothing; the bounded loss leaves it alone. S is the energy
score of the student's ends against other ends of the teacher, in pixels or any features: it looks at the
distribution, not at pairs.

Levels are learned as gaps of :math:`\log\kappa` between fixed ends, so every value is a legal grid. The base rule moves
with the grid; what is learned beside it is measured in the units of the closed form. A rule that is already near its
teacher has little to gain from other levels and much to lose, so levels move by less where the error is small.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from fewstep.calibration.closed_form import Fitted, Split
from fewstep.calibration.history import Base, shares_of, start_row
from fewstep.calibration.problem import Problem, levels_at, rms
from fewstep.calibration.trajectories import Trajectories
from fewstep.errors import ConfigError
from fewstep.features import Maps
from fewstep.losses import EnergyScore, Outcome
from fewstep.noise import Grid, Schedule
from fewstep.sampling import Checkpointed, Full, sample
from fewstep.solvers import TabulatedSolver

__all__ = ["LearnedTable", "Refinement", "refined"]

_TRIM = 3.0  # c: errors of that many medians count half
_CLIP = 2.0  # gradients longer than so many medians of the run are cut
_WARMUP = 5
_LARGE = 0.1  # relative error from which on the grid moves at its full rate


@dataclass(frozen=True)
class Refinement:
    """How a fitted solver is trained through its own chain.

    Args:
        iterations: gradient steps; 0 leaves the closed form as it is.
        batch: trajectories in each; with a `distribution`, at most half of those that are fitted to.
        rate_grid: first learning rate of the logarithms of the gaps, for errors of a tenth of the spread of the data or
            more; it falls with the root of the error.
        rate_weights: first learning rate of the residuals, in units of the error of the closed form.
        distribution: weight of the energy score.
        features: where the score looks; None for the numbers themselves.
        checkpointed: whether to compute every step twice and keep one graph at a time, for large networks.
        seed: of the order of the trajectories.

    Raises:
        ConfigError: if a value cannot be.
    """

    iterations: int = 30
    batch: int = 32
    rate_grid: float = 0.1
    rate_weights: float = 0.1
    distribution: float = 0.0
    features: Sequence[Maps] | None = None
    checkpointed: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        whole = type(self.iterations) is int and type(self.batch) is int and self.iterations >= 0 and self.batch >= 2
        if not (
            whole and all(0 <= value < math.inf for value in (self.rate_grid, self.rate_weights, self.distribution))
        ):
            raise ConfigError(
                f"{self}",
                "Iterations from 0 on, batches of 2 trajectories or more, rates and weights finite and not negative",
                "Use Refinement()",
            )


class LearnedTable(nn.Module):
    r"""Levels and residuals of a fitted solver as parameters.

    .. math:: \log\kappa_i = \log\kappa_0 - \log\tfrac{\kappa_0}{\kappa_N} \sum_{j < i} \mathrm{softmax}(g)_j, \qquad
              d_i = d_i^{fit} + U_i u_i

    with u = 0 at the beginning, where it is the fitted solver.

    Args:
        fitted: where to begin.
    """

    def __init__(self, fitted: Fitted) -> None:
        super().__init__()
        self.fitted = fitted
        gaps = fitted.kappa.log().diff().neg()
        self.gaps = nn.Parameter(gaps.log())
        self.moves = nn.ParameterList(torch.zeros(len(d), dtype=torch.float64) for d in fitted.residuals)

    def kappa(self) -> Tensor:
        """The levels, shape (steps + 1,), float64; differentiable."""
        first, last = self.fitted.kappa[0].log(), self.fitted.kappa[-1].log()
        shares = self.gaps.softmax(0).cumsum(0)[:-1]
        return torch.cat([first[None], first + (last - first) * shares, last[None]]).exp()

    def solver(self) -> TabulatedSolver:
        """The rule with the weights of now; they carry their gradient."""
        kappa = self.kappa()
        base, rows = Base.of(self.fitted.rule, kappa), [start_row(len(kappa) - 1)]
        for i in range(len(kappa) - 1):
            row = base.row(i, rows)
            rows.append(row + self._residual(i, len(row)) if i else row)
        return TabulatedSolver(shares_of(rows, kappa), first=self.fitted.first)

    def _residual(self, i: int, length: int) -> Tensor:
        own = self.fitted
        d = own.residuals[i - 1] + own.units[i - 1] @ self.moves[i - 1]
        return torch.cat([d.new_zeros(1), d, -d.sum()[None], d.new_zeros(length - i - 2)])

    def grid(self, schedule: Schedule) -> Grid:
        """The levels in a schedule's coordinates; differentiable."""
        return levels_at(schedule, self.kappa())


def refined(
    problem: Problem, trajectories: Trajectories, fitted: Fitted, split: Split, how: Refinement
) -> Iterator[LearnedTable]:
    """Train a fitted solver, giving the caller the loop.

    Args:
        problem: what is sampled; its denoisers are differentiable in x and in the level.
        trajectories: of the teacher.
        fitted: where to begin.
        split: the part that is fitted to trains.
        how: rates and lengths.

    Yields:
        The solver after every iteration, the same module each time.
    """
    table, generator = LearnedTable(fitted), Generator().manual_seed(how.seed)
    if fitted.kappa.shape[0] < 3:
        return
    aims = trajectories.end[: split.train]
    error = fitted.train / max(rms(aims - aims.mean(0)), torch.finfo(torch.float32).tiny)
    calm = min(1.0, (error / _LARGE) ** 0.5)
    groups = [([table.gaps], how.rate_grid * calm), ([*table.moves], how.rate_weights * fitted.train)]
    optimiser = torch.optim.Adam([{"params": own, "lr": rate} for own, rate in groups], betas=(0.9, 0.95))
    score = EnergyScore(how.features, draws=1).fitted(aims) if how.distribution else None
    parameters, norms = list(table.parameters()), list[float]()
    for iteration, rows in enumerate(_batches(problem, split, how, generator)):
        for group, (_, rate) in zip(optimiser.param_groups, groups, strict=True):
            rising, falling = min(1.0, (iteration + 1) / _WARMUP), math.cos(math.pi * iteration / how.iterations)
            group["lr"] = rate * rising * (1 + falling) / 2
        ends = run(table, problem, rows, how.checkpointed)
        loss = _bounded(ends, trajectories.end[rows]) / max(fitted.train**2, torch.finfo(torch.float32).tiny)
        if score is not None:
            others = trajectories.end[_others(rows, split, generator)]
            loss = loss + how.distribution * score(Outcome(ends[None], others, others), generator)
        # Of the table alone: a network keeps no gradient of its own parameters, and spends no time on it.
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = slope
        most = _CLIP * statistics.median(norms) if norms else math.inf
        norms.append(float(nn.utils.clip_grad_norm_(parameters, most)))
        optimiser.step()
        yield table


def _batches(problem: Problem, split: Split, how: Refinement, generator: Generator) -> Iterator[Tensor]:
    """Trajectories of one denoiser each, in random order, all of them before any comes again."""
    size = min(how.batch, problem.batch)  # what fits into memory without a gradient is no promise for more with one
    size = min(size, split.train // 2) if how.distribution else size  # the score needs other trajectories
    waiting: list[Tensor] = []
    for _ in range(how.iterations):
        if not waiting:
            for k in range(len(problem.denoisers)):
                own = torch.tensor([row for row in problem.led_by(k) if row < split.train])
                shuffled = own[torch.randperm(len(own), generator=generator)]
                waiting += [part for part in torch.split(shuffled, size) if len(part) > 1]
            waiting = [waiting[i] for i in torch.randperm(len(waiting), generator=generator)]
        yield waiting.pop()


def _others(rows: Tensor, split: Split, generator: Generator) -> Tensor:
    """As many other trajectories as there are in a batch, which know nothing of its noise."""
    free = torch.ones(split.train, dtype=torch.bool)
    free[rows] = False
    others = free.nonzero()[:, 0]
    return others[torch.randint(len(others), (len(rows),), generator=generator)]


def run(table: LearnedTable, problem: Problem, rows: Tensor, checkpointed: bool = False) -> Tensor:
    """The student's ends over alpha, with gradient in the table."""
    grid = table.grid(problem.schedule)
    x = (grid.levels.sigma[0] * problem.start[rows]).to(problem.start.dtype)
    denoiser = problem.denoisers[int(rows[0]) % len(problem.denoisers)]
    unroll = Checkpointed() if checkpointed else Full()
    made = sample(denoiser, table.solver(), grid, x, cond=problem.told(rows), unroll=unroll)
    return made.x / grid.levels.alpha[-1].to(made.x.dtype)


def _bounded(ends: Tensor, wanted: Tensor) -> Tensor:
    errors = (ends - wanted).flatten(1).square().mean(1)
    # Where half of the trajectories are met exactly, nothing is left of the others; it must not be 0 / 0.
    bound = (_TRIM**2 * errors.detach().median()).clamp(min=torch.finfo(errors.dtype).tiny)
    return (errors / (1 + errors / bound)).mean()
