"""Hidden maps of a denoiser: what the frozen network computes at its own noise level, by hand, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewstep.denoisers import Flow, NetworkDenoiser
from fewstep.errors import ConfigError, LevelError, UnknownName
from fewstep.features import Maps
from fewstep.losses import DenoiserMaps, Perceptual
from fewstep.networks import SpaceToDepthNet, UNet
from fewstep.noise import EDM, LinearFlow

from .outcomes import normal


class Shallow(nn.Module):
    """Two layers, dropout between them, and the noise label and condition added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dropout, self.last = nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x, noise_label, cond=None):
        hidden = self.dropout(self.first(x).tanh()) + noise_label[:, None]
        return self.last(hidden + (cond["label"][:, None] if cond else 0))


def randomise(network: nn.Module) -> nn.Module:
    """New weights of unit scale: no layer of zeros hides what comes before it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
    return network


def shallow() -> NetworkDenoiser:
    return NetworkDenoiser(randomise(Shallow()).double(), Flow(), LinearFlow())


def conditional() -> NetworkDenoiser:
    network = SpaceToDepthNet(1, patch=2, width=8, blocks=2, heads=2, detail=2, embedding=8, n_classes=3)
    return NetworkDenoiser(randomise(network).double(), Flow(), LinearFlow())


def test_the_layers_of_the_network_at_its_own_level():
    """On the straight path kappa = 1/4 is (0.8, 0.2) and kappa = 1 is (0.5, 0.5)."""
    denoiser, x = shallow(), normal(5, 3)
    denoiser.network.requires_grad_(False)
    maps = DenoiserMaps(denoiser, (0.25, 1.0), ("first", "last"), seed=7)
    eps = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    expected = []
    for alpha, sigma in ((0.8, 0.2), (0.5, 0.5)):
        noisy = alpha * x + sigma * eps
        label = math.atan2(sigma, alpha) * 2 / math.pi
        hidden = denoiser.network.first(noisy)
        expected += [hidden, denoiser.network.last(hidden.tanh() + label)]
    found = maps(x)
    assert len(found) == 4
    for got, wanted in zip(found, expected, strict=True):
        assert float((got - wanted).abs().max()) <= 1e-12


def test_frozen():
    denoiser, x = shallow(), normal(5, 3)
    maps = DenoiserMaps(denoiser, layers=("last",))
    assert isinstance(maps, Maps)
    before, state = maps(x)[0], torch.random.get_rng_state()
    nn.Sequential(maps).train()
    with torch.no_grad():
        denoiser.network.last.weight.zero_()
    assert torch.equal(maps(x)[0], before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert denoiser.network.training
    assert not any(parameter.requires_grad for parameter in maps.parameters())
    assert maps.name != DenoiserMaps(denoiser, layers=("last",)).name
    assert maps.name != DenoiserMaps(shallow(), layers=("last",), seed=1).name


def test_an_image_does_not_see_its_batch():
    maps, x = DenoiserMaps(conditional()), normal(4, 1, 6, 4)
    together = maps(x)
    for i in range(4):
        for alone, all_of_them in zip(maps(x[i : i + 1]), together, strict=True):
            assert float((alone[0] - all_of_them[i]).abs().max()) <= 1e-12


def test_every_residual_block_by_default():
    network = UNet(1, width=4, multipliers=(1, 2), blocks=1, heads=2, embedding=8)
    maps = DenoiserMaps(NetworkDenoiser(network, Flow(), LinearFlow()))
    found = maps(normal(2, 1, 8, 8).float())
    assert [tuple(of.shape[1:]) for of in found] == [
        (4, 8, 8),
        (8, 4, 4),
        (8, 4, 4),  # the middle
        (8, 4, 4),
        (8, 4, 4),
        (8, 4, 4),
        (4, 8, 8),
        (4, 8, 8),
    ]


def test_conditions_are_passed_on_and_none_is_the_null_class():
    maps, x = DenoiserMaps(conditional()), normal(2, 1, 4, 4)

    def told(label):
        return torch.cat([of.flatten() for of in maps(x, label and {"label": torch.tensor(label)})])

    assert torch.equal(told(None), told([3, 3]))
    assert float((told([0, 1]) - told([0, 2])).abs().max()) > 1e-3
    loss = Perceptual(maps)
    assert float(loss(x, x, {"label": torch.tensor([0, 1])}).max()) == 0


def test_gradients_reach_the_images():
    maps = DenoiserMaps(conditional(), layers=("blocks.0", "blocks.1"))
    target = normal(1, 1, 4, 4, seed=1)
    x = normal(1, 1, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda fake: Perceptual(maps)(fake, target), x, atol=1e-6)


def test_an_error_leaves_no_hook_behind():
    maps = DenoiserMaps(shallow(), layers=("first",))
    with pytest.raises(RuntimeError):
        maps(normal(2, 5))
    assert not maps.network.first._forward_hooks
    assert len(maps(normal(2, 3))) == 1


def test_refusals():
    with pytest.raises(UnknownName, match="Did you mean 'first'"):
        DenoiserMaps(shallow(), layers=("frist",))
    for wrong in ({}, {"layers": ()}, {"layers": ("first",), "kappas": ()}, {"layers": ("first",), "kappas": (0.0,)}):
        with pytest.raises(ConfigError, match="At least one kappa") as caught:
            DenoiserMaps(shallow(), **wrong)
        assert "name layers" in caught.value.todo
    with pytest.raises(ConfigError, match="a torch module"):
        DenoiserMaps(NetworkDenoiser(lambda x, label, cond: x, Flow(), LinearFlow()))
    narrow = NetworkDenoiser(Shallow().double(), Flow(), EDM())
    with pytest.raises(LevelError):
        DenoiserMaps(narrow, (1e9,), ("first",))(normal(2, 3))
