"""How to differentiate through the sampling loop: an argument, not a property of the loop.

========================  ==================================  =====================================
policy                    gradient                            memory (steps T, one step's graph A)
========================  ==================================  =====================================
``NoGrad()``              none                                one call without its graph
``Full()``                exact                               T * A
``Checkpointed(every)``   exact, recomputed                   every * A, T / every solver states
``LastSteps(k)``          of the last k steps only            k * A
========================  ==================================  =====================================

On top of that, the loop keeps the T + 1 samples of ``Sample.trajectory`` under every policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewstep.errors import ConfigError

__all__ = ["Body", "Checkpointed", "Full", "LastSteps", "NoGrad", "Unroll"]

Body: TypeAlias = Callable[[Tensor, int, Any], tuple[Tensor, Any]]


class Unroll(Protocol):
    """A way to run the steps of a sampler."""

    def run(self, body: Body, x: Tensor, state: Any, steps: int) -> tuple[Tensor, Any]:
        """Run body for steps 0 .. steps - 1 from (x, state); returns the last (x, state)."""
        ...


def _positive(value: int, name: str, policy: str) -> None:
    if value < 1:
        raise ConfigError(f"{policy}({name}={value})", f"{name} is 1 or more", f"Use {policy}({name}=1)")


def _walk(body: Body, x: Tensor, state: Any, first: int, last: int) -> tuple[Tensor, Any]:
    for i in range(first, last):
        x, state = body(x, i, state)
    return x, state


@dataclass(frozen=True)
class NoGrad:
    """Sample only: no graph is kept."""

    def run(self, body: Body, x: Tensor, state: Any, steps: int) -> tuple[Tensor, Any]:
        """Run all steps without gradient."""
        with torch.no_grad():
            return _walk(body, x, state, 0, steps)


@dataclass(frozen=True)
class Full:
    """Keep the graph of every step."""

    def run(self, body: Body, x: Tensor, state: Any, steps: int) -> tuple[Tensor, Any]:
        """Run all steps with gradient."""
        return _walk(body, x, state, 0, steps)


@dataclass(frozen=True)
class Checkpointed:
    """Keep only the state between segments and recompute inside them: the gradient of Full, less memory.

    Args:
        every: steps in a segment.

    Source:
        Chen et al. 2016, arXiv:1604.06174. Departs from it in: nothing; torch.utils.checkpoint does the work.
    """

    every: int = 1

    def __post_init__(self) -> None:
        _positive(self.every, "every", "Checkpointed")

    def run(self, body: Body, x: Tensor, state: Any, steps: int) -> tuple[Tensor, Any]:
        """Run all steps with gradient, one checkpoint a segment."""
        for first in range(0, steps, self.every):
            last = min(first + self.every, steps)
            x, state = checkpoint(_walk, body, x, state, first, last, use_reentrant=False)
        return x, state


@dataclass(frozen=True)
class LastSteps:
    """Differentiate the last k steps; the steps before them are treated as constants.

    Args:
        k: steps with gradient.

    Source:
        Clark et al. 2024, arXiv:2309.17400, Section 4.2 (DRaFT-K). Departs from it in: nothing.
    """

    k: int = 1

    def __post_init__(self) -> None:
        _positive(self.k, "k", "LastSteps")

    def run(self, body: Body, x: Tensor, state: Any, steps: int) -> tuple[Tensor, Any]:
        """Run all steps, the last k with gradient."""
        first = max(steps - self.k, 0)
        if first > 0:
            with torch.no_grad():
                # Detached: a rule may keep the very first sample, and no gradient may pass the head through it.
                x, state = _walk(body, x.detach(), state, 0, first)
        # With fewer steps than k nothing ran above, and x keeps its graph: then LastSteps is Full.
        return _walk(body, x, state, first, steps)
