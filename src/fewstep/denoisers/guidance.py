"""Guidance: a denoiser around a denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoisers.base import Cond, Denoiser, evaluate
from fewstep.errors import ConfigError, ShapeError
from fewstep.noise import NoiseLevel

__all__ = ["ClassifierFree"]


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

    Source:
        Ho, Salimans 2022, arXiv:2207.12598, Eq. 6. Departs from it in: the scale; here w = 1 means none.
    """

    denoiser: Denoiser
    scale: float
    uncond: Mapping[str, Tensor]

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
        cond = self._complete(cond)
        if self.scale == 1:
            return self.denoiser(x, level, cond)
        both = {name: torch.cat([value, self._null(name, value)]) for name, value in cond.items()}
        doubled = NoiseLevel(*(part if part.ndim == 0 else part.repeat(2) for part in level))
        given, nothing = evaluate(self.denoiser, torch.cat([x, x]), doubled, both).chunk(2)
        return nothing + self.scale * (given - nothing)

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
