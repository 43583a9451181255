"""A small critic that tells two sets of 8-bit images apart, built to notice what a viewer overlooks.

Next to the image it reads a fixed residual, as detectors of hidden messages do: what is left when the neighbourhood is
taken away, magnified. The first two convolutions keep the full resolution for the same reason. The mean over the image
catches faint, even traces such as noise; the maximum catches one broken stroke.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.networks.layers import HighPass, check_counts, check_images

__all__ = ["TwoSampleNet"]


def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


class TwoSampleNet(nn.Module):
    """Six 3x3 convolutions on an image and its residual, mean and maximum over the image, one logit.

    Images of any height and width go through the same weights; 72,000 parameters by default.

    Args:
        channels: channels of the images.
        width: channels of the first two convolutions; the later pairs have twice and four times as many.

    Raises:
        ConfigError: if a number cannot be.

    Source:
        Residuals, clipping and full resolution early: Ye, Ni, Yi 2017, doi:10.1109/TIFS.2017.2710946. Departs from it
        in: one residual filter, which is not trained, and a tenth of the depth.
    """

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        check_counts({"channels": channels, "width": width})
        self.channels, self.width = channels, width
        self.residual = HighPass(channels)
        self.body = nn.Sequential(
            _stage(2 * channels, width, 1),
            _stage(width, width, 1),
            _stage(width, 2 * width, 2),
            _stage(2 * width, 2 * width, 1),
            _stage(2 * width, 4 * width, 2),
            _stage(4 * width, 4 * width, 1),
        )
        self.logit = nn.Linear(2 * 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Give the logit (b,) of "from the first set" of images (b, channels, h, w) in [-1, 1]."""
        check_images(x, self.channels, 1)
        seen = torch.cat([x, self.residual(x)], 1).contiguous(memory_format=torch.channels_last)
        maps = self.body(seen)
        out: Tensor = self.logit(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1))
        return out[:, 0]
