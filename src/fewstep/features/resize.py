r"""Bringing images to the size a network reads, said exactly, because it changes every number.

Both ways are linear and separable. With one matrix an axis, made in float64 on the host,

.. math:: y = R_h\, x\, R_w^\top , \qquad \sum_j R_{ij} = 1 ,

so they are differentiable, the same on every device, and indifferent to whether pixels are in 0..255 or in [-1, 1].

* :class:`Clean` samples with an antialiased filter at pixel centres, as Pillow does on float images and so clean-fid.
  In units of 0..255 it is within 1e-4 of Pillow. ``torch.nn.functional.interpolate(antialias=True)`` has the same
  filter, but computes its positions in float32 and is off by up to 8e-3 of those units.
* :class:`Legacy` is the bilinear interpolation of TensorFlow 1, which aligns the top left corners and does not
  antialias. It was part of the first Inception graph, and so of every FID that was computed with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from fewstep.errors import ConfigError, choose

__all__ = ["Clean", "Legacy", "Resize"]


class Resize(Protocol):
    """A way to bring images to one size."""

    @property
    def name(self) -> str:
        """Filter, target size and convention, for protocols."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (b, c, h, w) in [-1, 1] to (b, c, size, size), same dtype and device."""
        ...


def _triangle(t: Tensor) -> Tensor:
    return (1 - t.abs()).clamp_min(0)


def _keys_cubic(t: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -1/2: reproduces quadratics, vanishes from |t| = 2 on."""
    t = t.abs()
    inner = (1.5 * t - 2.5) * t**2 + 1
    outer = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, inner, torch.where(t < 2, outer, 0.0))


_FILTERS: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": _keys_cubic, "bilinear": _triangle}


@lru_cache(maxsize=32)
def _centred(n_in: int, n_out: int, kernel: str) -> Tensor:
    """Rows of normalised filter weights about pixel centres; when shrinking, the filter widens with the step."""
    step = n_in / n_out
    centres = (torch.arange(n_out, dtype=torch.float64) + 0.5) * step
    pixels = torch.arange(n_in, dtype=torch.float64) + 0.5
    weights = _FILTERS[kernel]((pixels - centres[:, None]) / max(step, 1.0))
    return weights / weights.sum(1, keepdim=True)


@lru_cache(maxsize=32)
def _cornered(n_in: int, n_out: int) -> Tensor:
    """Row i interpolates linearly at i * n_in / n_out, in float32 as TensorFlow does; the last pixel is repeated."""
    positions = torch.arange(n_out, dtype=torch.float32) * torch.tensor(n_in / n_out, dtype=torch.float32)
    lower = positions.long()
    upper = (lower + 1).clamp_max(n_in - 1)
    fraction = (positions - lower).double()
    eye = torch.eye(n_in, dtype=torch.float64)
    return (1 - fraction)[:, None] * eye[lower] + fraction[:, None] * eye[upper]


def _apply(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return rows.to(images) @ images @ columns.to(images).T


def _check_size(size: int) -> None:
    if size < 1:
        raise ConfigError(f"A resize to {size} pixels", "The target size is at least 1 pixel", "Pass size=299")


@dataclass(frozen=True)
class Clean:
    """Antialiased resize of the float image, then clipping to the range of pixels: clean-fid's "clean".

    Args:
        size: pixels a side of the result.
        kernel: "bicubic" (Keys' filter, which overshoots at edges and is therefore clipped) or "bilinear".

    Raises:
        ConfigError: if size < 1.
        UnknownName: if the kernel has no such name.

    Source:
        Parmar, Zhang, Zhu 2022, arXiv:2104.11222, section 4. Departs from it in: images that have the size already go
        through unchanged, without clipping.
    """

    size: int = 299
    kernel: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self) -> None:
        """Refuse sizes and kernels that do not exist."""
        _check_size(self.size)
        choose(self.kernel, _FILTERS, "kernel")

    @property
    def name(self) -> str:
        """Name for protocols: "bicubic antialiased to 299 (clean)"."""
        return f"{self.kernel} antialiased to {self.size} (clean)"

    def __call__(self, images: Tensor) -> Tensor:
        """Resize images.

        Args:
            images: floating point, shape (b, c, h, w), in [-1, 1].

        Returns:
            Shape (b, c, size, size), in [-1, 1], same dtype. Where the filter overshoots, the gradient is 0.
        """
        h, w = images.shape[2:]
        if (h, w) == (self.size, self.size):
            return images
        rows, columns = _centred(h, self.size, self.kernel), _centred(w, self.size, self.kernel)
        return _apply(images, rows, columns).clamp(-1, 1)


@dataclass(frozen=True)
class Legacy:
    """TensorFlow 1's bilinear resize: corners aligned at the top left, no antialiasing.

    It samples pixel i * h / size, so that the picture shifts by up to half a pixel and details alias when it shrinks.

    Args:
        size: pixels a side of the result.

    Raises:
        ConfigError: if size < 1.

    Source:
        Heusel et al. 2017, arXiv:1706.08500, through the graph its FID is computed with. Departs from it in: nothing.
    """

    size: int = 299

    def __post_init__(self) -> None:
        """Refuse sizes that do not exist."""
        _check_size(self.size)

    @property
    def name(self) -> str:
        """Name for protocols: "bilinear corner-aligned to 299 (TF1 legacy)"."""
        return f"bilinear corner-aligned to {self.size} (TF1 legacy)"

    def __call__(self, images: Tensor) -> Tensor:
        """Resize images.

        Args:
            images: floating point, shape (b, c, h, w).

        Returns:
            Shape (b, c, size, size), within the range of the images, same dtype.
        """
        h, w = images.shape[2:]
        return _apply(images, _cornered(h, self.size), _cornered(w, self.size))
