"""DPM-Solver++ 2M for the reverse SDE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fewstep.errors import ConfigError
from fewstep.noise import Grid
from fewstep.solvers.coeffs import Level, levels_of, nodes, noise_ratio, sqrt
from fewstep.solvers.multistep import Multistep, Plan, Row

__all__ = ["DPMpp2MSDE"]


@dataclass(frozen=True)
class DPMpp2MSDE(Multistep):
    r"""Second-order multistep rule for the reverse SDE, on denoised estimates.

    With :math:`q = \kappa'/\kappa = e^{-h}`, the linear part of the SDE is solved exactly,

    .. math:: x' = \tfrac{\sigma'}{\sigma} q^\eta x + \alpha' (1 - q^{1+\eta})
              \left(m + \tfrac{h}{2}\tfrac{m - m_-}{\lambda - \lambda_-}\right) + \sigma' \sqrt{1 - q^{2\eta}}\, z

    and at eta = 0 the rule is DPM-Solver++ 2M. One call a step. The order is that of the mean; the law of the samples
    is of first order.

    Args:
        eta: strength of the noise, above 0; 1 is the reverse of the diffusion.

    Raises:
        ConfigError: if eta is not above 0.

    Source:
        Lu et al. 2022, arXiv:2211.01095, Appendix (SDE-DPM-Solver++ 2M); k-diffusion, sample_dpmpp_2m_sde, midpoint.
        Departs from it in: steps at infinite lam use no slope.
    """

    eta: float = 1.0
    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.eta < float("inf"):
            raise ConfigError(
                f"DPMpp2MSDE with eta={self.eta:g}", "eta is above 0 and finite", "Use eta=1, or DPMpp2M for no noise"
            )

    def plan(self, grid: Grid) -> Plan:
        """The weights of every step."""
        levels = levels_of(grid)
        return Plan(tuple(self._row(nodes(levels, i, 2), levels[i + 1]) for i in range(grid.steps)))

    def _row(self, known: Sequence[Level], there: Level) -> Row:
        here, *before = known
        if not (here.is_inside and there.is_inside):
            return Row(0.0, there.alpha, noise=there.sigma)  # q = 0, where a power of it has no gradient
        q = noise_ratio(here, there)
        gain = there.alpha * (1 - q ** (1 + self.eta))
        half = (there.lam - here.lam) / (here.lam - before[0].lam) / 2 if before else 0.0
        return Row(
            there.sigma / here.sigma * q**self.eta,
            gain * (1 + half),
            (-gain * half,) if before else (),
            there.sigma * sqrt(1 - q ** (2 * self.eta)),
        )
