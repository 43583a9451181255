"""Noise: levels, schedules, grids and training draws (floor 1)."""

from fewstep.noise.draws import DRAWS, Draw, LogitNormalDraw, LogNormalDraw, UniformDraw, stratified
from fewstep.noise.level import NoiseLevel, perturb
from fewstep.noise.schedules import EDM, SCHEDULES, LinearFlow, Schedule, VPCosine, VPLinear
from fewstep.noise.spacing import SPACINGS, Explicit, Grid, Karras, Spacing, UniformLam, UniformTime, check_grid

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
    "Schedule",
    "Spacing",
    "UniformDraw",
    "UniformLam",
    "UniformTime",
    "VPCosine",
    "VPLinear",
    "check_grid",
    "perturb",
    "stratified",
]
