r"""Straight paths: rectified flow, and the same path on the clock of another resolution.

The path is :math:`x = (1 - \tau) x_0 + \tau \varepsilon`. ``LinearFlow`` reads tau itself; ``ShiftedFlow`` reads a
clock on which every level has ``shift`` times the kappa that it has there. So equal steps of a shifted clock spend more
of their calls on noise, which is what large images need. A shift moves levels along the path and not the path: a
network that was trained on one of them can be sampled on grids of the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import ConfigError
from fewstep.noise.level import NoiseLevel
from fewstep.noise.schedules import check_limits, inside, lam_range_of

__all__ = ["LinearFlow", "ShiftedFlow"]


@dataclass(frozen=True)
class LinearFlow:
    r"""The straight path of rectified flow, :math:`\alpha = 1 - t`, :math:`\sigma = t`; pure noise at t = 1.

    Args:
        t_min: clean limit of the clock.

    Source:
        Liu, Gong, Liu 2023, arXiv:2209.03003, Eq. 1. Departs from it in: the clock; here t = 0 is clean.
    """

    t_min: float = 1e-3

    def __post_init__(self) -> None:
        check_limits(self, self.t_min, 1.0)

    def level(self, t: Tensor) -> NoiseLevel:
        """Level with ``alpha = 1 - t`` and ``sigma = t``."""
        t = inside(t, self)
        return NoiseLevel(1 - t, t)

    def t_of_lam(self, lam: Tensor) -> Tensor:
        """Time ``sigmoid(-lam)``."""
        return torch.sigmoid(-lam)

    def t_range(self) -> tuple[float, float]:
        """The interval ``(t_min, 1)``."""
        return self.t_min, 1.0

    def lam_range(self) -> tuple[float, float]:
        """Minus infinity, and lam at t_min."""
        return lam_range_of(self)


@dataclass(frozen=True)
class ShiftedFlow:
    r"""The straight path on a shifted clock: kappa is `shift` times that of :class:`LinearFlow` at the same time.

    .. math:: \sigma_t = 1 - \alpha_t = \frac{s t}{1 + (s - 1) t}, \quad \kappa_t = s \frac{t}{1 - t}

    The shift is in the clock once, and no grid applies it again.

    Args:
        shift: the factor s; 1 is LinearFlow, 3 is Stable Diffusion 3 at 1024 x 1024.
        t_min: clean limit of the clock.

    Source:
        Esser et al. 2024, arXiv:2403.03206, Eq. 23. Departs from it in: nothing.
    """

    shift: float = 3.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        check_limits(self, self.t_min, 1.0)
        if not 0 < self.shift < math.inf:
            raise ConfigError(
                f"A shift of {self.shift:g}",
                "It multiplies the noise: above 0 and finite",
                "Use 3, or 1 for no shift; a mu of diffusers is its logarithm",
            )

    @classmethod
    def of_tokens(
        cls,
        image_seq_len: int,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
    ) -> ShiftedFlow:
        r"""Shift by the number of tokens, as Flux does: :math:`s = e^\mu`, mu on a line.

        .. math:: \mu = \mu_0 + (\mu_1 - \mu_0) \frac{n - n_0}{n_1 - n_0}

        Args:
            image_seq_len: tokens n of the image; for Flux a token is 16 x 16 pixels.
            base_shift: mu at `base_image_seq_len`.
            max_shift: mu at `max_image_seq_len`.
            base_image_seq_len: tokens of the smaller image.
            max_image_seq_len: tokens of the larger image.

        Returns:
            Schedule with that shift.

        Raises:
            ConfigError: if a number of tokens is below 1, or the two ends of the line are one.

        Source:
            ``calculate_shift`` of diffusers' Flux pipeline, after Black Forest Labs' sampling code. Departs from it in:
            nothing.
        """
        counts = image_seq_len, base_image_seq_len, max_image_seq_len
        if not min(counts) >= 1 or base_image_seq_len == max_image_seq_len:
            raise ConfigError(
                f"An image of {image_seq_len} tokens between {base_image_seq_len} and {max_image_seq_len}",
                "One token or more, and two different ends",
                "Give the number of tokens, 4096 for 1024 x 1024 pixels of Flux",
            )
        slope = (max_shift - base_shift) / (max_image_seq_len - base_image_seq_len)
        return cls(math.exp(base_shift + slope * (image_seq_len - base_image_seq_len)))

    @classmethod
    def of_pixels(cls, pixels: int, base_pixels: int) -> ShiftedFlow:
        r"""Shift a schedule of one resolution to another, :math:`s = \sqrt{m / n}`: equally uncertain images.

        Args:
            pixels: m, of the images to be sampled.
            base_pixels: n, of the images for which no shift is right.

        Returns:
            Schedule with that shift.

        Raises:
            ConfigError: if there are no pixels.

        Source:
            Esser et al. 2024, arXiv:2403.03206, Section 5.3.2. Departs from it in: nothing.
        """
        if not (pixels > 0 and base_pixels > 0):
            raise ConfigError(
                f"A shift from {base_pixels} to {pixels} pixels", "Both have pixels", "Give height times width"
            )
        return cls(math.sqrt(pixels / base_pixels))

    def level(self, t: Tensor) -> NoiseLevel:
        """Level on the straight path at the shifted time."""
        t = inside(t, self)
        # Not 1 + (s - 1) t: this sum is s exactly at t = 1, so that pure noise is (0, 1) for every shift.
        size = (1 - t) + self.shift * t
        return NoiseLevel((1 - t) / size, self.shift * t / size)

    def t_of_lam(self, lam: Tensor) -> Tensor:
        """Time ``sigmoid(-lam - log shift)``."""
        return torch.sigmoid(-lam - math.log(self.shift))

    def t_range(self) -> tuple[float, float]:
        """The interval ``(t_min, 1)``."""
        return self.t_min, 1.0

    def lam_range(self) -> tuple[float, float]:
        """Minus infinity, and lam at t_min."""
        return lam_range_of(self)
