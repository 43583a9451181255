"""Networks: what they compute, what they are told, what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from fewstep.errors import ConfigError, DtypeError, ShapeError
from fewstep.networks import NETWORKS, DiT, SmallClassifier, SpaceToDepthNet, UNet
from fewstep.networks.embeddings import NoiseEmbedding
from fewstep.networks.layers import ResBlock, SelfAttention

SMALL: dict[str, dict[str, object]] = {
    "unet": {"width": 8, "multipliers": [1, 2, 2], "blocks": 1, "heads": 2, "embedding": 16, "attention_levels": 1},
    "space_to_depth": {"patch": 4, "width": 16, "blocks": 2, "heads": 2, "detail": 4, "embedding": 16},
    "dit": {"patch": 4, "width": 16, "blocks": 2, "heads": 2, "mlp_ratio": 2, "embedding": 16},
    "edm_unet": {"resolution": 8, "width": 8, "multipliers": [1, 2, 2], "blocks": 1, "attention": [4]},
}


def build(name: str, **arguments: object) -> nn.Module:
    """A network with random weights everywhere, also where it starts at zero."""
    torch.manual_seed(0)
    network = NETWORKS[name](**SMALL[name], **arguments)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return network.double()


def inputs(batch: int, channels: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, channels, height, width, dtype=torch.float64, generator=generator)
    return x, torch.linspace(0.1, 0.9, batch, dtype=torch.float64)


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max())


def test_every_network_is_in_the_list() -> None:
    assert {*SMALL, "diffusers_unet"} == set(NETWORKS), "what diffusers builds has a file of its own"


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 12, 20)])
def test_samples_do_not_see_each_other(name: str, channels: int, height: int, width: int) -> None:
    network = build(name, channels=channels, n_classes=3)
    x, label = inputs(3, channels, height, width)
    classes = torch.tensor([0, 3, 1])
    out = network(x, label, {"label": classes})
    assert out.shape == x.shape
    alone = torch.cat([network(x[i : i + 1], label[i : i + 1], {"label": classes[i : i + 1]}) for i in range(3)])
    assert largest_difference(out, alone) < 1e-10


@pytest.mark.parametrize("name", SMALL)
def test_output_depends_on_every_input(name: str) -> None:
    network = build(name, n_classes=2)
    x, label = inputs(2, 1, 8, 8)
    first, second = ({"label": torch.tensor([i, i])} for i in (0, 1))
    out = network(x, label, first)
    assert largest_difference(out, network(x, label + 0.01, first)) > 1e-4
    assert largest_difference(out, network(x, label, second)) > 1e-4
    x.requires_grad_()
    gradient = torch.autograd.grad(network(x, label, first)[:, :, 0, 0].sum(), x)[0]
    assert bool((gradient != 0).all()), "some pixel does not reach the corner of the output"


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    network = build(name, n_classes=2)
    x, label = inputs(3, 1, 8, 8)
    network(x, label, {"label": torch.tensor([0, 1, 2])}).square().sum().backward()
    dead = [key for key, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert dead == []


@pytest.mark.parametrize("name", SMALL)
def test_a_fresh_network_answers_zero(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](**SMALL[name])
    x, label = inputs(2, 1, 8, 8)
    assert largest_difference(network(x.float(), label.float()), torch.zeros_like(x)) == 0


@pytest.mark.parametrize("name", SMALL)
def test_no_condition_is_the_null_class(name: str) -> None:
    network = build(name, n_classes=4)
    x, label = inputs(2, 1, 8, 8)
    null = network(x, label, {"label": torch.tensor([4, 4])})
    assert torch.equal(network(x, label), null)
    assert torch.equal(network(x, label, {}), null)


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_weights(name: str) -> None:
    network = build(name, n_classes=4).bfloat16()
    x, label = inputs(2, 1, 8, 8)
    out = network(x.bfloat16(), label.float(), {"label": torch.tensor([0, 4])})
    assert out.dtype == torch.bfloat16
    exact = build(name, n_classes=4)(x, label, {"label": torch.tensor([0, 4])})
    assert largest_difference(out.double(), exact) < 0.1 * float(exact.detach().abs().max())


@pytest.mark.parametrize("name", SMALL)
def test_refusals(name: str) -> None:
    network, conditional = build(name), build(name, n_classes=4)
    x, label = inputs(2, 1, 8, 8)
    with pytest.raises(ShapeError, match="multiples of 4"):
        network(x[..., :6], label)
    with pytest.raises(ShapeError, match=r"takes \(b, 1, h, w\)"):
        network(x.expand(2, 3, 8, 8), label)
    with pytest.raises(ShapeError, match="one noise label per sample"):
        network(x, label[0])
    with pytest.raises(ConfigError, match=r"'label'.*takes no condition"):
        network(x, label, {"label": torch.tensor([0, 1])})
    with pytest.raises(ConfigError, match=r"'text'.*takes a class label"):
        conditional(x, label, {"text": torch.zeros(2)})
    with pytest.raises(ConfigError, match=r"from 0 to 5.*Classes are 0..3; 4 is the null class"):
        conditional(x, label, {"label": torch.tensor([0, 5])})
    with pytest.raises(ShapeError, match="one label per sample"):
        conditional(x, label, {"label": torch.tensor([0])})
    with pytest.raises(DtypeError, match="float32"):
        conditional(x, label, {"label": torch.zeros(2)})


def test_impossible_networks() -> None:
    with pytest.raises(ConfigError, match="0 levels"):
        UNet(multipliers=[])
    with pytest.raises(ConfigError, match="4 levels with attention"):
        UNet(multipliers=[1, 2], attention_levels=4)
    with pytest.raises(ConfigError, match="3 attention heads for 16 channels"):
        SpaceToDepthNet(width=16, heads=3)
    for width, heads in ((16, 3), (18, 2)):
        with pytest.raises(ConfigError, match=f"width={width} with heads={heads}.*a multiple of 4"):
            DiT(width=width, heads=heads)


def test_attention_is_softmax_attention() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(8, 2).double()
    nn.init.normal_(layer.project.weight)
    x, _ = inputs(2, 8, 3, 2)
    tokens = functional.group_norm(x, layer.norm.num_groups, layer.norm.weight, layer.norm.bias).flatten(2)
    qkv = torch.einsum("oc,bct->bot", layer.qkv.weight[:, :, 0, 0], tokens) + layer.qkv.bias[:, None]
    heads = []
    for head in range(2):
        query, key, value = (qkv[:, 8 * i + 4 * head : 8 * i + 4 * head + 4] for i in range(3))
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", query, key) / 2, dim=-1)
        heads.append(torch.einsum("bqk,bck->bcq", weights, value))
    mixed = torch.einsum("oc,bct->bot", layer.project.weight[:, :, 0, 0], torch.cat(heads, 1)).reshape(x.shape)
    assert largest_difference(layer(x), x + mixed + layer.project.bias[:, None, None]) < 1e-12


def test_res_block_scales_and_shifts() -> None:
    """With scale = -1 the second normalisation is gone, and the branch is its last layer at a constant."""
    torch.manual_seed(0)
    block = ResBlock(8, 8, 4).double()
    nn.init.normal_(block.conv_out.weight)
    shift = torch.randn(8, dtype=torch.float64)
    with torch.no_grad():
        block.scale_shift.bias.copy_(torch.cat([-torch.ones(8, dtype=torch.float64), shift]))
    x, _ = inputs(2, 8, 5, 5)
    constant = functional.silu(shift)[:, None, None].expand(2, 8, 5, 5)
    expected = x + functional.conv2d(constant, block.conv_out.weight, padding=1)
    assert largest_difference(block(x, torch.zeros(2, 4, dtype=torch.float64)), expected) < 1e-12


def test_noise_embedding_tells_close_labels_apart_in_any_precision() -> None:
    torch.manual_seed(0)
    embedding = NoiseEmbedding(32).double()
    labels = torch.linspace(0, 1, 101, dtype=torch.float64)
    vectors = embedding(labels)
    distances = torch.cdist(vectors, vectors) + torch.eye(101) * 1e9
    assert float(distances.detach().min()) > 1e-3
    heard: list[torch.Tensor] = []
    embedding.mlp.register_forward_pre_hook(lambda _, features: heard.append(features[0]))
    embedding.bfloat16()(labels.float())
    angles = labels[:, None] * torch.logspace(0, 2, 16, dtype=torch.float64)
    assert largest_difference(heard[0].double(), torch.cat([angles.cos(), angles.sin()], dim=1)) < 2**-8


@pytest.mark.parametrize(
    ("made", "arguments", "message"),
    [
        *((UNet, {name: 0}, f"{name}=0") for name in ("channels", "width", "blocks")),
        *((SpaceToDepthNet, {name: 0}, f"{name}=0") for name in ("channels", "width", "blocks", "patch", "detail")),
        *((DiT, {name: 0}, f"{name}=0") for name in ("channels", "patch", "width", "blocks", "heads", "mlp_ratio")),
        *((SmallClassifier, {name: 0}, f"{name}=0") for name in ("channels", "n_classes", "width", "dim")),
        *((UNet, {name: -1}, f"{name}=-1") for name in ("heads", "n_classes", "attention_levels")),
        *((SpaceToDepthNet, {name: -1}, f"{name}=-1") for name in ("heads", "n_classes")),
        *(
            (made, {"embedding": n}, f"embedding={n}")
            for made in (UNet, SpaceToDepthNet, DiT)
            for n in (0, -2, 15, 16.0)
        ),
        (DiT, {"n_classes": -1}, "n_classes=-1"),
        (DiT, {"mlp_ratio": 2.5}, "mlp_ratio=2.5"),
        (UNet, {"width": 8.0}, "width=8.0"),
        (UNet, {"multipliers": (1, 0)}, r"multipliers\[1\]=0"),
        (UNet, {"multipliers": (1, 1.5)}, r"multipliers\[1\]=1.5"),
    ],
)
def test_numbers_that_cannot_be(made: type[torch.nn.Module], arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**arguments)
