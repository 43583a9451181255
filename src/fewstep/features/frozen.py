"""A published network as features: frozen, in evaluation mode, named after its weights.

What all such networks share stands here once: the checks of the images, the resize, the shift and scale of the pixels
that the network was trained with, and the rule that nothing about it changes afterwards. The networks themselves map
prepared images to a feature vector, and some of them a feature vector to class logits.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewstep._files import fingerprint
from fewstep.features.base import check_images
from fewstep.features.resize import Resize

__all__ = [
    "IMAGENET_SCALE",
    "IMAGENET_SHIFT",
    "ClassifierNetwork",
    "ClassifierNetworkFeatures",
    "FeatureNetwork",
    "NetworkFeatures",
    "freeze",
]

# What networks that were trained on pixels in [0, 1] with ImageNet's mean and deviation do to pixels in [-1, 1].
IMAGENET_SHIFT = tuple(2 * mean - 1 for mean in (0.485, 0.456, 0.406))
IMAGENET_SCALE = tuple(2 * deviation for deviation in (0.229, 0.224, 0.225))


class FeatureNetwork(nn.Module, ABC):
    """A network of RGB images, up to its pooled features.

    Attributes:
        dim: length of a feature vector.
        least: the fewest pixels a side that it can read.
    """

    dim: int
    least: int

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Map images (b, 3, h, w), shifted and scaled as in its training, to feature vectors (b, dim)."""


class ClassifierNetwork(FeatureNetwork, ABC):
    """A network whose pooled features are what its classifier reads."""

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """Map feature vectors (b, dim) to class logits (b, n_classes)."""


def freeze(network: nn.Module) -> str:
    """Put a network into evaluation mode, without gradients of its weights, and name those.

    Args:
        network: changed in place.

    Returns:
        The fingerprint of its weights.
    """
    network.eval().requires_grad_(False)
    return fingerprint(network.state_dict())


class _Frozen(nn.Module):
    """What both kinds of features below are made of.

    Args:
        network: the network.
        kind: what to call it; the features are named "kind@fingerprint".
        shift: what is subtracted from the red, green and blue of [-1, 1].
        scale: what they are then divided by.
        size: height and width of the images, or None to take any that the network can read.
        resize: how images are brought to the network's size, or None if they are not.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        network: FeatureNetwork,
        kind: str,
        shift: Sequence[float],
        scale: Sequence[float],
        *,
        size: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.fingerprint = freeze(self.network)
        self.name, self.dim, self.size = f"{kind}@{self.fingerprint}", network.dim, size
        self.least = 4 if resize else network.least
        self.resizer, self.resize = resize, resize.name if resize else "none"
        self.register_buffer("shift", torch.tensor(shift).reshape(3, 1, 1))
        self.register_buffer("scale", torch.tensor(scale).reshape(3, 1, 1))

    def train(self, mode: bool = True) -> _Frozen:
        """Stay in evaluation mode, whatever the mode of a module around this one."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features.

        Args:
            images: floating point, shape (b, 3, h, w), RGB in [-1, 1].

        Returns:
            Features, shape (b, dim), in the dtype of the weights.

        Raises:
            DtypeError: if the images are not floating point.
            ShapeError: if they are not RGB, not of the size that is read, or too small for the network.
        """
        check_images(images, self.name, 3, self.size, least=self.least)
        x = images.to(self.shift.dtype)
        x = self.resizer(x) if self.resizer else x
        return self.network.embed((x - self.shift) / self.scale)


class NetworkFeatures(_Frozen):
    """The pooled features of a published network, as a frozen copy in evaluation mode.

    Training the original, and `.train()` on this, change nothing; gradients flow to the images only. The vector of an
    image does not depend on its batch. With x in [-1, 1] the network reads (x - shift) / scale, after the resize.
    """


class ClassifierNetworkFeatures(_Frozen):
    """The same of a network that classifies by these features, with its logits."""

    network: ClassifierNetwork

    def logits_of(self, features: Tensor) -> Tensor:
        """Turn feature vectors (b, dim) of this object into class logits (b, n_classes)."""
        return self.network.logits(features)
