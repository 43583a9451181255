r"""Weights in closed form, step by step, along the student's own states.

From level i a base rule goes to some row; the student adds a few differences of estimates to it,

.. math:: \hat x_{i+1} = \hat x^{base}_{i+1} + \sum_{j < i} d_j\, (m_j - m_i),

so constants stay exact whatever d is. It is the ridge regression of what the base leaves to the teacher's state,

.. math:: (G + \rho\, e^2 I)\, d = g, \qquad G_{jk} = \sum \langle m_j - m_i, m_k - m_i \rangle, \quad
          g_j = \sum \langle m_j - m_i, \hat x_{i+1} - \hat x^{base}_{i+1} \rangle,

with sums over all numbers of the trajectories of one part, and :math:`e^2` the sum of squares of what the base
leaves: the more of it there is that nothing explains, the less is believed. How many differences, and which ridge, is
decided by the others, which are held out; among choices that are about as good, the most cautious one. The student
then makes that step with all trajectories, and its own errors are part of what the next step is fitted to. All that
is needed are inner products of the noise, the estimates and the teacher's next state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.calibration.history import Base, combined, start_row
from fewstep.calibration.problem import Problem, rms
from fewstep.calibration.trajectories import Trajectories
from fewstep.solvers import Multistep

__all__ = ["RIDGES", "WINDOWS", "Fitted", "Split", "fit_weights"]

WINDOWS = (1, 2, 3, 8)
RIDGES = (1e9, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # the most cautious first: it leaves the base rule alone
_AS_GOOD = 1.02  # mean square errors on held-out trajectories that differ by less are alike


@dataclass(frozen=True)
class Split:
    """Which trajectories are fitted to, and which judge.

    Args:
        train: the first so many.
        held: the rest.
    """

    train: int
    held: int


@dataclass(frozen=True)
class Fitted:
    """A rule on a grid.

    Attributes:
        rule: the base.
        kappa: levels of the grid.
        residuals: d of every step but the first, of 1, 2, 3... numbers.
        units: for each of them, a matrix whose columns are changes of d that move the sample by about one unit of data
            at the end: the scale on which residuals are learned.
        first: the first estimate, if it is not the denoiser's.
        rows: of the samples at all levels.
        train: RMSE of the ends to the teacher's over the trajectories that were fitted to.
        held: over those that were not.
    """

    rule: Multistep
    kappa: Tensor
    residuals: tuple[Tensor, ...]
    units: tuple[Tensor, ...]
    first: Tensor | None
    rows: tuple[Tensor, ...]
    train: float
    held: float


class _Products:
    """Inner products of the noise and all estimates so far, over one part of the trajectories."""

    def __init__(self, noise: Tensor, part: slice) -> None:
        self.part = part
        self.vectors = [self._flat(noise)]
        self.gram = (self.vectors[0] @ self.vectors[0]).reshape(1, 1)

    def _flat(self, x: Tensor) -> Tensor:
        return x[self.part].double().flatten().cpu()

    def add(self, estimate: Tensor) -> None:
        self.vectors.append(self._flat(estimate))
        new = torch.stack([vector @ self.vectors[-1] for vector in self.vectors])
        self.gram = torch.cat([torch.cat([self.gram, new[:-1, None]], 1), new[None]])

    def lost(self) -> float:
        """What rounding of the estimates leaves of the square of a difference of equal ones: no direction to go in."""
        return max(1e-14 * float(self.gram.diagonal()[1:].max()), torch.finfo(torch.float64).tiny)

    def aim(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Inner products with a wanted sample, and of it with itself."""
        flat = self._flat(wanted)
        return torch.stack([vector @ flat for vector in self.vectors]), flat @ flat

    def error(self, rows: Tensor, aim: tuple[Tensor, Tensor]) -> Tensor:
        """Mean square of what is missed, for rows of shape (k, known)."""
        products, square = aim
        missed = square - 2 * rows @ products + ((rows @ self.gram) * rows).sum(1)
        return missed.clamp(min=0) / self.vectors[0].numel()


def fit_weights(
    problem: Problem,
    trajectories: Trajectories,
    rule: Multistep,
    kappa: Tensor,
    split: Split,
    *,
    first: Tensor | None = None,
    match_variance: bool = False,
    windows: Sequence[int] = WINDOWS,
    ridges: Sequence[float] = RIDGES,
) -> Fitted:
    """Fit a residual around a base rule on one grid; one call of the denoiser a step.

    Args:
        problem: what is sampled.
        trajectories: of the teacher, from the same noise.
        rule: the base.
        kappa: levels of the grid, shape (steps + 1,), float64.
        split: of the trajectories.
        first: what the first estimate is taken to be, shape (*d), instead of a call.
        match_variance: give every sample the variance of the teacher's; see :func:`matched`.
        windows: numbers of differences to choose from.
        ridges: rho to choose from.

    Returns:
        The rule, with its errors.

    Raises:
        ConfigError: if the base cannot be one.
    """
    base, steps, x = Base.of(rule, kappa), len(kappa) - 1, problem.noise
    train, held = (_Products(x, part) for part in (slice(0, split.train), slice(split.train, None)))
    rows, estimates = [start_row(steps)], list[Tensor]()
    residuals, units = list[Tensor](), list[Tensor]()
    end = rms(trajectories.end[: split.train])
    for i in range(steps):
        known = problem.estimate(x, kappa[i]) if i or first is None else first.to(x).expand_as(x)
        estimates.append(known)
        train.add(known)
        held.add(known)
        wanted, plain = trajectories.at(kappa[i + 1]), base.row(i, rows)
        row = plain
        if i:
            aims = train.aim(wanted), held.aim(wanted)
            candidates = _candidates(plain[: i + 2], train, aims[0], windows, ridges)
            errors = held.error(torch.stack(candidates), aims[1])
            # Candidates come from the most cautious to the boldest.
            row = _padded(candidates[int((errors <= _AS_GOOD * errors.min()).to(torch.int8).argmax())], steps)
            units.append(_units(train, float(errors.min())) * (rms(wanted[: split.train]) / end))
        if match_variance and i:
            own = [part[: split.train] for part in (problem.noise, wanted, *estimates)]
            row = matched(row, rows[i], kappa[i + 1] / kappa[i], own[0], own[2:], own[1])
        if i:
            residuals.append((row - plain)[1 : i + 1])
        rows.append(row)
        x = combined(row, problem.noise, estimates)
    missed = x - trajectories.end
    return Fitted(
        rule,
        kappa,
        tuple(residuals),
        tuple(units),
        first,
        tuple(rows),
        rms(missed[: split.train]),
        rms(missed[split.train :]),
    )


