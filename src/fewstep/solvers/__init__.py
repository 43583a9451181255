"""Solvers: frozen rules that carry samples along a grid (floor 3)."""

from fewstep.solvers.base import (
    Denoise,
    Estimate,
    NoiseSource,
    Solver,
    ddim_weights,
    earlier_share,
    has_finite_lam,
    move,
    slope,
    slope_weight,
)
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.dpmpp import DPMpp2M, extrapolate
from fewstep.solvers.evodiff import EVODiff
from fewstep.solvers.heun import Heun
from fewstep.solvers.ipndm import IPNDM
from fewstep.solvers.multistep_table import MultistepTable
from fewstep.solvers.table import DEFAULT_NFE, DEFAULT_SOLVER, SOLVERS
from fewstep.solvers.unipc import UniPC

__all__ = [
    "DDIM",
    "DEFAULT_NFE",
    "DEFAULT_SOLVER",
    "IPNDM",
    "SOLVERS",
    "DPMpp2M",
    "Denoise",
    "EVODiff",
    "Estimate",
    "Heun",
    "MultistepTable",
    "NoiseSource",
    "Solver",
    "UniPC",
    "ddim_weights",
    "earlier_share",
    "extrapolate",
    "has_finite_lam",
    "move",
    "slope",
    "slope_weight",
]
