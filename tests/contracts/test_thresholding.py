"""Dynamic thresholding: the reference's numbers, what it leaves alone, and its gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.inventory import f64, gap
from contracts.problems import batch
from contracts.refusals import refuses
from fewstep.denoisers import DynamicThresholding, metered
from fewstep.errors import ConfigError
from fewstep.noise import EDM, NoiseLevel

LEVEL = EDM().level(f64(0.5))
shapes = pytest.mark.parametrize("shape", [(3, 2, 5, 4), (1, 1, 1, 1), (2, 3, 16, 16)])
percentiles = pytest.mark.parametrize("p", [0.005, 0.5, 0.9, 0.995, 1.0])


def itself(x: Tensor, level: NoiseLevel, cond: object = None) -> Tensor:
    return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@shapes
@percentiles
def test_parity_with_diffusers(shape: tuple[int, ...], p: float) -> None:
    """`_threshold_sample` of DPMSolverMultistepScheduler, with no upper bound on s; its default of 1 only clips."""
    diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'diffusers'")
    theirs = diffusers.DPMSolverMultistepScheduler(
        thresholding=True, dynamic_thresholding_ratio=p, sample_max_value=1e9
    )
    x = batch(shape) * torch.logspace(-1, 1, shape[0], dtype=f64(0).dtype).reshape(-1, 1, 1, 1)
    error = gap(DynamicThresholding(itself, p)(x, LEVEL), theirs._threshold_sample(x))
    assert error <= 1e-15, f"max|a-b| = {error:.2e}"


@percentiles
@pytest.mark.parametrize("shape", [(3, 7), (3, 2, 3, 2, 2), (3, 1)])
def test_every_rank_is_numpys_quantile(shape: tuple[int, ...], p: float) -> None:
    x = batch(shape) * 3
    s = [max(1.0, np.quantile(np.abs(row), p)) for row in x.numpy()]
    want = np.stack([np.clip(row, -s_, s_) / s_ for row, s_ in zip(x.numpy(), s, strict=True)])
    error = gap(DynamicThresholding(itself, p)(x, LEVEL), torch.tensor(want))
    assert error <= 1e-15, f"max|a-b| = {error:.2e}"


def test_estimates_in_range_stay() -> None:
    x = batch((4, 3, 5)).tanh()
    assert gap(DynamicThresholding(itself)(x, LEVEL), x) == 0


def test_samples_do_not_see_each_other() -> None:
    x = batch((4, 3, 5)) * 5
    rule = DynamicThresholding(itself, 0.9)
    assert gap(rule(x, LEVEL)[1:2], rule(x[1:2], LEVEL)) == 0


def test_gradient() -> None:
    x = (batch((2, 9)) * 3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: DynamicThresholding(itself, 0.8)(x, LEVEL), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype(dtype: torch.dtype) -> None:
    x = (batch((2, 400)) * 3).to(dtype)
    got = DynamicThresholding(itself)(x, LEVEL)
    assert got.dtype == dtype
    assert gap(got, DynamicThresholding(itself)(x.double(), LEVEL)) <= 4 * torch.finfo(dtype).eps


def test_no_limit_of_size() -> None:
    """More numbers than torch.quantile takes; half of them at 4, the rest at 0."""
    x = torch.zeros(1, 2**24 + 2)
    x[:, ::2] = 4
    assert DynamicThresholding(itself)(x, LEVEL).max() == 1


def test_one_evaluation() -> None:
    with metered() as meter:
        DynamicThresholding(itself)(batch((3, 4)), LEVEL)
    assert meter.samples == 3


@pytest.mark.parametrize("p", [0.0, -0.5, 99.5, math.nan])
def test_refused_percentiles(p: float) -> None:
    refuses(ConfigError, f"percentile {p:g}", lambda: DynamicThresholding(itself, p))
