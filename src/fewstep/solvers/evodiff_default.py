r"""EVODiff's default rule: two rules of least error variance, mixed per sample so that the surprise varies least.

:mod:`fewstep.solvers.evodiff_prior` has the weights, for diffuse and for clustered data. Which of the two a trajectory
follows shows in what it does: both families foresee every estimate from the few before it, and the mix

.. math:: \theta^* = \arg\min_\theta \sum_{j \le i} \big|(1 - \theta)\, r_j + \theta\, r'_j\big|^2, \qquad
          r_j = m_j - \hat m_j

of the two surprises, r (diffuse) and r' (clustered), that varies least has a closed form, a quotient of inner products
over a whole sample. A share of the last change of m draws it to 0, and it is kept in [0, 1]:

.. math:: \theta = \operatorname{clamp}\Big(
          \frac{\sum_j \langle r_j, r_j - r'_j \rangle}{\sum_j |r_j - r'_j|^2 + \epsilon\, |m_i - m_{i-1}|^2}, 0, 1\Big)

The next sample is the same mix of the two steps. A mix of rules that are exact for constants is exact for constants,
and the order is that of the rules, whatever theta is.

In terms of the changes :math:`\delta_k = m_{i-k} - m_{i-k-1}` both families give the newest estimate the same weight,
the surprises need the inner products of the last three changes only, and a step costs one pass over the sample for each
weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.noise import Grid, NoiseLevel
from fewstep.solvers.base import Denoise, NoiseSource, inner
from fewstep.solvers.coeffs import Level, Number, levels_of
from fewstep.solvers.evodiff_prior import CLUSTERED, DIFFUSE, MEMORY, WINDOW, Weights, weights_of
from fewstep.solvers.multistep import add_weighted, weighted

__all__ = ["DefaultRule"]

_DRAW = 0.1  # epsilon

Gram = tuple[tuple[Tensor, ...], ...]  # row j: inner products of change j with changes j, j + 1..., each (b, 1, ...)


class _Step(NamedTuple):
    """Numbers of one step; those of changes are newest first.

    Attributes:
        anchor: how many samples back the step begins.
        decay: of the sample there.
        newest: weight of the newest estimate, in both families.
        diffuse: weights of the changes in the diffuse rule.
        further: what the clustered rule has more of each.
        above: weights of the inner products in the numerator of theta, row by row; that of the newest change with
            itself is 0 and left out.
        below: those in the denominator, without the row of the newest change: both families foresee as much of it.
    """

    anchor: int
    decay: Number
    newest: Number
    diffuse: tuple[Number, ...]
    further: tuple[Number, ...]
    above: tuple[Number, ...]
    below: tuple[Number, ...]


class _Path(NamedTuple):
    """State: all numbers, the last samples, estimate and changes, and what theta is made of; newest first."""

    steps: tuple[_Step, ...]
    samples: tuple[Tensor, ...] = ()
    estimate: Tensor | None = None
    changes: tuple[Tensor, ...] = ()
    gram: Gram = ()
    above: Tensor | float = 0.0
    below: Tensor | float = 0.0


@dataclass(frozen=True)
class DefaultRule:
    """The rule behind :class:`~fewstep.solvers.EVODiff` without a variant.

    Args:
        final_gain: the last sample is multiplied by this.
    """

    final_gain: float

    def nfe(self, grid: Grid) -> int:
        """One call a step."""
        return grid.steps

    def init(self, x: Tensor, grid: Grid) -> _Path:
        """Make the numbers, or take those of an earlier run on this grid."""
        return _Path(_steps_of(grid))

    def step(
        self, denoise: Denoise, x: Tensor, grid: Grid, i: int, state: _Path, noise: NoiseSource | None = None
    ) -> tuple[Tensor, _Path]:
        """Carry x from level i to level i + 1."""
        steps, samples, before, changes, gram, above, below = state
        own, now, samples = steps[i], denoise(x, grid.at(i)), (x, *samples)[:WINDOW]
        there = weighted((own.newest, own.decay), (now, samples[own.anchor]))
        if before is not None:
            changes = (now - before, *changes)[: WINDOW - 1]
            gram = _next(gram, changes)
            add_weighted(there, own.diffuse, changes)
        if i > 1:  # one change alone is foreseen by nobody
            products = [product for row in gram for product in row]
            above = above + weighted(own.above, products[1:])
            below = below + weighted(own.below, products[len(gram[0]) :])
            theta = _mix(above, below, gram[0][0]).to(x.dtype)
            there += theta * weighted(own.further, changes)
        if i + 1 == grid.steps and self.final_gain != 1:
            there = self.final_gain * there
        return there, _Path(steps, samples, now, changes, gram, above, below)


def _next(gram: Gram, changes: Sequence[Tensor]) -> Gram:
    """Inner products of the last changes, of which only those with the newest are not known."""
    newest = tuple(_dot(changes[0], change) for change in changes[:MEMORY])
    older = (row[: MEMORY - 1 - j] for j, row in enumerate(gram[: MEMORY - 1]))
    return (newest, *older)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over all numbers of a sample."""
    return inner(a, b, tuple(range(1, a.ndim)))


