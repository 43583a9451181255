"""Objectives: what is minimised, one file per paper (floor 5)."""

from fewstep._tensor import normal_like
from fewstep.objectives.base import CRITIC, GENERATOR, Objective, Turn
from fewstep.objectives.couplings import (
    OT,
    Coupled,
    Coupling,
    Independent,
    Inversion,
    Leaky,
    NearestNoise,
    Pairs,
    Teacher,
    join_pairs,
    make_pairs,
    read_pairs,
    write_pairs,
)
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.e2e import E2E, MEMORY, ChainSource
from fewstep.objectives.gradients import Gradient, RandomExit, RandomSteps, Through
from fewstep.objectives.guard import Finding, Guard, Weighted, diagnose, spread_of

__all__ = [
    "CRITIC",
    "E2E",
    "GENERATOR",
    "MEMORY",
    "OT",
    "ChainSource",
    "Coupled",
    "Coupling",
    "Denoising",
    "Finding",
    "Gradient",
    "Guard",
    "Independent",
    "Inversion",
    "Leaky",
    "NearestNoise",
    "Objective",
    "Pairs",
    "RandomExit",
    "RandomSteps",
    "Teacher",
    "Through",
    "Turn",
    "Weighted",
    "diagnose",
    "join_pairs",
    "make_pairs",
    "normal_like",
    "read_pairs",
    "spread_of",
    "write_pairs",
]
