"""Noise: levels, schedules, grids and training draws (floor 1)."""

from fewstep.noise.draws import DRAWS, Draw, LogitNormalDraw, LogNormalDraw, UniformDraw, stratified
from fewstep.noise.flows import LinearFlow, ShiftedFlow
from fewstep.noise.grid import Grid, check_grid
from fewstep.noise.level import NoiseLevel, perturb
from fewstep.noise.level_tables import AYS, TableOfLevels
from fewstep.noise.schedules import EDM, VE, Schedule, VPCosine, VPLinear
from fewstep.noise.spacing import (
    Explicit,
    Karras,
    PureNoise,
    Spacing,
    UniformFlow,
    UniformLam,
    UniformTime,
    flow_grid,
)
from fewstep.noise.table import SCHEDULES, SPACINGS
from fewstep.noise.tabulated import Tabulated
from fewstep.noise.timesteps import Quadratic, Timesteps, Trailing

__all__ = [
    "AYS",
    "DRAWS",
    "EDM",
    "SCHEDULES",
    "SPACINGS",
    "VE",
    "Draw",
    "Explicit",
    "Grid",
    "Karras",
    "LinearFlow",
    "LogNormalDraw",
    "LogitNormalDraw",
    "NoiseLevel",
    "PureNoise",
    "Quadratic",
    "Schedule",
    "ShiftedFlow",
    "Spacing",
    "TableOfLevels",
    "Tabulated",
    "Timesteps",
    "Trailing",
    "UniformDraw",
    "UniformFlow",
    "UniformLam",
    "UniformTime",
    "VPCosine",
    "VPLinear",
    "check_grid",
    "flow_grid",
    "perturb",
    "stratified",
]
