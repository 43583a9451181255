r"""Random numbers that belong to a sample, not to a batch.

Every sample has its own seed, and every draw its own generator, seeded by (sample's seed, step). So an image can be
made again alone, in another order, in another batch size or on another device, from the same noise bit for bit:
numbers are always drawn on the host in float64 and then cast and moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import ConfigError, ShapeError
from fewstep.noise import Grid

__all__ = ["START", "SeededNoise", "start_noise"]

START = -1  # the "step" of the draw that a sample begins with


def _generator(seed: int, step: int) -> torch.Generator:
    """A generator whose stream depends on both numbers; neighbouring seeds give unrelated streams."""
    digest = hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class SeededNoise:
    """Standard normal noise, one stream per sample.

    Args:
        seeds: one integer per sample of the batch.
    """

    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ConfigError("No seeds", "One integer for each sample of the batch", "Pass seeds=range(n)")

    def __call__(self, step: int, like: Tensor) -> Tensor:
        """Draw the noise of one step.

        Args:
            step: index of the step; START is the draw a sample begins with.
            like: batch (b, *d) whose shape, dtype and device the noise takes.

        Returns:
            Standard normal numbers, shape, dtype and device of `like`.

        Raises:
            ShapeError: if there is not one seed per sample.
        """
        if like.ndim < 1 or like.shape[0] != len(self.seeds):
            raise ShapeError(
                f"{len(self.seeds)} seeds for a batch of shape {tuple(like.shape)}",
                "One seed for each sample of the batch",
                "Pass as many seeds as samples",
            )
        shape = like.shape[1:]
        rows = [torch.randn(shape, dtype=torch.float64, generator=_generator(seed, step)) for seed in self.seeds]
        return torch.stack(rows).to(device=like.device, dtype=like.dtype)


def start_noise(
    grid: Grid, shape: tuple[int, ...], seeds: Iterable[int], *, dtype: torch.dtype = torch.float32
) -> Tensor:
    r"""Draw the noise that samples begin with, at the first level of a grid.

    Args:
        grid: its first level gives the scale.
        shape: of one sample, (\*d), without the batch.
        seeds: one integer per sample.
        dtype: of the result.

    Returns:
        ``sigma_0 * eps``, shape (n, \*d). Data are not added: at the noisy end of a schedule they are drowned.
    """
    source = SeededNoise(tuple(seeds))
    like = torch.empty(len(source.seeds), *shape, dtype=dtype)
    return grid.at(0).sigma * source(START, like)
