"""Ancestral Euler: a step down, then fresh noise back up to the level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewstep.noise import Grid
from fewstep.solvers.coeffs import steps_of
from fewstep.solvers.ddim import ancestral_row, check_eta
from fewstep.solvers.multistep import Multistep, Plan

__all__ = ["EulerAncestral"]


@dataclass(frozen=True)
class EulerAncestral(Multistep):
    """Euler's method in kappa, to a level below the next one, with fresh noise to make up the difference.

    The same as DDIM with the same eta, in every schedule, under the name that k-diffusion's users know; they derived it
    from the posterior of the diffusion (:func:`~fewstep.solvers.ddim.ancestral_row`). One call a step.

    Args:
        eta: share of fresh noise, 0 to 1; at 0 it is Euler.

    Raises:
        ConfigError: if eta is outside 0..1.

    Source:
        Song et al. 2021, arXiv:2011.13456, Appendix F (ancestral sampling of VE); Crowson, k-diffusion,
        sample_euler_ancestral. Departs from it in: written for any alpha; fresh noise has unit variance.
    """

    eta: float = 1.0
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_eta(self.eta, "EulerAncestral")

    @property
    def stochastic(self) -> bool:
        """Whether eta is above 0."""
        return self.eta > 0

    def plan(self, grid: Grid) -> Plan:
        """The weights of every step."""
        return Plan(tuple(ancestral_row(here, there, self.eta) for here, there in steps_of(grid)))
