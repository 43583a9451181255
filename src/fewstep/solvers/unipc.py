"""UniPC: predict by an exponential multistep rule, then correct with the estimate that the next step makes anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fewstep.errors import ConfigError
from fewstep.noise import Grid
from fewstep.solvers.base import is_order
from fewstep.solvers.coeffs import Level, Number, ddim_weights, exponential_moments, lagrange, levels_of, nodes
from fewstep.solvers.multistep import Multistep, Plan, Row, ddim_row

__all__ = ["UniPC"]


@dataclass(frozen=True)
class UniPC(Multistep):
    r"""UniPC on denoised estimates; one call a step.

    The predictor of order p integrates the polynomial through the last p estimates exactly, and the corrector takes the
    same step again with the polynomial through p + 1, the estimate at its end included:

    .. math:: x' = r x + \alpha' \sum_k w_k m_k, \qquad
              w_k = \int_0^h e^{-(h - \tau)} \ell_k(\tau)\, d\tau

    Where there is only one difference of estimates, the paper gives it the weight :math:`\tfrac12 B(h)` instead, with
    :math:`B = 1 - e^{-h}` ("bh2") or :math:`B = h` ("bh1"): in the predictor of order 2 and in the first corrector.
    Everything else is the same for both. The sample of the last step is not corrected: that would cost one more call.

    Args:
        order: p, 2 or 3.
        variant: which B.

    Raises:
        ConfigError: for another order or variant.

    Source:
        Zhao et al. 2023, arXiv:2302.04867, Algorithms 5 to 8 with data prediction. Departs from it in: steps at
        infinite lam (a first corrector there weighs both estimates equally), and the last steps are of no lower order
        unless they are such.
    """

    order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not is_order(self.order, (2, 3)) or self.variant not in ("bh1", "bh2"):
            raise ConfigError(
                f"UniPC(order={self.order!r}, variant={self.variant!r})",
                "Orders 2 and 3, variants 'bh1' and 'bh2'",
                "Use UniPC(order=3)",
            )

    def plan(self, grid: Grid) -> Plan:
        """The weights of every step, and of every correction."""
        levels = levels_of(grid)
        steps = [(nodes(levels, i, self.order), levels[i + 1]) for i in range(grid.steps)]
        return Plan(
            tuple(self._predictor(known, there) for known, there in steps),
            tuple(self._corrector(known, there) for known, there in steps[:-1]),
        )

    def _predictor(self, known: Sequence[Level], there: Level) -> Row:
        here, *before = known
        if not before:
            return ddim_row(here, there)
        if len(before) > 1:
            return Row(there.sigma / here.sigma, *_split(_exact(known, here, there)))
        r, b = ddim_weights(here, there)
        share = self._half(here, there, b) * (there.lam - here.lam) / (here.lam - before[0].lam)
        return Row(r, b + share, (-share,))

    def _corrector(self, known: Sequence[Level], there: Level) -> Row:
        here = known[0]
        if len(known) > 1:
            return Row(there.sigma / here.sigma, *_split(_exact([there, *known], here, there)))
        r, b = ddim_weights(here, there)
        share = self._half(here, there, b)
        return Row(r, share, (b - share,))

    def _half(self, here: Level, there: Level, b: Number) -> Number:
        """Half of B(h) in units of x, for a single difference; of bh2 where h is infinite."""
        narrow = self.variant == "bh1" and here.is_inside and there.is_inside
        return there.alpha * (there.lam - here.lam) / 2 if narrow else b / 2


def _exact(known: Sequence[Level], here: Level, there: Level) -> list[Number]:
    """Weights that integrate the polynomial in lam through some estimates, one for each."""
    moments = exponential_moments(there.lam - here.lam, len(known))
    return [there.alpha * w for w in lagrange([level.lam - here.lam for level in known], moments)]


def _split(weights: Sequence[Number]) -> tuple[Number, tuple[Number, ...]]:
    return weights[0], tuple(weights[1:])
