"""Maps: the layers of the features they belong to, image by image, frozen and differentiable."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewstep.errors import ConfigError, DtypeError, ShapeError
from fewstep.features import (
    ClassifierFeatures,
    ClassifierMaps,
    Maps,
    NetworkMaps,
    PixelMaps,
    RandomConv,
    RandomMaps,
    VectorMaps,
    as_rgb,
)
from fewstep.features.squeezenet import SqueezeNet

from .published import randomised, rgb
from .test_features import classifier


def small() -> ClassifierFeatures:
    return ClassifierFeatures(classifier(channels=3), "small", (20, 20))


MAPS = {
    "pixels": PixelMaps,
    "vectors": lambda: VectorMaps(RandomConv(3, dim=16)),
    "random": lambda: RandomMaps(3, dim=16),
    "classifier": lambda: ClassifierMaps(small()),
    "network": lambda: NetworkMaps(randomised(SqueezeNet())),
}
every_kind = pytest.mark.parametrize("kind", MAPS)


@every_kind
def test_protocol(kind):
    maps, x = MAPS[kind](), rgb(2, 20, 20)
    assert isinstance(maps, Maps)
    assert maps.name == MAPS[kind]().name
    told = maps(x, {"label": torch.zeros(2, dtype=torch.int64)})
    for found, again in zip(maps(x), told, strict=True):
        assert len(found) == 2
        assert torch.equal(found, again)


@every_kind
def test_an_image_does_not_see_its_batch(kind):
    maps, x = MAPS[kind](), rgb(4, 20, 20)
    together = maps(x)
    for i in range(4):
        for alone, of in zip(maps(x[i : i + 1]), together, strict=True):
            assert float((alone[0] - of[i]).abs().max()) <= 1e-5 * (1 + float(of.abs().max()))


@every_kind
def test_every_map_has_a_gradient_in_the_images_and_in_nothing_else(kind):
    maps = MAPS[kind]()
    for layer in range(len(maps(rgb(1, 20, 20)))):
        x = rgb(2, 20, 20).requires_grad_()
        maps(x)[layer].square().sum().backward()
        assert x.grad.isfinite().all()
        assert float(x.grad.abs().max()) > 0
    if isinstance(maps, torch.nn.Module):
        assert not any(parameter.requires_grad for parameter in maps.parameters())


@every_kind
def test_frozen(kind):
    maps, x = MAPS[kind](), rgb(2, 20, 20)
    before = maps(x)
    if isinstance(maps, torch.nn.Module):
        torch.nn.Sequential(maps).train()
    for found, expected in zip(maps(x), before, strict=True):
        assert torch.equal(found, expected)


def test_random_maps_end_where_the_features_begin():
    x = rgb(2, 12, 20)
    maps, features = RandomMaps(3, dim=16, seed=4), RandomConv(3, dim=16, seed=4)
    found = maps(x)
    assert [tuple(of.shape[1:]) for of in found] == [(32, 12, 20), (64, 6, 10), (4, 3, 5)]
    assert torch.equal(F.adaptive_avg_pool2d(found[-1], 2).flatten(1), features(x))
    first = F.silu(F.conv2d(x, features.get_buffer("weight0"), padding=1))
    assert torch.equal(found[0], first)
    assert features.name in maps.name


def test_classifier_maps_end_where_the_features_begin():
    features, x = small(), rgb(2, 20, 20)
    maps = ClassifierMaps(features)
    found = maps(x)
    assert len(found) == 4
    pooled = F.adaptive_avg_pool2d(found[-1], 2).flatten(1)
    assert torch.equal(F.silu(features.network.hidden(pooled)), features(x))
    assert torch.equal(found[0], features.network.body[0](x))
    assert features.name in maps.name


@torch.no_grad()
def test_network_maps_are_the_taps_of_normalised_images():
    network, x = randomised(SqueezeNet()), rgb(2, 20, 24)
    mean, deviation = (torch.tensor(of)[:, None, None] for of in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = network.taps(((x + 1) / 2 - mean) / deviation)
    maps = NetworkMaps(network)
    for found, wanted in zip(maps(x), expected, strict=True):
        assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    grey = maps(x[:, :1])
    assert torch.equal(grey[0], maps(x[:, :1].repeat(1, 3, 1, 1))[0])
    with torch.no_grad():
        network.features[0].weight.zero_()
    assert float(maps(x)[0].abs().max()) > 0.01  # a copy


def test_pixels_and_vectors_are_one_map():
    x, features = rgb(2, 20, 20), RandomConv(3, dim=16)
    assert PixelMaps()(x)[0] is x
    assert PixelMaps().name == "pixels"
    (vectors,) = VectorMaps(features)(x)
    assert torch.equal(vectors, features(x))
    assert VectorMaps(features).name == features.name


def test_grey_as_rgb():
    x = rgb(2)
    assert torch.equal(as_rgb(x), x)
    assert torch.equal(as_rgb(x[:, :1]), x[:, [0, 0, 0]])
    for wrong in (x[:, :2], x[0]):
        with pytest.raises(ShapeError, match="Grey images") as caught:
            as_rgb(wrong)
        assert str(tuple(wrong.shape)) in caught.value.given
        assert "pixels" in caught.value.todo


def test_bad_input():
    for kind in ("random", "classifier", "network"):
        with pytest.raises(DtypeError):
            MAPS[kind]()(rgb(1, 20, 20).to(torch.uint8))
    with pytest.raises(ShapeError, match="maps of small@"):
        MAPS["classifier"]()(rgb(1, 24, 24))
    with pytest.raises(ShapeError, match=">= 17"):
        MAPS["network"]()(rgb(1, 16, 16))
    with pytest.raises(ShapeError):
        MAPS["random"]()(rgb(1, 20, 20)[:, :1])
    with pytest.raises(ConfigError):
        RandomMaps(1, dim=6)
