"""LPIPS against an independent float64 computation, its axioms, and what it says about real images."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fewstep.errors import CheckpointError, DtypeError, MissingWeights, ShapeError
from fewstep.features import Lpips, load_lpips
from fewstep.features.squeezenet import SqueezeNet

from .published import NETWORKS, cifar_test, needs_cifar, needs_weights, randomised, rgb

SQUEEZENET, HEADS = NETWORKS / "squeezenet1_1.safetensors", NETWORKS / "lpips_squeeze_v0.1.safetensors"
CHANNELS = (64, 128, 256, 384, 384, 512, 512)
EXAMPLES = os.environ.get("FEWSTEP_LPIPS_EXAMPLES")


def random_heads(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(channels, generator=generator) for channels in CHANNELS]


@pytest.fixture(scope="module")
def lpips():
    return Lpips(randomised(SqueezeNet()), random_heads())


def by_hand(weights: dict[str, torch.Tensor], heads: list[torch.Tensor], a: torch.Tensor, b: torch.Tensor):
    """The formula of the paper in float64 from raw weights, layer by layer under torchvision's numbers."""
    weights = {name: tensor.double() for name, tensor in weights.items()}

    def convolve(h, name, **options):
        return F.relu(F.conv2d(h, weights[f"{name}.weight"], weights[f"{name}.bias"], **options))

    def activations(x):
        shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
        h, found = convolve((x.double() - shift) / scale, "features.0", stride=2), []
        found.append(h)
        for layer in range(2, 13):
            if layer in (2, 5, 8):
                h = F.max_pool2d(h, 3, 2, ceil_mode=True)
                continue
            s = convolve(h, f"features.{layer}.squeeze")
            wide = convolve(s, f"features.{layer}.expand3x3", padding=1)
            h = torch.cat([convolve(s, f"features.{layer}.expand1x1"), wide], 1)
            if layer in (4, 7, 9, 10, 11, 12):
                found.append(h)
        return found

    total = torch.zeros(len(a), dtype=torch.float64)
    for head, y_a, y_b in zip(heads, activations(a), activations(b), strict=True):
        unit_a, unit_b = (y / (y.square().sum(1, keepdim=True).sqrt() + 1e-10) for y in (y_a, y_b))
        total += torch.einsum("c,bchw->bhw", head.double(), (unit_a - unit_b) ** 2).mean((1, 2))
    return total


@pytest.mark.parametrize("shape", [(32, 32), (47, 33)])
def test_parity_with_the_formula(lpips, shape):
    a, b = rgb(3, *shape), rgb(3, *shape, seed=2)
    expected = by_hand(lpips.network.state_dict(), random_heads(), a, b)
    assert float((lpips(a, b) - expected).abs().max()) <= 1e-5 * float(expected.max())


def test_a_distance(lpips):
    a, b = rgb(4), rgb(4, seed=2)
    assert float(lpips(a, a).abs().max()) == 0
    assert float((lpips(a, b) - lpips(b, a)).abs().max()) == 0
    assert float(lpips(a, b).min()) > 0
    assert lpips(a, b).shape == (4,)
    alone = torch.cat([lpips(x, y) for x, y in zip(a.split(1), b.split(1), strict=True)])
    assert float((alone - lpips(a, b)).abs().max()) <= 1e-5 * float(alone.max())


def test_gradients(lpips):
    a = (0.7 * rgb(1)).requires_grad_()
    b = rgb(1, seed=2).requires_grad_()
    lpips(a, b).sum().backward()
    for x in (a, b):
        assert x.grad.isfinite().all()
        assert float(x.grad.abs().max()) > 0
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    same = rgb(1).requires_grad_()
    lpips(same, same.detach()).sum().backward()
    assert float(same.grad.abs().max()) == 0  # a minimum, with a finite gradient


def test_gradient_is_finite_where_all_channels_are_silent():
    network = randomised(SqueezeNet())
    torch.nn.init.constant_(network.features[0].bias, -1e3)
    torch.nn.init.constant_(network.features[3].squeeze.bias, -1.0)
    a = rgb(1).requires_grad_()
    distance = Lpips(network, random_heads())(a, rgb(1, seed=2))
    distance.sum().backward()
    assert a.grad.isfinite().all()
    assert distance.isfinite().all()


