r"""What a network's output means, in both directions.

A prediction says how the network wants its input, how its output becomes ``denoised``, and which target it is trained
on. With :math:`x = \alpha x_0 + \sigma\varepsilon` at a level of the network's own schedule:

=======  =============================================  ================================================
name     target                                         denoised
=======  =============================================  ================================================
eps      :math:`\varepsilon`                            :math:`(x - \sigma\, out) / \alpha`
x0       :math:`x_0`                                    :math:`out`
v        :math:`\alpha\varepsilon - \sigma x_0`         :math:`(\alpha x - \sigma\, out)/(\alpha^2+\sigma^2)`
flow     :math:`\varepsilon - x_0`                      :math:`(x - \sigma\, out)/(\alpha + \sigma)`
edm      :math:`(x_0 - c_{skip} x)/c_{out}`             :math:`c_{skip} x + c_{out}\, out`
=======  =============================================  ================================================

All are affine in the output, and all but eps are finite at both ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fewstep._tensor import expand
from fewstep.errors import ConfigError, LevelError
from fewstep.noise import NoiseLevel, perturb

__all__ = ["PREDICTIONS", "X0", "EDMPrecond", "Eps", "Flow", "Prediction", "V"]


class Prediction(Protocol):
    """The meaning of a network's output."""

    def to_input(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """Scale a noisy sample (b, *d) as the network wants it."""
        ...

    def to_denoised(self, out: Tensor, x: Tensor, level: NoiseLevel) -> Tensor:
        """Turn the output (b, *d) for x (b, *d) into denoised, data units."""
        ...

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        """The output that a perfect network would give for data x0 and noise eps."""
        ...


@dataclass(frozen=True)
class Eps:
    """The network predicts the noise.

    Source:
        Ho, Jain, Abbeel 2020, arXiv:2006.11239, Eq. 14. Departs from it in: nothing.
    """

    def to_input(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """Leave x as it is."""
        return x

    def to_denoised(self, out: Tensor, x: Tensor, level: NoiseLevel) -> Tensor:
        """Subtract the noise and divide by alpha; LevelError where alpha is 0."""
        if level.alpha.device.type == "cpu" and bool((level.alpha == 0).any()):
            raise LevelError(
                "An eps-prediction was asked for data at alpha = 0",
                "Pure noise holds no data: the noise in it is known, the data behind it is not",
                "Start the grid at a finite lam, or convert the network to x0-, v- or flow-prediction",
            )
        return (x - expand(level.sigma, x) * out) / expand(level.alpha, x)

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        """The noise."""
        return eps


@dataclass(frozen=True)
class X0:
    """The network predicts the data.

    Source:
        Salimans, Ho 2022, arXiv:2202.00512, Section 4. Departs from it in: nothing.
    """

    def to_input(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """Leave x as it is."""
        return x

    def to_denoised(self, out: Tensor, x: Tensor, level: NoiseLevel) -> Tensor:
        """Return the output."""
        return out

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        """The data."""
        return x0


@dataclass(frozen=True)
class V:
    """The network predicts the velocity ``v = alpha * eps - sigma * x0``.

    Source:
        Salimans, Ho 2022, arXiv:2202.00512, Appendix D. Departs from it in: alpha and sigma need not lie on a circle.
    """

    def to_input(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """Leave x as it is."""
        return x

    def to_denoised(self, out: Tensor, x: Tensor, level: NoiseLevel) -> Tensor:
        """Rotate back to the data."""
        norm = level.alpha**2 + level.sigma**2
        return expand(level.alpha / norm, x) * x - expand(level.sigma / norm, x) * out

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        """The velocity."""
        return expand(level.alpha, x0) * eps - expand(level.sigma, x0) * x0


@dataclass(frozen=True)
class Flow:
    """The network predicts ``flow = eps - x0``, the direction of a straight path.

    Source:
        Liu, Gong, Liu 2023, arXiv:2209.03003, Eq. 1. Departs from it in: sign, as t = 0 is clean here.
    """

    def to_input(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """Leave x as it is."""
        return x

    def to_denoised(self, out: Tensor, x: Tensor, level: NoiseLevel) -> Tensor:
        """Walk back along the path; valid for any alpha and sigma."""
        return (x - expand(level.sigma, x) * out) / expand(level.alpha + level.sigma, x)

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        """The direction from data to noise."""
        return eps - x0


@dataclass(frozen=True)
class EDMPrecond:
    r"""EDM's preconditioning: unit variance in, unit variance out.

    .. math::
        c_{in} = \frac{1}{\sqrt{\alpha^2 s^2 + \sigma^2}},\quad
        c_{skip} = \frac{\alpha s^2}{\alpha^2 s^2 + \sigma^2},\quad
        c_{out} = \frac{\sigma s}{\sqrt{\alpha^2 s^2 + \sigma^2}}

    Args:
        sigma_data: standard deviation s of the data, data units.

    Source:
        Karras et al. 2022, arXiv:2206.00364, Table 1. Departs from it in: written for any alpha (EDM has alpha = 1).
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ConfigError(
                f"sigma_data={self.sigma_data:g}", "It is the data's spread, above 0", "Use 0.5 for images in [-1, 1]"
            )

    def _variance(self, level: NoiseLevel) -> Tensor:
        return level.alpha**2 * self.sigma_data**2 + level.sigma**2

    def _skip_out(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        variance = self._variance(level)
        return level.alpha * self.sigma_data**2 / variance, level.sigma * self.sigma_data / variance.sqrt()

    def to_input(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """Scale x to unit variance."""
        return expand(self._variance(level).rsqrt(), x) * x

    def to_denoised(self, out: Tensor, x: Tensor, level: NoiseLevel) -> Tensor:
        """Add the scaled output to the scaled input."""
        skip, scale = self._skip_out(level)
        return expand(skip, x) * x + expand(scale, x) * out

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        """What is left of the data after the skip connection, at unit variance."""
        skip, scale = self._skip_out(level)
        return (x0 - expand(skip, x0) * perturb(x0, eps, level)) / expand(scale, x0)


PREDICTIONS: dict[str, type[Eps] | type[X0] | type[V] | type[Flow] | type[EDMPrecond]] = {
    "eps": Eps,
    "x0": X0,
    "v": V,
    "flow": Flow,
    "edm": EDMPrecond,
}
