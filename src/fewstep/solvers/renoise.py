"""Re-noising: denoise all the way, then add fresh noise of the next level; how consistency models are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewstep.noise import Grid
from fewstep.solvers.coeffs import levels_of
from fewstep.solvers.multistep import Multistep, Plan, Row

__all__ = ["Renoise"]


@dataclass(frozen=True)
class Renoise(Multistep):
    r"""Multistep sampling of a consistency model or of LCM.

    .. math:: x_{i+1} = \alpha_{i+1} m_i + \sigma_{i+1} z

    Nothing of x survives but what m knows of it. Right for networks that map noise to data in one call; an ordinary
    denoiser, which answers with a mean, loses variance under it. One call a step, no noise in a step to sigma = 0.

    Source:
        Song et al. 2023, arXiv:2303.01469, Algorithm 1; Luo et al. 2023, arXiv:2310.04378, Algorithm 3. Departs from
        it in: the boundary scalings (c_skip, c_out) belong to the network's prediction, not to the solver.
    """

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def plan(self, grid: Grid) -> Plan:
        """The weights of every step."""
        return Plan(tuple(Row(0.0, there.alpha, noise=there.sigma) for there in levels_of(grid)[1:]))
