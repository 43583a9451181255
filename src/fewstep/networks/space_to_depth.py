r"""A network that works on patches: fast on a CPU, because nearly all of it runs at low resolution.

Each `patch` x `patch` square of pixels becomes one position with many channels (space to depth). Residual blocks and
one self-attention work there, on 7 x 7 positions for 28 x 28 images, and the squares are unfolded again. Two thin
convolutions at full resolution before and after let the strokes pass the borders of the squares smoothly: the one
before gives extra input features, the one after sees the noisy image beside the unfolded features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.networks.embeddings import Conditioning
from fewstep.networks.layers import ResBlock, SelfAttention, check_counts, check_images, group_norm, zeroed

__all__ = ["SpaceToDepthNet"]


class SpaceToDepthNet(nn.Module):
    """Residual blocks on squares of pixels.

    Args:
        channels: channels of the images.
        patch: side of the squares in pixels; height and width of the images are multiples of it.
        width: channels of the residual blocks, a multiple of `heads`.
        blocks: number of residual blocks.
        heads: attention heads after the middle block; 0 leaves the attention out.
        detail: channels of the two convolutions at full resolution.
        embedding: length of the conditioning vector.
        n_classes: number of classes; 0 for none, and the index `n_classes` is the null class.
        n_tokens: word numbers of captions, padding included; 0 for a network that reads no captions.
        caption_length: words of a caption, padding included.

    Raises:
        ConfigError: if a number cannot be.
    """

    def __init__(
        self,
        channels: int = 1,
        patch: int = 4,
        width: int = 128,
        blocks: int = 5,
        heads: int = 4,
        detail: int = 8,
        embedding: int = 128,
        n_classes: int = 0,
        n_tokens: int = 0,
        caption_length: int = 0,
    ) -> None:
        super().__init__()
        check_counts({"channels": channels, "patch": patch, "width": width, "blocks": blocks, "detail": detail})
        check_counts({"heads": heads, "n_classes": n_classes}, least=0)
        self.channels, self.patch, self.n_classes = channels, patch, n_classes
        self.n_tokens, self.caption_length = n_tokens, caption_length
        self.conditioning = Conditioning(embedding, n_classes, n_tokens, caption_length)
        self.detail_in = nn.Conv2d(channels, detail, 3, padding=1)
        self.fold = nn.Conv2d((channels + detail) * patch**2, width, 1)
        self.blocks = nn.ModuleList(ResBlock(width, width, embedding) for _ in range(blocks))
        self.attention = SelfAttention(width, heads) if heads else nn.Identity()
        self.norm = group_norm(width)
        self.unfold = nn.Conv2d(width, detail * patch**2, 3, padding=1)
        self.detail_out = zeroed(nn.Conv2d(channels + detail, channels, 3, padding=1))

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
        features = torch.cat([x, functional.silu(self.detail_in(x))], dim=1)
        hidden = self.fold(functional.pixel_unshuffle(features, self.patch))
        for i, block in enumerate(self.blocks):
            hidden = block(hidden, vector)
            if i == len(self.blocks) // 2:
                hidden = self.attention(hidden)
        hidden = self.unfold(functional.silu(self.norm(hidden)))
        fine = functional.silu(functional.pixel_shuffle(hidden, self.patch))
        out: Tensor = self.detail_out(torch.cat([x, fine], dim=1))
        return out
