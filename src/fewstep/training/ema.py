r"""The moving average of a network's weights, which is what gets sampled.

.. math:: \bar\theta \leftarrow d_n \bar\theta + (1 - d_n)\,\theta, \qquad d_n = \min\bigl(d, \tfrac{1+n}{10+n}\bigr)

The warm-up d_n forgets the random start quickly: after n updates the average spans about the last tenth of them.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from fewstep.errors import ConfigError

__all__ = ["Ema"]


class Ema:
    """A second network that follows the first one.

    Args:
        network: the network to follow; its present weights are the start.
        decay: d, at least 0 and below 1.

    Attributes:
        module: the averaged network, without gradients; buffers are copied, not averaged.

    Raises:
        ConfigError: if the decay is outside [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"An EMA decay of {decay:g}", "The decay is at least 0 and below 1", "Use 0.9993, or 0")
        self.decay = decay
        self.module = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, network: nn.Module, n: int) -> None:
        """Move towards the network's weights, after n earlier updates."""
        decay = min(self.decay, (1 + n) / (10 + n))
        averages = dict(self.module.named_parameters())
        for name, parameter in network.named_parameters():
            averages[name].lerp_(parameter, 1 - decay)
        buffers = dict(self.module.named_buffers())
        for name, buffer in network.named_buffers():
            buffers[name].copy_(buffer)
