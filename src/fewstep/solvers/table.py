"""Names of solvers, for the command line and adapters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fewstep.solvers.base import Solver
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.dpmpp import DPMpp2M
from fewstep.solvers.evodiff import EVODiff
from fewstep.solvers.heun import Heun
from fewstep.solvers.ipndm import IPNDM
from fewstep.solvers.unipc import UniPC

__all__ = ["DEFAULT_NFE", "DEFAULT_SOLVER", "SOLVERS"]

SOLVERS: dict[str, Callable[[], Solver]] = {
    "ddim": DDIM,
    "dpmpp_2m": DPMpp2M,
    "evodiff": EVODiff,
    "evodiff_paper": partial(EVODiff, variant="paper", denoise_to_zero=True),
    "heun": Heun,
    "ipndm": IPNDM,
    "unipc": UniPC,
}

DEFAULT_SOLVER, DEFAULT_NFE = "evodiff", 10  # of a model without a chain of its own, if nobody chooses
