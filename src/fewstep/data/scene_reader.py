r"""Reading scenes back: which caption is true of an image, and where exactly its things are.

Analysis by synthesis, without learned weights. The background is the median of the frame's border. Things are told
apart by the empty line between the halves of a pair. In a window around each thing, every shape is fitted to the
projection :math:`p` of the pixels on the thing's own colour,

.. math:: \min_{a, x, y, r} \; \sum (p - a\, c(x, y, r))^2

by Gauss-Newton from its moments, with the renderer's coverage :math:`c`; the shape with the least error is the answer.
Where even that one misses by more than rounding does, the shapes are fitted once more with blurred edges.
What was read is drawn again, and an image that differs too much from its drawing, anywhere, is unreadable.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.data.scene_captions import COLOURS, PLACES, RELATIONS, SHAPES, SIZES, Scene, Thing
from fewstep.data.scene_render import AREAS, CENTROIDS, coverage
from fewstep.errors import DataError

__all__ = ["Readings", "read_scenes"]

_COARSE = 32  # pixels of a side at which things are found
_FAINTEST = 36.0  # contrast of a thing, smoothed, in 8-bit levels; the true ones have 86 or more before smoothing
_BETWEEN = 0.1275  # radii of small things are below, those of large ones above
_TOLERANCE = 40.0  # of the local difference between image and drawing, 8-bit levels
_OFF_COLOUR = 60.0  # of the distance from a thing's colour to the nearest shade of a known one, likewise
_STEPS = 4
_ROUNDING = 1.5  # root mean square error of a fit that nothing but rounding to 8 bits leaves, likewise
_PIECE = 64  # images at a time: what is computed with stays in the processor's cache


class Readings(NamedTuple):
    """What was read off b images; of a pair, the left or the upper thing is first.

    Attributes:
        scenes: what each image shows, in canonical form; None if it is unreadable.
        things: x, y, radius (fractions of the frame) and shade of two things, shape (b, 2, 4); NaN where there is none.
        background: grey in 8-bit levels, shape (b,).
        error: largest difference between image and drawing, averaged over 3x3 pixels of 32x32, in 8-bit levels, (b,).
    """

    scenes: list[Scene | None]
    things: Tensor
    background: Tensor
    error: Tensor


def read_scenes(images: Tensor, tolerance: float = _TOLERANCE) -> Readings:
    """Read what images show.

    Args:
        images: uint8, shape (b, 3, 32, 32) or (b, 3, 64, 64).
        tolerance: an image whose `error` is larger is unreadable.

    Returns:
        What they show.

    Raises:
        DataError: if they are no images of scenes' sizes.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] not in ((3, 32, 32), (3, 64, 64)):
        raise DataError(
            f"Images of dtype {images.dtype} and shape {tuple(images.shape)} to be read as scenes",
            "Scenes are uint8 of shape (b, 3, 32, 32) or (b, 3, 64, 64)",
            "Convert them with fewstep.data.to_uint8",
        )
    parts = [_read(some.float(), tolerance) for some in torch.split(images, _PIECE)]
    scenes = [scene for part in parts for scene in part.scenes]
    things, background, error = (torch.cat(column) for column in zip(*(part[1:] for part in parts), strict=True))
    return Readings(scenes, things, background, error)


class _Found(NamedTuple):
    """Things that were found in a batch of images, m in all."""

    image: Tensor  # (m,) which image
    slot: Tensor  # (m,) 0 or 1
    half: Tensor  # (m,) index in _HALVES
    mask: Tensor  # (m, 32, 32) its pixels


_HALVES = ("all", "left", "right", "top", "bottom")


def _halves(size: int) -> Tensor:
    """Masks of _HALVES, shape (5, size, size)."""
    first = torch.arange(size) < size // 2
    rows = first[:, None].expand(size, size)
    return torch.stack([torch.ones_like(rows), rows.T, ~rows.T, rows, ~rows])


def _read(images: Tensor, tolerance: float) -> Readings:
    size = images.shape[-1]
    background = _border(images).median(dim=-1).values
    light = images - background[:, :, None, None]
    found = _find(light)
    fits = _fit(light, found, size)
    colour, shade, off = _name_colours(background[found.image] + fits.light)
    things = torch.full((len(images), 2, 4), torch.nan)
    things[found.image, found.slot] = torch.cat([fits.place / size, shade[:, None]], dim=1)
    codes = torch.full((len(images), 2, 3), -1)
    codes[found.image, found.slot] = torch.stack(
        [(fits.place[:, 2] >= _BETWEEN * size).long(), colour, fits.shape], dim=1
    )
    error = _difference(light, found, fits)
    strange = torch.zeros(len(images), 2)
    strange[found.image, found.slot] = off
    readable = (error <= tolerance) & (strange.amax(dim=1) <= _OFF_COLOUR)
    scenes = [
        _scene(*row) if fine else None
        for *row, fine in zip(codes.tolist(), things.tolist(), readable.tolist(), strict=True)
    ]
    return Readings(scenes, things, background.mean(dim=1), error)


