r"""Drawing scenes: the edges of shapes as signed distances, one pixel wide, rounded to 8 bits.

.. math:: I = b + \sum_i c_i\,(k_i - b), \qquad c_i = \mathrm{clip}(\tfrac12 - d_i, 0, 1)

with the background :math:`b`, the things' colours :math:`k_i` and the distances :math:`d_i` of a pixel's middle from
their edges, in pixels, negative inside. Coordinates x (to the right) and y (downwards) are fractions of the frame.
Every operation is elementwise and exactly rounded, so an image does not depend on the batch that it is drawn in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.data.scene_captions import SHAPES

__all__ = ["AREAS", "CENTROIDS", "Drawing", "coverage", "render"]

# All of a shape of radius r lies within r of its centre, in x and in y.
_SQUARE = 0.85  # half a side
_ARM = 0.36  # half the width of a cross's arms
_SLOPE = math.sqrt(1 / 5)  # a triangle of width 2 and height 2: its sides go up 2 for every 1 they go in
_DIAGONAL = math.sqrt(1 / 2)

# Of a shape of radius 1: its area, and how far its centre of mass lies below its centre.
AREAS = torch.tensor([torch.pi, 4 * _SQUARE**2, 2.0, 2.0, 8 * _ARM - 4 * _ARM**2], dtype=torch.float64)
CENTROIDS = torch.tensor([0.0, 0.0, 1 / 3, 0.0, 0.0], dtype=torch.float64)


class Drawing(NamedTuple):
    """What is drawn; colours and grey in 8-bit units, not rounded.

    Attributes:
        shape: index in SHAPES, int64, shape (b, things); -1 for a thing that is not there.
        centre: x and y, shape (b, things, 2).
        radius: shape (b, things).
        colour: RGB, shape (b, things, 3).
        background: grey, shape (b,).
    """

    shape: Tensor
    centre: Tensor
    radius: Tensor
    colour: Tensor
    background: Tensor


def _circle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    distance: Tensor = (x * x + y * y).sqrt() - r
    return distance


def _box(x: Tensor, y: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def _square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return _box(x, y, _SQUARE * r, _SQUARE * r)


def _triangle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.maximum((2 * x.abs() - y - r) * _SLOPE, y - r)


def _diamond(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return (x.abs() + y.abs() - r) * _DIAGONAL


def _cross(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, r, _ARM * r), _box(x, y, _ARM * r, r))


_DISTANCES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": _cross,
}


def coverage(shape: Tensor, centre: Tensor, radius: Tensor, height: int, width: int) -> Tensor:
    """How much of each pixel a thing covers; the middle of the first pixel is at (0.5, 0.5).

    Args:
        shape: index in SHAPES, int64, shape (n,); -1 covers nothing.
        centre: x and y in pixels, shape (n, 2).
        radius: in pixels, shape (n,).
        height: pixels.
        width: pixels.

    Returns:
        Shape (n, height, width), from 0 to 1, dtype of the centre.
    """
    x = torch.arange(width, dtype=centre.dtype, device=centre.device) + 0.5 - centre[:, :1]
    y = torch.arange(height, dtype=centre.dtype, device=centre.device) + 0.5 - centre[:, 1:]
    covered = centre.new_zeros(len(shape), height, width)
    for k, name in enumerate(SHAPES):
        (chosen,) = (shape == k).nonzero(as_tuple=True)
        if len(chosen):
            distance = _DISTANCES[name](x[chosen, None, :], y[chosen, :, None], radius[chosen, None, None])
            covered[chosen] = (0.5 - distance).clamp(0, 1)
    return covered


def render(drawing: Drawing, size: int) -> Tensor:
    """Draw.

    Args:
        drawing: of b scenes whose things do not overlap.
        size: pixels of a side.

    Returns:
        uint8, shape (b, 3, size, size).
    """
    images = drawing.background[:, None, None, None].expand(-1, 3, size, size)
    grey = drawing.background[:, None, None]
    for i in range(drawing.shape.shape[1]):
        covered = coverage(drawing.shape[:, i], drawing.centre[:, i] * size, drawing.radius[:, i] * size, size, size)
        images = images + covered[:, None] * (drawing.colour[:, i] - grey[:, 0])[:, :, None, None]
    return images.round().clamp(0, 255).to(torch.uint8)
