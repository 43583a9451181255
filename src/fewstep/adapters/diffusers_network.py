"""What a network of diffusers was trained at, and what it says: timesteps as levels, outputs as denoised."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewstep.adapters.diffusers_config import Described
from fewstep.denoisers.thresholding import thresholded
from fewstep.errors import LevelError
from fewstep.noise import NoiseLevel

__all__ = ["denoised_of", "trained_levels"]


def trained_levels(config: Any, known: Described, timesteps: Tensor) -> NoiseLevel:
    """Find the levels of any timesteps that a network was trained at, visited by a run or not.

    Args:
        config: of the scheduler.
        known: what it says of the network.
        timesteps: shape (b,).

    Returns:
        Levels, shape (b,), float64, on the host.

    Raises:
        LevelError: if it was trained at no such timestep.
    """
    t = timesteps.detach().double().cpu()
    scale, last = config.num_train_timesteps, known.schedule.t_range()[1]
    clock = t / scale if known.flow else t + 1
    wrong = t[~((t >= 0) & (clock <= last))]
    if len(wrong):
        most = scale * last if known.flow else last - 1
        raise LevelError(
            f"Noise for timestep {float(wrong[0]):g}",
            f"This model knows the timesteps 0 to {most:g}",
            "Take them from scheduler.timesteps, or draw them within that range",
        )
    return known.schedule.level(clock)


def denoised_of(config: Any, known: Described, out: Tensor, x: Tensor, level: NoiseLevel) -> Tensor:
    """Read an output as an estimate of the data.

    Args:
        config: of the scheduler.
        known: what it says of the network.
        out: what the network returned, shape (b, *d); twice the channels where it learned a variance too.
        x: what it was given, shape (b, *d).
        level: of x.

    Returns:
        Denoised, shape of x; thresholded where the configuration says so.
    """
    learned = config.variance_type in ("learned", "learned_range")
    if learned and out.ndim > 1 and out.shape[1] == 2 * x.shape[1]:
        out = out[:, : x.shape[1]]
    denoised = known.prediction.to_denoised(out, x, level)
    if not config.thresholding:
        return denoised
    return thresholded(denoised, config.dynamic_thresholding_ratio, config.sample_max_value)
