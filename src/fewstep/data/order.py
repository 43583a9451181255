"""Which images a training step sees, as a function of (seed, step, rank) alone.

There is no iterator whose position would have to be saved: a run that resumes at step 500 asks for step 500 and gets
exactly what the uninterrupted run got. Every epoch visits each image once, in its own random order.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Generator, Tensor

__all__ = ["indices_of_step", "seeded"]


def seeded(*key: int | str) -> Generator:
    """Make a random generator on the host from anything that names its purpose.

    Args:
        *key: for instance ("noise", seed, step, rank); keys that differ anywhere give unrelated streams.

    Returns:
        A fresh generator.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@lru_cache(maxsize=4)
def _order_of_epoch(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=seeded("epoch", seed, epoch))


def indices_of_step(n: int, batch: int, seed: int, step: int, rank: int = 0, ranks: int = 1) -> Tensor:
    """Say which images one process takes at one step.

    The processes read one long sequence, the epochs' random orders one after the other, in turns of `batch`; a batch
    may straddle two epochs.

    Args:
        n: images in the data set.
        batch: images per process and step.
        seed: seed of the run.
        step: steps done so far.
        rank: index of this process.
        ranks: number of processes.

    Returns:
        Indices in 0..n-1, shape (batch,).
    """
    place = (step * ranks + rank) * batch + torch.arange(batch)
    epochs = (place // n).tolist()
    orders = {epoch: _order_of_epoch(n, seed, epoch) for epoch in set(epochs)}
    return torch.stack([orders[epoch][i] for epoch, i in zip(epochs, (place % n).tolist(), strict=True)])
