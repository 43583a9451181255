"""What training minimises, told apart from how: an objective yields turns, the trainer takes the steps.

A *turn* is one optimiser step of one player. Plain denoising has one player and one turn per batch; an adversarial
objective has two players and yields a turn for each. Losses are lazy, so a later turn sees the networks as the earlier
turns left them. Objectives hold networks, never optimisers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor

from fewstep.data import Batch

__all__ = ["CRITIC", "GENERATOR", "Objective", "Turn"]

GENERATOR = "generator"  # the player whose moving average becomes the model
CRITIC = "critic"  # the player that learns to tell samples from data


def _nothing() -> Mapping[str, Tensor]:
    return {}


@dataclass(frozen=True)
class Turn:
    """One optimiser step of one player.

    Args:
        player: who steps: "generator", "critic"...
        loss: computes the scalar to minimise, and its named parts, detached scalars, for the log.
        after: more parts, which exist only once the gradient of the loss does; called between the backward pass and
            the optimiser's step.
    """

    player: str
    loss: Callable[[], tuple[Tensor, Mapping[str, Tensor]]]
    after: Callable[[], Mapping[str, Tensor]] = _nothing


class Objective(Protocol):
    """What is minimised."""

    def turns(self, batch: Batch, step: int, generator: Generator) -> Iterator[Turn]:
        """Yield the turns of one training step.

        Args:
            batch: data, on the device of the networks.
            step: steps done so far.
            generator: the step's own randomness, on the host.

        Returns:
            The turns, in order.
        """
        ...
