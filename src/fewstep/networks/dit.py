r"""A transformer on patches: every square of pixels is a token, and every token looks at every other one.

Where convolutions look at neighbours, attention sees the whole image in every block, and one width holds from the first
block to the last. What the network is told enters through the normalisations (adaLN-Zero): with :math:`n` the layer
norm without parameters and six vectors :math:`s_i, t_i, g_i` read linearly from the conditioning vector,

.. math::
    h \leftarrow h + g_1 \,\mathrm{attention}(n(h)(1 + s_1) + t_1), \qquad
    h \leftarrow h + g_2 \,\mathrm{mlp}(n(h)(1 + s_2) + t_2) .

The gates start at zero, so a fresh block is its skip connection. Places are told by sines and cosines that are computed
for the grid at hand, so images of any size that is a multiple of the patch go through the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.errors import ConfigError
from fewstep.networks.embeddings import Conditioning
from fewstep.networks.layers import check_counts, check_images, zeroed

__all__ = ["DiT", "patchify", "positions", "unpatchify"]

_SLOWEST = 10_000.0  # tokens per radian of the slowest wave; the fastest turns by one radian per token
_EPS = 1e-6


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut images (b, c, h, w) into squares, row by row: (b, h/patch * w/patch, c * patch**2)."""
    return functional.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, patch: int, rows: int) -> Tensor:
    """Put `rows` rows of squares (b, n, c * patch**2) together again: images (b, c, h, w)."""
    batch, n, size = tokens.shape
    return functional.pixel_shuffle(tokens.transpose(1, 2).reshape(batch, size, rows, n // rows), patch)


def positions(rows: int, columns: int, width: int, like: Tensor) -> Tensor:
    r"""Tell the places of a grid apart by waves.

    The first half of the vector knows the row r, the second the column in the same way:
    :math:`(\sin f_k r)_k, (\cos f_k r)_k` with :math:`f_k = 10000^{-k / m}` for the `m = width / 4` waves k = 0, 1, ...

    Args:
        rows: of the grid.
        columns: of the grid.
        width: length of the vectors, a multiple of 4.
        like: a tensor of the device and dtype of the result.

    Returns:
        Shape (rows * columns, width), row by row.
    """
    # Angles in float32 at least: bfloat16 cannot count beyond 256.
    exact = torch.promote_types(like.dtype, torch.float32)
    waves = torch.arange(width // 4, dtype=exact, device=like.device) / (width // 4)
    rates = torch.exp(-math.log(_SLOWEST) * waves)
    angles = torch.arange(max(rows, columns), dtype=exact, device=like.device)[:, None] * rates
    places = torch.cat([angles.sin(), angles.cos()], dim=1)
    shape = (rows, columns, width // 2)
    both = torch.cat([places[:rows, None].expand(shape), places[None, :columns].expand(shape)], dim=2)
    return both.flatten(0, 1).to(like.dtype)


def _modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise every token of h (b, n, width), then scale and shift all tokens of a sample alike."""
    return functional.layer_norm(h, h.shape[-1:], eps=_EPS) * (1 + scale[:, None]) + shift[:, None]


class _Attention(nn.Module):
    """Every token looks at every other one; queries and keys are normalised, and keys have a learned scale."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        # Only the product of a query's scale and a key's counts, so one of them is enough.
        self.key_scale = nn.Parameter(torch.ones(width // heads))
        self.project = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Map h (b, n, width) to the same shape."""
        query, key, value = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        query = functional.rms_norm(query, query.shape[-1:], eps=_EPS)
        key = functional.rms_norm(key, key.shape[-1:], self.key_scale.to(key.dtype), _EPS)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return out


class _Block(nn.Module):
    """Attention, then a perceptron on every token, both scaled, shifted and gated by the conditioning vector."""

    def __init__(self, width: int, heads: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.told = zeroed(nn.Linear(embedding, 6 * width))
        self.attention = _Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, h: Tensor, vector: Tensor) -> Tensor:
        """Map h (b, n, width) and a vector (b, embedding) to (b, n, width)."""
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = self.told(vector).chunk(6, dim=1)
        h = h + gate_1[:, None] * self.attention(_modulated(h, scale_1, shift_1))
        out: Tensor = h + gate_2[:, None] * self.mlp(_modulated(h, scale_2, shift_2))
        return out


class DiT(nn.Module):
    """A diffusion transformer.

    Args:
        channels: channels of the images.
        patch: side of the squares in pixels; height and width of the images are multiples of it. Half the side is four
            times the tokens.
        width: length of the tokens, a multiple of 4 and of `heads`.
        blocks: number of transformer blocks.
        heads: attention heads.
        mlp_ratio: hidden units of the perceptrons in units of `width`.
        embedding: length of the conditioning vector.
        n_classes: number of classes; 0 for none, and the index `n_classes` is the null class.
        n_tokens: word numbers of captions, padding included; 0 for a network that reads no captions.
        caption_length: words of a caption, padding included.

    Raises:
        ConfigError: if a number cannot be.

    Source:
        Peebles, Xie 2023, arXiv:2212.09748; normalised queries and keys, which bound the logits of attention in low
        precision: Esser et al. 2024, arXiv:2403.03206. Departs from the first in: these; GELU itself for its
        approximation by tanh; the conditioning vector of all networks here; torch's own initial weights.
    """

    def __init__(
        self,
        channels: int = 1,
        patch: int = 4,
        width: int = 128,
        blocks: int = 6,
        heads: int = 4,
        mlp_ratio: int = 4,
        embedding: int = 128,
        n_classes: int = 0,
        n_tokens: int = 0,
        caption_length: int = 0,
    ) -> None:
        super().__init__()
        check_counts({"channels": channels, "patch": patch, "width": width, "blocks": blocks, "heads": heads})
        check_counts({"mlp_ratio": mlp_ratio})
        check_counts({"n_classes": n_classes}, least=0)
        if width % heads or width % 4:
            raise ConfigError(
                f"width={width} with heads={heads}",
                "The width of a DiT is a multiple of 4, for its positions, and of its heads",
                "Use width=128, heads=4",
            )
        self.channels, self.patch, self.width, self.n_classes = channels, patch, width, n_classes
        self.n_tokens, self.caption_length = n_tokens, caption_length
        self.conditioning = Conditioning(embedding, n_classes, n_tokens, caption_length)
        self.read = nn.Linear(channels * patch**2, width)
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_ratio * width, embedding) for _ in range(blocks))
        self.told = zeroed(nn.Linear(embedding, 2 * width))
        self.write = zeroed(nn.Linear(width, channels * patch**2))

    def forward(self, x: Tensor, noise_label: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Predict from noisy images.

        Args:
            x: network input of shape (b, channels, h, w), about unit variance.
            noise_label: shape (b,).
            cond: None, {"label": int64 of shape (b,)} or {"tokens": int64 of shape (b, caption_length)}.

        Returns:
            Shape of x.

        Raises:
            ShapeError: if x, a label or a caption has the wrong shape.
            ConfigError: if `cond` has anything that this network was not built for.
        """
        check_images(x, self.channels, self.patch)
        vector = self.conditioning(noise_label, cond, len(x))
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        # In the precision of the images: under autocast the sum of all blocks stays in float32.
        h = self.read(patchify(x, self.patch)) + positions(rows, columns, self.width, x)
        for block in self.blocks:
            h = block(h, vector)
        scale, shift = self.told(vector).chunk(2, dim=1)
        return unpatchify(self.write(_modulated(h, scale, shift)), self.patch, rows)