def _mix(above: Tensor, below: Tensor, change: Tensor) -> Tensor:
    """Theta of every sample; 0 where nothing has changed at all."""
    # The smallest number keeps 0 / 0 away, and changes no other quotient and no gradient.
    size = torch.add(below, change, alpha=_DRAW) + torch.finfo(change.dtype).tiny
    return (above / size).clamp(0, 1)


# From weights of estimates to weights of changes and of their inner products


def _steps_of(grid: Grid) -> tuple[_Step, ...]:
    """The numbers of a run; those of a grid without gradient are kept for the next run on it."""
    levels = levels_of(grid)
    if grid.levels.alpha.requires_grad or grid.levels.sigma.requires_grad:
        return _made(grid, levels)
    return _remembered(tuple(levels))


@lru_cache(maxsize=128)
def _remembered(levels: tuple[Level, ...]) -> tuple[_Step, ...]:
    alpha, sigma = (torch.tensor(part, dtype=torch.float64, device="cpu") for part in zip(*levels, strict=True))
    with torch.no_grad():
        return _made(Grid(NoiseLevel(alpha, sigma), alpha), list(levels))


def _made(grid: Grid, levels: list[Level]) -> tuple[_Step, ...]:
    families = weights_of(DIFFUSE, grid), weights_of(CLUSTERED, grid)
    return tuple(_made_step(families, levels, i) for i in range(grid.steps))


def _made_step(families: tuple[Weights, Weights], levels: list[Level], i: int) -> _Step:
    anchor = min(i, WINDOW - 1)
    newest, diffuse = _of_changes(families[0].step[i])
    _, clustered = _of_changes(families[1].step[i])
    surprise, other = (_of_surprise(weights.foresee[i]) for weights in families)
    apart = [a - b for a, b in zip(surprise, other, strict=True)]
    return _Step(
        anchor,
        levels[i + 1].sigma / levels[i - anchor].sigma,
        newest,
        tuple(diffuse),
        tuple(b - a for a, b in zip(diffuse, clustered, strict=True)),
        tuple(_pairs(surprise, apart)[1:]),
        tuple(_pairs(apart[1:], apart[1:])),
    )


def _of_changes(weights: Tensor) -> tuple[Number, list[Number]]:
    """Weight of the newest estimate and of the changes: an estimate is the newest less all changes since."""
    oldest_first = list(accumulate(_numbers(weights)))
    return oldest_first[-1], [-part for part in oldest_first[-2::-1]]


def _of_surprise(weights: Tensor) -> list[Number]:
    """Weights of the changes in an estimate less what was foreseen of it; that of the newest is 1."""
    return list(accumulate(_numbers(weights)))[::-1]


def _pairs(first: Sequence[Number], second: Sequence[Number]) -> list[Number]:
    """Weights of the inner products of changes j <= k in the product of two sums of changes."""
    n = range(len(first))
    return [first[j] * second[k] + (first[k] * second[j] if j != k else 0.0) for j in n for k in n[j:]]


def _numbers(weights: Tensor) -> list[Number]:
    """Weights as floats, unless they carry a gradient."""
    return list(weights.unbind()) if weights.requires_grad else weights.tolist()
