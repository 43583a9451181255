"""Objectives: what is minimised, one file per paper (floor 5)."""

from fewstep.objectives.base import GENERATOR, Objective, Turn, normal_like
from fewstep.objectives.denoising import Denoising

__all__ = ["GENERATOR", "Denoising", "Objective", "Turn", "normal_like"]
