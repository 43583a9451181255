"""Solvers: frozen rules that carry samples along a grid (floor 3)."""

from fewstep.solvers.ancestral import EulerAncestral
from fewstep.solvers.automatic import Automatic
from fewstep.solvers.base import Denoise, NoiseSource, Solver, move
from fewstep.solvers.churn import Churn
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.deis import DEIS
from fewstep.solvers.dpmpp import DPMpp2M, DPMpp3M
from fewstep.solvers.dpmpp_2s import DPMpp2S
from fewstep.solvers.dpmpp_sde import DPMpp2MSDE
from fewstep.solvers.dualfast import DualFast
from fewstep.solvers.euler import Euler
from fewstep.solvers.evodiff import EVODiff
from fewstep.solvers.heun import Heun
from fewstep.solvers.ipndm import IPNDM
from fewstep.solvers.multistep import Multistep, Plan, Row
from fewstep.solvers.renoise import Renoise
from fewstep.solvers.table import DEFAULT_NFE, DEFAULT_SOLVER, SOLVERS
from fewstep.solvers.tabulated import TabulatedSolver
from fewstep.solvers.unipc import UniPC

__all__ = [
    "DDIM",
    "DEFAULT_NFE",
    "DEFAULT_SOLVER",
    "DEIS",
    "IPNDM",
    "SOLVERS",
    "Automatic",
    "Churn",
    "DPMpp2M",
    "DPMpp2MSDE",
    "DPMpp2S",
    "DPMpp3M",
    "Denoise",
    "DualFast",
    "EVODiff",
    "Euler",
    "EulerAncestral",
    "Heun",
    "Multistep",
    "NoiseSource",
    "Plan",
    "Renoise",
    "Row",
    "Solver",
    "TabulatedSolver",
    "UniPC",
    "move",
]
