"""What every network is: a map from an image and labels to an image, which knows nothing of diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

__all__ = ["Network"]


class Network(Protocol):
    """The body of a denoiser."""

    def __call__(self, x: Tensor, noise_label: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Map x (b, c, h, w), one noise label per sample (b,) and conditions to a tensor like x."""
        ...
