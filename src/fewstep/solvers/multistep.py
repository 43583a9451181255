r"""Multistep rules as what they are: tables of numbers.

Most solvers are linear in what they know. A step of theirs is

.. math:: x' = w_x x + w_0 m + \sum_{k \ge 1} w_k e_k + w_z z

with m the estimate made at x, :math:`e_k` what was remembered k steps ago (denoised, or the noise estimate), and z
fresh noise. Some take the last step again once they know the estimate at its end; that is the same formula for the
sample at which the last step began. So a rule is its :class:`Plan`, a pure function of the grid, and this module is all
that runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.noise import Grid
from fewstep.solvers.base import Denoise, NoiseSource, drawn
from fewstep.solvers.coeffs import Level, Number, ddim_weights

__all__ = [
    "Multistep",
    "Plan",
    "Row",
    "Taken",
    "add_weighted",
    "combine",
    "ddim_row",
    "noise_estimate_row",
    "noise_memory",
    "weighted",
]


class Row(NamedTuple):
    """Weights of one step.

    Attributes:
        x: of the sample.
        now: of the newest denoised estimate.
        earlier: of what is remembered, newest first.
        noise: standard deviation of fresh noise; nothing is drawn where it is the number 0.
    """

    x: Number
    now: Number
    earlier: tuple[Number, ...] = ()
    noise: Number = 0.0


class Plan(NamedTuple):
    """All numbers of a run.

    Attributes:
        predict: the step from level i to level i + 1, one row a step.
        correct: the same step taken again from its start, with the estimate at level i + 1 as `now` and that at level i
            as the first of `earlier`; one row for every step but the last. Empty for rules that do not correct.
        remember: what a step leaves behind for later ones, as a row of x and `now`; empty if it is denoised itself.
    """

    predict: tuple[Row, ...]
    correct: tuple[Row, ...] = ()
    remember: tuple[Row, ...] = ()


class Taken(NamedTuple):
    """State of a run.

    Attributes:
        plan: its weights.
        depth: how many steps back they reach.
        start: the sample that the last step began with, for rules that correct.
        earlier: what is remembered, newest first.
    """

    plan: Plan
    depth: int
    start: Tensor | None = None
    earlier: tuple[Tensor, ...] = ()


def weighted(weights: Sequence[Number], tensors: Sequence[Tensor]) -> Tensor:
    """Sum of weight times tensor, as far as both reach.

    The first begins the sum, and the others are added in place: under vmap it must have every batch that they have.

    Args:
        weights: numbers; at least one.
        tensors: at least one, all of one shape, dtype and device.

    Returns:
        A new tensor like the first, differentiable in everything.
    """
    total = weights[0] * tensors[0]
    add_weighted(total, weights[1:], tensors[1:])
    return total


def _is_learned(weight: Number) -> bool:
    return isinstance(weight, Tensor) and torch.is_grad_enabled()


def add_weighted(total: Tensor, weights: Sequence[Number], tensors: Sequence[Tensor]) -> None:
    """Add weighted tensors in place, which autograd allows: no operation on the way to `total` keeps its result."""
    for weight, tensor in zip(weights, tensors, strict=False):
        if _is_learned(weight):
            total += weight * tensor
        else:
            total.add_(tensor, alpha=float(weight))  # one pass over the memory


def combine(row: Row, x: Tensor, now: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
    """Apply a row, without its noise; the estimate comes first, since it depends on all that x does."""
    return weighted((row.now, row.x, *row.earlier), (now, x, *earlier))


class Multistep(ABC):
    """A solver that is a table of numbers, with one call a step. Subclasses say which."""

    @abstractmethod
    def plan(self, grid: Grid) -> Plan:
        """All weights for a grid; refuses grids that the rule cannot run."""

    def nfe(self, grid: Grid) -> int:
        """One call a step."""
        return grid.steps

    def init(self, x: Tensor, grid: Grid) -> Taken:
        """Compute the weights; nothing is remembered yet."""
        plan = self.plan(grid)
        return Taken(plan, max(len(row.earlier) for row in (*plan.predict, *plan.correct)))

    def step(
        self, denoise: Denoise, x: Tensor, grid: Grid, i: int, state: Taken, noise: NoiseSource | None = None
    ) -> tuple[Tensor, Taken]:
        """Carry x from level i to level i + 1; before that, correct the step to level i if the rule does."""
        plan, depth, start, earlier = state
        now = denoise(x, grid.at(i))
        if start is not None:
            x = combine(plan.correct[i - 1], start, now, earlier)
        row = plan.predict[i]
        there = combine(row, x, now, earlier)
        if isinstance(row.noise, Tensor) or row.noise > 0:
            add_weighted(there, (row.noise,), (drawn(noise, i, x),))
        kept = combine(plan.remember[i], x, now) if plan.remember else now
        return there, Taken(plan, depth, x if plan.correct else None, (kept, *earlier)[:depth])


def ddim_row(here: Level, there: Level) -> Row:
    """The step that is exact for a constant denoised."""
    return Row(*ddim_weights(here, there))


def noise_estimate_row(here: Level, there: Level, weights: Sequence[Number]) -> Row:
    r"""A step of :math:`d(x/\alpha)/d\kappa = \hat\varepsilon` with given weights of noise estimates.

    .. math:: \tfrac{x'}{\alpha'} = \tfrac{x}{\alpha} + \sum_k w_k \hat\varepsilon_k, \qquad
              \hat\varepsilon_0 = \tfrac{x - \alpha m}{\sigma}

    Args:
        here: start of the step, alpha > 0.
        there: end of the step.
        weights: w, newest first; the first is of the estimate made at x.

    Returns:
        The row in terms of x, m and the earlier noise estimates.
    """
    newest, *earlier = (there.alpha * w for w in weights)
    return Row(there.alpha / here.alpha + newest / here.sigma, -newest * here.alpha / here.sigma, tuple(earlier))


def noise_memory(levels: Sequence[Level]) -> tuple[Row, ...]:
    r"""Rows that make the noise estimate, :math:`(x - \alpha m)/\sigma`, of x and m, for every level but the last."""
    return tuple(Row(1 / level.sigma, -level.alpha / level.sigma) for level in levels[:-1])
