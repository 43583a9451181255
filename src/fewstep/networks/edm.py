r"""EDM's U-Net, in the two variants that its CIFAR-10, FFHQ and AFHQ models have, with the names of its weights.

Karras et al. took both from Song et al. 2021: ``ddpmpp`` (DDPM++: sines of fixed frequencies, resolutions changed by
2x2 means) and ``ncsnpp`` (NCSN++: sines of random frequencies, smoother changes of resolution, and the image itself is
added again, convolved, at every lower resolution). Parameters and buffers are named and shaped as in the state of
EDM's ``SongUNet``, so its weights load as they are. Every sum of two branches is divided by :math:`\sqrt 2`.

Class labels enter as one-hot vectors; the null class is the vector of zeros. So do labels of the augmentation that EDM
trains with; none at all, which is how it samples, are zeros too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.errors import ConfigError, ShapeError
from fewstep.networks.embeddings import check_conditions, check_labels, check_noise_label
from fewstep.networks.layers import check_counts, check_images, zeroed

__all__ = ["EDMUNet"]

_VARIANTS: dict[str, tuple[int, ...]] = {
    "ddpmpp": (1, 1),
    "ncsnpp": (1, 3, 3, 1),
}  # taps of their changes of resolution
_ROOT_HALF = math.sqrt(0.5)


def _norm(channels: int) -> nn.GroupNorm:
    """Normalise over at most 32 groups of four channels or more."""
    groups = min(32, channels // 4)
    if not groups or channels % groups:
        raise ConfigError(
            f"{channels} channels in a layer of EDM's U-Net",
            "A multiple of 4, and of 32 from 128 on: they are normalised in groups",
            "Change width or multipliers",
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)


class _Resampled(nn.Module):
    """A convolution that doubles or halves the resolution with a fixed filter.

    Args:
        channels_in: channels of x.
        channels_out: channels of the result.
        kernel: width of the convolution, odd.
        taps: the filter along one axis.
        way: "up" and "down" filter first; "fused" halves too, but convolves first.
    """

    resample_filter: Tensor

    def __init__(self, channels_in: int, channels_out: int, kernel: int, taps: Sequence[int], way: str) -> None:
        super().__init__()
        conv = nn.Conv2d(channels_in, channels_out, kernel)  # for its initial weights
        self.weight, self.way = conv.weight, way
        self.bias = nn.Parameter(torch.zeros(channels_out))
        one = torch.tensor(taps, dtype=torch.float32) / sum(taps)
        self.register_buffer("resample_filter", torch.outer(one, one)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, channels_in, h, w) to (b, channels_out, 2h, 2w) or (b, channels_out, h/2, w/2)."""
        edge, margin = self.weight.shape[-1] // 2, (self.resample_filter.shape[-1] - 1) // 2
        if self.way == "fused":  # the convolution sees its own border and the filter's
            wide = functional.conv2d(x, self.weight, padding=edge + margin)
            return self._halved(wide, 0) + self.bias[:, None, None]
        changed = self._doubled(x, margin) if self.way == "up" else self._halved(x, margin)
        return functional.conv2d(changed, self.weight, self.bias, padding=edge)

    def _halved(self, x: Tensor, margin: int) -> Tensor:
        every = self.resample_filter.expand(x.shape[1], -1, -1, -1)
        return functional.conv2d(x, every, stride=2, padding=margin, groups=x.shape[1])

    def _doubled(self, x: Tensor, margin: int) -> Tensor:
        every = 4 * self.resample_filter.expand(x.shape[1], -1, -1, -1)
        return functional.conv_transpose2d(x, every, stride=2, padding=margin, groups=x.shape[1])


def _conv(channels_in: int, channels_out: int, kernel: int, taps: Sequence[int] = (), way: str = "") -> nn.Module:
    if way:
        return _Resampled(channels_in, channels_out, kernel, taps, way)
    return nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)


class _Block(nn.Module):
    """A residual block, which may change the resolution, with attention behind it where it is asked for.

    Args:
        channels_in: channels of x.
        channels_out: channels of the result.
        embedding: length of the conditioning vector.
        attention: whether every pixel looks at every other one.
        taps: filter of a change of resolution.
        way: "up", "down" or "" for none.
        joins: whether x is hidden images with remembered ones appended.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        *,
        attention: bool = False,
        taps: Sequence[int] = (),
        way: str = "",
        joins: bool = False,
    ) -> None:
        super().__init__()
        self.channels_out, self.joins = channels_out, joins
        self.norm0 = _norm(channels_in)
        self.conv0 = _conv(channels_in, channels_out, 3, taps, way)
        self.affine = nn.Linear(embedding, channels_out)
        self.norm1 = _norm(channels_out)
        self.conv1 = zeroed(_conv(channels_out, channels_out, 3))
        self.skip = _conv(channels_in, channels_out, 1, taps, way) if way or channels_in != channels_out else None
        self.norm2 = _norm(channels_out) if attention else None
        if attention:
            self.qkv = _conv(channels_out, 3 * channels_out, 1)
            self.proj = zeroed(_conv(channels_out, channels_out, 1))

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Map x (b, channels_in, h, w) and a vector (b, embedding) to channels_out at the new resolution."""
        branch = self.conv0(functional.silu(self.norm0(x))) + self.affine(vector)[:, :, None, None]
        branch = self.conv1(functional.silu(self.norm1(branch)))
        x = (branch + (x if self.skip is None else self.skip(x))) * _ROOT_HALF
        return x if self.norm2 is None else (x + self._attended(self.norm2(x))) * _ROOT_HALF

    def _attended(self, x: Tensor) -> Tensor:
        """Attention of one head; query, key and value of a channel lie side by side."""
        query, key, value = self.qkv(x).unflatten(1, (-1, 3)).flatten(3).transpose(1, 3).unbind(2)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return out


