r"""Critics: networks that give a sample one logit, large for real ones.

A critic must see what its generator gets wrong, and its gradient is all that the generator hears. So there is no
normalisation, which would tie the samples of a batch together; images are first read at full resolution, beside a
fixed residual that magnifies what a viewer overlooks; and mean and maximum over the image catch faint even traces and
single broken strokes alike. What a critic is told, class, caption and noise label as a vector e, joins by projection:

.. math:: D(x, c) = w \cdot f(x) + \tfrac{1}{\sqrt d} \langle f(x), V e(c) \rangle .

Sums and products of the last layers, and the logits, stay in the precision of the weights under autocast too: finite
differences of logits make the gradient penalty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.errors import ConfigError, ShapeError
from fewstep.networks.embeddings import Conditioning
from fewstep.networks.layers import HighPass, check_counts, check_images

__all__ = ["PixelCritic", "ProjectedCritic", "VectorCritic"]

_SLOPE = 0.2  # of LeakyReLU below zero
_TOLD = 1.7  # gain after which a projected condition starts with numbers of about unit size, as SiLU leaves 0.36
_COARSE = 8  # images are halved until no side is longer
_DEEP = 2  # further blocks there, where they cost little


class _Logit(nn.Module):
    """One hidden layer on a sample's features, then the logit by projection.

    Args:
        features: length of the features.
        width: of the hidden layer, even, and a multiple of 4 for captions.
        n_classes: number of classes; 0 for none.
        n_tokens: word numbers of captions, padding included; 0 for none.
        caption_length: words of a caption, padding included.
        noise: whether the samples come with noise labels.

    Raises:
        ConfigError: if a number cannot be.
    """

    def __init__(
        self, features: int, width: int, n_classes: int, n_tokens: int, caption_length: int, noise: bool
    ) -> None:
        super().__init__()
        self.noise = noise
        self.hidden = nn.Linear(features, width)
        self.plain = nn.Linear(width, 1)
        self.conditioning = Conditioning(width, n_classes, n_tokens, caption_length)
        self.project = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.project.weight, std=_TOLD / math.sqrt(width))

    def forward(self, features: Tensor, cond: Mapping[str, Tensor] | None, noise_label: Tensor | None) -> Tensor:
        """Map features (b, n) and what is told to logits (b,), in the dtype of the weights."""
        with torch.autocast(features.device.type, enabled=False):
            f = functional.leaky_relu(self.hidden(features.to(self.plain.weight)), _SLOPE)
            told = self.conditioning(self._label(noise_label, f), cond, len(f))
            out: Tensor = self.plain(f)[:, 0] + (f * self.project(told)).sum(dim=1) / math.sqrt(f.shape[1])
        return out

    def _label(self, noise_label: Tensor | None, f: Tensor) -> Tensor:
        """Clean samples have the noise label 0."""
        if noise_label is None:
            return f.new_zeros(len(f))
        if self.noise:
            return noise_label.to(f.device)
        raise ConfigError(
            "Noise labels for a critic that is not told them", "None, or a critic with noise=True", "Set noise=True"
        )


class _Refine(nn.Module):
    """3x3 convolutions on a residual branch."""

    def __init__(self, channels: int, convolutions: int = 1) -> None:
        super().__init__()
        parts = [(nn.LeakyReLU(_SLOPE), nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(convolutions)]
        self.branch = nn.Sequential(*chain.from_iterable(parts))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


def _halve(channels_in: int, channels_out: int) -> nn.Sequential:
    """Convolve 4x4 in strides of 2, from which no fine pattern is averaged away; sides are halved and rounded up."""
    padded = nn.ZeroPad2d((1, 2, 1, 2))  # one more on the far side, where an odd one would lose its last pixel
    return nn.Sequential(nn.LeakyReLU(_SLOPE), padded, nn.Conv2d(channels_in, channels_out, 4, stride=2))


def _pooled(maps: Tensor) -> Tensor:
    """Mean and maximum over positions: (b, c, h, w) -> (b, 2 c), in float32 at least."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)


class PixelCritic(nn.Module):
    """Convolutions from full resolution down to about 8x8, on an image and its high-pass residual.

    Images of any height and width go through the same weights. By default 64 M multiply-adds for a 28x28 image,
    36 M with a width of 24.

    Args:
        channels: channels of the images.
        side: longer side of the images it is made for, in pixels; sets the number of halvings.
        width: channels at full resolution; twice as many after one halving, four times after more.
        n_classes: number of classes; 0 for none, and the index `n_classes` is the null class.
        n_tokens: word numbers of captions, padding included; 0 for a critic that reads no captions.
        caption_length: words of a caption, padding included.
        residual: whether to read the residual beside the image; it makes the gradient towards fine detail, and so R1
            and R2, some hundred times larger.
        noise: whether the images come with noise labels.

    Raises:
        ConfigError: if a number cannot be.

    Source:
        Projection: Miyato, Koyama 2018, arXiv:1802.05637, Figure 1d. No normalisation: Huang et al. 2024,
        arXiv:2501.05441, Section 3. Departs from them in: the residual, mean and maximum over the image, the size.
    """

    def __init__(
        self,
        channels: int = 1,
        side: int = 28,
        width: int = 32,
        n_classes: int = 0,
        n_tokens: int = 0,
        caption_length: int = 0,
        residual: bool = True,
        noise: bool = False,
    ) -> None:
        super().__init__()
        check_counts({"channels": channels, "side": side, "width": width})
        self.channels = channels
        self.residual = HighPass(channels) if residual else None
        halvings = max(0, math.ceil(math.log2(side / _COARSE)))
        widths = [width * min(2**i, 4) for i in range(halvings + 1)]
        body: list[nn.Module] = [nn.Conv2d(channels * (2 if residual else 1), width, 3, padding=1), _Refine(width)]
        for wide, wider in pairwise(widths):
            body += [_halve(wide, wider), _Refine(wider)]
        body += [_Refine(widths[-1], 2) for _ in range(_DEEP)]
        self.body = nn.Sequential(*body, nn.LeakyReLU(_SLOPE))
        self.logit = _Logit(2 * widths[-1], 4 * width, n_classes, n_tokens, caption_length, noise)

    def forward(self, x: Tensor, cond: Mapping[str, Tensor] | None = None, noise_label: Tensor | None = None) -> Tensor:
        """Judge images.

        Args:
            x: shape (b, channels, h, w), in [-1, 1] or with noise added.
            cond: None, {"label": int64 of shape (b,)} or {"tokens": int64 of shape (b, caption_length)}.
            noise_label: shape (b,), or None for clean images.

        Returns:
            Logits, shape (b,), in the dtype of the weights, under autocast too.

        Raises:
            ShapeError: if x, a label or a caption has the wrong shape.
            ConfigError: if there is a condition or noise label that this critic was not built for.
        """
        check_images(x, self.channels, 1)
        seen = x if self.residual is None else torch.cat([x, self.residual(x)], dim=1)
        maps = self.body(seen.contiguous(memory_format=torch.channels_last))
        out: Tensor = self.logit(_pooled(maps), cond, noise_label)
        return out


