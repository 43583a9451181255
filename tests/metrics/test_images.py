"""Rounding to 8 bits, and moments of images."""

from __future__ import annotations

import pytest
import torch

from fewstep.errors import ConfigError, DataError, DtypeError, NonFiniteError, ShapeError
from fewstep.features import Pixels, RandomConv
from fewstep.metrics import Moments, image_moments, round_to_8bit

IMAGES = torch.rand(23, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_all_256_values_stay_bitwise():
    values = torch.arange(256, dtype=torch.uint8).to(torch.float32) / 127.5 - 1
    assert torch.equal(round_to_8bit(values), values)


def test_rounding_is_to_the_nearest_value_and_clips():
    rounded = round_to_8bit(IMAGES)
    assert float((rounded - IMAGES).abs().max()) <= 0.5 / 127.5 + 1e-6
    assert torch.equal(round_to_8bit(torch.tensor([-1.7, 9.0])), torch.tensor([-1.0, 1.0]))
    assert torch.equal(round_to_8bit(rounded), rounded)


def test_moments_are_those_of_the_rounded_pixels_in_any_batches():
    features = Pixels((1, 6, 6))
    expected = Moments(round_to_8bit(IMAGES).flatten(1))
    for batch_size in (1, 7, 100):
        moments = image_moments(features, IMAGES, batch_size)
        assert moments.n == 23
        assert float((moments.mean - expected.mean).abs().max()) < 1e-13
        assert float((moments.cov - expected.cov).abs().max()) < 1e-13


def test_no_graph_is_kept():
    images = IMAGES.clone().requires_grad_()
    assert not image_moments(RandomConv(1), images).mean.requires_grad


def test_bad_input():
    features = Pixels((1, 6, 6))
    with pytest.raises(DtypeError):
        image_moments(features, torch.zeros(2, 1, 6, 6, dtype=torch.uint8))
    with pytest.raises(ShapeError):
        image_moments(features, torch.zeros(2, 3, 6, 6))
    with pytest.raises(NonFiniteError):
        image_moments(features, IMAGES / 0)
    with pytest.raises(NonFiniteError):
        image_moments(features, torch.full((2, 1, 6, 6), float("nan")))
    with pytest.raises(DataError, match=r"0\.\.255"):
        image_moments(features, (IMAGES + 1) * 127.5)
    with pytest.raises(DataError, match=r"0\.\.255"):
        image_moments(features, (IMAGES + 1) * 10)  # a dark picture
    with pytest.raises(ConfigError):
        image_moments(features, IMAGES, 0)
