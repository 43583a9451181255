"""DEIS: Adams-Bashforth on the noise estimate, exact for polynomials on any grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fewstep.errors import ConfigError
from fewstep.noise import Grid
from fewstep.solvers.base import is_order
from fewstep.solvers.coeffs import Level, Number, exponential_moments, lagrange, levels_of
from fewstep.solvers.multistep import Multistep, Plan, Row, ddim_row, noise_estimate_row, noise_memory

__all__ = ["DEIS"]


@dataclass(frozen=True)
class DEIS(Multistep):
    r"""Exponential integrator of :math:`d(x/\alpha)/d\kappa = \hat\varepsilon` with extrapolated noise estimates.

    .. math:: x' = \tfrac{\alpha'}{\alpha} x + \alpha' \sum_k w_k \hat\varepsilon_{i-k}, \qquad
              w_k = \int_\kappa^{\kappa'} \ell_k(v(s))\, ds

    with :math:`\ell_k` the Lagrange polynomials through the levels of the last estimates in the variable v. One call a
    step; lower orders start it.

    Args:
        order: number of noise estimates in a step, 2 or 3: AB1 is DDIM.
        variable: v, in which the noise estimate is taken for a polynomial: "kappa" is the tAB of the paper on EDM's
            levels; "log_kappa" is what diffusers has.

    Raises:
        ConfigError: for another order or variable.

    Source:
        Zhang, Chen 2023, arXiv:2204.13902, Eq. 14 and 15. Departs from it in: an estimate made at alpha = 0 does not
        enter the history, as its kappa is infinite; with "log_kappa" a step to sigma = 0 is a DDIM step.
    """

    order: int = 3
    variable: Literal["kappa", "log_kappa"] = "kappa"
    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not is_order(self.order, (2, 3)) or self.variable not in ("kappa", "log_kappa"):
            raise ConfigError(
                f"DEIS(order={self.order!r}, variable={self.variable!r})",
                "Orders 2 and 3, variables 'kappa' and 'log_kappa'",
                "Use DEIS(order=3); order 1 is DDIM",
            )

    def plan(self, grid: Grid) -> Plan:
        """The weights of every step."""
        levels = levels_of(grid)
        rows = tuple(self._row(levels, i) for i in range(grid.steps))
        return Plan(rows, remember=noise_memory(levels))

    def _row(self, levels: list[Level], i: int) -> Row:
        here, there = levels[i], levels[i + 1]
        known = [level for level in levels[max(0, i + 1 - self.order) : i + 1][::-1] if level.alpha > 0]
        if not known or (self.variable == "log_kappa" and not there.is_inside):
            return ddim_row(here, there)
        measure = _in_kappa if self.variable == "kappa" else _in_log_kappa
        return noise_estimate_row(here, there, measure(known, there))


def _in_kappa(known: list[Level], there: Level) -> list[Number]:
    here = known[0].kappa
    width = there.kappa - here
    moments = [width ** (j + 1) / (j + 1) for j in range(len(known))]
    return lagrange([level.kappa - here for level in known], moments)


def _in_log_kappa(known: list[Level], there: Level) -> list[Number]:
    here, kappa = known[0].lam, there.kappa
    # With w = log kappa, d kappa = exp(w) dw: the measure of exponential_moments for the negative width of the step.
    moments = [kappa * moment for moment in exponential_moments(here - there.lam, len(known))]
    return lagrange([here - level.lam for level in known], moments)
