r"""CIFAR-10 ResNets of He et al.: 20, 32, 44... layers, 64 pooled features, from a path.

.. math:: h \leftarrow \mathrm{relu}(\mathrm{bn}(W_2 * \mathrm{relu}(\mathrm{bn}(W_1 * h))) + s(h)), \qquad
          f = \mathrm{mean}_{hw}(h), \quad \mathrm{logits} = W f + b

Three stages of n = (depth - 2) / 6 such blocks with 16, 32 and 64 channels; between stages the shortcut s takes every
second pixel and pads with zero channels, without weights (option A). A distance in these features is not FID. Such
classifiers know their training images by heart, so take test images as the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from fewstep.errors import CheckpointError
from fewstep.features.frozen import IMAGENET_SCALE, IMAGENET_SHIFT, ClassifierNetwork, ClassifierNetworkFeatures
from fewstep.features.weights import build, read_weights

__all__ = ["CifarResNet", "load_cifar_resnet"]

WHERE = (
    "a CIFAR-10 ResNet in the layout of github.com/akamaster/pytorch_resnet_cifar10 (conv1, bn1, layer1.0.conv1 ... "
    "linear, without the prefix 'module.'), converted to safetensors"
)
_WIDTHS = (16, 32, 64)


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.padding = stride, (channels - channels_in) // 2

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(h)))))
        shortcut = h[:, :, :: self.stride, :: self.stride]
        return functional.relu(out + functional.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding)))


class CifarResNet(ClassifierNetwork):
    """A residual network for 32x32 images of 10 classes.

    Args:
        n_blocks: residual blocks in each of the three stages; the depth is 6 n_blocks + 2.

    Source:
        He et al. 2015, arXiv:1512.03385, section 4.2. Departs from it in: nothing.
    """

    dim, least = 64, 4

    def __init__(self, n_blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (before, width) in enumerate(zip((16, *_WIDTHS), _WIDTHS, strict=False), start=1):
            blocks = [_Block(before, width, 1 if stage == 1 else 2)]
            blocks += [_Block(width, width, 1) for _ in range(n_blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def embed(self, x: Tensor) -> Tensor:
        """Map normalised images (b, 3, h, w) to the mean of the last feature map, (b, 64)."""
        h = functional.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            h = self.get_submodule(f"layer{stage}")(h)
        return h.mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Map features (b, 64) to the logits of the 10 classes."""
        out: Tensor = self.linear(features)
        return out


def _n_blocks(weights: Mapping[str, Tensor], path: str | Path) -> int:
    n_blocks = sum(name.startswith("layer1.") and name.endswith(".conv1.weight") for name in weights)
    if not n_blocks:
        raise CheckpointError(
            f"{path} holds no CIFAR ResNet; its names begin {sorted(weights)[:3]}",
            "The depth is read off names like layer1.0.conv1.weight, layer1.1.conv1.weight ...",
            f"Pass {WHERE}",
        )
    return n_blocks


def load_cifar_resnet(path: str | Path) -> ClassifierNetworkFeatures:
    """Read a CIFAR-10 ResNet; its depth follows from the names in the file.

    Args:
        path: a safetensors file.

    Returns:
        Features "cifar10-resnet20@..." of 32x32 RGB images, 64 numbers each, with `logits_of` for the ten classes.

    Raises:
        MissingWeights: if there is no such file.
        CheckpointError: if it does not hold exactly the weights of such a network.
    """
    weights = read_weights(path, "a CIFAR-10 ResNet", WHERE)
    n_blocks = _n_blocks(weights, path)
    network = build(lambda: CifarResNet(n_blocks), weights, path)
    kind = f"cifar10-resnet{6 * n_blocks + 2}"
    return ClassifierNetworkFeatures(network, kind, IMAGENET_SHIFT, IMAGENET_SCALE, size=(32, 32))
