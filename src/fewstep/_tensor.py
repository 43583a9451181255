"""The one place where a noise level meets a tensor's shape, and where randomness of the host meets its device.

Levels are scalars ``()`` or batches ``(b,)``. A ``(b,)`` level broadcasts *silently* against ``(b, c, h, w)``
whenever ``b == w``, so nothing in fewstep multiplies a level into a sample without :func:`expand`.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fewstep.errors import ShapeError

__all__ = ["expand", "normal_like"]


def expand(level: Tensor, like: Tensor) -> Tensor:
    """Give a level, or a coefficient made from levels, the rank of a batch of samples.

    A scalar stays a scalar, on its own device and in its own precision: torch then computes ``level * like`` in the
    dtype of `like` without moving anything between devices. A batch is moved to `like` and gets trailing axes.

    Args:
        level: shape () or (b,).
        like: batch of samples, shape (b, *d).

    Returns:
        Shape () or (b, 1, ..., 1), ready to be multiplied with `like`.

    Raises:
        ShapeError: if the level is neither a scalar nor one value per sample.
    """
    if level.ndim == 0:
        return level
    if level.ndim == 1 and like.ndim >= 1 and level.shape[0] == like.shape[0]:
        return level.to(device=like.device, dtype=like.dtype, non_blocking=True).reshape(-1, *[1] * (like.ndim - 1))
    raise ShapeError(
        f"A noise level of shape {tuple(level.shape)} for samples of shape {tuple(like.shape)}",
        "A level is a scalar () or has one value per sample (b,)",
        "Pass level.reshape(()) or one level for each of the samples",
    )


def normal_like(x: Tensor, generator: Generator) -> Tensor:
    """Draw standard normal noise of x's shape, dtype and device from a generator on the host.

    Beside a GPU, the host's generator only seeds one on the device: drawing millions of numbers on the host and
    copying them over would cost more than the training step.
    """
    if x.device.type == "cpu":
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    on_device = Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=on_device)
