"""What the contract suites run over. Adding a solver, schedule or prediction to the package means one line here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import X0, EDMPrecond, Eps, Flow, Prediction, V
from fewstep.noise import EDM, VE, LinearFlow, Schedule, ShiftedFlow, Tabulated, VPCosine, VPLinear
from fewstep.solvers import (
    DDIM,
    DEIS,
    IPNDM,
    Automatic,
    Churn,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp2S,
    DPMpp3M,
    DualFast,
    Euler,
    EulerAncestral,
    EVODiff,
    Heun,
    Renoise,
    TabulatedSolver,
    UniPC,
)

__all__ = [
    "CONSISTENT",
    "PREDICTIONS_HERE",
    "SCHEDULES_HERE",
    "SOLVERS_HERE",
    "STOCHASTIC_HERE",
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
        cold_order: order if started by one first-order step; that of full history if 0.
        in_pairs: whether steps come in pairs, so that a single one of them shows nothing.
    """

    rule: Any
    order: int
    consistent: bool = True
    uniform_kappa_only: bool = False
    off_order: int = 2
    cold_order: int = 0
    in_pairs: bool = False


# Deterministic rules; the stochastic ones have their own list and their own suite (T1c).
SOLVERS_HERE: dict[str, Case] = {
    "ddim": Case(DDIM(), order=1),
    "euler": Case(Euler(), order=1),
    "heun": Case(Heun(), order=2),
    "dpmpp_2m": Case(DPMpp2M(), order=2),
    "dpmpp_3m": Case(DPMpp3M(), order=2),
    "dpmpp_2s": Case(DPMpp2S(), order=2, in_pairs=True),
    "unipc": Case(UniPC(), order=2),
    "unipc_2_bh1": Case(UniPC(variant="bh1"), order=2),
    "unipc_3": Case(UniPC(order=3), order=3),
    "unipc_3_bh1": Case(UniPC(order=3, variant="bh1"), order=3),
    "deis": Case(DEIS(), order=3, cold_order=2),
    "deis_2": Case(DEIS(order=2), order=2),
    "deis_log": Case(DEIS(variable="log_kappa"), order=3, cold_order=2),
    "deis_2_log": Case(DEIS(order=2, variable="log_kappa"), order=2),
    "ipndm": Case(IPNDM(), order=4, uniform_kappa_only=True),
    "ipndm_2": Case(IPNDM(order=2), order=2, uniform_kappa_only=True),
    "ipndm_3": Case(IPNDM(order=3), order=3, uniform_kappa_only=True),
    "tabulated": Case(TabulatedSolver(tuple((*(0.0,) * (i - 1), 0.2) for i in range(1, 256))), order=1),
    "automatic": Case(Automatic(), order=2),
    "dualfast": Case(DualFast(), order=2),
    "dualfast_unipc_3": Case(DualFast(UniPC(order=3), share=0.1), order=2),
    "dualfast_heun": Case(DualFast(Heun(), share=-0.2), order=2),
    "evodiff": Case(EVODiff(), order=2),
    "evodiff_paper": Case(EVODiff(variant="paper", denoise_to_zero=True), order=2, consistent=False),
}
STOCHASTIC_HERE: dict[str, Any] = {
    "ddim_eta": DDIM(eta=0.5),
    "ddpm": DDIM(eta=1.0),
    "euler_ancestral": EulerAncestral(),
    "euler_churn": Euler(Churn(8.0)),
    "heun_churn": Heun(Churn(8.0)),
    "dpmpp_2m_sde": DPMpp2MSDE(),
    "dpmpp_2m_sde_half": DPMpp2MSDE(eta=0.5),
    "renoise": Renoise(),
}
CONSISTENT = {name: case for name, case in SOLVERS_HERE.items() if case.consistent}

SCHEDULES_HERE: dict[str, Schedule] = {
    "edm": EDM(),
    "ve": VE(),
    "vp_linear": VPLinear(),
    "vp_cosine": VPCosine(),
    "linear_flow": LinearFlow(),
    "shifted_flow": ShiftedFlow(shift=3.0),
    "tabulated": Tabulated(),
    "tabulated_linear": Tabulated.linear(1e-3, 0.05, 400),
    "tabulated_scaled_linear": Tabulated.scaled_linear(rescale_betas_zero_snr=True),
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
