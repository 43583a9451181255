"""EDM's U-Net: its names and sizes are the published ones, and its numbers those of an independent derivation."""

from __future__ import annotations

import pytest
import torch
from tests.reference import edm_unet as reference
from torch import nn

from fewstep.denoisers import EDMPrecond, NetworkDenoiser
from fewstep.errors import ConfigError, LevelError, ShapeError
from fewstep.networks import EDMUNet
from fewstep.noise import EDM, NoiseLevel

VARIANTS = ("ddpmpp", "ncsnpp")
TOLD = [{}, {"n_classes": 3, "augment": 5}]


def filled(network: nn.Module) -> nn.Module:
    """Every parameter and frequency drawn, in the order of the names; the filters are what they are."""
    generator = torch.Generator().manual_seed(7)
    state = network.double().state_dict()
    for name in sorted(state):
        if not name.endswith("resample_filter"):
            state[name] = torch.randn(state[name].shape, generator=generator, dtype=torch.float64) * 0.3
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def inputs(batch: int, channels: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, torch.linspace(-1.5, 1.1, batch, dtype=torch.float64)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("told", TOLD)
def test_output_is_that_of_the_reference(variant: str, told: dict[str, int]) -> None:
    """Three levels, attention at two of them, and numbers of channels that change within a level."""
    network = filled(EDMUNet(2, 8, 16, (1, 2, 2), 2, (8, 2), variant, **told))
    x, noise = inputs(3, 2, 8)
    cond = {"label": torch.tensor([2, 3, 0]), "augment": torch.randn(3, 5, dtype=torch.float64)} if told else None
    one_hot = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=torch.float64) if told else None
    expected = reference.output(network.state_dict(), x, noise, one_hot, cond["augment"] if cond else None)
    # ddpmpp has its frequencies in float32, as EDM has them.
    tolerance = 1e-12 if variant == "ncsnpp" else 1e-6
    torch.testing.assert_close(network(x, noise, cond), expected, rtol=0, atol=tolerance)
    assert float(expected.abs().max()) > 1


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("ddpmpp", [-0.29469729521235166, -0.2700110366421065, 0.37050523024154847, -0.5061106950641232]),
        ("ncsnpp", [-0.08892334496584808, 0.34882314765924805, -0.346796912499453, 0.2359971342850295]),
    ],
)
def test_output_is_that_of_edm(variant: str, expected: list[float]) -> None:
    """Four pixels of what NVlabs/edm at 0a2ff34f computes in float64 for the same state and inputs (seed 7)."""
    network = filled(EDMUNet(2, 8, 8, (1, 2), 1, (4,), variant, n_classes=3, augment=5))
    generator = torch.Generator().manual_seed(7)
    for name, tensor in sorted(network.state_dict().items()):
        if not name.endswith("resample_filter"):
            torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 2, 8, 8, generator=generator, dtype=torch.float64)
    out = network(x, torch.tensor([-0.7, 0.9], dtype=torch.float64), {"label": torch.tensor([2, 0])})
    found = [float(out[place]) for place in ((0, 0, 0, 0), (0, 1, 3, 5), (1, 0, 7, 2), (1, 1, 4, 4))]
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "millions"),
    [
        ({"augment": 9}, 55.7),
        ({"augment": 9, "n_classes": 10}, 55.7),
        ({"augment": 9, "variant": "ncsnpp"}, 56.4),
        ({"augment": 9, "resolution": 64, "multipliers": (1, 2, 2, 2)}, 61.8),
        ({"augment": 9, "resolution": 64, "multipliers": (1, 2, 2, 2), "variant": "ncsnpp"}, 62.8),
    ],
)
def test_sizes_are_the_published_ones(arguments: dict[str, object], millions: float) -> None:
    with torch.device("meta"):
        network = EDMUNet(3, **arguments)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions


