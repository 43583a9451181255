r"""Ordinary denoising training, also known as denoising score matching.

.. math:: \min_\theta \; \mathbb E_{x_0, \varepsilon, t} \; w(t) \,
          | F_\theta(\alpha_t x_0 + \sigma_t \varepsilon) - target(x_0, \varepsilon, t) |^2

Its minimum is the posterior mean: with a perfect network the loss is not zero but the variance of the target given x.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from fewstep._tensor import normal_like
from fewstep.data import Batch
from fewstep.denoisers import NetworkDenoiser
from fewstep.errors import ConfigError
from fewstep.losses import Plain, Weight
from fewstep.noise import Draw, UniformDraw, perturb, stratified
from fewstep.objectives.base import GENERATOR, Turn

__all__ = ["Denoising"]


@dataclass(frozen=True)
class Denoising:
    """Weighted squared error of the network's output at random noise levels.

    Args:
        denoiser: network, prediction and schedule.
        draw: density of the training times.
        weight: weight of each noise level.
        null: the condition that says nothing, one row (1, *s) for each entry that the network is told; empty trains
            without a condition.
        class_dropout: probability of replacing a sample's condition by `null`, which guidance needs; in [0, 1].

    Raises:
        ConfigError: if the dropout is no probability.

    Source:
        Ho, Jain, Abbeel 2020, arXiv:2006.11239, Eq. 14; dropout of the condition: Ho, Salimans 2022, arXiv:2207.12598.
        Departs from it in: any prediction, schedule, density of times and weight; times are stratified over the batch.
    """

    denoiser: NetworkDenoiser
    draw: Draw = UniformDraw()
    weight: Weight = Plain()
    null: Mapping[str, Tensor] = field(default_factory=dict)
    class_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.class_dropout <= 1:
            raise ConfigError(
                f"class_dropout={self.class_dropout:g}", "A probability lies between 0 and 1", "Use 0.1, or 0 for none"
            )

    def turns(self, batch: Batch, step: int, generator: Generator) -> Iterator[Turn]:
        """Yield the one turn of the generator."""
        yield Turn(GENERATOR, lambda: self._loss(batch, generator))

    def _loss(self, batch: Batch, generator: Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss = self.per_sample(batch, generator).mean()
        return loss, {"loss": loss.detach()}

    def per_sample(self, batch: Batch, generator: Generator) -> Tensor:
        """Compute the loss of each sample of a batch.

        Args:
            batch: data on the network's device.
            generator: randomness of times, noise and dropout, on the host.

        Returns:
            Shape (b,): the mean over an image's pixels of the weighted squared error.
        """
        schedule, prediction = self.denoiser.schedule, self.denoiser.prediction
        level = schedule.level(self.draw(schedule, stratified(len(batch), generator)))
        eps = normal_like(batch.x0, generator)
        cond = self._condition(batch, generator)
        out = self.denoiser.predict(perturb(batch.x0, eps, level), level, cond)
        error = (out - prediction.target(batch.x0, eps, level)) ** 2
        return self.weight(prediction, level).to(error) * error.flatten(1).mean(dim=1)

    def _condition(self, batch: Batch, generator: Generator) -> Mapping[str, Tensor] | None:
        if not self.null or batch.cond is None:
            return None
        dropped = torch.rand(len(batch), generator=generator) < self.class_dropout
        return {name: _replaced(batch.cond[name], dropped, row) for name, row in self.null.items()}


def _replaced(values: Tensor, chosen: Tensor, row: Tensor) -> Tensor:
    """Put a row (1, *s) in the place of the chosen (b,) rows of values (b, *s)."""
    return torch.where(chosen.to(values.device).reshape(-1, *[1] * (values.ndim - 1)), row.to(values), values)
