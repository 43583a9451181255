"""Perceptual losses: the paper's formula by hand, parity with the learned LPIPS, and what normalising means."""

from __future__ import annotations

import pytest
import torch
from tests.features.published import randomised, rgb

from fewstep.errors import ShapeError
from fewstep.features import Lpips, PixelMaps, RandomMaps
from fewstep.features.squeezenet import SqueezeNet
from fewstep.losses import LearnedLpips, Perceptual

from .outcomes import normal

CHANNELS = (64, 128, 256, 384, 384, 512, 512)


def by_hand(a: torch.Tensor, b: torch.Tensor, normalise: bool) -> torch.Tensor:
    """One image pair and one layer of shape (c, h, w), place by place."""
    channels, height, width = a.shape
    total = torch.zeros((), dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            left, right = a[:, i, j], b[:, i, j]
            if normalise:
                left, right = left / left.dot(left).sqrt(), right / right.dot(right).sqrt()
            total = total + (left - right).square().sum() / (1 if normalise else channels)
    return total / (height * width)


@pytest.mark.parametrize("normalise", [True, False])
def test_formula_place_by_place(normalise):
    maps = RandomMaps(1, dim=8).double()
    a, b = normal(2, 1, 6, 5), normal(2, 1, 6, 5, seed=1)
    layers = list(zip(maps(a), maps(b), strict=True))
    expected = [sum(by_hand(x[row], y[row], normalise) for x, y in layers) / 3 for row in range(2)]
    found = Perceptual(maps, normalise)(a, b)
    assert float((found - torch.stack(expected)).abs().max()) <= 1e-12


@pytest.fixture(scope="module")
def lpips():
    """LPIPS whose learned weights are all 1."""
    return Lpips(randomised(SqueezeNet()), [torch.ones(channels) for channels in CHANNELS])


def test_parity_with_lpips(lpips):
    """Without learned weights LPIPS is the same, but for the sum over its seven layers."""

    class Taps:
        name = "lpips's maps"

        def __call__(self, images, cond=None):
            return lpips.network.taps((images - lpips.shift) / lpips.scale)

    a, b = rgb(3), rgb(3, seed=2)
    expected = lpips(a, b)
    assert float((7 * Perceptual(Taps())(a, b) - expected).abs().max()) <= 1e-5 * float(expected.max())


def test_learned_lpips_reads_grey_as_rgb(lpips):
    loss, a, b = LearnedLpips(lpips), rgb(2, 20, 24), rgb(2, 20, 24, seed=2)
    assert torch.equal(loss(a, b), lpips(a, b))
    grey = [images[:, :1] for images in (a, b)]
    assert torch.equal(loss(*grey), lpips(*(images.repeat(1, 3, 1, 1) for images in grey)))
    with pytest.raises(ShapeError, match="Grey images"):
        loss(a[:, :2], b[:, :2])


def test_normalised_maps_see_directions_alone():
    class Same:
        name = "the images"

        def __call__(self, images, cond=None):
            return [images]

    a = normal(3, 4, 5, 5)
    strength = normal(3, 1, 5, 5, seed=1).exp()
    assert float(Perceptual(Same())(a, strength * a).max()) <= 1e-28
    assert float(Perceptual(Same(), normalise=False)(a, strength * a).min()) > 0.1
    assert Perceptual(Same())(a, -a).tolist() == pytest.approx([4.0] * 3)  # opposite unit vectors


def test_gradient_is_finite_where_all_channels_are_silent():
    class Silent:
        name = "nothing on the left"

        def __call__(self, images, cond=None):
            return [torch.cat([images, images], 1) * torch.tensor([0.0, 0.0, 1.0, 1.0])]

    a = normal(2, 1, 4, 4).float().requires_grad_()
    Perceptual(Silent())(a, torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert a.grad.isfinite().all()


def test_one_channel_has_no_direction():
    grey = normal(2, 1, 4, 4)
    with pytest.raises(ShapeError, match="from pixels") as caught:
        Perceptual(PixelMaps())(grey, grey)
    assert "at least two channels" in caught.value.allowed
    assert "normalise=False" in caught.value.todo
    assert float(Perceptual(PixelMaps(), normalise=False)(grey, grey + 2).mean()) == pytest.approx(4)
