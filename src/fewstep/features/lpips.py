r"""LPIPS v0.1 on SqueezeNet: how different two images look, from two paths.

With the activations y^l of seven layers at unit length along the channels, and learned weights w^l >= 0,

.. math:: d(a, b) = \sum_l \frac{1}{H_l W_l} \sum_{h, w, c} w^l_c\, (\hat y^l_{hwc}(a) - \hat y^l_{hwc}(b))^2 .

It is zero for equal images and symmetric, and differentiable in both. Distances depend on the size of the images:
nothing is resized here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep._files import fingerprint
from fewstep.errors import CheckpointError, ShapeError
from fewstep.features.base import check_images
from fewstep.features.frozen import freeze
from fewstep.features.squeezenet import SqueezeNet, read_squeezenet
from fewstep.features.weights import read_weights

__all__ = ["Lpips", "load_lpips"]

WHERE = (
    "lpips/weights/v0.1/squeeze.pth of https://github.com/richzhang/PerceptualSimilarity, converted to safetensors "
    "with the names it has"
)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # the authors' scaling layer, for pixels in [-1, 1]
_CHANNELS = (64, 128, 256, 384, 384, 512, 512)


class Lpips(nn.Module):
    """The learned perceptual distance of pairs of images, on a frozen copy of SqueezeNet.

    Args:
        network: SqueezeNet 1.1 as trained on ImageNet.
        heads: seven weight vectors of 64, 128, 256, 384, 384, 512 and 512 numbers.

    Raises:
        ShapeError: if the heads are not those vectors.

    Source:
        Zhang et al. 2018, arXiv:1801.03924, Eq. 1, version 0.1 of the authors' code, "squeeze". Departs from it in:
        an activation is divided by max(length, 1e-10) instead of length + 1e-10, so that gradients stay finite where
        all channels are 0.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: SqueezeNet, heads: Sequence[Tensor]) -> None:
        super().__init__()
        shapes = [tuple(head.shape) for head in heads]
        if shapes != [(channels,) for channels in _CHANNELS]:
            raise ShapeError(f"LPIPS heads of shapes {shapes}", f"They are vectors of {_CHANNELS}", "Use load_lpips")
        self.network = copy.deepcopy(network)
        freeze(self.network)
        self.register_buffer("shift", torch.tensor(_SHIFT).reshape(3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).reshape(3, 1, 1))
        for i, head in enumerate(heads):
            self.register_buffer(f"head{i}", head.detach().clone().reshape(-1, 1, 1))
        self.name = f"lpips-squeeze@{fingerprint(self.state_dict())}"

    def train(self, mode: bool = True) -> Lpips:
        """Stay in evaluation mode, whatever the mode of a module around this one."""
        return super().train(False)

    def _directions(self, images: Tensor) -> list[Tensor]:
        x = (images.to(self.shift.dtype) - self.shift) / self.scale
        return [functional.normalize(tap, dim=1, eps=1e-10) for tap in self.network.taps(x)]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare images pairwise.

        Args:
            a: floating point, shape (b, 3, h, w) with h, w >= 17, RGB in [-1, 1].
            b: same shape.

        Returns:
            Distances, shape (b,), >= 0, in the dtype of the weights.

        Raises:
            DtypeError: if the images are not floating point.
            ShapeError: if they are not such images, or of unlike shapes.
        """
        for images in (a, b):
            check_images(images, self.name, 3, least=self.network.least)
        if a.shape != b.shape:
            raise ShapeError(
                f"Images of shapes {tuple(a.shape)} and {tuple(b.shape)} to compare pairwise",
                "Both have the same shape",
                "Bring them to one size, and repeat the one that stands for many",
            )
        pairs = zip(self._directions(a), self._directions(b), strict=True)
        terms = [
            (self.get_buffer(f"head{i}") * (of_a - of_b).square()).sum(1).mean((1, 2))
            for i, (of_a, of_b) in enumerate(pairs)
        ]
        return torch.stack(terms).sum(0)


def _heads(weights: dict[str, Tensor], path: str | Path) -> list[Tensor]:
    names = [f"lin{i}.model.1.weight" for i in range(len(_CHANNELS))]
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    expected = {name: (1, channels, 1, 1) for name, channels in zip(names, _CHANNELS, strict=True)}
    if shapes != expected:
        raise CheckpointError(
            f"{path} holds no LPIPS heads for SqueezeNet; its tensors are {dict(list(shapes.items())[:3])} ...",
            f"They are {names[0]} to {names[-1]} of 1 x channels x 1 x 1, channels {_CHANNELS}",
            f"Pass {WHERE}",
        )
    return [weights[name].to(torch.float32).flatten() for name in names]


def load_lpips(squeezenet_path: str | Path, heads_path: str | Path) -> Lpips:
    """Read LPIPS v0.1 for SqueezeNet.

    Args:
        squeezenet_path: SqueezeNet 1.1 as safetensors, with torchvision's names.
        heads_path: the authors' seven linear heads as safetensors, with their names.

    Returns:
        The distance, on the CPU, float32.

    Raises:
        MissingWeights: if a file is not there.
        CheckpointError: if one does not hold exactly those weights.
    """
    heads = _heads(read_weights(heads_path, "LPIPS v0.1 (squeeze)", WHERE), heads_path)
    return Lpips(read_squeezenet(squeezenet_path), heads)
