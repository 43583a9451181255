"""Rewards: anything differentiable that says how good an image is, raised through the chain of sampling steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from fewstep.denoisers import Cond
from fewstep.errors import ShapeError
from fewstep.losses.base import Outcome, Role, check_draws, precise

__all__ = ["Reward"]


@dataclass(frozen=True)
class Reward:
    """Minus the mean reward of all draws.

    It knows nothing of the data: with too large a weight, or alone, samples become whatever is rewarded most.

    Args:
        function: rewards (n,) of images (n, *d) and their conditions, larger is better, differentiable in the images.

    Raises:
        ShapeError: when called, if the function does not return one reward for each image.

    Source:
        Clark, Vicol, Swersky, Fleet 2024, arXiv:2309.17400. Departs from it in: nothing; how far gradients go
        back (DRaFT-K) is the chain's business.
    """

    function: Callable[[Tensor, Cond], Tensor]
    draws: ClassVar[int] = 1
    role: ClassVar[Role] = "reward"

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        """Average over draws and conditions, and negate."""
        check_draws(outcome, 1, "Reward")
        images, cond = outcome.flat()
        rewards = self.function(images, cond)
        if rewards.shape != images.shape[:1]:
            raise ShapeError(
                f"Rewards of shape {tuple(rewards.shape)} for {len(images)} images",
                "One reward for each image, shape (n,)",
                "Let the function reduce over the numbers of an image, not over the batch",
            )
        return -precise(rewards).mean()
