"""Features by name, for the command line: "pixels", "random-conv", or a kind and where its weights are.

=====================  ==========================================================================================
what is written        what it is
=====================  ==========================================================================================
pixels                 the pixels themselves
random-conv            an untrained network, the same for everybody
classifier:FOLDER      a classifier that fewstep trained, from its folder
cifar-resnet:FILE      a CIFAR-10 ResNet
squeezenet:FILE        SqueezeNet 1.1
inception:FILE         Inception-v3 in its FID variant, images resized as clean-fid does
inception-legacy:FILE  the same, images resized as the original does; for statistics of EDM and ADM
clip:PATH_OR_ID        a CLIP image encoder
dinov2:PATH_OR_ID      a DINOv2 image encoder
=====================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.errors import ConfigError, MissingWeights, choose
from fewstep.features import inception, resnet, squeezenet
from fewstep.features.base import Features
from fewstep.features.classifier import load_classifier
from fewstep.features.pixels import Pixels
from fewstep.features.random_conv import RandomConv
from fewstep.features.transformers_vision import load_clip, load_dinov2

__all__ = ["FEATURES", "FeatureKind", "load_features"]


class FeatureKind(NamedTuple):
    """A kind of features that has a name.

    Attributes:
        load: from what is written behind the colon, or, if nothing is, from the shape (c, h, w) of the images.
        place: what is written behind the colon: "FILE", "FOLDER", "PATH_OR_ID", or "" for nothing.
        where: what that is and where to get it, for messages.
    """

    load: Callable[[Any], Features]
    place: str = ""
    where: str = ""


_TRAINED = "a folder with config.json and model.safetensors, as fewstep.features.save_classifier writes it"
_HUB = "a folder or the hub id of a {} in the format of transformers, for instance {}"


def _classifier(folder: str) -> Features:
    if not Path(folder).is_dir():
        raise MissingWeights(f"There is no classifier at {folder!r}", f"It is {_TRAINED}", "Check the path")
    return load_classifier(folder)[0]


FEATURES: Mapping[str, FeatureKind] = {
    "pixels": FeatureKind(Pixels),
    "random-conv": FeatureKind(lambda shape: RandomConv(shape[0])),
    "classifier": FeatureKind(_classifier, "FOLDER", _TRAINED),
    "cifar-resnet": FeatureKind(resnet.load_cifar_resnet, "FILE", resnet.WHERE),
    "squeezenet": FeatureKind(squeezenet.load_squeezenet, "FILE", squeezenet.WHERE),
    "inception": FeatureKind(inception.load_inception, "FILE", inception.WHERE),
    "inception-legacy": FeatureKind(partial(inception.load_inception, resize="legacy"), "FILE", inception.WHERE),
    "clip": FeatureKind(load_clip, "PATH_OR_ID", _HUB.format("CLIP", "openai/clip-vit-large-patch14")),
    "dinov2": FeatureKind(load_dinov2, "PATH_OR_ID", _HUB.format("DINOv2", "facebook/dinov2-large")),
}


def load_features(spec: str, shape: tuple[int, int, int] | None = None) -> Features:
    """Make features from what a user wrote: a kind, and for most kinds a colon and the place of the weights.

    Args:
        spec: "pixels", "random-conv", "inception:FILE"...; the table above has all kinds.
        shape: (c, h, w) of the images; only "pixels" and "random-conv" need it.

    Returns:
        The features, on the CPU.

    Raises:
        UnknownName: if there is no such kind.
        ConfigError: if a kind without weights is given a place, or needs the shape and has none.
        MissingWeights: if the place is missing, or nothing is there; the message says where to get the weights.
        CheckpointError: if something else is there.
    """
    name, _, place = spec.partition(":")
    kind = choose(name, FEATURES, "features")
    if kind.place:
        return kind.load(_check_place(name, kind, place))
    if place or shape is None:
        raise ConfigError(
            f"The features {spec!r} for images of shape {shape}",
            f"{name!r} has no weights and is made for one shape",
            f"Write {name!r}, and pass the shape (c, h, w) of the images",
        )
    return kind.load(shape)


def _check_place(name: str, kind: FeatureKind, place: str) -> str:
    if not place:
        raise MissingWeights(
            f"The features {name!r} without the place of their weights",
            f"fewstep ships none; these are {kind.where}",
            f"Write {name}:{kind.place}",
        )
    return place
