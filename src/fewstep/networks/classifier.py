r"""A small convolutional classifier, made for its penultimate features.

Distances between sets of images and perceptual losses need a map from images to vectors that is smooth, cheap and
honest about its size. This one halves the image twice, keeps a coarse 2 x 2 layout of what it saw, and ends in

.. math:: f = \mathrm{silu}(W_1 \,\mathrm{pool}_{2\times2}(h(x)) + b_1), \qquad \mathrm{logits} = W_2 f + b_2 .

SiLU instead of ReLU makes the features differentiable everywhere. Batch normalisation uses its running statistics when
evaluating, so that a feature never depends on the other images of a batch.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from fewstep.networks.layers import check_counts, check_images

__all__ = ["SmallClassifier"]


def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.SiLU())


class SmallClassifier(nn.Module):
    """Four 3x3 convolutions, a 2x2 pool, `dim` features and a linear head: 110,000 parameters by default.

    Images of any height and width go through the same weights.

    Args:
        channels: channels of the images.
        n_classes: number of classes.
        width: channels of the first convolution; the others have twice as many.
        dim: length of the feature vector.

    Raises:
        ConfigError: if a number cannot be.
    """

    def __init__(self, channels: int = 1, n_classes: int = 10, width: int = 32, dim: int = 64) -> None:
        super().__init__()
        check_counts({"channels": channels, "n_classes": n_classes, "width": width, "dim": dim})
        self.channels, self.n_classes, self.width, self.dim = channels, n_classes, width, dim
        self.body = nn.Sequential(
            _stage(channels, width, 1),
            _stage(width, 2 * width, 2),
            _stage(2 * width, 2 * width, 2),
            _stage(2 * width, 2 * width, 1),
        )
        self.hidden = nn.Linear(4 * 2 * width, dim)
        self.logits = nn.Linear(dim, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """Describe images by their penultimate features.

        Args:
            x: images of shape (b, channels, h, w) in [-1, 1].

        Returns:
            Shape (b, dim).

        Raises:
            ShapeError: if x is no batch of such images.
        """
        check_images(x, self.channels, 1)
        pooled = functional.adaptive_avg_pool2d(self.body(x), 2)
        return functional.silu(self.hidden(pooled.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits (b, n_classes) of images (b, channels, h, w) in [-1, 1]."""
        out: Tensor = self.logits(self.features(x))
        return out