def _border(images: Tensor) -> Tensor:
    sides = (images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1])
    return torch.cat(sides, dim=-1)


def _smooth(images: Tensor) -> Tensor:
    """Binomial 3x3 filter of images (b, c, h, w)."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(images.shape[1], 1, 3, 3)
    return functional.conv2d(functional.pad(images, (1, 1, 1, 1), "replicate"), kernel, groups=images.shape[1])


def _find(light: Tensor) -> _Found:
    """Find the things of images, one or two in each that has any."""
    coarse = _smooth(functional.avg_pool2d(light, light.shape[-1] // _COARSE))
    strength = coarse.square().sum(dim=1).sqrt()
    # A thing's edge is where it has half of its own strength, however bright its neighbour is.
    around = functional.max_pool2d(strength[:, None], 7, stride=1, padding=3)[:, 0]
    mask = (strength > 0.5 * around) & (strength > _FAINTEST)
    n = mask.sum(dim=(1, 2))
    middle = _COARSE // 2
    across, down = mask[:, :, middle - 1 : middle + 1].sum(dim=(1, 2)), mask[:, middle - 1 : middle + 1].sum(dim=(1, 2))
    halves = (mask[:, None] & _halves(_COARSE)).sum(dim=(2, 3))
    few = 0.03 * n
    left_right = (across <= few) & (halves[:, 1:3].amin(dim=1) > few + 2)
    top_bottom = (down <= few) & (halves[:, 3:5].amin(dim=1) > few + 2)
    both = left_right & top_bottom
    wide = _apart(mask)
    left_right, top_bottom = left_right & (~both | wide), top_bottom & (~both | ~wide)
    first = torch.where(left_right, 1, torch.where(top_bottom, 3, 0))
    half = torch.stack([first, torch.where(first > 0, first + 1, -1)], dim=1)
    half[n == 0] = -1
    image, slot = (half >= 0).nonzero(as_tuple=True)
    own = half[image, slot]
    return _Found(image, slot, own, mask[image] & _halves(_COARSE)[own])


def _apart(mask: Tensor) -> Tensor:
    """Whether the pixels (b, h, w) of two things lie further apart in x than in y."""
    spread = []
    for axis in (1, 2):
        line = mask.sum(dim=axis).float()
        at = torch.arange(line.shape[1], dtype=torch.float32)
        total = line.sum(dim=1).clamp(min=1)
        mean = (line * at).sum(dim=1) / total
        spread.append((line * (at - mean[:, None]) ** 2).sum(dim=1) / total)
    return spread[0] >= spread[1]


class _Fits(NamedTuple):
    """The best fit of each of m things."""

    shape: Tensor  # (m,) index in SHAPES
    place: Tensor  # (m, 3) x, y, radius in pixels
    blurred: Tensor  # (m,) whether the edges are blurred
    light: Tensor  # (m, 3) colour of the thing minus that of the background


def _fit(light: Tensor, found: _Found, size: int) -> _Fits:
    """Fit every shape to every thing, and keep the best."""
    m, scale = len(found.image), size // _COARSE
    mask = found.mask.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    own = light[found.image]
    colour = (own * mask[:, None]).sum(dim=(2, 3))
    direction = colour / colour.norm(dim=1, keepdim=True).clamp(min=1e-6)
    projected = (own * direction[:, :, None, None]).sum(dim=1)
    origin, columns, rows = _window(mask, size)
    window = (torch.arange(m)[:, None, None], rows[:, :, None], columns[:, None, :])
    inside = _halves(size)[found.half][window]
    p = projected[window] * inside
    near = functional.max_pool2d(mask.float()[:, None], 2 * scale + 1, stride=1, padding=scale)[:, 0][window]
    weighted = p.clamp(min=0) * near
    amplitude = (weighted**3).sum(dim=(1, 2)) / (weighted**2).sum(dim=(1, 2)).clamp(min=1e-6)
    start = _moments((weighted / amplitude[:, None, None].clamp(min=1e-6)).clamp(max=1))
    shape, place, height, error = _best(p, inside, start, amplitude, blurred=False)
    poor = error > _ROUNDING**2 * columns.shape[1] ** 2
    blurred = torch.zeros_like(poor)
    if bool(poor.any()):
        again = _best(p[poor], inside[poor], start[poor], amplitude[poor], blurred=True)
        better = again[-1] < error[poor]
        blurred[poor] = better
        for kept, other in zip((shape, place, height), again, strict=False):
            kept[blurred] = other[better]
    return _Fits(shape, place + functional.pad(origin.float(), (0, 1)), blurred, direction * height[:, None])


def _best(p: Tensor, inside: Tensor, start: Tensor, amplitude: Tensor, blurred: bool) -> tuple[Tensor, ...]:
    """Fit every shape to windows p (m, w, w); shape, place, amplitude and error of the best one of each."""
    m, each = len(p), len(SHAPES)
    shape = torch.arange(each).repeat(m)
    fits = _gauss_newton(p, inside, shape, start.flatten(0, 1), amplitude, blurred)
    chosen = torch.arange(m) * each + fits[-1].reshape(m, each).argmin(dim=1)
    return (shape[chosen], *(part[chosen] for part in fits))


def _window(mask: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Origin (m, 2), columns and rows (m, width) of a window around the pixels of each thing."""
    width = size * 7 // 16  # a large thing, its soft edge, and how far its middle may be misjudged
    at = torch.arange(size) + 0.5
    total = mask.sum(dim=(1, 2)).clamp(min=1)
    middle = torch.stack([(mask.sum(dim=axis) * at).sum(dim=1) / total for axis in (1, 2)], dim=1)
    origin = (middle - width / 2).round().long().clamp(0, size - width)
    columns, rows = (origin[:, i, None] + torch.arange(width) for i in (0, 1))
    return origin, columns, rows


