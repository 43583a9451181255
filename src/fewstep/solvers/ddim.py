"""DDIM: one denoised estimate, held constant over the step; eta replaces a part of the old noise by fresh noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewstep.errors import ConfigError
from fewstep.noise import Grid
from fewstep.solvers.coeffs import Level, Number, ddim_weights, noise_ratio, sqrt, steps_of
from fewstep.solvers.multistep import Multistep, Plan, Row

__all__ = ["DDIM", "ancestral_row", "check_eta"]


def ancestral_row(here: Level, there: Level, eta: float) -> Row:
    r"""Go down beyond the next level, and come back up to it by fresh noise.

    .. math:: \sigma_{up} = \eta\, \sigma' \sqrt{1 - q^2}, \quad \sigma_{down}^2 = \sigma'^2 - \sigma_{up}^2, \quad
              q = \kappa' / \kappa

    The total variance of the noise in x' is that of the level, whatever eta is.

    Args:
        here: start of the step.
        there: its end.
        eta: 0 adds no noise, 1 as much as the reverse of the diffusion does.

    Returns:
        The row of a DDIM step to ``(alpha', sigma_down)``, with noise of standard deviation sigma_up.
    """
    if eta == 0:
        return Row(*ddim_weights(here, there))
    q = noise_ratio(here, there)
    # Written so that no root is taken of 0 where a gradient may pass.
    share: Number = q if eta == 1 else sqrt(q**2 + (1 - eta**2) * (1 - q**2))
    r = share * there.sigma / here.sigma
    return Row(r, there.alpha - here.alpha * r, noise=eta * there.sigma * sqrt(1 - q**2))


def check_eta(eta: float, rule: str) -> None:
    """Refuse shares of fresh noise outside 0..1; ConfigError."""
    if not 0 <= eta <= 1:
        raise ConfigError(
            f"{rule} with eta={eta:g}", "eta is 0 (no fresh noise) to 1 (all of it)", "Use eta=0, or eta=1"
        )


@dataclass(frozen=True)
class DDIM(Multistep):
    r"""First-order exponential integrator of the probability-flow ODE.

    .. math::
        x_{i+1} = \tfrac{\sigma_{i+1}}{\sigma_i} x_i + (\alpha_{i+1} - \alpha_i \tfrac{\sigma_{i+1}}{\sigma_i}) m_i

    One call a step. In the coordinates ``x / alpha`` it is Euler's method in kappa. With eta the step goes to a lower
    level and fresh noise brings it back up: see :func:`ancestral_row`.

    Args:
        eta: share of fresh noise, 0 to 1; above 0 the rule is stochastic, and at 1 it is DDPM's ancestral sampling.

    Raises:
        ConfigError: if eta is outside 0..1.

    Source:
        Song, Meng, Ermon 2021, arXiv:2010.02502, Eq. 12 and 16. Departs from it in: written for any alpha and sigma.
    """

    eta: float = 0.0
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_eta(self.eta, "DDIM")

    @property
    def stochastic(self) -> bool:
        """Whether eta is above 0."""
        return self.eta > 0

    def plan(self, grid: Grid) -> Plan:
        """The weights of every step."""
        return Plan(tuple(ancestral_row(here, there, self.eta) for here, there in steps_of(grid)))