class ProjectedCritic(nn.Module):
    """A small trained head on each of some frozen maps of an image, one logit of all.

    The maps are no part of this module: neither its parameters nor its state hold them, and they stay on the device
    where they are. Gradients go through them to the image.

    Args:
        maps: images (b, c, h, w) -> maps (b, channels[i], h_i, w_i); differentiable and frozen.
        channels: channels of each of the maps.
        width: channels of the heads.
        n_classes: number of classes; 0 for none, and the index `n_classes` is the null class.
        n_tokens: word numbers of captions, padding included; 0 for a critic that reads no captions.
        caption_length: words of a caption, padding included.
        noise: whether the images come with noise labels.

    Raises:
        ConfigError: if a number cannot be.

    Source:
        Sauer et al. 2021, arXiv:2111.01007, Section 3. Departs from it in: no random mixing of the maps, one logit of
        all heads, no spectral normalisation.
    """

    def __init__(
        self,
        maps: Callable[[Tensor], Sequence[Tensor]],
        channels: Sequence[int],
        width: int = 64,
        n_classes: int = 0,
        n_tokens: int = 0,
        caption_length: int = 0,
        noise: bool = False,
    ) -> None:
        super().__init__()
        check_counts({"maps": len(channels), "width": width, **{f"channels[{i}]": c for i, c in enumerate(channels)}})
        self._maps = (maps,)  # in a tuple, where torch does not look for modules
        self.channels = tuple(channels)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1), _halve(width, width), nn.LeakyReLU(_SLOPE)) for c in channels
        )
        self.logit = _Logit(2 * width * len(channels), 4 * width, n_classes, n_tokens, caption_length, noise)

    def forward(self, x: Tensor, cond: Mapping[str, Tensor] | None = None, noise_label: Tensor | None = None) -> Tensor:
        """Judge images.

        Args:
            x: shape (b, c, h, w), as the maps take them.
            cond: as in PixelCritic.
            noise_label: as in PixelCritic.

        Returns:
            Logits, shape (b,), in the dtype of the weights.

        Raises:
            ShapeError: if the maps have other channels than the heads, or a label or a caption has the wrong shape.
            ConfigError: if there is a condition or noise label that this critic was not built for.
        """
        maps = self._maps[0](x)
        found = tuple(map_.shape[1] for map_ in maps)
        if found != self.channels:
            raise ShapeError(
                f"Maps of {found} channels", f"The heads read {self.channels}", "Pass channels of the maps"
            )
        features = torch.cat([_pooled(head(map_)) for head, map_ in zip(self.heads, maps, strict=True)], dim=1)
        out: Tensor = self.logit(features, cond, noise_label)
        return out


class VectorCritic(nn.Module):
    """A perceptron for samples that are vectors.

    Args:
        dim: length of the vectors.
        width: of the hidden layers, even.
        n_classes: number of classes; 0 for none, and the index `n_classes` is the null class.
        noise: whether the vectors come with noise labels.

    Raises:
        ConfigError: if a number cannot be.
    """

    def __init__(self, dim: int = 2, width: int = 128, n_classes: int = 0, noise: bool = False) -> None:
        super().__init__()
        check_counts({"dim": dim, "width": width})
        self.dim = dim
        self.body = nn.Sequential(
            nn.Linear(dim, width), nn.LeakyReLU(_SLOPE), nn.Linear(width, width), nn.LeakyReLU(_SLOPE)
        )
        self.logit = _Logit(width, width, n_classes, 0, 0, noise)

    def forward(self, x: Tensor, cond: Mapping[str, Tensor] | None = None, noise_label: Tensor | None = None) -> Tensor:
        """Judge vectors.

        Args:
            x: shape (b, dim).
            cond: as in PixelCritic.
            noise_label: as in PixelCritic.

        Returns:
            Logits, shape (b,), in the dtype of the weights.

        Raises:
            ShapeError: if x or a label has the wrong shape.
            ConfigError: if there is a condition or noise label that this critic was not built for.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ShapeError(
                f"Vectors of shape {tuple(x.shape)}", f"This critic takes (b, {self.dim})", "Build it for these vectors"
            )
        out: Tensor = self.logit(self.body(x), cond, noise_label)
        return out
