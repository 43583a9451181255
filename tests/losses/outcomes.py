"""What the tests of terms share: outcomes from a seed."""

from __future__ import annotations

import torch

from fewstep.losses import Outcome

GENERATOR = torch.Generator()  # none of the terms here draws from it


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outcome(k: int = 3, b: int = 4, d: tuple[int, ...] = (1, 6, 5), seed: int = 0) -> Outcome:
    label = torch.arange(b) % 3
    return Outcome(
        normal(k, b, *d, seed=seed), normal(b, *d, seed=seed + 1), normal(b, *d, seed=seed + 2), {"label": label}
    )
