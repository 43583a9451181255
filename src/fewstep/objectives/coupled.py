"""What a coupling of noise and data is, and the two that choose nothing; see couplings.py for all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Generator, Tensor

from fewstep._tensor import normal_like
from fewstep.data import Batch
from fewstep.denoisers import Cond
from fewstep.errors import LevelError
from fewstep.noise import NoiseLevel, Schedule, perturb

__all__ = ["Coupled", "Coupling", "Independent", "Leaky", "Pairing"]

Pairing: TypeAlias = Literal["none", "part", "full"]


class Coupled(NamedTuple):
    r"""Noise and what it is trained towards.

    Attributes:
        z: what the chain starts from, standard normal, shape (b, \*d); where `start` is given, samples at that level.
        target: what pointwise losses compare the sample of z with, shape (b, \*d), data units.
        cond: the conditions of z and of its target, batch first; the denoiser is told these.
        real: real samples under the same conditions, shape (b, \*d), for losses that compare distributions.
        start: the level of z, scalars, where it is not pure noise.
        tied: whether z may know more of `real` than its condition.
    """

    z: Tensor
    target: Tensor
    cond: Cond
    real: Tensor
    start: NoiseLevel | None = None
    tied: bool = True


class Coupling(Protocol):
    """A rule that ties noise to data."""

    @property
    def pairing(self) -> Pairing:
        """How far z says, beside the condition, which target it belongs to, so that pointwise losses do not blur."""
        ...

    @property
    def leaky(self) -> bool:
        """Whether the chain's start holds data, which no sampler has."""
        ...

    def __call__(self, batch: Batch, generator: Generator) -> Coupled:
        """Tie a batch to noise.

        Args:
            batch: data, on the device of the networks.
            generator: the step's own randomness, on the host.

        Returns:
            As many rows as the batch, on its device and in its dtype.
        """
        ...


@dataclass(frozen=True)
class Independent:
    """Fresh noise that knows nothing of the data: what sampling is, and the default."""

    pairing: ClassVar[Pairing] = "none"
    leaky: ClassVar[bool] = False

    def __call__(self, batch: Batch, generator: Generator) -> Coupled:
        """Standard normal noise beside every image."""
        return Coupled(normal_like(batch.x0, generator), batch.x0, batch.cond, batch.x0, tied=False)


@dataclass(frozen=True)
class Leaky:
    r"""Start at data with noise on them, as denoising training does: an ablation of what pure noise is for.

    .. math:: z' = \alpha x + \sigma \varepsilon

    The little of the data that is left in the start (brightness and colour, at the usual alpha of 0.068) is learned
    from, and missing when sampling begins at noise. More draws of a condition take another call.

    Args:
        schedule: gives the coordinates of the start.
        lam: where the chain starts, log(alpha / sigma), finite; a grid of that chain begins at `level`.

    Raises:
        LevelError: if lam is not finite or the schedule does not reach it.
    """

    schedule: Schedule
    lam: float
    pairing: ClassVar[Pairing] = "none"
    leaky: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.lam):
            raise LevelError(
                f"A leaky start at lam = {self.lam:g}",
                "It holds data and noise, so its lam is finite",
                "Use Independent for pure noise, or a lam such as -2.7, the usual end of Stable Diffusion",
            )
        self.schedule.level(self._time)

    @property
    def _time(self) -> Tensor:
        return self.schedule.t_of_lam(torch.tensor(self.lam, dtype=torch.float64))

    @property
    def level(self) -> NoiseLevel:
        """The level of the start, float64 scalars."""
        return self.schedule.level(self._time)

    def __call__(self, batch: Batch, generator: Generator) -> Coupled:
        """Put noise on every image."""
        x, start = batch.x0, self.level
        return Coupled(perturb(x, normal_like(x, generator), start), x, batch.cond, x, start)
