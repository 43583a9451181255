r"""DualFast: a solver fed with noise estimates that lean on earlier, less wrong ones.

The error of few steps has two parts: that of the rule, and that of the network. The network's noise estimate is the
less wrong the more noise there is, so an earlier estimate can mend a later one without a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from fewstep.errors import ConfigError
from fewstep.noise import Grid, NoiseLevel
from fewstep.solvers.base import Denoise, NoiseSource, Solver
from fewstep.solvers.dpmpp import DPMpp2M

__all__ = ["DualFast"]


class _Mixed(NamedTuple):
    """State: that of the base, the last noise estimate and its level."""

    base: Any
    noise: Tensor | None = None
    level: NoiseLevel | None = None


@dataclass(frozen=True)
class DualFast:
    r"""Any solver on mixed noise estimates, at no further call.

    .. math:: \tilde\varepsilon_i = (1 - c_i)\, \hat\varepsilon_i + c_i\, \hat\varepsilon_{i-1}, \qquad
              c_i = c\, (1 - \kappa_i / \kappa_{i-1})

    The base takes :math:`\tilde m_i = (x_i - \sigma_i \tilde\varepsilon_i) / \alpha_i` for the denoised estimate. The
    weights sum to 1, so a constant denoised estimate, whose noise estimate is constant along the path, stays exact.
    c_i vanishes with the step, which keeps an order of up to 2.

    Exact denoisers have no error that this could mend: there it only damps the base, for better or worse. On a network
    it leaves the solution of the network's equation, towards the data: measure the distance to data, not the error.

    Args:
        base: the rule that is fed.
        share: c, -1 to 1. Above 0 leans on the earlier estimate; below 0 leans away from it.

    Raises:
        ConfigError: if the share is outside -1..1, or the base is no solver.

    Source:
        Yu, Luo, Wang, Zhao 2025, arXiv:2506.13058: the two errors, and a current noise estimate mixed with an earlier
        one, for any solver. Departs from it in: the formula, which we made from that description without the paper's
        own text: the anchor is the estimate of the last call, and the share falls with the step, where the paper's
        schedule of c is not known to us.
    """

    base: Solver = DPMpp2M()
    share: float = 0.3

    def __post_init__(self) -> None:
        if isinstance(self.base, type) or not hasattr(self.base, "step"):
            raise ConfigError(
                f"DualFast with base={self.base!r}",
                "The base is a solver, an object and not its class; on the command line only the share can be given",
                "Use base=DPMpp2M() in Python, dualfast:share=0.3 on the command line, or leave the base out",
            )
        if not -1 <= self.share <= 1:
            raise ConfigError(
                f"DualFast with share={self.share:g}", "The share is -1 to 1, and 0 is the base alone", "Use share=0.3"
            )

    @property
    def order(self) -> int:
        """That of the base, 2 at most."""
        return min(self.base.order, 2)

    @property
    def stochastic(self) -> bool:
        """Whether the base draws."""
        return self.base.stochastic

    def nfe(self, grid: Grid) -> int:
        """The calls of the base."""
        return self.base.nfe(grid)

    def init(self, x: Tensor, grid: Grid) -> _Mixed:
        """State of the base; nothing is remembered yet."""
        return _Mixed(self.base.init(x, grid))

    def step(
        self, denoise: Denoise, x: Tensor, grid: Grid, i: int, state: _Mixed, noise: NoiseSource | None = None
    ) -> tuple[Tensor, _Mixed]:
        """Carry x from level i to level i + 1 by the base."""
        _, before, above = state

        def mixed(x: Tensor, level: NoiseLevel) -> Tensor:
            nonlocal before, above
            denoised = denoise(x, level)
            if level.sigma == 0:  # no noise to estimate: a call at clean data
                return denoised
            estimate = (x - level.alpha * denoised) / level.sigma
            if before is not None and above is not None:
                share = self.share * (1 - _ratio(above, level))
                denoised = denoised - share * (level.sigma / level.alpha) * (before - estimate)
            before, above = estimate, level
            return denoised

        x, base = self.base.step(mixed, x, grid, i, state.base, noise)
        return x, _Mixed(base, before, above)


def _ratio(above: NoiseLevel, level: NoiseLevel) -> Tensor:
    """``kappa / kappa of the level before``, 0 below pure noise."""
    return level.sigma * above.alpha / (level.alpha * above.sigma)
