"""iPNDM: Adams-Bashforth on the noise estimate, with the weights of equal steps whatever the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.errors import ConfigError
from fewstep.noise import Grid, NoiseLevel
from fewstep.solvers.base import Denoise, NoiseSource, move

__all__ = ["IPNDM"]

# Newest first; row k is the Adams-Bashforth rule of order k + 1.
_WEIGHTS: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)

History = tuple[Tensor, ...]


@dataclass(frozen=True)
class IPNDM:
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
        if self.order not in range(1, len(_WEIGHTS) + 1):
            raise ConfigError(f"IPNDM of order {self.order}", "Orders 1, 2, 3 and 4 exist", "Use order=4")

    def nfe(self, grid: Grid) -> int:
        """One call a step."""
        return grid.steps

    def init(self, x: Tensor, grid: Grid) -> History:
        """No noise estimate yet."""
        return ()

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        grid: Grid,
        i: int,
        state: History,
        noise: NoiseSource | None = None,
    ) -> tuple[Tensor, History]:
        """Carry x from level i to level i + 1; the state is the noise estimates so far, newest first."""
        here, there = grid.at(i), grid.at(i + 1)
        m = denoise(x, here)
        if not bool(here.alpha > 0):
            return move(x, m, here, there), ()
        history = ((x - here.alpha * m) / here.sigma, *state)[: self.order]
        weights = _WEIGHTS[len(history) - 1]
        eps = sum((a * e for a, e in zip(weights[1:], history[1:], strict=True)), weights[0] * history[0])
        return _along(x, eps, here, there), history


def _along(x: Tensor, eps: Tensor, here: NoiseLevel, there: NoiseLevel) -> Tensor:
    """Move x with a fixed noise estimate."""
    ratio = there.alpha / here.alpha
    return ratio * x + (there.sigma - ratio * here.sigma) * eps
