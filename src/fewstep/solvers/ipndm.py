"""iPNDM: Adams-Bashforth on the noise estimate, with the weights of equal steps whatever the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewstep.errors import ConfigError
from fewstep.noise import Grid
from fewstep.solvers.base import is_order
from fewstep.solvers.coeffs import Level, levels_of
from fewstep.solvers.multistep import Multistep, Plan, Row, ddim_row, noise_estimate_row, noise_memory

__all__ = ["IPNDM"]

# Newest first; row k is the Adams-Bashforth rule of order k + 1.
_WEIGHTS: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class IPNDM(Multistep):
    r"""Adams-Bashforth for :math:`d(x/\alpha)/d\kappa = \hat\varepsilon`, one call a step.

    .. math:: x' = \tfrac{\alpha'}{\alpha}(x - \sigma \bar\varepsilon) + \sigma' \bar\varepsilon,
              \qquad \bar\varepsilon = \sum_k a_k \hat\varepsilon_{i-k}

    The weights a_k are those of equal steps in kappa. On such a grid, with a full history, the order is the declared
    one. On a grid whose neighbouring steps become alike as it is refined (uniform lam, Karras) the order is 2; where
    they stay unlike it is 1. Yet on EDM's rho = 7 grid it is among the best rules known. Lower orders start it.
    Reaching sigma = 0 needs no special step, since kappa = 0 is finite there.

    Args:
        order: number of noise estimates in a step, 1 to 4.

    Source:
        Zhang, Chen 2023, arXiv:2204.13902, Eq. 14 and Appendix H.2. Departs from it in: an estimate made at alpha = 0
        does not enter the history, as its kappa is infinite.
    """

    order: int = 4
    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not is_order(self.order, range(1, len(_WEIGHTS) + 1)):
            raise ConfigError(f"IPNDM of order {self.order}", "Orders 1, 2, 3 and 4 exist", "Use order=4")

    def plan(self, grid: Grid) -> Plan:
        """The weights of every step."""
        levels = levels_of(grid)
        rows = tuple(self._row(levels, i) for i in range(grid.steps))
        return Plan(rows, remember=noise_memory(levels))

    def _row(self, levels: list[Level], i: int) -> Row:
        here, there = levels[i], levels[i + 1]
        known = sum(bool(level.alpha > 0) for level in levels[max(0, i + 1 - self.order) : i + 1])
        if not known:
            return ddim_row(here, there)
        width = there.kappa - here.kappa
        return noise_estimate_row(here, there, [a * width for a in _WEIGHTS[known - 1]])
