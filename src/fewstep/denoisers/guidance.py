r"""Guidance: a denoiser around denoisers.

Guidance makes two estimates of the data, one to go to and one to go away from, and takes a step beyond the first:

.. math:: D = D_- + w\,(D_+ - D_-)

`w = 1` is no guidance and costs one evaluation. What the two estimates are is the whole difference: with the condition
and without it (:class:`ClassifierFree`), by a good model and by a worse one (:class:`AutoGuidance`). Either can be
brought back to the contrast of :math:`D_+` (:class:`Rescaled`), and kept to the levels where it helps (`Interval`). All
are frozen rules and compose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fewstep._tensor import expand
from fewstep.denoisers.base import Cond, Denoiser, evaluate
from fewstep.errors import ConfigError, ShapeError
from fewstep.noise import NoiseLevel

__all__ = ["AutoGuidance", "ClassifierFree", "Guidance", "Guided", "Rescaled"]


class Guided(NamedTuple):
    """What guidance makes of a sample, and what it began from.

    Attributes:
        denoised: the guided estimate, shape (b, *d), data units.
        plain: the estimate it goes to, the one without guidance, same shape.
    """

    denoised: Tensor
    plain: Tensor


class Guidance(Denoiser, Protocol):
    """A denoiser that can say what its estimate was before it was guided, at no further cost."""

    def estimates(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Guided:
        """Make the guided and the plain estimate at a level () or (b,)."""
        ...


@dataclass(frozen=True)
class ClassifierFree:
    r"""Push the estimate away from the unconditional one.

    .. math:: D = D_\emptyset + w\,(D_c - D_\emptyset)

    `w = 1` is no guidance and costs one network evaluation; any other scale costs two, made as one batch of 2b.

    Args:
        denoiser: the conditional denoiser.
        scale: w, no unit.
        uncond: the condition that stands for "nothing", one row (1, *s) per entry of cond; entries that are not
            named here stay as they are.

    Raises:
        ConfigError: if the scale is not finite.

    Source:
        Ho, Salimans 2022, arXiv:2207.12598, Eq. 6. Departs from it in: the scale; here w = 1 means none.
    """

    denoiser: Denoiser
    scale: float
    uncond: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Guided denoised estimate, shape and dtype of x.

        Args:
            x: noisy samples, shape (b, *d).
            level: () or (b,).
            cond: conditions, batch first; must hold every entry of `uncond`.

        Returns:
            Denoised, shape and dtype of x, data units.

        Raises:
            ConfigError: if a condition that `uncond` replaces is missing.
            ShapeError: if a row of `uncond` does not fit its condition.
        """
        return self.estimates(x, level, cond).denoised

    def estimates(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Guided:
        """Make the guided and the conditional estimate; arguments and errors are those of a call."""
        cond = self._complete(cond)
        if self.scale == 1:
            return _unguided(evaluate(self.denoiser, x, level, cond))
        both = {name: torch.cat([value, self._null(name, value)]) for name, value in cond.items()}
        doubled = NoiseLevel(*(part if part.ndim == 0 else part.repeat(2) for part in level))
        given, nothing = evaluate(self.denoiser, torch.cat([x, x]), doubled, both).chunk(2)
        return Guided(_beyond(given, nothing, self.scale), given)

    def _complete(self, cond: Cond) -> Mapping[str, Tensor]:
        missing = sorted(set(self.uncond) - set(cond or {}))
        if cond is None or missing:
            raise ConfigError(
                f"Guidance without the condition {', '.join(missing)}",
                "Guidance compares a condition with none, so it needs the condition",
                "Pass cond= to sample, or sample without guidance",
            )
        return cond

    def _null(self, name: str, value: Tensor) -> Tensor:
        if name not in self.uncond:
            return value
        row = self.uncond[name].to(value)
        if row.shape != (1, *value.shape[1:]):
            raise ShapeError(
                f"uncond[{name!r}] of shape {tuple(row.shape)} for a condition of shape {tuple(value.shape)}",
                f"One row of the condition: {(1, *value.shape[1:])}",
                "Add or drop axes of the unconditional row",
            )
        return row.expand_as(value)


@dataclass(frozen=True)
class AutoGuidance:
    r"""Push the estimate away from that of a worse version of the model.

    .. math:: D = D_- + w\,(D_+ - D_-)

    The worse model makes the errors of the good one, only larger: it is smaller, or was trained for a shorter time, on
    the same data and conditions. Both are called with the same condition, and both are counted. `w = 1` calls the
    good model alone.

    Args:
        denoiser: the good model.
        worse: the worse one.
        scale: w, no unit.

    Raises:
        ConfigError: if the scale is not finite.

    Source:
        Karras et al. 2024, arXiv:2406.02507, Eq. 3 and Section 4. Departs from it in: nothing.
    """

    denoiser: Denoiser
    worse: Denoiser
    scale: float

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Guided denoised estimate, shape and dtype of x (b, *d), at a level () or (b,)."""
        return self.estimates(x, level, cond).denoised

    def estimates(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Guided:
        """Make the guided estimate and that of the good model, at a level () or (b,)."""
        good = evaluate(self.denoiser, x, level, cond)
        if self.scale == 1:
            return _unguided(good)
        return Guided(_beyond(good, evaluate(self.worse, x, level, cond), self.scale), good)


@dataclass(frozen=True)
class Rescaled:
    r"""Bring a guided estimate back to the contrast of the plain one.

    .. math:: D' = \phi\,\frac{\mathrm{std}(D_+)}{\mathrm{std}(D)} D + (1 - \phi)\, D

    with one standard deviation per sample, over all its numbers. Guidance widens the range of an estimate and burns
    out its bright parts; this takes the widening back. It calls nothing beyond the guidance it is put around. An
    estimate without contrast, one number repeated, has none to bring back and stays as it is.

    Args:
        guidance: the rule that is rescaled.
        mix: :math:`\phi`, 0 to 1, no unit; 0 is the guidance as it was.

    Raises:
        ConfigError: if the mix is not in [0, 1], or what it goes around is no guidance.

    Source:
        Lin et al. 2023, arXiv:2305.08891, Eq. 14 to 16. Departs from it in: the estimates are denoised ones, where
        the paper's are outputs of a v-predicting network. At pure noise, v = -x0, both are the same.
    """

    guidance: Guidance
    mix: float = 0.7

    def __post_init__(self) -> None:
        if not hasattr(self.guidance, "estimates"):
            raise ConfigError(
                f"Rescaled around a {type(self.guidance).__name__}",
                "It goes around a guidance that has a guided and a plain estimate: ClassifierFree or AutoGuidance",
                "Put it inside of Interval, DynamicThresholding and inpaint, not around them",
            )
        if not 0 <= self.mix <= 1:
            raise ConfigError(
                f"Rescaled guidance with mix={self.mix:g}",
                "The share of the rescaled estimate is 0 to 1",
                "Use 0.7, the choice of the paper",
            )

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Guided and rescaled estimate, shape and dtype of x (b, *d), at a level () or (b,)."""
        denoised, plain = self.guidance.estimates(x, level, cond)
        ratio = _spread_ratio(plain, denoised)
        return expand((1 + self.mix * (ratio - 1)).to(x.dtype), x) * denoised


def _check_scale(scale: float) -> None:
    if not math.isfinite(scale):
        raise ConfigError(f"Guidance of scale {scale:g}", "A scale is a finite number; 1 is no guidance", "Use 1 to 10")


def _unguided(plain: Tensor) -> Guided:
    return Guided(plain, plain)


def _beyond(good: Tensor, bad: Tensor, scale: float) -> Tensor:
    return bad + scale * (good - bad)


def _spread_ratio(plain: Tensor, denoised: Tensor) -> Tensor:
    """Quotient of the standard deviations per sample, (b,); 1 where the bottom is 0. Its gradient is finite."""
    top, bottom = _variance(plain), _variance(denoised)
    both = (top > 0) & (bottom > 0)
    # A root has no gradient at 0.
    ratio = (torch.where(both, top, 1.0) / torch.where(both, bottom, 1.0)).sqrt()
    return torch.where((top > 0) | (bottom == 0), ratio, 0.0)


def _variance(x: Tensor) -> Tensor:
    """Variance of the numbers of each sample, (b,), in at least float32; 0 where they differ by their rounding only."""
    flat = x.reshape(x.shape[0], -1).to(torch.promote_types(x.dtype, torch.float32))
    variance = flat.var(1, correction=0)
    rounding = (16 * torch.finfo(x.dtype).eps) ** 2 * flat.square().mean(1)
    return torch.where(variance > rounding, variance, 0.0)
