"""What the contract suites run over. Adding a solver, schedule or prediction to the package means one line here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import X0, EDMPrecond, Eps, Flow, Prediction, V
from fewstep.noise import EDM, LinearFlow, Schedule, VPCosine, VPLinear
from fewstep.solvers import DDIM, IPNDM, DPMpp2M, EVODiff, Heun, UniPC

__all__ = [
    "CONSISTENT",
    "PREDICTIONS_HERE",
    "SCHEDULES_HERE",
    "SOLVERS_HERE",
    "Case",
    "consistent_solvers",
    "f64",
    "gap",
    "solvers",
]


@dataclass(frozen=True)
class Case:
    """A solver and what is known of it beyond its own declarations.

    Args:
        rule: the solver object.
        order: the order its paper proves with full history; the declared one must agree.
        consistent: whether constants are integrated exactly (EVODiff's paper variant is the exception, see T1c).
        uniform_kappa_only: whether the order above `off_order` needs equal steps of kappa.
        off_order: order on other grids whose steps change smoothly.
    """

    rule: Any
    order: int
    consistent: bool = True
    uniform_kappa_only: bool = False
    off_order: int = 2


SOLVERS_HERE: dict[str, Case] = {
    "ddim": Case(DDIM(), order=1),
    "heun": Case(Heun(), order=2),
    "dpmpp_2m": Case(DPMpp2M(), order=2),
    "unipc": Case(UniPC(), order=2),
    "ipndm": Case(IPNDM(), order=4, uniform_kappa_only=True),
    "evodiff": Case(EVODiff(), order=2),
    "evodiff_paper": Case(EVODiff(variant="paper", denoise_to_zero=True), order=2, consistent=False),
}
CONSISTENT = {name: case for name, case in SOLVERS_HERE.items() if case.consistent}

SCHEDULES_HERE: dict[str, Schedule] = {
    "edm": EDM(),
    "vp_linear": VPLinear(),
    "vp_cosine": VPCosine(),
    "linear_flow": LinearFlow(),
}

PREDICTIONS_HERE: dict[str, Prediction] = {
    "eps": Eps(),
    "x0": X0(),
    "v": V(),
    "flow": Flow(),
    "edm": EDMPrecond(),
}

solvers = pytest.mark.parametrize("name", SOLVERS_HERE)
consistent_solvers = pytest.mark.parametrize("name", CONSISTENT)


def f64(value: Any) -> Tensor:
    """Numbers in float64; torch.tensor(0.2).double() would be float32's 0.2."""
    return torch.tensor(value, dtype=torch.float64)


def gap(a: Tensor, b: Tensor) -> float:
    """max|a - b|, NaN if either holds one; shapes must agree."""
    if a.shape != b.shape:
        raise AssertionError(f"shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return (a.double() - b.double()).abs().max().item()
