"""Names of solvers, for the command line and adapters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fewstep.solvers.ancestral import EulerAncestral
from fewstep.solvers.automatic import Automatic
from fewstep.solvers.base import Solver
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
from fewstep.solvers.renoise import Renoise
from fewstep.solvers.unipc import UniPC

__all__ = ["DEFAULT_NFE", "DEFAULT_SOLVER", "SOLVERS"]

SOLVERS: dict[str, Callable[[], Solver]] = {
    "automatic": Automatic,
    "ddim": DDIM,
    "deis": DEIS,
    "dpmpp_2m": DPMpp2M,
    "dpmpp_2m_sde": DPMpp2MSDE,
    "dpmpp_2s": DPMpp2S,
    "dpmpp_3m": DPMpp3M,
    "dualfast": DualFast,
    "euler": Euler,
    "euler_ancestral": EulerAncestral,
    "evodiff": EVODiff,
    "evodiff_paper": partial(EVODiff, variant="paper", denoise_to_zero=True),
    "heun": Heun,
    "ipndm": IPNDM,
    "renoise": Renoise,
    "unipc": UniPC,
    "unipc_3": partial(UniPC, order=3),
}

DEFAULT_SOLVER, DEFAULT_NFE = "evodiff", 10  # of a model without a chain of its own, if nobody chooses
