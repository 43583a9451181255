"""Features by the name a user writes, and what is said when something is missing."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from fewstep.errors import CheckpointError, ConfigError, MissingWeights, UnknownName
from fewstep.features import (
    FEATURES,
    ClassifierFeatures,
    Features,
    Pixels,
    RandomConv,
    load_features,
    save_classifier,
)
from fewstep.features import transformers_vision as hub
from fewstep.features.resnet import CifarResNet
from fewstep.features.squeezenet import SqueezeNet
from fewstep.networks.classifier import SmallClassifier

from .published import randomised, rgb

SHAPE = (3, 32, 32)
WITH_WEIGHTS = [name for name, kind in FEATURES.items() if kind.place]


@pytest.mark.parametrize(("spec", "same"), [("pixels", Pixels(SHAPE)), ("random-conv", RandomConv(3))])
def test_kinds_without_weights(spec, same):
    features = load_features(spec, SHAPE)
    assert features.name == same.name
    assert torch.equal(features(rgb()), same(rgb()))
    with pytest.raises(ConfigError, match="pass the shape"):
        load_features(spec)
    with pytest.raises(ConfigError, match="has no weights"):
        load_features(f"{spec}:file", SHAPE)


@pytest.mark.parametrize(("spec", "make"), [("cifar-resnet", lambda: CifarResNet(1)), ("squeezenet", SqueezeNet)])
def test_kinds_from_a_file(tmp_path, spec, make):
    path = tmp_path / "a:b.safetensors"  # only the first colon separates
    save_file(randomised(make()).state_dict(), path)
    features = load_features(f"{spec}:{path}", SHAPE)
    assert isinstance(features, Features)
    assert features(rgb(1)).shape == (1, features.dim)


def test_classifier_from_its_folder(tmp_path):
    features = ClassifierFeatures(SmallClassifier(3, width=2, dim=4), "small", (32, 32))
    save_classifier(tmp_path, features, {})
    assert load_features(f"classifier:{tmp_path}").name == features.name
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_features(f"classifier:{tmp_path}")


@pytest.mark.parametrize(("spec", "loader"), [("clip", hub.load_clip), ("dinov2", hub.load_dinov2)])
def test_hub_kinds_get_what_is_behind_the_colon(spec, loader):
    assert FEATURES[spec].load is loader
    with pytest.raises(MissingWeights, match="/nowhere/at/all"):
        load_features(f"{spec}:/nowhere/at/all")


def test_inception_in_both_resizes(monkeypatch):
    seen = []
    for name in ("inception", "inception-legacy"):
        with pytest.raises(MissingWeights, match="6726825d"):
            load_features(f"{name}:/nowhere/at/all.pth")
        seen.append(getattr(FEATURES[name].load, "keywords", {}))
    assert seen == [{}, {"resize": "legacy"}]


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_weights_that_nobody_named(name):
    with pytest.raises(MissingWeights, match=f"Write {name}:{FEATURES[name].place}") as caught:
        load_features(name)
    assert FEATURES[name].where in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # errors travel between processes
    assert str(again) == str(caught.value)


@pytest.mark.parametrize("name", [name for name in WITH_WEIGHTS if FEATURES[name].place != "PATH_OR_ID"])
def test_weights_that_are_not_there(tmp_path, name):
    with pytest.raises(MissingWeights, match="nothing-here"):
        load_features(f"{name}:{tmp_path / 'nothing-here'}")


def test_unknown_kinds():
    with pytest.raises(UnknownName, match="Did you mean 'inception'"):
        load_features("inceptionv3:file")
    with pytest.raises(UnknownName, match="pixels"):
        load_features("")
