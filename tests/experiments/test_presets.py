"""Every preset builds, and its network has the size that its comment promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewstep.data import ImageData, Images, Scenes
from fewstep.experiments import PRESETS
from fewstep.experiments.presets import configured
from fewstep.training import model_config

_IMAGES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar10-small": (3, 32, 32)}
_PARAMETERS = {
    "digits": (0.2e6, 0.4e6),
    "mnist": (1.3e6, 1.8e6),
    "cifar10": (15e6, 22.5e6),
    "cifar10-small": (3.5e6, 3.9e6),
    "scenes": (2e6, 2.7e6),
}


def _base(name: str) -> str:
    return name.removesuffix("-scratch").removesuffix("-e2e")


def _data(name: str) -> Images:
    name = _base(name)
    if name == "scenes":
        return Scenes()
    images = torch.zeros(2, *_IMAGES[name], dtype=torch.uint8)
    return ImageData(images, torch.tensor([0, 9]), tuple("0123456789"), name)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_networks_of_their_size(name: str) -> None:
    data = _data(name)
    config = model_config(PRESETS[name], data)
    network = config.body()
    low, high = _PARAMETERS[_base(name)]
    assert low < sum(parameter.numel() for parameter in network.parameters()) < high
    assert (config.shape, config.n_classes) == (data.shape, len(data.classes))
    cond = data.batch(torch.tensor([0, 1])).cond
    with torch.no_grad():
        out = network(torch.zeros(2, *config.shape), torch.tensor([0.1, 0.9]), cond)
    assert bool(out.isfinite().all())


def test_chains_from_nothing_are_trained_longer_than_chains_from_a_model() -> None:
    digits, scratch = (PRESETS[name] for name in ("digits-e2e", "digits-e2e-scratch"))
    assert configured(objective="e2e") == scratch
    assert configured(objective="e2e", init="mnist").train == digits.train
    assert replace(scratch, train=digits.train) == digits
    assert scratch.train.steps > 5 * digits.train.steps
