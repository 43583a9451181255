r"""Editing: begin at an image instead of at noise, and keep the known part of one.

Both fit the one loop and add no other. :func:`start_from` cuts the grid and makes the sample that the rest of it
begins with. :func:`inpaint` is a denoiser around a denoiser: with k = 1 where the image is known,

.. math:: D' = k\, x_0 + (1 - k)\, D(x) ,

and a known number is a constant estimate, which every consistent solver carries along a straight line: begun at
:math:`\alpha x_0 + \sigma\varepsilon`, it is at the image noised by the same :math:`\varepsilon` at every level, and at
the image itself where sigma = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoisers import Cond, Denoiser, evaluate
from fewstep.errors import ConfigError, DtypeError, ShapeError
from fewstep.noise import Grid, NoiseLevel, perturb
from fewstep.sampling.noise import START
from fewstep.solvers import NoiseSource

__all__ = ["Start", "inpaint", "start_from"]


class Start(NamedTuple):
    """Where a run begins that does not begin at noise.

    Attributes:
        x: samples at the first level of the grid, shape (b, *d).
        grid: the levels that are left; ``grid.steps`` says how many steps.
    """

    x: Tensor
    grid: Grid


def start_from(image: Tensor, strength: float, grid: Grid, noise: NoiseSource) -> Start:
    r"""Bring an image to a level of a grid, for the steps from there on to change it: img2img.

    .. math:: x = \alpha_k x_0 + \sigma_k \varepsilon, \qquad N - k = \lfloor \text{strength} \cdot N \rfloor

    with N steps in the grid. The more steps are left, the less of the image is. Strength 1 is the whole grid; where
    that begins at pure noise, nothing of the image is left but its shape.

    Args:
        image: data, shape (b, *d), data units (images in [-1, 1]); differentiable.
        strength: share of the steps to make, above 0 and at most 1; no unit.
        grid: the levels of a whole run.
        noise: source of the noise, such as SeededNoise; the draw is that of START.

    Returns:
        Start(x, grid), the x and the grid that `sample` takes.

    Raises:
        ConfigError: if the strength is not in (0, 1], or leaves no step.
        DtypeError: if the image is not floating point.

    Source:
        Meng et al. 2022, arXiv:2108.01073, Algorithm 1. Departs from it in: the level is given by the share of the
        steps, as in diffusers; 0.29 of 100 steps is 29, where int(0.29 * 100) is 28.
    """
    if not image.is_floating_point():
        raise DtypeError(f"An image of dtype {image.dtype}", "Images are floats in [-1, 1]", "Call to_unit(image)")
    left = _steps_left(strength, grid.steps)
    first = grid.steps - left
    rest = Grid(NoiseLevel(grid.levels.alpha[first:], grid.levels.sigma[first:]), grid.t[first:])
    return Start(perturb(image, noise(START, image), rest.at(0)), rest)


def _steps_left(strength: float, steps: int) -> int:
    if not 0 < strength <= 1:
        raise ConfigError(
            f"A strength of {strength:g}",
            "The share of the steps that change the image is above 0 and at most 1",
            "Use 0.3 for small changes, 0.8 for large ones",
        )
    left = math.floor(strength * steps + 1e-9)
    if left == 0:
        raise ConfigError(
            f"A strength of {strength:g} on a grid of {steps} step{'s' * (steps > 1)}",
            f"{strength:g} * {steps} is less than one step, which would leave the image as it is",
            f"Use a strength of at least {_rounded_up(1 / steps)}, or a grid of {math.ceil(1 / strength)} steps",
        )
    return left


def _rounded_up(number: float) -> str:
    """Three digits that are not below the number."""
    return f"{math.ceil(number * 1000 - 1e-9) / 1000:g}"


def inpaint(denoiser: Denoiser, image: Tensor, known: Tensor) -> Denoiser:
    r"""Keep the known part of an image and let an ordinary model paint the rest.

    .. math:: D' = k\, x_0 + (1 - k)\, D(x)

    Costs no evaluation beyond the denoiser's. Where k = 1, samples at sigma = 0 are the image, bit for bit, or to
    rounding in rules that weigh several estimates in the last step (iPNDM, DEIS); where k = 0, they depend on the image
    only as far as the denoiser looks there. Begin with ``start_from(image, 1.0, grid, noise)``
    and the known part is the noised image at every level, as the model was trained to see it.

    The painted part is plausible, but no draw from the exact conditional distribution: early steps choose it while the
    known part is still drowned in noise, and nothing takes that back. Fresh noise does: with a solver that churns, such
    as ``Heun(Churn(400))``, and hundreds of steps, the law of what is painted tends to the exact one.

    Args:
        denoiser: the whole one: guidance goes inside, inpainting around it.
        image: data, shape (b, *d); any finite numbers where nothing is known.
        known: k, the mask: 1 or True where the image is kept, 0 where it is painted, anything between for a soft edge.
            Shape (b, 1, h, w), (1, 1, h, w) or the like: the axes of the image, each of its length or 1; or (h, w),
            one mask for all.

    Returns:
        A denoiser for samples of the image's shape.

    Raises:
        ShapeError: if the mask has another shape, or, when called, samples do not have the image's.
        DtypeError: if image or mask are of a dtype without meaning.
        ConfigError: if the mask has numbers outside [0, 1].

    Source:
        Lugmayr et al. 2022, arXiv:2201.09865, Eq. 8. Departs from it in: the known part is noised by one draw for all
        levels, as in diffusers, so that deterministic solvers stay so; churn stands for the resampling of Section 4.2.
    """
    if not image.is_floating_point():
        raise DtypeError(f"An image of dtype {image.dtype}", "Images are floats in [-1, 1]", "Call to_unit(image)")
    return _Inpainted(denoiser, image, _mask(known, image))


@dataclass(frozen=True)
class _Inpainted:
    """A denoiser that knows part of the answer."""

    denoiser: Denoiser
    image: Tensor
    known: Tensor

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Denoised estimate with the image where it is known, shape and dtype of x; ShapeError if x does not fit."""
        if x.shape != self.image.shape:
            raise ShapeError(
                f"Samples of shape {tuple(x.shape)} for an image of shape {tuple(self.image.shape)} to inpaint",
                "One image for each sample",
                "Expand the image over the batch; put inpaint around guidance, which doubles the batch, not inside",
            )
        known, image = self.known.to(x), self.image.to(x)
        return known * image + (1 - known) * evaluate(self.denoiser, x, level, cond)


def _mask(known: Tensor, image: Tensor) -> Tensor:
    """The mask as floats with the axes of the image; refuses what only broadcasting by chance would fit."""
    whole, plane = image.shape, image.shape[2:]
    per_axis = known.ndim == image.ndim and all(k in (1, n) for k, n in zip(known.shape, whole, strict=True))
    if not per_axis and not (plane and known.shape == plane):
        raise ShapeError(
            f"A mask of shape {tuple(known.shape)} for an image of shape {tuple(whole)}",
            f"The axes of the image, each of its length or 1{f'; or {tuple(plane)}' if plane else ''}",
            "Add the missing axes, or scale the mask to the image",
        )
    if not known.is_floating_point() and known.dtype != torch.bool:
        raise DtypeError(
            f"A mask of dtype {known.dtype}",
            "True or 1.0 where the image is kept, False or 0.0 where it is painted",
            "Call mask.bool(), or mask / 255 for a picture",
        )
    mask = known.to(image)
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ConfigError(
            f"A mask with numbers from {mask.min().item():.4g} to {mask.max().item():.4g}",
            "0 is painted, 1 is kept, numbers between are soft edges",
            "Divide the mask by its maximum, or compare it with a threshold",
        )
    return mask
