r"""Spacings of discrete models: rules that were written down for timesteps 0 ... T - 1.

On a :class:`Tabulated` schedule these land on whole timesteps, the only ones that its networks were trained at; on any
other schedule they are the same rule of its continuous clock. ``Trailing`` and ``Timesteps`` give the levels of the
calls and then end at ``sigma = 0``, as the samplers do that they come from; ``end="limit"`` ends at the clean limit.

There is no "leading" spacing, on purpose: its first timestep is not the noisiest, and pure noise is what it is fed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import ConfigError, GridError, LevelError
from fewstep.noise.grid import Grid
from fewstep.noise.schedules import Schedule
from fewstep.noise.spacing import End, check_steps, grid_of
from fewstep.noise.tabulated import Tabulated

__all__ = ["Quadratic", "Timesteps", "Trailing"]


def _rounded(schedule: Schedule, t: Tensor) -> Tensor:
    """Whole timesteps on a table, the times themselves elsewhere; refuses what rounding makes equal."""
    if not isinstance(schedule, Tabulated):
        return t
    whole = t.round()
    if bool((repeated := whole.diff() >= 0).any()):
        timestep = int(whole[1:][repeated][0]) - 1
        raise GridError(
            f"{len(t) - 1} steps, rounded to the {int(schedule.t_range()[1])} timesteps of {schedule}",
            f"No timestep may come twice, as {timestep} does" if timestep >= 0 else "Clean data may not come twice",
            "Take fewer steps, or UniformTime, which does not round",
        )
    return whole


@dataclass(frozen=True)
class Trailing:
    r"""Equal steps of the clock, counted back from the noisy end, and clean data: ``timestep_spacing="trailing"``.

    .. math:: t_i = t_{max} (1 - i / N), \quad i = 0 \dots N

    Args:
        end: "zero", or "limit" to replace the last level by the schedule's clean limit.

    Source:
        Lin et al. 2023, arXiv:2305.08891, Table 2. Departs from it in: nothing.
    """

    end: End = "zero"

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Grid of `steps` intervals; whole timesteps on a table."""
        clean, noisy = schedule.t_range()
        # The stride of numpy's arange, which diffusers rounds: where i / N falls on a half, its last bit decides.
        stride = (noisy - noisy / check_steps(steps)) - noisy
        t = noisy + torch.arange(steps, dtype=torch.float64) * stride
        return grid_of(schedule, _rounded(schedule, torch.cat([t, _last(self.end, clean)])), self.end)


@dataclass(frozen=True)
class Quadratic:
    r"""Equal steps of the square root of the clock: shorter ones towards clean data.

    .. math:: \sqrt{t_i} = \sqrt{t_{max}} + \tfrac{i}{N} (\sqrt{t_{min}} - \sqrt{t_{max}})

    Args:
        end: "limit", or "zero" to end at t = 0.

    Source:
        Song, Meng, Ermon 2021, arXiv:2010.02502, Appendix D.2. Departs from it in: begins at the noisy end.
    """

    end: End = "limit"

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Grid of `steps` intervals; whole timesteps on a table."""
        clean, noisy = schedule.t_range()
        last = 0.0 if self.end == "zero" else clean
        roots = torch.linspace(math.sqrt(noisy), math.sqrt(last), check_steps(steps) + 1, dtype=torch.float64)
        # The square of a rounded root can be past the end of the clock by the last bit.
        return grid_of(schedule, _rounded(schedule, roots.square().clamp(max=noisy)), self.end)


@dataclass(frozen=True)
class Timesteps:
    """Exactly these timesteps of a discrete model, one call at each, and clean data.

    It is what distilled models publish: the default is four trailing steps of a thousand.

    Args:
        timesteps: whole numbers, noisiest first; timestep k is the time k + 1 of a :class:`Tabulated` schedule.
        end: "zero", or "limit" to end at timestep 0, which then may not be among them.

    Raises:
        ConfigError: if they are not whole numbers.
        GridError: if they do not descend strictly.
    """

    timesteps: tuple[int, ...] = (999, 749, 499, 249)
    end: End = "zero"

    def __post_init__(self) -> None:
        if not isinstance(self.timesteps, tuple | list) or not all(type(step) is int for step in self.timesteps):
            raise ConfigError(
                f"timesteps={self.timesteps!r}", "A list of whole numbers", "Write for instance (999, 749, 499, 249)"
            )
        object.__setattr__(self, "timesteps", tuple(self.timesteps))
        faults = [step for before, step in zip(self.timesteps, self.timesteps[1:], strict=False) if step >= before]
        if faults:
            raise GridError(
                f"Timesteps {list(self.timesteps)}, in which {faults[0]} is not below the one before",
                "Noisiest first, each only once",
                "Sort them, drop the duplicates, or take fewer",
            )

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Grid through the given timesteps to clean data; `steps` must be their number."""
        if not isinstance(schedule, Tabulated):
            raise ConfigError(
                f"Timesteps on {schedule}",
                "Only a table has timesteps: Tabulated",
                "Use Explicit, with times of the schedule's own clock, or sample on the grid of a Tabulated schedule",
            )
        if len(self.timesteps) != check_steps(steps):
            raise GridError(
                f"{len(self.timesteps)} timesteps for a grid of {steps} steps",
                "Each step begins at one of them",
                f"Ask for {len(self.timesteps)} steps, or give {steps} timesteps",
            )
        clean, noisy = schedule.t_range()
        outside = [step for step in self.timesteps if not 0 <= step < noisy]
        if outside:
            raise LevelError(
                f"Timestep {outside[0]} on {schedule}", f"It has 0 to {int(noisy) - 1}", "Choose among them"
            )
        t = torch.tensor([step + 1 for step in self.timesteps], dtype=torch.float64)
        return grid_of(schedule, torch.cat([t, _last(self.end, clean)]), self.end)


def _last(end: str, clean: float) -> Tensor:
    """Time of the last level, shape (1,)."""
    return torch.tensor([clean if end == "limit" else 0.0], dtype=torch.float64)
