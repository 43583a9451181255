"""Properties that all features share, and what is particular to each."""

from __future__ import annotations

import pytest
import torch

from fewstep.errors import CheckpointError, ConfigError, DtypeError, ShapeError
from fewstep.features import (
    ClassifierFeatures,
    Classifying,
    Features,
    Pixels,
    RandomConv,
    load_classifier,
    save_classifier,
)
from fewstep.networks.classifier import SmallClassifier


def classifier(seed=0, **arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallClassifier(**{"channels": 1, "n_classes": 3, "width": 4, "dim": 8, **arguments})
        network(torch.randn(16, network.channels, 8, 8))  # running statistics other than 0 and 1
    return network


def images(b=5, c=1, h=8, w=8, seed=1, dtype=torch.float32):
    return torch.rand(b, c, h, w, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2 - 1


FEATURES = {
    "pixels": lambda: Pixels((1, 8, 8)),
    "random_conv": lambda: RandomConv(1, dim=16),
    "classifier": lambda: ClassifierFeatures(classifier(), "small", (8, 8)),
}
every_kind = pytest.mark.parametrize("kind", FEATURES)


@every_kind
def test_protocol(kind):
    features = FEATURES[kind]()
    assert isinstance(features, Features)
    x = images()
    assert features(x).shape == (5, features.dim)
    assert torch.equal(features(x), FEATURES[kind]()(x))
    assert features.name == FEATURES[kind]().name
    assert features.resize == "none"
    assert isinstance(features, Classifying) == (kind == "classifier")


@every_kind
def test_an_image_does_not_see_its_batch(kind):
    features, x = FEATURES[kind](), images(9)
    alone = torch.cat([features(one) for one in x.split(1)])
    assert float((alone - features(x)).abs().max()) <= 1e-5
    assert float((features(x.flip(0)).flip(0) - features(x)).abs().max()) <= 1e-5


@every_kind
def test_differentiable(kind):
    features = FEATURES[kind]()
    if isinstance(features, torch.nn.Module):
        features = features.double()
    assert torch.autograd.gradcheck(features, images(2, dtype=torch.float64).requires_grad_())


@every_kind
def test_bad_images(kind):
    features = FEATURES[kind]()
    for wrong in (images(c=3), images()[0], images(h=3), images().flatten(1)):
        with pytest.raises(ShapeError, match="They read images of shape"):
            features(wrong)
    for dtype in (torch.uint8, torch.int64, torch.bool):
        with pytest.raises(DtypeError, match="floating-point"):
            features(images().to(dtype))


@every_kind
def test_only_the_images_get_gradients(kind):
    features, x = FEATURES[kind](), images().requires_grad_()
    features(x).square().sum().backward()
    assert float(x.grad.abs().max()) > 0
    if isinstance(features, torch.nn.Module):
        assert not any(parameter.requires_grad for parameter in features.parameters())


def test_pixels():
    x = images(c=3, h=4, w=6)
    features = Pixels((3, 4, 6))
    assert features.name == "pixels 3x4x6"
    assert torch.equal(features(x), x.reshape(5, 72))
    with pytest.raises(ShapeError):
        features(images(c=3, h=6, w=4))
    for shape in ((3, 4), (0, 4, 4)):
        with pytest.raises(ShapeError):
            Pixels(shape)


def test_random_conv_depends_on_its_seed_alone():
    x = images()
    torch.manual_seed(5)
    first = RandomConv(1, seed=3)
    state = torch.random.get_rng_state()
    torch.manual_seed(6)
    second, other = RandomConv(1, seed=3), RandomConv(1, seed=4)
    assert torch.equal(first(x), second(x))
    assert float((first(x) - other(x)).abs().max()) > 0.01
    assert first.name != other.name
    torch.manual_seed(5)
    assert torch.equal(state, torch.random.get_rng_state())  # the global random state was not touched


def test_random_conv_keeps_activations_at_unit_scale():
    z = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = RandomConv(3, dim=256)
    # Means over 16 x 16 positions are small; the scale shows in images that are one constant, away from the border.
    assert 0.02 < float(features(z).std()) < 1
    assert 0.1 < float(features(torch.ones(1, 3, 64, 64)).std()) < 10


def test_random_conv_takes_any_size_and_refuses_other_dims():
    features = RandomConv(3, dim=8)
    for size in ((4, 4), (28, 28), (33, 17)):
        assert features(images(2, 3, *size)).shape == (2, 8)
    for arguments in ({"dim": 6}, {"dim": 0}, {"channels": 0}):
        with pytest.raises(ConfigError):
            RandomConv(**{"channels": 1, **arguments})


def test_classifier_features_are_what_its_last_layer_reads():
    network, x = classifier().eval(), images()
    features = ClassifierFeatures(network, "small")
    logits = network.logits(features(x))
    assert torch.equal(logits, network(x))
    assert torch.equal(features.logits_of(features(x)), logits)
    assert features(images(h=12, w=5)).shape == (5, 8)  # without a size, any


def test_training_the_original_changes_nothing():
    network, x = classifier(), images()
    features = ClassifierFeatures(network, "small")
    before, name = features(x), features.name
    with torch.no_grad():
        network.hidden.weight.zero_()
    network.train()(x)
    features.train()
    assert torch.equal(features(x), before)
    assert not features.network.training
    assert name == ClassifierFeatures(classifier(), "small").name != ClassifierFeatures(network, "small").name


def test_classifier_round_trip(tmp_path):
    features = ClassifierFeatures(classifier(), "small", (8, 8))
    save_classifier(tmp_path, features, {"accuracy": 0.5})
    again, config = load_classifier(tmp_path)
    assert torch.equal(again(images()), features(images()))
    assert (again.name, again.size, config["facts"]) == (features.name, (8, 8), {"accuracy": 0.5})


def test_weights_that_are_not_those_of_the_config_are_refused(tmp_path):
    for name, network in (("a", classifier(0)), ("b", classifier(1)), ("c", classifier(0, width=5))):
        (tmp_path / name).mkdir()
        save_classifier(tmp_path / name, ClassifierFeatures(network, "small"), {})
    model = tmp_path / "a" / "model.safetensors"
    for other, message in (("b", "fingerprint"), ("c", "no classifier")):
        model.write_bytes((tmp_path / other / "model.safetensors").read_bytes())
        with pytest.raises(CheckpointError, match=message):
            load_classifier(tmp_path / "a")
    model.write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_classifier(tmp_path / "a")
    model.unlink()
    with pytest.raises(CheckpointError):
        load_classifier(tmp_path / "a")
    (tmp_path / "b" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no classifier"):
        load_classifier(tmp_path / "b")


def test_random_conv_gain():
    """Behind a silu the weights are larger by 1 / sqrt(E[silu(z)^2]), so that activations keep their scale."""
    z = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / (2 * torch.pi) ** 0.5
    gain = (torch.nn.functional.silu(z) ** 2 * density).sum().mul(z[1] - z[0]).rsqrt().item()
    assert abs(gain - 1.676) <= 1e-3
    for i, weight in enumerate(RandomConv(3, dim=256).buffers()):
        scale = weight.double().square().mean().mul(weight[0].numel()).sqrt().item()
        allowed = 4 / (2 * weight.numel()) ** 0.5
        assert abs(scale / (gain if i else 1.0) - 1) <= allowed, f"weights {i}: scale {scale:.3f}"


def test_random_conv_tells_quarters_apart_from_five_pixels_on():
    features, x = RandomConv(1, dim=16), images(2, 1, 5, 5)
    for size, apart in ((4, False), (5, True)):
        quarters = features(x[..., :size, :size]).reshape(2, 4, 4)
        assert (float((quarters - quarters[..., :1]).abs().max()) > 0.01) == apart, f"{size} pixels"


def test_no_classifier_takes_the_name_of_fid():
    with pytest.raises(ConfigError, match="inception-fid"):
        ClassifierFeatures(SmallClassifier(1, width=2, dim=4), "inception-fid")
