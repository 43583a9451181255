"""Names of schedules and spacings, for configurations and the command line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fewstep.noise.flows import LinearFlow, ShiftedFlow
from fewstep.noise.level_tables import AYS, TableOfLevels
from fewstep.noise.schedules import EDM, VE, Schedule, VPCosine, VPLinear
from fewstep.noise.spacing import Karras, Spacing, UniformFlow, UniformLam, UniformTime
from fewstep.noise.tabulated import Tabulated
from fewstep.noise.timesteps import Quadratic, Timesteps, Trailing

__all__ = ["SCHEDULES", "SPACINGS"]

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "edm": EDM,
    "ve": VE,
    "vp_linear": VPLinear,
    "vp_cosine": VPCosine,
    "linear_flow": LinearFlow,
    "shifted_flow": ShiftedFlow,
    "tabulated": Tabulated,
    "tabulated_linear": Tabulated.linear,
    "tabulated_scaled_linear": Tabulated.scaled_linear,
}

SPACINGS: dict[str, Callable[..., Spacing]] = {
    "uniform_lam": UniformLam,
    "karras": Karras,
    "uniform_time": UniformTime,
    "uniform_flow": UniformFlow,
    "trailing": Trailing,
    "quadratic": Quadratic,
    "timesteps": Timesteps,
    "table_of_levels": TableOfLevels,
    **{f"ays_{model}": partial(TableOfLevels, kappas) for model, kappas in AYS.items()},
}