def _moments(covered: Tensor) -> Tensor:
    """Where each shape must be to have the area and the centre of mass of a covered window: (m, shapes, 3)."""
    at = torch.arange(covered.shape[-1]) + 0.5
    area = covered.sum(dim=(1, 2)).clamp(min=1)
    x, y = ((covered.sum(dim=axis) * at).sum(dim=1) / area for axis in (1, 2))
    radius = (area[:, None] / AREAS.float()).sqrt()
    return torch.stack([x[:, None].expand_as(radius), y[:, None] - CENTROIDS.float() * radius, radius], dim=2)


def _gauss_newton(
    p: Tensor, inside: Tensor, shape: Tensor, place: Tensor, amplitude: Tensor, blurred: bool
) -> tuple[Tensor, ...]:
    """Fit place (n, 3) and amplitude (n,) of n shapes to windows (m, w, w), n / m of them each; returns errors too."""
    each = len(shape) // max(1, len(p))
    p, inside = p.repeat_interleave(each, dim=0).flatten(1), inside.repeat_interleave(each, dim=0).flatten(1)
    width = int(p.shape[1] ** 0.5)
    a = amplitude.repeat_interleave(each)
    step = 0.25 * torch.eye(3)

    def covered(place: Tensor) -> Tensor:
        sharp = coverage(shape, place[:, :2], place[:, 2], width, width)
        return (_blur(sharp) if blurred else sharp).flatten(1) * inside

    for _ in range(_STEPS):
        c = covered(place)
        slopes = [a[:, None] * (covered(place + step[i]) - covered(place - step[i])) / 0.5 for i in range(3)]
        jacobian = torch.stack([*slopes, c], dim=2)
        normal = jacobian.mT @ jacobian
        normal = normal + 1e-3 * normal.diagonal(dim1=1, dim2=2).clamp(min=1).diag_embed()
        change = torch.linalg.solve(normal, jacobian.mT @ (p - a[:, None] * c)[:, :, None])[:, :, 0]
        place = place + change[:, :3].clamp(-1.5, 1.5)
        place = torch.cat([place[:, :2], place[:, 2:].clamp(1.0, width / 2)], dim=1)
        a = (a + change[:, 3]).clamp(min=1.0)
    return place, a, ((p - a[:, None] * covered(place)) ** 2).sum(dim=1)


def _blur(images: Tensor) -> Tensor:
    """Mean over 3x3 pixels of images (b, h, w) that are 0 outside."""
    return functional.avg_pool2d(images[:, None], 3, stride=1, padding=1)[:, 0]


def _name_colours(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest colour of colours (m, 3): its index, its shade, and how far off it is, shape (m,) each."""
    bright = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    shade = (rgb @ bright.T) / (bright**2).sum(dim=1)
    distance = (rgb[:, None] - shade.clamp(0.75, 1.05)[:, :, None] * bright).norm(dim=2)
    off, best = distance.min(dim=1)
    return best, shade.gather(1, best[:, None])[:, 0], off


def _difference(light: Tensor, found: _Found, fits: _Fits) -> Tensor:
    """Largest local difference between images and the drawings of what was read; infinite where nothing was."""
    size = light.shape[-1]
    covered = coverage(fits.shape, fits.place[:, :2], fits.place[:, 2], size, size)
    covered[fits.blurred] = _blur(covered[fits.blurred])
    drawn = torch.zeros_like(light).index_add(0, found.image, covered[:, None] * fits.light[:, :, None, None])
    coarse = functional.avg_pool2d(light - drawn, size // _COARSE)
    local = functional.avg_pool2d(coarse, 3, stride=1).abs().amax(dim=(1, 2, 3))
    seen = torch.zeros(len(light), dtype=torch.bool).index_fill(0, found.image, True)
    return torch.where(seen, local, torch.inf)


def _scene(codes: list[list[int]], things: list[list[float]]) -> Scene:
    first, *second = [
        Thing(SIZES[size], list(COLOURS)[colour], SHAPES[shape]) for size, colour, shape in codes if shape >= 0
    ]
    (x, y, *_), (x2, y2, *_) = things
    if second:
        return Scene(first, RELATIONS[0] if abs(x2 - x) >= abs(y2 - y) else RELATIONS[2], second[0])
    column, row = (min(2, max(0, int(at * 4 - 0.5))) for at in (x, y))  # borders at 3/8 and 5/8
    return Scene(first, PLACES[3 * row + column])
