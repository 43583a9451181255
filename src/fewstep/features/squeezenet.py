r"""SqueezeNet 1.1, trained on ImageNet: 512 pooled features of any image from 17 pixels a side on, from a path.

A fire module squeezes with 1x1 filters and expands with 1x1 and 3x3 filters side by side,

.. math:: \mathrm{fire}(h) = [\mathrm{relu}(E_1 * s),\ \mathrm{relu}(E_3 * s)], \qquad s = \mathrm{relu}(S * h) .

Images are read at the size they have. The network halves them four times, so that of 32 pixels a side one position is
left: it works, but sees no layout there, and far less of what it was trained to see than at 224 pixels.
A distance in these features is not FID. LPIPS stands on the same network, see lpips.py.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.features.frozen import IMAGENET_SCALE, IMAGENET_SHIFT, FeatureNetwork, NetworkFeatures
from fewstep.features.weights import build, read_weights

__all__ = ["SqueezeNet", "load_squeezenet", "read_squeezenet"]

WHERE = (
    "torchvision's SqueezeNet 1.1, https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth, converted to "
    "safetensors with the names it has"
)
# Position in torchvision's sequence -> channels in, squeezed, and of each of the two expansions.
_FIRES = {
    3: (64, 16, 64),
    4: (128, 16, 64),
    6: (128, 32, 128),
    7: (256, 32, 128),
    9: (256, 48, 192),
    10: (384, 48, 192),
    11: (384, 64, 256),
    12: (512, 64, 256),
}
_POOLS = (2, 5, 8)
_TAPS = (2, 5, 8, 10, 11, 12, 13)  # LPIPS looks at what these first layers, each time, have made


class _Fire(nn.Module):
    def __init__(self, channels_in: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        s = functional.relu(self.squeeze(h))
        return torch.cat([functional.relu(self.expand1x1(s)), functional.relu(self.expand3x3(s))], 1)


def _layer(position: int) -> nn.Module:
    if position in _FIRES:
        return _Fire(*_FIRES[position])
    if position in _POOLS:
        return nn.MaxPool2d(3, 2, ceil_mode=True)
    return nn.ReLU() if position else nn.Conv2d(3, 64, 3, stride=2)


class SqueezeNet(FeatureNetwork):
    """SqueezeNet 1.1 under torchvision's names, up to its last feature maps.

    The classifier's weights are part of the file and of the fingerprint, but nothing here uses them: it classifies
    every position and pools after a ReLU, which cannot be had from pooled features.

    Source:
        Iandola et al. 2016, arXiv:1602.07360, in version 1.1 of its authors. Departs from it in: the last feature
        maps are pooled instead of the classifier's maps.
    """

    dim, least = 512, 17

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*(_layer(position) for position in range(13)))
        self.classifier = nn.Sequential(nn.Identity(), nn.Conv2d(512, 1000, 1))

    def taps(self, x: Tensor) -> list[Tensor]:
        """Map normalised images (b, 3, h, w) to the seven inner activations that LPIPS compares, finest first."""
        found = []
        for start, stop in pairwise((0, *_TAPS)):
            x = self.features[start:stop](x)
            found.append(x)
        return found

    def embed(self, x: Tensor) -> Tensor:
        """Map normalised images (b, 3, h, w) to the mean of the last feature maps, (b, 512)."""
        h: Tensor = self.features(x)
        return h.mean((2, 3))


def read_squeezenet(path: str | Path) -> SqueezeNet:
    """Read SqueezeNet 1.1.

    Args:
        path: a safetensors file with torchvision's names.

    Returns:
        The network on the CPU, float32.

    Raises:
        MissingWeights: if there is no such file.
        CheckpointError: if it does not hold exactly the weights of this network.
    """
    return build(SqueezeNet, read_weights(path, "SqueezeNet 1.1", WHERE), path)


def load_squeezenet(path: str | Path) -> NetworkFeatures:
    """Read SqueezeNet 1.1 as features.

    Args:
        path: a safetensors file with torchvision's names.

    Returns:
        Features "squeezenet1.1@..." of RGB images from 17 pixels a side on, 512 numbers each.

    Raises:
        MissingWeights: if there is no such file.
        CheckpointError: if it does not hold exactly the weights of this network.
    """
    return NetworkFeatures(read_squeezenet(path), "squeezenet1.1", IMAGENET_SHIFT, IMAGENET_SCALE)
