r"""Samples as what they are made of: noise and estimates.

Every sample of a deterministic multistep rule is a fixed combination of the noise and of all estimates so far,

.. math:: \hat x_i = w_{i0}\, \hat x_0 + \sum_{j < i} w_{i, j+1}\, m_j,

a *row*. Rules that remember noise estimates, samples or denoised estimates all become rows, and the difference of two
rules is a difference of rows. A row whose estimates sum to :math:`1 - \kappa_i / \kappa_0` is exact for a constant
denoised, and :class:`~fewstep.solvers.TabulatedSolver` takes any such rule in the form of shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep._part import Part
from fewstep.calibration.problem import plain_grid
from fewstep.errors import ConfigError
from fewstep.solvers import SOLVERS, Multistep, Plan, Row, Solver
from fewstep.solvers.coeffs import Number

__all__ = ["Base", "base_rule", "combined", "shares_of", "start_row"]


def base_rule(name: str) -> Multistep:
    """Build a rule that a residual can be fitted around.

    Args:
        name: as on the command line, such as "ipndm:order=3".

    Returns:
        The rule.

    Raises:
        UnknownName: if there is no such solver.
        ConfigError: if it is no multistep rule, or one that corrects or draws noise.
    """
    rule = Part.spelled(name).build(SOLVERS, "base rule")
    Base.of(rule, torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64))
    return rule  # type: ignore[return-value]  # Base.of takes nothing else


def start_row(steps: int) -> Tensor:
    """The row of the noise itself, shape (steps + 1,), float64."""
    row = torch.zeros(steps + 1, dtype=torch.float64)
    row[0] = 1.0
    return row


@dataclass(frozen=True)
class Base:
    """A fixed rule on one grid, which says what the next sample would be after any past; made by :meth:`of`.

    Args:
        plan: its numbers.
        steps: of the grid.
    """

    plan: Plan
    steps: int

    @classmethod
    def of(cls, rule: Solver | Multistep, kappa: Tensor) -> Base:
        """Make the numbers of a rule.

        Args:
            rule: a multistep rule that neither corrects nor draws.
            kappa: levels, shape (steps + 1,), float64; may carry a gradient.

        Returns:
            The rule on these levels.

        Raises:
            ConfigError: if it is another rule.
        """
        plan = rule.plan(plain_grid(kappa)) if isinstance(rule, Multistep) else None
        if plan is None or plan.correct or any(row.noise for row in plan.predict):
            raise ConfigError(
                f"The base rule {rule}",
                "A base is a multistep rule that neither corrects its steps nor draws noise",
                "Take ddim, dpmpp_2m, dpmpp_3m, deis or ipndm",
            )
        return cls(plan, len(kappa) - 1)

    def row(self, i: int, rows: Sequence[Tensor]) -> Tensor:
        """What the rule makes of a past.

        Args:
            i: index of the step.
            rows: of the samples at levels 0 to i.

        Returns:
            Row of its sample at level i + 1, shape (steps + 1,).
        """
        own = self.plan.predict[i]
        row = own.x * rows[i] + own.now * self._estimate(i)
        for back, weight in enumerate(own.earlier[:i]):
            row = row + weight * self._remembered(i - 1 - back, rows)
        return row

    def _estimate(self, j: int) -> Tensor:
        return _unit(j + 1, self.steps + 1)

    def _remembered(self, j: int, rows: Sequence[Tensor]) -> Tensor:
        kept = self.plan.remember[j] if self.plan.remember else Row(0.0, 1.0)
        return kept.x * rows[j] + kept.now * self._estimate(j)


def _unit(index: int, length: int) -> Tensor:
    row = torch.zeros(length, dtype=torch.float64)
    row[index] = 1.0
    return row


def combined(row: Tensor, noise: Tensor, estimates: Sequence[Tensor]) -> Tensor:
    """The sample of a row; its noise and estimates have one shape and dtype."""
    parts = torch.stack([noise, *estimates]).flatten(1)
    return (row[: len(parts)].to(parts) @ parts).reshape(noise.shape)


def shares_of(rows: Sequence[Tensor], kappa: Tensor) -> tuple[tuple[Number, ...], ...]:
    r"""Write a rule as a :class:`~fewstep.solvers.TabulatedSolver` does.

    .. math:: c_{ij} = \frac{w_{i+1, j+1} - r\, w_{i, j+1}}{1 - r}, \qquad r = \kappa_{i+1} / \kappa_i

    Args:
        rows: of the samples at all levels, consistent.
        kappa: the levels.

    Returns:
        Weights c, scalar tensors that carry the gradient of rows and levels.
    """
    weights = []
    for i in range(1, len(kappa) - 1):
        r = kappa[i + 1] / kappa[i]
        weights.append(tuple(((rows[i + 1] - r * rows[i]) / (1 - r))[1 : i + 1].unbind()))
    return tuple(weights)
