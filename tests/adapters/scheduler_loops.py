"""A toy network and the loop that a pipeline makes of it, for tests of the schedulers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.calibration import Entry, Origin, Table
from fewstep.schedulers import CalibratedScheduler, EVODiffScheduler

CONFIG = {"beta_schedule": "linear", "lower_order_final": False, "final_sigmas_type": "sigma_min"}
STEPS = 10
SHAPE = (4, 3, 8, 8)


def network(x: Tensor, timestep: Tensor | float) -> Tensor:
    """Half a network: it leaves more of the sample the noisier that is."""
    t = torch.as_tensor(timestep).to(x.dtype)
    return x * t / (t + 1)


def ramp(shape: tuple[int, ...] = SHAPE) -> Tensor:
    numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (numbers / len(numbers)).reshape(shape)


def loop(scheduler: Any, x: Tensor, start: int = 0) -> Tensor:
    for t in scheduler.timesteps[start:]:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


def set_up(steps: int = STEPS, **config: Any) -> Any:
    scheduler = EVODiffScheduler(**{**CONFIG, **config})
    scheduler.set_timesteps(steps)
    return scheduler


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def made_table(steps: int = STEPS) -> Table:
    """A table that is nobody's: levels and weights from a formula."""
    kappa = tuple(torch.logspace(2, -1.9, steps + 1, dtype=torch.float64).tolist())
    weights = tuple(tuple(0.1 / (1 + i - j) for j in range(i)) for i in range(1, steps))
    return Table(Origin(), {steps: Entry(kappa, weights, False, "none", "formula", 0.0, 0.0, 0.0)})


def calibrated(steps: int = STEPS) -> Any:
    scheduler = CalibratedScheduler(**CONFIG, calibration=made_table(steps).to_json())
    scheduler.set_timesteps(steps)
    return scheduler
