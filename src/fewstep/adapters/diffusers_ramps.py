"""Ramps of sigmas: the spacings that diffusers' schedulers switch on by a flag."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep._files import require

__all__ = ["RAMPS", "ramp_of"]

RAMPS = ("use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas", "use_beta_sigmas")
_RHO = 7.0
_BETA = 0.6  # both shapes of the beta distribution, Lee et al. 2024, arXiv:2407.12173


def ramp_of(kind: str, first: float, last: float, count: int) -> Tensor:
    """Sigmas from `first` to `last`."""
    x = torch.linspace(0, 1, count, dtype=torch.float64)
    if kind == "use_karras_sigmas":
        sigmas: Tensor = _between(first ** (1 / _RHO), last ** (1 / _RHO), x) ** _RHO
        return sigmas
    if kind == "use_beta_sigmas":
        quantiles = require("scipy.stats", "train").beta.ppf(1 - x.numpy(), _BETA, _BETA)
        return _between(last, first, torch.as_tensor(quantiles))
    return _between(math.log(first), math.log(last), x).exp()  # Lu's equal steps of lam are the same


def _between(first: float, last: float, x: Tensor) -> Tensor:
    """The line from `first`, at x = 0, to `last`, at 1; exact at both."""
    return first * (1 - x) + last * x