class _FixedSines(nn.Module):
    """Sines and cosines of a noise label at frequencies from 1 down to 1/10,000 radians per unit.

    Args:
        width: length of the vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, noise_label: Tensor) -> Tensor:
        """Embed labels (b,) as (b, width)."""
        # In float32 and no finer, since that is what the weights were trained with.
        half = self.width // 2
        exponents = torch.arange(half, dtype=torch.float32, device=noise_label.device) / (half - 1)
        angles = noise_label[:, None] * ((1 / 10000) ** exponents).to(noise_label.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class _RandomSines(nn.Module):
    """Sines and cosines of a noise label at random frequencies, which belong to the weights.

    Args:
        width: length of the vector.
    """

    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(width // 2))

    def forward(self, noise_label: Tensor) -> Tensor:
        """Embed labels (b,) as (b, width)."""
        angles = noise_label[:, None] * (2 * math.pi * self.freqs).to(noise_label.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class _Plan(NamedTuple):
    """What both halves of the network are built from; see :class:`EDMUNet`, and `widths` are the channels of levels."""

    channels: int
    resolution: int
    width: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    embedding: int
    taps: tuple[int, ...]

    def name(self, level: int) -> str:
        """How EDM names a level."""
        side = self.resolution >> level
        return f"{side}x{side}"

    def attends(self, level: int) -> bool:
        """Whether a level has attention."""
        return self.resolution >> level in self.attention

    def block(self, channels_in: int, channels_out: int, *, attention: bool = False, joins: bool = False) -> _Block:
        """A block that leaves the resolution as it is."""
        return _Block(channels_in, channels_out, self.embedding, attention=attention, joins=joins)

    def changing(self, channels: int, way: str) -> _Block:
        """A block that changes the resolution."""
        return _Block(channels, channels, self.embedding, taps=self.taps, way=way)


def _encoder(plan: _Plan, *, residual: bool) -> tuple[nn.ModuleDict, list[int]]:
    """The way down, and the channels of every hidden image that the way up takes back.

    With `residual`, the image comes along: EDM's ``aux_residual`` brings it to the next level and the level's channels.
    """
    layers: dict[str, nn.Module] = {f"{plan.name(0)}_conv": _conv(plan.channels, plan.width, 3)}
    here, image, remembered = plan.width, plan.channels, [plan.width]
    for level, there in enumerate(plan.widths):
        if level:
            layers[f"{plan.name(level)}_down"] = plan.changing(here, "down")
            remembered.append(here)
        if level and residual:
            layers[f"{plan.name(level)}_aux_residual"] = _Resampled(image, here, 3, plan.taps, "fused")
            image = here
        for i in range(plan.blocks):
            layers[f"{plan.name(level)}_block{i}"] = plan.block(here, there, attention=plan.attends(level))
            here = there
            remembered.append(here)
    return nn.ModuleDict(layers), remembered


def _decoder(plan: _Plan, remembered: list[int]) -> nn.ModuleDict:
    """The way up, which consumes the remembered channels from the end, and the last convolution."""
    here, last = plan.widths[-1], len(plan.widths) - 1
    middle = {"in0": plan.block(here, here, attention=True), "in1": plan.block(here, here)}
    layers: dict[str, nn.Module] = {f"{plan.name(last)}_{name}": block for name, block in middle.items()}
    for level, there in reversed(list(enumerate(plan.widths))):
        if level < last:
            layers[f"{plan.name(level)}_up"] = plan.changing(here, "up")
        for i in range(plan.blocks + 1):
            attends = i == plan.blocks and plan.attends(level)
            block = plan.block(here + remembered.pop(), there, attention=attends, joins=True)
            layers[f"{plan.name(level)}_block{i}"], here = block, there
    layers[f"{plan.name(0)}_aux_norm"] = _norm(here)
    layers[f"{plan.name(0)}_aux_conv"] = zeroed(_conv(here, plan.channels, 3))
    return nn.ModuleDict(layers)


class EDMUNet(nn.Module):
    """EDM's U-Net.

    In half precision the frequencies of ncsnpp are rounded too, and close noise levels merge: keep it in float32.

    Args:
        channels: channels of the images.
        resolution: height and width it was made for, which its weights are named after; a multiple of
            ``2 ** (levels - 1)``, as those of the images are.
        width: channels of the first convolution.
        multipliers: channels of each level in units of `width`.
        blocks: residual blocks of each level on the way down; one more on the way up.
        attention: resolutions that have attention, besides the middle.
        variant: "ddpmpp" or "ncsnpp".
        n_classes: number of classes; 0 for none, and the index `n_classes` is the null class.
        augment: length of the augmentation labels that it was trained with; 0 for none.

    Raises:
        ConfigError: if a number cannot be, or there is no such variant.

    Source:
        Karras et al. 2022, arXiv:2206.00364, Appendix F.1 and Table 7, the 32x32 and 64x64 models trained by EDM.
        Departs from it in: no dropout, and untrained branches start at zero.
    """

    def __init__(
        self,
        channels: int = 1,
        resolution: int = 32,
        width: int = 128,
        multipliers: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        variant: str = "ddpmpp",
        n_classes: int = 0,
        augment: int = 0,
    ) -> None:
        super().__init__()
        check_counts({"channels": channels, "resolution": resolution, "width": width, "blocks": blocks})
        check_counts({f"multipliers[{i}]": multiplier for i, multiplier in enumerate(multipliers)})
        check_counts({"n_classes": n_classes, "augment": augment}, least=0)
        self.multiple = 2 ** (len(multipliers) - 1)
        _require(variant in _VARIANTS, f"variant={variant!r}", f"One of {', '.join(_VARIANTS)}")
        halves = len(multipliers) > 0 and resolution % self.multiple == 0
        _require(halves, f"resolution={resolution} of {len(multipliers)} levels", "A level, and whole halves at each")
        self.channels, self.n_classes, self.augment = channels, n_classes, augment
        self.n_tokens = self.caption_length = 0
        random = variant == "ncsnpp"
        told, embedding = width * (1 + random), 4 * width
        _require(told % 2 == 0 and told > 2, f"width={width}", "An even number above 2")
        self.map_noise = _RandomSines(told) if random else _FixedSines(told)
        self.map_label = nn.Linear(n_classes, told) if n_classes else None
        self.map_augment = nn.Linear(augment, told, bias=False) if augment else None
        self.map_layer0, self.map_layer1 = nn.Linear(told, embedding), nn.Linear(embedding, embedding)
        widths = tuple(width * multiplier for multiplier in multipliers)
        plan = _Plan(channels, resolution, width, widths, blocks, tuple(attention), embedding, _VARIANTS[variant])
        self.enc, remembered = _encoder(plan, residual=random)
        self.dec = _decoder(plan, remembered)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Predict from noisy images.

        Args:
            x: network input of shape (b, channels, h, w), about unit variance.
            noise_label: shape (b,); EDM's is ``log(kappa) / 4``.
            cond: None, or any of {"label": int64 of shape (b,), "augment": shape (b, augment)}.

        Returns:
            Shape of x.

        Raises:
            ShapeError: if x or a label has the wrong shape.
            ConfigError: if `cond` has anything that this network was not built for.
        """
        check_images(x, self.channels, self.multiple)
        vector = self._vector(noise_label, cond, len(x))
        remembered: list[Tensor] = []
        hidden = image = x
        for layer in self.enc.values():
            if isinstance(layer, _Resampled):
                hidden = remembered[-1] = image = (hidden + layer(image)) * _ROOT_HALF
                continue
            hidden = layer(hidden, vector) if isinstance(layer, _Block) else layer(hidden)
            remembered.append(hidden)
        *blocks, norm, conv = self.dec.values()
        for block in blocks:
            hidden = block(torch.cat([hidden, remembered.pop()], dim=1) if block.joins else hidden, vector)
        out: Tensor = conv(functional.silu(norm(hidden)))
        return out

    def _vector(self, noise_label: Tensor, cond: Mapping[str, Tensor] | None, batch: int) -> Tensor:
        """Embed noise level, class and augmentation: (b, 4 width)."""
        check_noise_label(noise_label, batch)
        known = {"label": "a class label"} if self.n_classes else {}
        given = check_conditions(cond, known | ({"augment": "augmentation labels"} if self.augment else {}))
        like = self.map_layer0.weight
        vector = self.map_noise(noise_label).to(like.dtype)
        if self.map_label is not None:
            label = check_labels(given.get("label"), batch, self.n_classes, like.device)
            one_hot = functional.one_hot(label, self.n_classes + 1)[:, :-1]
            vector = vector + self.map_label(one_hot.to(like.dtype) * math.sqrt(self.n_classes))
        if self.map_augment is not None and "augment" in given:
            vector = vector + self.map_augment(_augment(given["augment"], batch, self.augment).to(like.dtype))
        return functional.silu(self.map_layer1(functional.silu(self.map_layer0(vector))))


def _augment(given: Tensor, batch: int, length: int) -> Tensor:
    if given.shape != (batch, length):
        raise ShapeError(
            f"Augmentation labels of shape {tuple(given.shape)} for {batch} samples",
            f"One row of {length} per sample",
            "Leave them out, as in sampling",
        )
    return given


def _require(holds: bool, given: str, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{given} for EDM's U-Net", allowed, "Change it, or take EDMUNet()")
