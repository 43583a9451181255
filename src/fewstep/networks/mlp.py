"""A perceptron for vectors: the network of toy problems, where a training run takes seconds."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from fewstep.errors import ShapeError
from fewstep.networks.embeddings import Conditioning
from fewstep.networks.layers import check_counts

__all__ = ["MLP"]


class _Block(nn.Module):
    """One hidden layer on a residual branch, shifted by the conditioning vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.told = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, vector: Tensor) -> Tensor:
        """Map h (b, width) and a vector (b, width) to (b, width)."""
        branch: Tensor = self.out(functional.silu(self.hidden(functional.silu(h)) + self.told(vector)))
        return h + branch


class MLP(nn.Module):
    """Residual hidden layers that are told the noise level and the class.

    Args:
        dim: length of the vectors.
        width: of the hidden layers, even.
        blocks: how many hidden layers.
        n_classes: number of classes; 0 builds a network that is told no class.

    Raises:
        ConfigError: if a number cannot be.
    """

    def __init__(self, dim: int, width: int = 128, blocks: int = 2, n_classes: int = 0) -> None:
        super().__init__()
        check_counts({"dim": dim, "width": width, "blocks": blocks})
        self.dim = dim
        self.conditioning = Conditioning(width, n_classes)
        self.read = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.write = nn.Linear(width, dim)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Map vectors (b, dim) to vectors (b, dim).

        Args:
            x: shape (b, dim).
            noise_label: shape (b,).
            cond: None or {"label": int64 of shape (b,)}.

        Returns:
            Shape (b, dim).

        Raises:
            ShapeError: if x has another shape, or there is not one label per vector.
            ConfigError: if `cond` has anything that this network was not built for.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ShapeError(
                f"Vectors of shape {tuple(x.shape)}",
                f"This network takes (b, {self.dim})",
                "Flatten the samples, or build the network for them",
            )
        vector = self.conditioning(noise_label, cond, len(x))
        h = self.read(x)
        for block in self.blocks:
            h = block(h, vector)
        out: Tensor = self.write(functional.silu(h))
        return out
