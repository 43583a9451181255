"""T9: elementwise parity with diffusers in float64: what both suites need.

The schedulers are set up as users do; then their float32 `sigmas` or `alphas_cumprod` are promoted to float64 and our
grid takes those very numbers. Several of them cast the sample to float32 inside `step`: for the test their module reads
``torch.float32`` as float64, so their own code, with its own choice of order for every step, is what is compared. Some
runs are compared once more with nothing promoted, to 1e-5. Draws are handed to both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.inventory import gap
from contracts.problems import TwoBumps, batch
from fewstep.noise import Grid, NoiseLevel
from fewstep.sampling import sample

__all__ = [
    "F64",
    "LATENT",
    "SHAPE",
    "SPACINGS",
    "TRAIN",
    "close",
    "draws",
    "edm_grid",
    "finals",
    "in_eps",
    "patched_draws",
    "run",
    "run_both",
    "scheduler",
    "spacings",
    "steps_",
    "vp_grid",
]

F64 = torch.float64
SHAPE = (3, 2, 4, 4)
STEPS = [2, 5, 10, 20]
TRAIN = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
# Stable Diffusion's: sigma / alpha begins at 14.6, where float32 holds 1e-5; at the 157 of TRAIN it does not.
LATENT = {**TRAIN, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS: dict[str, dict[str, Any]] = {
    "karras": {"use_karras_sigmas": True},
    "lam": {"use_lu_lambdas": True},
    "exponential": {"use_exponential_sigmas": True},
    "time": {},
}
steps_ = pytest.mark.parametrize("steps", STEPS)
finals = pytest.mark.parametrize("final", ["zero", "sigma_min"])


def spacings(*names: str) -> Any:
    return pytest.mark.parametrize("spacing", names)


class Promoted:
    """torch, as a module sees it in which float32 is float64."""

    float32 = F64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def scheduler(
    name: str, steps: int, patch: pytest.MonkeyPatch | None = None, noise: Tensor | None = None, **options: Any
) -> Any:
    """A scheduler at its first step; with a patch, in float64; with noise, drawing row i of it in step i."""
    theirs = getattr(import_module("diffusers"), name)(**options)
    theirs.set_timesteps(steps)
    theirs.set_begin_index(0)
    module = sys.modules[type(theirs).__module__]
    if patch is not None:
        patch.setattr(module, "torch", Promoted())
        theirs.sigmas = theirs.sigmas.to(F64)
    if patch is not None and noise is not None:
        patched_draws(patch, theirs, noise)
    return theirs


def patched_draws(patch: pytest.MonkeyPatch, theirs: Any, noise: Tensor) -> None:
    """Let a scheduler draw row i in step i."""
    module = sys.modules[type(theirs).__module__]
    patch.setattr(module, "randn_tensor", lambda *shape, **options: noise[theirs.step_index])


def vp_grid(theirs: Any, final: str = "zero") -> Grid:
    """The VP levels that diffusers makes of its ratios sigma / alpha."""
    kappa = theirs.sigmas.to(F64) if final == "zero" else theirs.sigmas.to(F64)[:-1]
    alpha = 1 / (kappa**2 + 1).sqrt()
    return Grid(NoiseLevel(alpha, kappa * alpha), kappa)


def edm_grid(kappa: Tensor) -> Grid:
    return Grid(NoiseLevel(torch.ones_like(kappa), kappa), kappa)


def run(theirs: Any, grid: Grid, x: Tensor, **options: Any) -> Tensor:
    """Their loop, with a denoiser that is handed over as it is: prediction_type "sample"."""
    for i in range(grid.steps):
        x = theirs.step(TwoBumps()(x, grid.at(i)), theirs.timesteps[i], x, **options).prev_sample
    return x


def draws(steps: int) -> Tensor:
    return batch((steps, *SHAPE), seed=4)


def close(got: Tensor, want: Tensor, what: str, allowed: float = 1e-10) -> None:
    error = gap(got, want)
    print(f"{what}: max|a-b| = {error:.1e}")
    assert error <= allowed, f"{what}: max|a-b| = {error:.2e}"


def run_both(
    rule: Any, name: str, steps: int, final: str, patch: Any, noise: Tensor | None = None, **options: Any
) -> None:
    theirs = scheduler(name, steps, patch, noise, **TRAIN, prediction_type="sample", **options)
    grid = vp_grid(theirs, final)
    start, allowed = (batch(SHAPE), 1e-10) if patch else (batch(SHAPE).float(), 1e-5)
    got = sample(TwoBumps(), rule, grid, start, noise=lambda i, like: noise[i]).x
    close(got, run(theirs, grid, start), f"{name}, {rule}, {final}, {steps} steps", allowed)


def in_eps(theirs: Any, sigmas: Callable[[], Tensor], x: Tensor) -> Tensor:
    """Their loop over all timesteps, in coordinates x / alpha, with a noise estimate: prediction_type "epsilon"."""
    for t in theirs.timesteps:
        sigma = sigmas()
        denoised = TwoBumps()(x, NoiseLevel(torch.ones((), dtype=F64), sigma))
        x = theirs.step((x - denoised) / sigma, t, x).prev_sample
    return x
