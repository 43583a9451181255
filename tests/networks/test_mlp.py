"""The perceptron: what it is told changes its answer, samples stay apart, and other shapes are refused."""

from __future__ import annotations

import pytest
import torch

from fewstep.errors import ConfigError, ShapeError
from fewstep.networks.mlp import MLP


@pytest.fixture
def network() -> MLP:
    torch.manual_seed(0)
    return MLP(5, width=16, n_classes=3).double()


def inputs(n: int = 4) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 5, dtype=torch.float64, generator=generator)
    return x, torch.linspace(0, 1, n, dtype=torch.float64), {"label": torch.arange(n) % 3}


def test_every_sample_is_answered_apart(network: MLP) -> None:
    x, noise, cond = inputs()
    whole = network(x, noise, cond)
    for i in range(4):
        alone = network(x[i : i + 1], noise[i : i + 1], {"label": cond["label"][i : i + 1]})
        assert (alone - whole[i : i + 1]).abs().max() <= 1e-12


def test_noise_and_class_change_the_answer(network: MLP) -> None:
    x, noise, cond = inputs()
    base = network(x, noise, cond)
    assert bool(((network(x, noise + 0.1, cond) - base).abs().amax(1) > 1e-3).all())
    assert bool(((network(x, noise, {"label": (cond["label"] + 1) % 3}) - base).abs().amax(1) > 1e-3).all())
    assert torch.equal(network(x, noise), network(x, noise, {"label": torch.full((4,), 3)})), (
        "no label is the null class"
    )


def test_all_weights_are_used(network: MLP) -> None:
    network(*inputs()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("shape", [(4, 6), (4,), (4, 5, 1)])
def test_other_shapes_are_refused(network: MLP, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"Vectors of shape .*takes \(b, 5\).*Flatten"):
        network(torch.zeros(shape, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))


def test_unknown_conditions_and_sizes_are_refused(network: MLP) -> None:
    x, noise, _ = inputs()
    with pytest.raises(ConfigError, match="'tokens'"):
        network(x, noise, {"tokens": torch.zeros(4, 2, dtype=torch.int64)})
    with pytest.raises(ConfigError, match="dim=0"):
        MLP(0)