def _padded(row: Tensor, steps: int) -> Tensor:
    return torch.cat([row, row.new_zeros(steps + 1 - len(row))])


def _differences(gram: Tensor) -> Tensor:
    """From inner products of noise and estimates to those of all differences m_j - m_i with the newest estimate."""
    own = gram[1:, 1:]
    newest = own[:-1, -1]
    return own[:-1, :-1] - newest[:, None] - newest[None, :] + own[-1, -1]


def _candidates(
    plain: Tensor, part: _Products, aim: tuple[Tensor, Tensor], windows: Sequence[int], ridges: Sequence[float]
) -> list[Tensor]:
    """Rows of the ridge regressions with every window and every ridge."""
    i = len(plain) - 2
    gram = _differences(part.gram)
    left = (aim[0] - part.gram @ plain)[1:]  # inner products of the estimates with what the base leaves
    missed = part.error(plain[None], aim) * part.vectors[0].numel()
    target, found = left[:-1] - left[-1], []
    for ridge in ridges:
        for window in sorted({min(window, i) for window in windows}):
            own = slice(i - window, i)
            size = ridge * missed + part.lost()
            system = gram[own, own] + size * torch.eye(window, dtype=gram.dtype)
            d = torch.linalg.lstsq(system, target[own, None], driver="gelsd").solution[:, 0]
            row = plain.clone()
            row[1 + i - window : 1 + i] += d
            row[1 + i] -= d.sum()
            found.append(row)
    return found


def _units(part: _Products, error: float) -> Tensor:
    """Columns of d that move the sample by about its error: directions that hardly move it are not let run away."""
    numbers = part.vectors[0].numel()
    gram = _differences(part.gram) / numbers
    # Estimates that lie in fewer directions, and nothing missed: there is still a matrix to invert.
    floor = max(error, 1e-12 * float(gram.trace()), len(gram) * part.lost() / numbers, torch.finfo(torch.float32).tiny)
    factor = torch.linalg.cholesky(gram + floor * torch.eye(len(gram), dtype=gram.dtype))
    identity = torch.eye(len(gram), dtype=gram.dtype)
    units: Tensor = torch.linalg.solve_triangular(factor.T, identity, upper=True)
    return units


def matched(
    row: Tensor, before: Tensor, r: Tensor, noise: Tensor, estimates: Sequence[Tensor], wanted: Tensor
) -> Tensor:
    r"""Give the next sample the variance of the teacher's.

    .. math:: \hat x' = A + g B, \quad A = r \hat x + (1 - r) m_i, \quad
              \mathrm{Var}(A + g B) = \mathrm{Var}(\hat x'_{teacher})

    with B what the row adds to DDIM: a sum of differences, so constants stay exact whatever g is. Of the two roots the
    one nearer to 1 that is not negative; where there is none, the g at which the variances are nearest.

    Args:
        row: of the next sample.
        before: of the sample that the step begins with.
        r: kappa at the end of the step over that at its start.
        noise: the samples at the first level, (n, *d).
        estimates: all so far.
        wanted: the teacher's samples at the end of the step.

    Returns:
        Row of A + g B.
    """
    plain = r * before
    plain[len(estimates)] += 1 - r
    here, more = (_centred(combined(part, noise, estimates)) for part in (plain, row - plain))
    there = _centred(wanted)
    return plain + _root(more @ more, here @ more, here @ here - there @ there) * (row - plain)


def _centred(x: Tensor) -> Tensor:
    return (x - x.mean(0)).double().flatten().cpu()


def _root(a: Tensor, b: Tensor, c: Tensor) -> float:
    """Solve a g^2 + 2 b g + c = 0 for the g >= 0 nearest to 1, or make it smallest where there is no such root."""
    if a <= 0:
        return 1.0
    vertex, discriminant = float(-b / a), float(b * b - a * c)
    if discriminant < 0:
        return max(vertex, 0.0)
    width = discriminant**0.5 / float(a)
    roots = [root for root in (vertex - width, vertex + width) if root >= 0]
    return min(roots, key=lambda root: abs(root - 1)) if roots else 0.0
