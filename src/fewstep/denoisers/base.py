"""What a denoiser is, and how its calls are counted.

Everything in fewstep meets as ``denoised``: the estimate of E[x0 | x] in data units. Solvers see nothing else.

Guidance may call a network twice for one denoised estimate, or not at all. So that samplers report network evaluations
as they *happened*, every leaf denoiser calls :func:`record_evaluation`, and the loop opens a :class:`Meter` around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from fewstep.noise import NoiseLevel

__all__ = ["Cond", "Denoiser", "Meter", "evaluate", "metered", "record_evaluation"]

Cond: TypeAlias = Mapping[str, Tensor] | None


class Denoiser(Protocol):
    """An estimate of the data behind a noisy sample."""

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """E[x0 | x] for x (b, *d) at a level () or (b,), with conditions whose first axis is the batch."""
        ...


@dataclass
class Meter:
    """Counts samples that went through a leaf denoiser."""

    samples: int = 0


_meter: ContextVar[Meter | None] = ContextVar("fewstep_meter", default=None)


@contextmanager
def metered() -> Iterator[Meter]:
    """Count all leaf evaluations inside the block; safe with threads and nested blocks."""
    meter = Meter()
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


def record_evaluation(x: Tensor) -> None:
    """Report that a leaf denoiser is about to evaluate the batch x (b, *d)."""
    _record(x.shape[0])


def evaluate(denoiser: Denoiser, x: Tensor, level: NoiseLevel, cond: Cond) -> Tensor:
    """Call a denoiser so that it is counted: where nothing below it reports, the call itself is the evaluation.

    Args:
        denoiser: any denoiser, also a plain function that knows of no meter.
        x: noisy samples, shape (b, *d).
        level: () or (b,).
        cond: conditions, batch first.

    Returns:
        What the denoiser returns.
    """
    with metered() as meter:
        denoised = denoiser(x, level, cond)
    _record(meter.samples or x.shape[0])
    return denoised


def _record(samples: int) -> None:
    meter = _meter.get()
    if meter is not None:
        meter.samples += samples
