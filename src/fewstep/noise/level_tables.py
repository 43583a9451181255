r"""Spacings out of tables: levels that somebody optimised for a model, stretched to any number of steps.

A table holds kappas from noisy to clean. Between them log kappa runs on straight lines over the share of the steps, so
a table of eleven levels is met exactly by ten steps. Tables are of kappa and of no clock, so a table fits every
schedule that reaches its levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType

import torch

from fewstep.errors import ConfigError, LevelError
from fewstep.noise.grid import Grid
from fewstep.noise.schedules import Schedule
from fewstep.noise.spacing import End, check_steps, grid_of

__all__ = ["AYS", "TableOfLevels"]

# Published to three decimals. The release ends at the last of these; diffusers puts a 0 in its place (end="zero").
AYS = MappingProxyType(
    {
        "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
        "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
        "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
    }
)
"""Align Your Steps: kappas of ten steps for Stable Diffusion 1.5, XL and Video."""

_PRINTED = 1e-3  # relative rounding of a printed kappa that is forgiven at a schedule's noisy end


@dataclass(frozen=True)
class TableOfLevels:
    """Levels out of a table, log-linear between its entries.

    Args:
        kappas: noise per unit of data, noisy first; those of Align Your Steps for Stable Diffusion 1.5 if omitted.
        end: "zero" to replace the last level by sigma = 0, or "limit" to end at the table's last.

    Raises:
        ConfigError: if the table does not fall from finite numbers to numbers above 0.

    Source:
        Sabour, Fidler, Kreis 2024, arXiv:2404.14507, and the table of its project page. Departs from it in: nothing.
    """

    kappas: tuple[float, ...] = AYS["sd15"]
    end: End = "zero"

    def __post_init__(self) -> None:
        listed = isinstance(self.kappas, tuple | list) and len(self.kappas) > 1
        numbers = listed and all(isinstance(kappa, int | float) and 0 < kappa < math.inf for kappa in self.kappas)
        if not numbers or any(there >= here for here, there in zip(self.kappas, self.kappas[1:], strict=False)):
            raise ConfigError(
                f"A table of levels kappas={self.kappas!r}",
                "Two or more numbers above 0 that fall strictly, noisy first",
                'Sort them and leave a 0 at the end out; end="zero" puts it there',
            )
        object.__setattr__(self, "kappas", tuple(self.kappas))

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Grid of `steps` intervals through the table."""
        lams = [-math.log(kappa) for kappa in self._within(schedule)]
        place = torch.linspace(0, len(lams) - 1, check_steps(steps) + 1, dtype=torch.float64)
        i = place.floor().clamp(max=len(lams) - 2).long()
        table, fraction = torch.tensor(lams, dtype=torch.float64), place - i
        return grid_of(schedule, schedule.t_of_lam(torch.lerp(table[i], table[i + 1], fraction)), self.end)

    def _within(self, schedule: Schedule) -> tuple[float, ...]:
        """The table, its first level held to the schedule's noisy end if it is past it by rounding only."""
        noisiest, first = math.exp(-schedule.lam_range()[0]), self.kappas[0]
        if first > noisiest * (1 + _PRINTED):
            raise LevelError(
                f"A table that begins at kappa = {first:g}, on {schedule}",
                f"This schedule ends at kappa = {noisiest:g}",
                "Use a table of this kind of model, or a schedule that reaches it",
            )
        return (min(first, noisiest), *self.kappas[1:])
