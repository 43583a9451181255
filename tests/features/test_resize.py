"""Both resizes against their libraries' own arithmetic, and what sets them apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.errors import ConfigError, UnknownName
from fewstep.features import Clean, Legacy

SIZES = [(32, 32), (48, 80), (300, 298), (400, 299)]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def pixels(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w)).astype(np.float32)


def in_255(images: torch.Tensor) -> torch.Tensor:
    return (images[0, 0] + 1) * 127.5


def as_images(u: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(u)[None, None] / 127.5 - 1


@pytest.mark.parametrize("kernel", FILTERS)
@pytest.mark.parametrize("shape", SIZES)
def test_clean_is_pillows_on_float_images(shape, kernel):
    """clean-fid: each channel as a float image through Pillow, then clipped to 0..255."""
    u = pixels(*shape)
    expected = np.asarray(Image.fromarray(u).resize((299, 299), resample=FILTERS[kernel])).clip(0, 255)
    difference = float((in_255(Clean(299, kernel)(as_images(u))) - torch.from_numpy(expected)).abs().max())
    assert difference <= 1e-4, f"{difference:.2g} of 255"


def tensorflow_1(u: np.ndarray, size: int) -> np.ndarray:
    """resize_bilinear without half-pixel centres, pixel by pixel in float32."""
    h, w = u.shape
    down, right = np.float32(h / size), np.float32(w / size)
    out = np.empty((size, size), np.float32)
    for i in range(size):
        y = np.float32(i) * down
        y0, y1 = int(y), min(int(y) + 1, h - 1)
        for j in range(size):
            x = np.float32(j) * right
            x0, x1 = int(x), min(int(x) + 1, w - 1)
            top = u[y0, x0] + (u[y0, x1] - u[y0, x0]) * (x - x0)
            bottom = u[y1, x0] + (u[y1, x1] - u[y1, x0]) * (x - x0)
            out[i, j] = top + (bottom - top) * (y - y0)
    return out


@pytest.mark.parametrize(("shape", "size"), [((32, 20), 75), ((64, 48), 37), ((31, 31), 31)])
def test_legacy_is_tensorflow_1s(shape, size):
    u = pixels(*shape)
    expected = torch.from_numpy(tensorflow_1(u, size))
    assert float((in_255(Legacy(size)(as_images(u))) - expected).abs().max()) <= 1e-4


def test_legacy_aligns_the_top_left_corner():
    """At twice the size every second pixel is an old one, those between are means, and the last is repeated."""
    x = as_images(pixels(5, 5)).double()
    y = Legacy(10)(x)
    assert float((y[..., ::2, ::2] - x).abs().max()) <= 1e-15
    assert float((y[..., ::2, 1:-1:2] - (x[..., :-1] + x[..., 1:]) / 2).abs().max()) <= 1e-15
    assert float((y[..., -1, ::2] - x[..., -1, :]).abs().max()) <= 1e-15


@pytest.mark.parametrize("resize", [Clean(20), Clean(20, "bilinear"), Legacy(20)], ids=lambda resize: resize.name)
@pytest.mark.parametrize("shape", [(7, 9), (50, 33)])
def test_linear_separable_and_a_mean(resize, shape):
    x = 0.3 * as_images(pixels(*shape)).double()  # too small for the cubic to overshoot
    y = 0.3 * as_images(pixels(*shape, seed=1)).double()
    assert float((resize(x + 2 * y) - resize(x) - 2 * resize(y)).abs().max()) <= 1e-14
    assert float((resize(torch.full_like(x, 0.7)) - 0.7).abs().max()) <= 1e-14
    assert float((resize(x.mT) - resize(x).mT).abs().max()) <= 1e-14
    assert torch.autograd.gradcheck(resize, x[..., :5, :6].clone().requires_grad_())


def test_clean_mirrors_and_legacy_does_not():
    x = as_images(pixels(16, 16)).double()
    assert float((Clean(40)(x.flip(-1)).flip(-1) - Clean(40)(x)).abs().max()) <= 1e-14
    assert float((Legacy(40)(x.flip(-1)).flip(-1) - Legacy(40)(x)).abs().max()) > 0.1


def test_clean_does_not_alias():
    """Stripes of one pixel, shrunk to a third, are grey; without an antialiasing filter they stay stripes."""
    x = torch.ones(1, 1, 90, 90, dtype=torch.float64)
    x[..., ::2] = -1
    assert float(Clean(30)(x)[..., 5:-5].abs().max()) <= 0.05
    assert float(Legacy(30)(x).abs().max()) == 1


def test_clean_clips_where_the_cubic_overshoots():
    edge = torch.ones(1, 1, 8, 8)
    edge[..., :4] = -1
    assert float(Clean(64)(edge).abs().max()) == 1
    x = as_images(pixels(8, 8)) * 3
    assert torch.equal(Clean(8)(x), x)  # the size it has already: untouched, as is


def test_names_and_bad_arguments():
    assert Clean().name == "bicubic antialiased to 299 (clean)"
    assert Legacy().name == "bilinear corner-aligned to 299 (TF1 legacy)"
    for make in (Clean, Legacy):
        with pytest.raises(ConfigError, match="at least 1 pixel"):
            make(0)
    with pytest.raises(UnknownName, match="bicubic"):
        Clean(8, "cubic")
