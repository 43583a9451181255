r"""Which levels a diffusers scheduler visits: its configuration, and what is asked of ``set_timesteps``, as a grid.

Diffusers writes levels as *sigmas*: :math:`\kappa = \sigma/\alpha` for tables of betas, the :math:`\sigma` of the
straight path for flows. A run calls the network at the first n of them and ends at one more, 0 or the table's smallest.

Three habits of stock schedulers are left out. A "leading" spacing begins below the noisiest level while pipelines feed
it pure noise; it becomes "trailing" (:mod:`fewstep.adapters.scheduler_shell` says so). Karras' and the other ramps of
sigmas end where the run ends: stock ones make their last call at the table's smallest sigma, from which there is hardly
a step left to make. And timesteps are rounded only where that makes no two of them equal, and never where sigmas were
asked for: a network is told the level it is at.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fewstep.adapters.diffusers_config import Described, shift_of
from fewstep.adapters.diffusers_ramps import RAMPS, ramp_of
from fewstep.errors import ConfigError, GridError, LevelError
from fewstep.noise import Grid, ShiftedFlow, Tabulated, check_grid

__all__ = ["Asked", "Visited", "calls_of", "seen", "visited"]

_Lists: TypeAlias = Mapping[str, list[float]]  # what was given, by name: timesteps or sigmas
_SAME = 1e-6  # timesteps that differ by less are one, computed twice


class Asked(NamedTuple):
    """What ``set_timesteps`` is asked for.

    Attributes:
        steps: number of calls, or None where levels are given.
        timesteps: the calls' timesteps, noisiest first.
        sigmas: the calls' sigmas, noisiest first; a 0 at the end is the end. Of a flow, before its shift.
        mu: shift that the pipeline computed from the size of its image.
    """

    steps: int | None = None
    timesteps: Sequence[float] | Tensor | None = None
    sigmas: Sequence[float] | Tensor | None = None
    mu: float | None = None


class Visited(NamedTuple):
    """The levels of a run.

    Attributes:
        grid: all levels; its clock is that of the schedule.
        timesteps: what the network is told at each call, shape (n,); int64 where all are whole, else float32.
        sigmas: all levels as diffusers writes them, shape (n + 1,), float32.
    """

    grid: Grid
    timesteps: Tensor
    sigmas: Tensor


def visited(config: Mapping[str, Any], known: Described, asked: Asked) -> Visited:
    """Decide the levels of a run.

    Args:
        config: of the scheduler.
        known: what it says of the network.
        asked: number of calls, or levels.

    Returns:
        Grid, timesteps and sigmas.

    Raises:
        ConfigError: if nothing or two things are asked for, or options contradict each other.
        GridError: if the levels do not fall.
        LevelError: if the network does not know a level, or sigmas are of the other convention.
    """
    steps, lists = calls_of(asked)
    ramps = [name for name in RAMPS if config.get(name)]
    if len(ramps) > 1 or (ramps and "timesteps" in lists):
        both = [*ramps, *(name for name in lists if ramps)]
        raise ConfigError(f"{' and '.join(both)} at once", "Each of them decides the levels", "Leave one of them out")
    make = _of_flow if known.flow else _of_table
    return make(config, known, steps, lists, ramps[0] if ramps else "", asked.mu)


def seen(config: Mapping[str, Any], known: Described, grid: Grid) -> Visited:
    """Write the levels of a grid, whose clock is that of the schedule, as diffusers does."""
    calls = grid.t[:-1]
    if known.flow:
        return Visited(grid, (_scale(config) * calls).float(), grid.levels.sigma.float())
    timesteps = (calls - 1).clamp(min=0)  # between clean data and timestep 0 a network knows no better
    whole = bool((timesteps == timesteps.round()).all())
    return Visited(grid, timesteps.to(torch.int64 if whole else torch.float32), grid.levels.kappa.float())


def _scale(config: Mapping[str, Any]) -> float:
    """Timestep of a flow at pure noise."""
    return float(config.get("num_train_timesteps", 1000))


def _numbers(levels: Sequence[float] | Tensor, name: str) -> list[float]:
    numbers = [float(level) for level in levels]
    falls = all(here > there for here, there in pairwise(numbers))
    if not numbers or not falls or not all(0 <= number < math.inf for number in numbers):
        raise GridError(
            f"{name}={numbers}",
            "Finite numbers of 0 or above that fall strictly, the noisiest first",
            "Sort them from large to small, and drop the duplicates",
        )
    return numbers


def calls_of(asked: Asked) -> tuple[int, dict[str, list[float]]]:
    """Check what is asked for: number of calls, and the levels that are given, by name.

    Args:
        asked: number of calls, or levels.

    Returns:
        The number, and timesteps or sigmas.

    Raises:
        ConfigError: if nothing or two things are asked for.
        GridError: if levels do not fall, or are of another number.
    """
    given = {"timesteps": asked.timesteps, "sigmas": asked.sigmas}
    lists = {name: _numbers(levels, name) for name, levels in given.items() if levels is not None}
    return _count(asked.steps, lists), lists


def _count(steps: int | None, lists: Mapping[str, list[float]]) -> int:
    """Number of calls; of levels that end in 0, one less than there are."""
    if len(lists) > 1 or not (lists or steps is not None):
        raise ConfigError(
            f"set_timesteps with {' and '.join(lists) or 'nothing'}",
            "One of num_inference_steps, timesteps and sigmas says what is visited",
            "Pass one of them",
        )
    if not lists:
        if steps is None or type(steps) is bool or not hasattr(steps, "__index__") or steps < 1:
            raise GridError(
                f"num_inference_steps={steps!r}", "One step or more, a whole number", "Ask for instance for 8"
            )
        return operator.index(steps)
    (name, levels), *_ = lists.items()
    calls = len(levels) - (name == "sigmas" and levels[-1] == 0)
    if calls < 1 or steps not in (None, calls, len(levels)):
        raise GridError(
            f"{len(levels)} {name} for num_inference_steps={steps}", "One for every call", "Leave the number out"
        )
    return calls


# Tables of betas


def _of_table(
    config: Mapping[str, Any],
    known: Described,
    steps: int,
    lists: Mapping[str, list[float]],
    ramp: str,
    mu: float | None,
) -> Visited:
    table = known.schedule
    if not isinstance(table, Tabulated) or mu is not None:
        raise ConfigError(f"mu={mu} for a table of betas", "mu shifts the levels of flows", "Leave mu out")
    if "sigmas" in lists:
        clock = _clock_of_kappa(_checked_kappas(lists["sigmas"][:steps], table), table)
    elif "timesteps" in lists:
        clock = _checked_timesteps(lists["timesteps"], table) + 1
    elif ramp:
        clock = _clock_of_kappa(ramp_of(ramp, *_kappa_range(config, table), steps + 1)[:-1], table)
    else:
        clock = _spaced(config, table, steps)
    # The table's smallest level, unless a call is there already.
    end = 1.0 if _keeps_noise(config) and bool(clock[-1] > 1) else 0.0
    t = torch.cat([clock, clock.new_tensor([end])])
    return seen(config, known, check_grid(Grid(table.level(t), t)))


def _keeps_noise(config: Mapping[str, Any]) -> bool:
    kind = config.get("final_sigmas_type", "zero")
    if kind not in ("zero", "sigma_min"):
        raise ConfigError(
            f"final_sigmas_type={kind!r}", "'zero' ends at clean data, 'sigma_min' at timestep 0", "Use one of the two"
        )
    return bool(kind == "sigma_min")


def _last_clock(config: Mapping[str, Any], table: Tabulated) -> float:
    """The noisiest time that is visited: that of the last timestep whose lam is not below `lambda_min_clipped`."""
    least = float(config.get("lambda_min_clipped") or -math.inf)
    t = torch.arange(1, len(table.alphas_cumprod) + 1, dtype=torch.float64)
    kept = int((table.level(t).lam >= least).sum())
    if kept < 2:
        raise ConfigError(
            f"lambda_min_clipped={least:g}", "A level that leaves timesteps to sample with", "Use for instance -5.1"
        )
    return float(kept)


def _kappa_range(config: Mapping[str, Any], table: Tabulated) -> tuple[float, float]:
    ends = torch.tensor([_last_clock(config, table), 1.0], dtype=torch.float64)
    first, last = table.level(ends).kappa.tolist()
    return first, last


def _spaced(config: Mapping[str, Any], table: Tabulated, steps: int) -> Tensor:
    """Times of equal steps: on whole timesteps where there are enough of them, else between them."""
    last = _last_clock(config, table)
    kind = config.get("timestep_spacing", "trailing")
    if kind not in ("trailing", "linspace"):
        raise ConfigError(f"timestep_spacing={kind!r}", "'trailing' or 'linspace'", "Use 'trailing'")
    count = torch.arange(steps + 1, dtype=torch.float64)
    # Products of a stride, as numpy has them, which diffusers rounds: on a half, its last bit decides.
    if kind == "linspace":  # divides the timesteps from the last to 0
        whole = (count * ((last - 1) / steps)).round().flip(0)[:-1] + 1
    else:  # divides the clock, down to clean data
        whole = (last + count[:-1] * ((last - last / steps) - last)).round()
    crowded = bool((whole.diff() >= 0).any()) or (_keeps_noise(config) and bool(whole[-1] <= 1))
    if not crowded:
        return whole
    return torch.linspace(last, 1.0 if _keeps_noise(config) else 0.0, steps + 1, dtype=torch.float64)[:-1]


def _clock_of_kappa(kappa: Tensor, table: Tabulated) -> Tensor:
    clock = table.t_of_lam(-kappa.log())
    whole = clock.round()
    return torch.where((clock - whole).abs() < _SAME, whole, clock)


def _checked_kappas(kappas: list[float], table: Tabulated) -> Tensor:
    most, _ = _kappa_range({}, table)
    if kappas[0] > most * (1 + 1e-3) or (kappas[0] <= 1 < most / 4):
        raise LevelError(
            f"sigmas from {kappas[0]:g} to {kappas[-1]:g}",
            f"For this model they are sigma / alpha, as in EDM and k-diffusion, from {most:.5g} down"
            + ("; these look like the sigmas of a flow, which begin at 1" if kappas[0] <= 1 else ""),
            f"Begin at {most:.5g}, or pass timesteps=[...]",
        )
    return torch.tensor(kappas, dtype=torch.float64).clamp(max=most)


def _checked_timesteps(timesteps: list[float], table: Tabulated) -> Tensor:
    last = len(table.alphas_cumprod) - 1
    if timesteps[0] > last:
        raise LevelError(
            f"Timestep {timesteps[0]:g}", f"This model knows the timesteps 0 to {last}", f"Begin at {last} or below"
        )
    return torch.tensor(timesteps, dtype=torch.float64)


# Flows


def _of_flow(
    config: Mapping[str, Any],
    known: Described,
    steps: int,
    lists: Mapping[str, list[float]],
    ramp: str,
    mu: float | None,
) -> Visited:
    if "timesteps" in lists:  # they are what the network is told, so nothing is left to shift
        sigma = torch.tensor(lists["timesteps"], dtype=torch.float64) / _scale(config)
    else:
        given = lists.get("sigmas", [])[:steps]
        even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
        sigma = torch.tensor(given, dtype=torch.float64) if given else even
        _refuse_kappas(sigma)
        sigma = _stretched(config, ShiftedFlow(shift_of(config, mu)).level(sigma).sigma)
    _refuse_kappas(sigma)
    if ramp:
        sigma = ramp_of(ramp, float(sigma[0]), float(sigma[-1]), steps)
    all_of_them = torch.cat([sigma, sigma.new_zeros(1)])
    return seen(config, known, check_grid(Grid(known.schedule.level(all_of_them), all_of_them)))


def _refuse_kappas(sigma: Tensor) -> None:
    if bool(sigma[0] > 1 + 1e-6):
        raise LevelError(
            f"sigmas or timesteps that begin at sigma = {float(sigma[0]):g}",
            "The sigmas of a flow are at most 1, which is pure noise, and its timesteps 1000 times as much; larger "
            "ones are sigma / alpha of another kind of model",
            "Begin at 1; levels kappa = sigma / alpha become kappa / (1 + kappa)",
        )


def _stretched(config: Mapping[str, Any], sigma: Tensor) -> Tensor:
    """Stretch the levels so that the last call is at `shift_terminal`, as LTX-Video's sampler does."""
    last = config.get("shift_terminal")
    if not last or len(sigma) < 2:
        return sigma
    return 1 - (1 - sigma) * ((1 - float(last)) / (1 - sigma[-1]))
