"""Maps: the inner activations of a frozen network, image by image, for losses that compare images where things are.

A feature vector says what is in an image; a map also says where. Maps are what perceptual distances, energy scores and
projected critics look at: a list of tensors, one per layer, finest first, differentiable in the images. The network
behind them never changes, and what it says of an image does not depend on the other images of the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from fewstep.errors import ShapeError
from fewstep.features.base import Features, check_images
from fewstep.features.classifier import ClassifierFeatures
from fewstep.features.frozen import IMAGENET_SCALE, IMAGENET_SHIFT, freeze
from fewstep.features.random_conv import RandomConv
from fewstep.features.squeezenet import SqueezeNet

__all__ = ["ClassifierMaps", "Maps", "NetworkMaps", "PixelMaps", "RandomMaps", "VectorMaps", "as_rgb"]

Cond: TypeAlias = Mapping[str, Tensor] | None


@runtime_checkable
class Maps(Protocol):
    """A frozen, differentiable map from images to a list of tensors."""

    @property
    def name(self) -> str:
        """Name for tables; it changes whenever the maps do."""
        ...

    def __call__(self, images: Tensor, cond: Cond = None) -> list[Tensor]:
        """Compute the maps.

        Args:
            images: floating point, shape (b, c, h, w), in [-1, 1].
            cond: conditions, batch first; only maps that were made for conditions look at them.

        Returns:
            Activations, each of shape (b, c_i, h_i, w_i), or (b, n_i) where it has no places.
        """
        ...


@dataclass(frozen=True)
class PixelMaps:
    """The images themselves, or any other data: one map."""

    name: str = "pixels"

    def __call__(self, images: Tensor, cond: Cond = None) -> list[Tensor]:
        """Return the images, shape (b, *d), as a list."""
        return [images]


@dataclass(frozen=True)
class VectorMaps:
    """The vectors of any features: one map, without places.

    Args:
        features: the features.
    """

    features: Features

    @property
    def name(self) -> str:
        """Name of the features."""
        return self.features.name

    def __call__(self, images: Tensor, cond: Cond = None) -> list[Tensor]:
        """Compute the vectors (b, dim) of images (b, c, h, w), as a list."""
        return [self.features(images)]


class RandomMaps(nn.Module):
    """The three layers of :class:`RandomConv`: random filters, the same on every machine, without data or download.

    Maps of 32, 64 and dim / 4 channels at full, half and a quarter of the size.

    Args:
        channels: channels of an image.
        dim: number of RandomConv's features, a multiple of 4.
        seed: of the weights.

    Raises:
        ConfigError: if channels < 1 or dim is no positive multiple of 4.
    """

    def __init__(self, channels: int, dim: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.network = RandomConv(channels, dim, seed)
        self.name = f"maps of {self.network.name}"

    def forward(self, images: Tensor, cond: Cond = None) -> list[Tensor]:
        """Compute the maps of images (b, channels, h, w) with h, w >= 4; ShapeError or DtypeError for others."""
        return self.network.maps(images)


class ClassifierMaps(nn.Module):
    """The four stages of a small classifier, with its running statistics, whatever the mode of a module around it.

    Args:
        classifier: a classifier's features, frozen as they are; shared, not copied.
    """

    def __init__(self, classifier: ClassifierFeatures) -> None:
        super().__init__()
        self.classifier = classifier
        self.name = f"maps of {classifier.name}"

    def forward(self, images: Tensor, cond: Cond = None) -> list[Tensor]:
        """Compute the maps of images of the shape that the classifier reads; ShapeError or DtypeError for others."""
        network, found = self.classifier.network, []
        check_images(images, self.name, network.channels, self.classifier.size)
        h = images.to(network.hidden.weight.dtype)
        for stage in network.body:
            h = stage(h)
            found.append(h)
        return found


class NetworkMaps(nn.Module):
    """The seven inner activations of SqueezeNet that LPIPS compares, on a frozen copy; grey images are made RGB.

    Args:
        network: SqueezeNet 1.1 as trained on ImageNet, see ``read_squeezenet``.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: SqueezeNet) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.name = f"maps of squeezenet1.1@{freeze(self.network)}"
        self.register_buffer("shift", torch.tensor(IMAGENET_SHIFT).reshape(3, 1, 1))
        self.register_buffer("scale", torch.tensor(IMAGENET_SCALE).reshape(3, 1, 1))

    def train(self, mode: bool = True) -> NetworkMaps:
        """Stay in evaluation mode, whatever the mode of a module around this one."""
        return super().train(False)

    def forward(self, images: Tensor, cond: Cond = None) -> list[Tensor]:
        """Compute the maps of grey or RGB images with h, w >= 17; ShapeError or DtypeError for others."""
        images = as_rgb(images)
        check_images(images, self.name, 3, least=self.network.least)
        return self.network.taps((images.to(self.shift.dtype) - self.shift) / self.scale)


def as_rgb(images: Tensor) -> Tensor:
    """Give grey images three equal channels, for networks that read RGB.

    Args:
        images: shape (b, 1, h, w) or (b, 3, h, w).

    Returns:
        Shape (b, 3, h, w); RGB images unchanged.

    Raises:
        ShapeError: if the images have another number of channels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ShapeError(
            f"Images of shape {tuple(images.shape)} for a network that reads RGB",
            "Grey images (b, 1, h, w) or RGB images (b, 3, h, w)",
            "Choose maps made for such data: pixels, random or self",
        )
    return images.expand(-1, 3, -1, -1)
