"""Penultimate features of a trained classifier, frozen, named after its weights, and their folder on the disk.

A folder holds ``config.json`` (name, shape of the images, constructor arguments, fingerprint of the weights, facts) and
``model.safetensors``. The fingerprint is part of the features' name, so two tables with the same name were made with
the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep._files import fingerprint, read_json, read_tensors, write_json, write_tensors
from fewstep.errors import CheckpointError, ConfigError
from fewstep.features.base import check_images
from fewstep.features.inception import is_fid
from fewstep.networks.classifier import SmallClassifier

__all__ = ["ClassifierFeatures", "load_classifier", "save_classifier"]


class ClassifierFeatures(nn.Module):
    """The penultimate features of a classifier, as a frozen copy in evaluation mode.

    Later training of the original, and `.train()` on this, change nothing; gradients flow to the images only.

    Args:
        network: the classifier.
        name: what to call it; the features are named "name@fingerprint".
        size: height and width of the images it was trained on, or None to take any from 4 pixels on.

    Raises:
        ConfigError: if the name is that of FID's own features.
    """

    resize = "none"

    def __init__(self, network: SmallClassifier, name: str, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.fingerprint = fingerprint(self.network.state_dict())
        self.name, self.dim, self.size = f"{name}@{self.fingerprint}", network.dim, size
        if is_fid(self.name):
            raise ConfigError(
                f"A classifier with the name {name!r}",
                "A distance is called FID in Inception's published weights alone, and these have that name",
                "Give it another name",
            )

    def train(self, mode: bool = True) -> ClassifierFeatures:
        """Stay in evaluation mode, whatever the mode of a module around this one."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features.

        Args:
            images: floating point, shape (b, c, h, w), in [-1, 1].

        Returns:
            Features, shape (b, dim), in the dtype of the weights.

        Raises:
            DtypeError: if the images are not floating point.
            ShapeError: if they are not of the shape the classifier was trained on.
        """
        check_images(images, self.name, self.network.channels, self.size)
        return self.network.features(images.to(self.network.hidden.weight.dtype))

    def logits_of(self, features: Tensor) -> Tensor:
        """Turn feature vectors (b, dim) of this object into class logits (b, n_classes)."""
        logits: Tensor = self.network.logits(features)
        return logits


def save_classifier(folder: str | Path, features: ClassifierFeatures, facts: Mapping[str, Any]) -> None:
    """Write a classifier into an existing folder.

    Args:
        folder: where config.json and model.safetensors go.
        features: the classifier's features.
        facts: anything JSON-able that is worth knowing: data, accuracy, seconds, seed.

    Raises:
        OutputError: if the folder cannot be written.
    """
    network = features.network
    arguments = {name: getattr(network, name) for name in ("channels", "n_classes", "width", "dim")}
    config = {
        "name": features.name.rpartition("@")[0],
        "network": arguments,
        "size": list(features.size) if features.size else None,
        "fingerprint": features.fingerprint,
        "facts": dict(facts),
    }
    write_tensors(Path(folder) / "model.safetensors", network.state_dict())
    write_json(Path(folder) / "config.json", config)


def load_classifier(folder: str | Path) -> tuple[ClassifierFeatures, dict[str, Any]]:
    """Read a classifier that :func:`save_classifier` wrote.

    Args:
        folder: with config.json and model.safetensors.

    Returns:
        Its features on the CPU, and the whole content of config.json.

    Raises:
        ConfigError: if it has the name of FID's own features.
        CheckpointError: if a file is missing, damaged or foreign, or the weights are not those that config.json names.
    """
    folder = Path(folder)
    config, weights = read_json(folder / "config.json"), read_tensors(folder / "model.safetensors")
    try:
        network = SmallClassifier(**config["network"])
        network.load_state_dict(weights)
        size = tuple(config["size"]) if config["size"] else None
        features = ClassifierFeatures(network, config["name"], size)
        expected = config["fingerprint"]
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} holds no classifier that can be built ({error})",
            "config.json names the network's arguments, and model.safetensors holds exactly its weights",
            "Restore the folder from a copy, or train the classifier again",
        ) from error
    if features.fingerprint != expected:
        raise CheckpointError(
            f"The weights in {folder} have the fingerprint {features.fingerprint}, its config.json says {expected}",
            "Features are only comparable if they come from the very weights they are named after",
            "Restore both files from one copy, or train the classifier again",
        )
    return features, config