def test_frozen(lpips):
    a, b = rgb(1), rgb(1, seed=2)
    before = lpips(a, b)
    torch.nn.Sequential(lpips).train()
    assert not any(module.training for module in lpips.modules())
    assert torch.equal(lpips(a, b), before)
    assert lpips.name.startswith("lpips-squeeze@")
    assert lpips.name != Lpips(lpips.network, random_heads(1)).name


def test_bad_input(lpips, tmp_path):
    with pytest.raises(ShapeError, match="pairwise"):
        lpips(rgb(2), rgb(1))
    with pytest.raises(ShapeError, match=">= 17"):
        lpips(rgb(1, 16, 16), rgb(1, 16, 16))
    with pytest.raises(DtypeError):
        lpips(rgb(1).to(torch.uint8), rgb(1))
    with pytest.raises(ShapeError, match="heads"):
        Lpips(SqueezeNet(), random_heads()[:6])
    squeezenet, heads = tmp_path / "net.safetensors", tmp_path / "heads.safetensors"
    with pytest.raises(MissingWeights, match="PerceptualSimilarity"):
        load_lpips(squeezenet, heads)
    save_file({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, heads)
    with pytest.raises(CheckpointError, match="LPIPS heads"):
        load_lpips(squeezenet, heads)
    save_file({f"lin{i}.model.1.weight": head.reshape(1, -1, 1, 1) for i, head in enumerate(random_heads())}, heads)
    with pytest.raises(MissingWeights, match="torchvision"):
        load_lpips(squeezenet, heads)
    save_file(lpips.network.state_dict(), squeezenet)
    assert load_lpips(squeezenet, heads).name == lpips.name


@needs_weights
@needs_cifar
def test_published_weights_follow_the_formula_on_real_images():
    x = cifar_test(8)[0]
    raw, heads = load_file(SQUEEZENET), load_file(HEADS)
    flat = [heads[f"lin{i}.model.1.weight"].flatten() for i in range(7)]
    assert min(float(head.min()) for head in flat) >= 0
    expected = by_hand(raw, flat, x[:4], x[4:])
    assert float((load_lpips(SQUEEZENET, HEADS)(x[:4], x[4:]) - expected).abs().max()) <= 1e-5


@needs_weights
@needs_cifar
def test_orderings_on_real_images():
    """More of a distortion is further away, for nearly every image; another image is further than any of them."""
    lpips, x = load_lpips(SQUEEZENET, HEADS), cifar_test(16)[0]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    ladders = {
        "noise": [x + sd * noise for sd in (0.02, 0.08, 0.3)],
        "blur": [F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False) for size in (3, 5, 9)],
        "shift": [x.roll(pixels, 3) for pixels in (1, 3, 8)],
    }
    other = lpips(x, x.roll(1, 0))
    for name, ladder in ladders.items():
        with torch.no_grad():
            rungs = torch.stack([lpips(x, y) for y in ladder])
        assert float((rungs.diff(dim=0) > 0).double().mean()) >= 0.95, f"{name}: {rungs.mean(1).tolist()}"
        assert float(rungs[0].mean()) < 0.5 * float(other.mean())


@needs_weights
@pytest.mark.skipif(
    not EXAMPLES,
    reason="FEWSTEP_LPIPS_EXAMPLES is unset: the folder with ex_ref.png, ex_p0.png and ex_p1.png (imgs/ of the "
    "authors' repository, github.com/richzhang/PerceptualSimilarity)",
)
def test_the_authors_examples():
    from PIL import Image

    def read(name: str) -> torch.Tensor:
        pixels = np.asarray(Image.open(Path(EXAMPLES) / name).convert("RGB"), dtype=np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1

    lpips = load_lpips(SQUEEZENET, HEADS)
    for name, published in (("ex_p0.png", 0.711), ("ex_p1.png", 0.148)):
        assert abs(float(lpips(read("ex_ref.png"), read(name))) - published) <= 0.01


def test_faint_activations_have_directions_too():
    # Without biases a network of ReLUs scales with its first layer, and directions know nothing of scale.
    network = randomised(SqueezeNet())
    for name, weight in network.named_parameters():
        weight.detach().mul_(0.0 if name.endswith("bias") else 1.0)
    faint = copy.deepcopy(network)
    faint.features[0].weight.detach().mul_(1e-6)
    distances = [Lpips(one, random_heads())(rgb(2), rgb(2, seed=2)) for one in (network, faint)]
    assert float(distances[0].min()) > 0
    assert torch.allclose(*distances, rtol=1e-4)
