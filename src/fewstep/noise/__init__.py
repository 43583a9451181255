"""Noise: levels, schedules, grids and training draws (floor 1)."""

from fewstep.noise.draws import DRAWS, Draw, LogitNormalDraw, LogNormalDraw, UniformDraw, stratified
from fewstep.noise.grid import Grid, check_grid
from fewstep.noise.level import NoiseLevel, perturb
from fewstep.noise.schedules import EDM, SCHEDULES, LinearFlow, Schedule, VPCosine, VPLinear
from fewstep.noise.spacing import (
    SPACINGS,
    Explicit,
    Karras,
    PureNoise,
    Spacing,
    UniformFlow,
    UniformLam,
    UniformTime,
    flow_grid,
)

__all__ = [
    "DRAWS",
    "EDM",
    "SCHEDULES",
    "SPACINGS",
    "Draw",
    "Explicit",
    "Grid",
    "Karras",
    "LinearFlow",
    "LogNormalDraw",
    "LogitNormalDraw",
    "NoiseLevel",
    "PureNoise",
    "Schedule",
    "Spacing",
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