def test_names_are_the_published_ones() -> None:
    """Those that differ in kind, of the conditional CIFAR-10 models; nothing but weights, biases and fixed buffers."""
    with torch.device("meta"):
        plain = EDMUNet(3, n_classes=10, augment=9).state_dict()
        residual = EDMUNet(3, n_classes=10, augment=9, variant="ncsnpp").state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in plain.items()}
    expected = {
        "map_label.weight": (128, 10),
        "map_augment.weight": (128, 9),
        "map_layer0.weight": (512, 128),
        "map_layer1.bias": (512,),
        "enc.32x32_conv.weight": (128, 3, 3, 3),
        "enc.32x32_block0.skip.weight": (256, 128, 1, 1),
        "enc.16x16_down.conv0.resample_filter": (1, 1, 2, 2),
        "enc.16x16_down.skip.weight": (256, 256, 1, 1),
        "enc.16x16_block3.qkv.weight": (768, 256, 1, 1),
        "dec.8x8_in0.proj.bias": (256,),
        "dec.8x8_block4.norm0.weight": (512,),
        "dec.16x16_up.conv0.weight": (256, 256, 3, 3),
        "dec.16x16_block4.norm2.weight": (256,),
        "dec.32x32_block4.norm0.weight": (384,),
        "dec.32x32_block4.affine.weight": (256, 512),
        "dec.32x32_aux_norm.weight": (256,),
        "dec.32x32_aux_conv.weight": (3, 256, 3, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert not [name for name in shapes if "16x16_block3.qkv" in name and name.startswith("dec")]
    assert not [name for name in shapes if "8x8_in1.qkv" in name or "map_augment.bias" in name]
    assert (len(plain), len(residual)) == (427, 434)
    assert {name: tuple(residual[name].shape) for name in sorted(residual.keys() - plain.keys())} == {
        "enc.16x16_aux_residual.bias": (256,),
        "enc.16x16_aux_residual.resample_filter": (1, 1, 4, 4),
        "enc.16x16_aux_residual.weight": (256, 3, 3, 3),
        "enc.8x8_aux_residual.bias": (256,),
        "enc.8x8_aux_residual.resample_filter": (1, 1, 4, 4),
        "enc.8x8_aux_residual.weight": (256, 256, 3, 3),
        "map_noise.freqs": (128,),
    }


def test_it_denoises_as_edm_says() -> None:
    """D(x) = c_skip x + c_out F(c_in x, log(sigma)/4), Table 1, with the data's spread 0.6."""
    network = filled(EDMUNet(2, 8, 8, (1, 2), 1, (4,)))
    x, _ = inputs(3, 2, 8)
    sigma = torch.tensor([0.002, 1.5, 80.0], dtype=torch.float64)
    s = sigma[:, None, None, None]
    total = s**2 + 0.6**2
    expected = 0.36 / total * x + s * 0.6 / total.sqrt() * network(x / total.sqrt(), sigma.log() / 4)
    denoiser = NetworkDenoiser(network, EDMPrecond(0.6), EDM(), "edm")
    torch.testing.assert_close(denoiser(x, NoiseLevel(torch.ones(3).double(), sigma)), expected, rtol=0, atol=1e-12)
    with pytest.raises(LevelError, match="log"):
        NetworkDenoiser(network, EDMPrecond(0.6), EDM(), "edm")(x, NoiseLevel(torch.ones(()), torch.zeros(())))


def test_the_null_class_says_nothing() -> None:
    network = filled(EDMUNet(2, 8, 8, (1, 2), 1, (4,), n_classes=3, augment=5))
    x, noise = inputs(2, 2, 8)
    none, zeros = network(x, noise), torch.zeros(2, 5, dtype=torch.float64)
    assert torch.equal(none, network(x, noise, {"label": torch.tensor([3, 3]), "augment": zeros}))
    assert float((none - network(x, noise, {"label": torch.tensor([0, 3])}))[0].abs().max()) > 1e-3
    assert float((none - network(x, noise, {"augment": zeros + 1})).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(({name: 0}, f"{name}=0") for name in ("channels", "resolution", "width", "blocks")),
        *(({name: -1}, f"{name}=-1") for name in ("n_classes", "augment")),
        ({"variant": "adm"}, "variant='adm'.*ddpmpp, ncsnpp"),
        ({"multipliers": ()}, "resolution=32 of 0 levels"),
        ({"multipliers": (1, 0)}, r"multipliers\[1\]=0"),
        ({"resolution": 30}, "resolution=30 of 3 levels"),
        ({"width": 10}, "30 channels.*A multiple of 4"),
        ({"width": 2}, "width=2"),
    ],
)
def test_numbers_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EDMUNet(**arguments)


def test_augmentation_labels_of_another_length() -> None:
    network = filled(EDMUNet(2, 8, 8, (1, 2), 1, (4,), augment=5))
    x, noise = inputs(2, 2, 8)
    with pytest.raises(ShapeError, match=r"shape \(2, 4\).*One row of 5"):
        network(x, noise, {"augment": torch.zeros(2, 4)})
    with pytest.raises(ConfigError, match=r"'label'.*takes augmentation labels"):
        network(x, noise, {"label": torch.tensor([0, 1])})
