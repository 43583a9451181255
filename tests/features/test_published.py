"""What all published networks share as features, and what is particular to the ResNets and SqueezeNet."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

from fewstep.errors import CheckpointError, DtypeError, MissingWeights, ShapeError
from fewstep.features import (
    ClassifierNetworkFeatures,
    Classifying,
    Clean,
    Features,
    NetworkFeatures,
    load_cifar_resnet,
    load_squeezenet,
)
from fewstep.features.inception import FidInception
from fewstep.features.resnet import CifarResNet
from fewstep.features.squeezenet import SqueezeNet

from .published import NETWORKS, cifar_test, needs_cifar, needs_weights, randomised, rgb

SHIFT, SCALE = (0.1, 0.0, -0.1), (0.9, 1.0, 1.1)
MAKERS = {
    "resnet": lambda: ClassifierNetworkFeatures(randomised(CifarResNet(1)), "net", SHIFT, SCALE, size=(32, 32)),
    "squeezenet": lambda: NetworkFeatures(randomised(SqueezeNet()), "net", SHIFT, SCALE),
    # 75 pixels are the least that Inception can read; at 299 the same would take a minute.
    "inception": lambda: ClassifierNetworkFeatures(randomised(FidInception()), "net", SHIFT, SCALE, resize=Clean(75)),
}


@pytest.fixture(scope="module", params=MAKERS)
def features(request):
    return MAKERS[request.param]()


def test_protocol(features):
    assert isinstance(features, Features)
    assert isinstance(features, Classifying) == (features.dim != 512)
    assert features(rgb()).shape == (3, features.dim)
    assert features.resize == ("bicubic antialiased to 75 (clean)" if features.dim == 2048 else "none")
    assert features.name == f"net@{features.fingerprint}"


def test_an_image_does_not_see_its_batch(features):
    x = rgb(4)
    whole = features(x)
    alone = torch.cat([features(one) for one in x.split(1)])
    assert float((alone - whole).abs().max() / whole.abs().max()) <= 1e-5
    assert float((features(x.flip(0)).flip(0) - whole).abs().max() / whole.abs().max()) <= 1e-5


def test_gradients_reach_the_images_and_nothing_else(features):
    """Along a random direction, against the central difference in float64."""
    features = copy.deepcopy(features).double()
    x = 0.7 * rgb(1, dtype=torch.float64)
    direction, read_out = rgb(1, seed=2, dtype=torch.float64), torch.linspace(-1, 1, features.dim, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (features(leaf) @ read_out).sum().backward()
    slope, h = float((leaf.grad * direction).sum()), 1e-8  # short: rectifiers have kinks
    up, down = (float((features(x + sign * h * direction) @ read_out).sum()) for sign in (1, -1))
    assert slope == pytest.approx((up - down) / (2 * h), rel=1e-4)
    assert abs(slope) > 1e-3
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_nothing_changes_it(features):
    x = rgb()
    before = features(x)
    torch.nn.Sequential(features).train()
    assert not any(module.training for module in features.modules())
    assert torch.equal(features(x), before)
    assert torch.equal(copy.deepcopy(features)(x), before)
    assert features(x.half()).dtype == torch.float32  # images of any floating dtype; the weights decide


def test_all_of_it_moves(features):
    """To the device without numbers, where a tensor left behind would be refused."""
    moved = copy.deepcopy(features).to("meta")
    vectors = moved(rgb().to("meta"))
    assert (vectors.device.type, vectors.shape) == ("meta", (3, features.dim))


def test_bad_images(features):
    for wrong in (rgb()[:, :1], rgb()[0], rgb(h=3), rgb().flatten(1)):
        with pytest.raises(ShapeError, match="They read images of shape"):
            features(wrong)
    with pytest.raises(DtypeError, match="floating-point"):
        features((rgb() * 127.5 + 127.5).to(torch.uint8))


def test_later_training_of_the_original_changes_nothing():
    network, x = randomised(CifarResNet(1)), rgb()
    features = ClassifierNetworkFeatures(network, "net", SHIFT, SCALE)
    before = features(x)
    with torch.no_grad():
        network.conv1.weight.zero_()
    assert torch.equal(features(x), before)
    assert features.name != ClassifierNetworkFeatures(network, "net", SHIFT, SCALE).name


@pytest.mark.parametrize("n_blocks", [3, 5])
def test_resnet_depth_is_read_off_the_file(tmp_path, n_blocks):
    network = randomised(CifarResNet(n_blocks)).requires_grad_(False)
    weights = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    save_file(weights, tmp_path / "net.safetensors")
    state = torch.random.get_rng_state()
    features = load_cifar_resnet(tmp_path / "net.safetensors")
    assert torch.equal(state, torch.random.get_rng_state())  # building it drew nothing
    assert features.name == f"cifar10-resnet{6 * n_blocks + 2}@{features.fingerprint}"
    x = rgb()
    u = (x + 1) / 2
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (u - mean[:, None, None]) / std[:, None, None]
    logits = network.logits(network.embed(normalised))
    assert float((features.logits_of(features(x)) - logits).abs().max() / logits.abs().max()) <= 1e-5


def test_resnet_shortcut_takes_every_second_pixel_and_pads_channels():
    """A block whose residual is zero: relu of the option-A shortcut."""
    block = CifarResNet(1).layer2[0].eval()
    torch.nn.init.zeros_(block.bn2.weight)
    h = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = h[:, :, ::2, ::2].relu()
    assert torch.equal(block(h), expected)


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "net.safetensors"
    good = CifarResNet(1).state_dict()
    for change, message in (
        ({"linear.bias": None}, "linear.bias is missing"),
        ({"extra": torch.zeros(1)}, "extra is unknown"),
        ({"linear.weight": torch.zeros(100, 64)}, r"linear.weight has shape \(100, 64\), not \(10, 64\)"),
    ):
        save_file({name: tensor for name, tensor in {**good, **change}.items() if tensor is not None}, path)
        with pytest.raises(CheckpointError, match=message):
            load_cifar_resnet(path)
    save_file({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="no CIFAR ResNet"):
        load_cifar_resnet(path)
    with pytest.raises(CheckpointError, match="SqueezeNet"):
        load_squeezenet(path)
    torch.save(good, path)
    with pytest.raises(CheckpointError, match="Only safetensors"):
        load_cifar_resnet(path)
    with pytest.raises(MissingWeights, match="akamaster") as caught:
        load_cifar_resnet(tmp_path / "nothing.safetensors")
    assert "fewstep[metrics]" in str(caught.value)


def test_squeezenet_in_half_precision_is_cast_up(tmp_path):
    network = randomised(SqueezeNet()).requires_grad_(False)
    halves = {name: tensor.half() for name, tensor in network.state_dict().items()}
    save_file(halves, tmp_path / "net.safetensors")
    network.load_state_dict({name: tensor.float() for name, tensor in halves.items()})
    features = load_squeezenet(tmp_path / "net.safetensors")
    assert {tensor.dtype for tensor in features.state_dict().values()} == {torch.float32}
    assert features.name == f"squeezenet1.1@{features.fingerprint}"
    x = rgb(2, 40, 33)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = network.embed(((x + 1) / 2 - mean[:, None, None]) / std[:, None, None])
    assert float((features(x) - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_squeezenet_needs_17_pixels():
    features = MAKERS["squeezenet"]()
    assert features(rgb(1, 17, 17)).shape == (1, 512)
    with pytest.raises(ShapeError, match=">= 17"):
        features(rgb(1, 16, 40))
    with pytest.raises(RuntimeError):
        features.network.embed(rgb(1, 16, 16))  # 17 is the least, not a caution


@needs_weights
@needs_cifar
@pytest.mark.parametrize(
    ("depth", "published"),
    [(20, 0.9173), pytest.param(32, 0.9263, marks=pytest.mark.slow), pytest.param(44, 0.9310, marks=pytest.mark.slow)],
)
def test_resnet_classifies_cifar_as_published(depth, published):
    """On the first 1,000 test images, within three standard deviations of that count."""
    features = load_cifar_resnet(NETWORKS / f"cifar10_resnet{depth}.safetensors")
    assert features.name.startswith(f"cifar10-resnet{depth}@")
    x, labels = cifar_test(1000)
    with torch.no_grad():
        guesses = torch.cat([features.logits_of(features(batch)).argmax(1) for batch in x.split(250)])
    accuracy = float((guesses == labels).double().mean())
    assert abs(accuracy - published) <= 3 * (published * (1 - published) / 1000) ** 0.5, f"{accuracy:.1%}"


@needs_weights
def test_published_squeezenet_loads():
    features = load_squeezenet(NETWORKS / "squeezenet1_1.safetensors")
    assert features(rgb(2, 64, 64)).isfinite().all()
