r"""EVODiff: weights that minimise the variance of a step, in closed form.

A reverse step is Gaussian, so its entropy is half the log-determinant of its conditional covariance: the weights of a
step should make the variance of what it does not know as small as they can. The package has the idea twice.

* The default, ours: :mod:`fewstep.solvers.evodiff_default`. Weights of least error variance under two priors of what
  data may be (:mod:`fewstep.solvers.evodiff_prior`), mixed per sample so that the variance of the surprise is least.
  Everything is a function of kappa and of inner products over a whole sample: the rule does not know the schedule, the
  channel basis or the tensor's rank.
* What the authors' release computes: :mod:`fewstep.solvers.evodiff_paper`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from fewstep.errors import ConfigError
from fewstep.noise import Grid
from fewstep.solvers.base import Denoise, NoiseSource
from fewstep.solvers.evodiff_default import DefaultRule
from fewstep.solvers.evodiff_paper import PaperRule

__all__ = ["EVODiff"]


@dataclass(frozen=True)
class EVODiff:
    r"""Multistep solver with variance-optimal weights; one call a step, no reference, no training.

    The default writes a step over the last five estimates, with weights of least error variance for two families of
    data, and mixes the two per sample by how well each foresaw what was estimated so far. It is consistent (a constant
    denoised is integrated exactly), of order 2 (4 to 5 seen), runs from one step up, from alpha = 0 and to
    sigma = 0, and its weights are continuous in the grid, ends included. It takes data for being of about unit scale.

    Args:
        variant: "default", or "paper" for what the authors' release computes.
        order: 2; no other order exists.
        denoise_to_zero: paper variant only: end with one more call, at the last level.
        final_gain: default variant only: multiply the last sample by this. Above 1 it reproduces the contrast that
            the paper's last step adds; 1 adds none.

    Raises:
        ConfigError: for another order or variant, or an option that the variant does not have.

    Source:
        Li, Chen, Zeng 2025, arXiv:2509.26096. The paper variant departs from it in: guarded denominators. The default
        departs from it in: all but the idea and one call a step; see :mod:`fewstep.solvers.evodiff_default`.
    """

    variant: Literal["default", "paper"] = "default"
    order: int = 2
    denoise_to_zero: bool = False
    final_gain: float = 1.0
    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        problems = {
            "order=2 only": self.order != 2,
            "variant='default' or variant='paper'": self.variant not in ("default", "paper"),
            "denoise_to_zero with variant='paper' only": self.denoise_to_zero and self.variant != "paper",
            "final_gain with variant='default' only": self.final_gain != 1 and self.variant == "paper",
            "a finite final_gain above 0": not 0 < self.final_gain < math.inf,
        }
        wrong = [allowed for allowed, hit in problems.items() if hit]
        if wrong:
            raise ConfigError(
                str(self),
                f"EVODiff takes {' and '.join(wrong)}",
                "Change that option; to end the default at clean data give the grid end='zero'",
            )

    def nfe(self, grid: Grid) -> int:
        """One call a step; the paper variant may add one to denoise at the end."""
        return self._rule.nfe(grid)

    def init(self, x: Tensor, grid: Grid) -> Any:
        """State before the first step."""
        return self._rule.init(x, grid)

    def step(
        self, denoise: Denoise, x: Tensor, grid: Grid, i: int, state: Any, noise: NoiseSource | None = None
    ) -> tuple[Tensor, Any]:
        """Carry x from level i to level i + 1."""
        return self._rule.step(denoise, x, grid, i, state, noise)

    @property
    def _rule(self) -> PaperRule | DefaultRule:
        return PaperRule(self.denoise_to_zero) if self.variant == "paper" else DefaultRule(self.final_gain)
