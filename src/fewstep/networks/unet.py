"""A small U-Net: residual blocks at falling and rising resolution, joined by skip connections.

The encoder halves the resolution between levels and remembers every hidden image; the decoder doubles it again and
takes the remembered images back in reverse order. Attention sits in the middle, where the images are smallest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.errors import ConfigError
from fewstep.networks.embeddings import Conditioning
from fewstep.networks.layers import ResBlock, SelfAttention, check_counts, check_images, group_norm, zeroed

__all__ = ["UNet"]


class _Down(nn.Module):
    """Halve the resolution with a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, c, h/2, w/2)."""
        out: Tensor = self.conv(x)
        return out


class _Up(nn.Module):
    """Double the resolution by repeating pixels, then smooth."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, c, 2h, 2w)."""
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class _Layer(nn.Module):
    """A residual block, with attention behind it where `heads` is not 0."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, heads: int) -> None:
        super().__init__()
        self.block = ResBlock(channels_in, channels_out, embedding)
        self.attention = SelfAttention(channels_out, heads) if heads else nn.Identity()

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Map (b, channels_in, h, w) to (b, channels_out, h, w)."""
        out: Tensor = self.attention(self.block(x, vector))
        return out


class UNet(nn.Module):
    """Residual blocks at several resolutions.

    Args:
        channels: channels of the images.
        width: channels of the first level.
        multipliers: channels of each level in units of `width`; height and width of the images are multiples of
            ``2 ** (levels - 1)``.
        blocks: residual blocks of each level on the way down; one more on the way up.
        heads: attention heads; 0 leaves attention out.
        attention_levels: how many of the last (lowest) levels have attention in every block; the middle always has it.
        embedding: length of the conditioning vector.
        n_classes: number of classes; 0 for none, and the index `n_classes` is the null class.
        n_tokens: word numbers of captions, padding included; 0 for a network that reads no captions.
        caption_length: words of a caption, padding included.

    Raises:
        ConfigError: if there is no level or no block, more attention levels than levels, or a number that cannot be.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        heads: int = 4,
        attention_levels: int = 0,
        embedding: int = 128,
        n_classes: int = 0,
        n_tokens: int = 0,
        caption_length: int = 0,
    ) -> None:
        super().__init__()
        check_counts({"channels": channels, "width": width, "blocks": blocks})
        check_counts({f"multipliers[{i}]": multiplier for i, multiplier in enumerate(multipliers)})
        check_counts({"heads": heads, "n_classes": n_classes, "attention_levels": attention_levels}, least=0)
        if not multipliers or attention_levels > len(multipliers):
            raise ConfigError(
                f"A U-Net of {len(multipliers)} levels, {attention_levels} levels with attention",
                "At least one level, and attention on at most all levels",
                "Use multipliers=(1, 2, 2), attention_levels=0",
            )
        self.channels, self.n_classes = channels, n_classes
        self.n_tokens, self.caption_length = n_tokens, caption_length
        self.multiple = 2 ** (len(multipliers) - 1)
        widths = [width * multiplier for multiplier in multipliers]
        attend = [heads if i >= len(widths) - attention_levels else 0 for i in range(len(widths))]
        self.conditioning = Conditioning(embedding, n_classes, n_tokens, caption_length)
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        remembered = self._build_encoder(width, widths, attend, blocks, embedding)
        self.middle = nn.ModuleList(
            [_Layer(widths[-1], widths[-1], embedding, heads), _Layer(widths[-1], widths[-1], embedding, 0)]
        )
        self._build_decoder(remembered, widths, attend, blocks, embedding)
        self.norm = group_norm(widths[0])
        self.conv_out = zeroed(nn.Conv2d(widths[0], channels, 3, padding=1))

    def _build_encoder(
        self, width: int, widths: list[int], attend: list[int], blocks: int, embedding: int
    ) -> list[int]:
        """Add the way down; returns the channels of every hidden image that the way up takes back."""
        self.encoder = nn.ModuleList()
        remembered, here = [width], width
        for level, there in enumerate(widths):
            for _ in range(blocks):
                self.encoder.append(_Layer(here, there, embedding, attend[level]))
                here = there
                remembered.append(here)
            if level < len(widths) - 1:
                self.encoder.append(_Down(here))
                remembered.append(here)
        return remembered

    def _build_decoder(
        self, remembered: list[int], widths: list[int], attend: list[int], blocks: int, embedding: int
    ) -> None:
        """Add the way up, which consumes the remembered channels from the end."""
        self.decoder = nn.ModuleList()
        remembered, here = list(remembered), widths[-1]
        for level, there in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.decoder.append(_Layer(here + remembered.pop(), there, embedding, attend[level]))
                here = there
            if level > 0:
                self.decoder.append(_Up(here))

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
        check_images(x, self.channels, self.multiple)
        vector = self.conditioning(noise_label, cond, len(x))
        hidden = self.conv_in(x)
        remembered = [hidden]
        for layer in self.encoder:
            hidden = layer(hidden, vector) if isinstance(layer, _Layer) else layer(hidden)
            remembered.append(hidden)
        for layer in self.middle:
            hidden = layer(hidden, vector)
        for layer in self.decoder:
            if isinstance(layer, _Layer):
                hidden = layer(torch.cat([hidden, remembered.pop()], dim=1), vector)
            else:
                hidden = layer(hidden)
        out: Tensor = self.conv_out(functional.silu(self.norm(hidden)))
        return out
