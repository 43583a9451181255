"""Blocks that the image networks share: residual convolutions told the noise level, and self-attention.

Every residual branch ends in a layer of zeros, so a fresh network is its skip connections alone and training starts
from a calm point. Scale and shift from the conditioning vector come after the second normalisation.

Networks that judge images share a fixed filter, which shows them what a viewer overlooks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.errors import ConfigError, ShapeError

__all__ = ["HighPass", "ResBlock", "SelfAttention", "check_counts", "check_images", "group_norm", "zeroed"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def zeroed(layer: ModuleT) -> ModuleT:
    """Set all parameters of a layer to zero and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """Normalise over groups of about eight channels, at most 32 groups."""
    return nn.GroupNorm(math.gcd(channels, min(32, max(1, channels // 8))), channels)


def check_counts(counts: Mapping[str, int], least: int = 1) -> None:
    """Refuse numbers of channels, blocks... that cannot be.

    Args:
        counts: name of the argument -> its value.
        least: the smallest value allowed.

    Raises:
        ConfigError: if one is no whole number, or below `least`.
    """
    for name, count in counts.items():
        if type(count) is not int or count < least:
            raise ConfigError(f"{name}={count!r}", f"{name} is a whole number, at least {least}", f"Change {name}")


def check_images(x: Tensor, channels: int, multiple: int) -> None:
    """Refuse what a network cannot take.

    Args:
        x: shape (b, channels, h, w).
        channels: the number of channels the network was built for.
        multiple: h and w must be multiples of this.

    Raises:
        ShapeError: if x is no batch of such images.
    """
    if x.ndim == 4 and x.shape[1] == channels and x.shape[2] % multiple == 0 and x.shape[3] % multiple == 0:
        return
    raise ShapeError(
        f"Images of shape {tuple(x.shape)}",
        f"This network takes (b, {channels}, h, w) with h and w multiples of {multiple}",
        "Resize or pad the images, or build the network for them",
    )


class ResBlock(nn.Module):
    """Two 3x3 convolutions on a residual branch, the second one scaled and shifted by the conditioning vector.

    Args:
        channels_in: channels of x.
        channels_out: channels of the result.
        embedding: length of the conditioning vector.
    """

    def __init__(self, channels_in: int, channels_out: int, embedding: int) -> None:
        super().__init__()
        self.norm_in = group_norm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm_out = group_norm(channels_out)
        self.scale_shift = zeroed(nn.Linear(embedding, 2 * channels_out))
        self.conv_out = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Map x (b, channels_in, h, w) and a vector (b, embedding) to (b, channels_out, h, w)."""
        scale, shift = self.scale_shift(vector)[:, :, None, None].chunk(2, dim=1)
        branch = self.conv_in(functional.silu(self.norm_in(x)))
        branch = self.norm_out(branch) * (1 + scale) + shift
        out: Tensor = self.skip(x) + self.conv_out(functional.silu(branch))
        return out


class SelfAttention(nn.Module):
    """Every pixel looks at every other one, on a residual branch.

    Args:
        channels: channels of x, a multiple of `heads`.
        heads: number of attention heads.

    Raises:
        ConfigError: if the channels cannot be split into that many heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ConfigError(
                f"{heads} attention heads for {channels} channels",
                "The channels must be a multiple of the heads",
                "Change the width of the network or the number of heads",
            )
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b, channels, h, w) to the same shape."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = qkv.transpose(-1, -2).unbind(1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = x + self.project(mixed.transpose(-1, -2).reshape(x.shape))
        return out


class HighPass(nn.Module):
    r"""What is left of an image when the neighbourhood of every pixel is taken away, magnified and clipped.

    .. math:: r = \mathrm{clip}(g\,(x - B x), -1, 1), \qquad B = \tfrac{1}{16} (1, 2, 1)^T (1, 2, 1), \quad g = 16

    One 8-bit step moves r by an eighth where it moves x by 1/128, which takes a network many epochs to find. Nothing is
    trained, and r is computed in the filter's own precision under autocast too: bfloat16 knows x to half a step only.

    Args:
        channels: channels of the images.

    Source:
        Residuals and clipping: Ye, Ni, Yi 2017, doi:10.1109/TIFS.2017.2710946. Departs from it in: one filter.
    """

    blur: Tensor

    _GAIN = 16.0

    def __init__(self, channels: int) -> None:
        super().__init__()
        binomial = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = torch.outer(binomial, binomial).expand(channels, 1, 3, 3).contiguous()
        self.register_buffer("blur", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (b, channels, h, w) in [-1, 1] to residuals of the same shape and range, float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.blur)
            smooth = functional.conv2d(functional.pad(x, (1,) * 4, mode="replicate"), self.blur, groups=x.shape[1])
            return (self._GAIN * (x - smooth)).clamp(-1, 1)
