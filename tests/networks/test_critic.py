"""Critics: what they see, what they are told, what they leave alone, what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fewstep.errors import ConfigError, ShapeError
from fewstep.networks import PixelCritic, ProjectedCritic, VectorCritic
from fewstep.networks.layers import HighPass


def frozen_maps() -> Callable[[Tensor], list[Tensor]]:
    """Two maps of an image, of 3 and 5 channels, the second half as large."""
    torch.manual_seed(1)
    layers = nn.ModuleList([nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 5, 3, 2, padding=1)])
    layers.requires_grad_(False).double()

    def maps(x: Tensor) -> list[Tensor]:
        first = functional.silu(layers[0](x.to(torch.float64)))
        return [first, functional.silu(layers[1](first))]

    return maps


CRITICS = {"pixel": PixelCritic, "projected": ProjectedCritic, "vector": VectorCritic}
SMALL: dict[str, dict[str, object]] = {
    "pixel": {"side": 9, "width": 4},
    "projected": {"maps": frozen_maps(), "channels": (3, 5), "width": 4},
    "vector": {"dim": 6, "width": 16},
}


def build(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return CRITICS[name](**SMALL[name], **arguments).double()


def samples(name: str, batch: int = 4) -> Tensor:
    shape = (batch, 6) if name == "vector" else (batch, 1, 9, 7)
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def largest(x: Tensor) -> float:
    return float(x.detach().abs().max())


@pytest.mark.parametrize("name", SMALL)
def test_samples_do_not_see_each_other(name: str) -> None:
    critic, x, label = build(name, n_classes=3, noise=True), samples(name), torch.tensor([0, 1, 3, 2])
    noise = torch.linspace(0, 1, 4, dtype=torch.float64)
    together = critic(x, {"label": label}, noise)
    alone = [critic(x[i : i + 1], {"label": label[i : i + 1]}, noise[i : i + 1]) for i in range(4)]
    assert together.shape == (4,)
    assert largest(together - torch.cat(alone)) < 1e-12


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient_in_training_and_every_number_of_the_sample(name: str) -> None:
    critic, x = build(name, n_classes=3, noise=True), samples(name).requires_grad_()
    critic(x, {"label": torch.arange(4)}, torch.linspace(0.1, 1, 4)).sum().backward()
    dead = [key for key, value in critic.named_parameters() if value.grad is None or not value.grad.any()]
    assert dead == []
    assert bool((x.grad != 0).all())


@pytest.mark.parametrize("size", [(28, 28), (33, 17), (9, 40), (3, 5), (1, 1)])
def test_the_logit_hears_every_pixel_at_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = (torch.rand(1, 2, *size, dtype=torch.float64) * 2 - 1).requires_grad_()
    PixelCritic(2, side=64, width=4).double()(x).sum().backward()
    assert bool((x.grad != 0).all())


@pytest.mark.parametrize(("side", "width"), [(8, 4), (9, 8), (28, 16), (32, 16), (64, 16), (65, 16)])
def test_images_are_halved_until_eight_pixels_are_left(side: int, width: int) -> None:
    maps = PixelCritic(1, side, width=4).body(torch.zeros(1, 2, side, side))
    assert 4 < maps.shape[-1] <= 8
    assert maps.shape[1] == width


@pytest.mark.parametrize("name", SMALL)
def test_the_condition_joins_by_projection(name: str) -> None:
    critic, x, label = build(name, n_classes=3), samples(name), torch.tensor([0, 1, 2, 0])
    seen: list[Tensor] = []
    critic.logit.hidden.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = critic(x, {"label": label})
    f = torch.where(seen[0] > 0, seen[0], 0.2 * seen[0])
    e = functional.silu(
        critic.logit.conditioning.noise(torch.zeros(4)) + critic.logit.conditioning.classes.table.weight[label]
    )
    plain, v = critic.logit.plain, critic.logit.project.weight
    expected = f @ plain.weight[0] + plain.bias + torch.einsum("bi,ij,bj->b", f, v, e) / math.sqrt(f.shape[1])
    assert largest(logits - expected) < 1e-12


@pytest.mark.parametrize("name", SMALL)
def test_what_it_is_told_matters_and_nothing_is_the_null_class_and_clean(name: str) -> None:
    critic, x = build(name, n_classes=3, noise=True), samples(name)
    zero, one, null = ({"label": torch.full((4,), i)} for i in (0, 1, 3))
    assert largest(critic(x, zero) - critic(x, one)) > 1e-3
    assert largest(critic(x, zero, torch.full((4,), 0.3)) - critic(x, zero)) > 1e-4
    assert torch.equal(critic(x), critic(x, null, torch.zeros(4)))


@pytest.mark.parametrize("name", ["pixel", "projected"])
def test_captions(name: str) -> None:
    critic, x = build(name, n_tokens=5, caption_length=2), samples(name, 2)
    told = [critic(x, {"tokens": torch.tensor(rows)}) for rows in ([[1, 2], [3, 4]], [[1, 2], [3, 1]], [[0, 0]] * 2)]
    assert largest(told[0][:1] - told[1][:1]) == 0
    assert largest(told[0][1:] - told[1][1:]) > 1e-4
    assert torch.equal(told[2], critic(x))


def test_the_maps_of_a_projected_critic_are_not_its_own() -> None:
    features = nn.Conv2d(1, 3, 3).requires_grad_(False)
    critic = ProjectedCritic(lambda x: [features(x)], [3], width=4)
    own = {id(parameter) for parameter in critic.parameters()}
    assert not own & {id(parameter) for parameter in features.parameters()}
    # A module as the maps is not taken over either: torch registers modules that are plain attributes.
    as_module = ProjectedCritic(nn.Sequential(features), [3], width=4)
    assert as_module.state_dict().keys() == critic.state_dict().keys()
    before, x = features.weight.clone(), torch.zeros(2, 1, 8, 8, requires_grad=True)
    critic(x).sum().backward()
    assert features.weight.grad is None
    assert torch.equal(features.weight, before)
    assert float(x.grad.abs().max()) > 0


def test_the_high_pass_answers_waves_by_its_transfer_function() -> None:
    # (1, 2, 1) / 4 takes cos(w i) to (1 + cos w) / 2 cos(w i); along the other axis the wave is constant.
    i = torch.arange(32, dtype=torch.float64)
    filtered = HighPass(1).double()
    for w in (0.1, 1.0, math.pi):
        wave = 0.05 * torch.cos(w * i).expand(1, 1, 32, 32)
        expected = 16 * (1 - (1 + math.cos(w)) / 2) * wave
        assert largest((filtered(wave) - expected)[..., 1:-1]) < 1e-7, w


def test_autocast_leaves_the_residual_and_the_logits_exact() -> None:
    torch.manual_seed(0)
    critic, x = PixelCritic(1, width=8), torch.rand(4, 1, 28, 28) * 2 - 1
    with torch.no_grad():
        critic.logit.plain.bias.fill_(3.0)
    exact, residual = critic(x), critic.residual(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(critic.residual(x), residual)
        logits = critic(x)
        assert critic.body[0](torch.zeros(1, 2, 4, 4)).dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    # At 3, bfloat16 knows a logit to 1/64 only: rounding to half of that, 0.008.
    assert largest(logits - exact) < 1e-3


def test_the_residual_makes_one_grey_level_loud() -> None:
    step = torch.zeros(1, 1, 28, 28)
    step[..., 14, 14] = 1 / 127.5

    def moved(seed: int, residual: bool) -> float:
        torch.manual_seed(seed)
        critic = PixelCritic(1, residual=residual)
        return largest(critic(step) - critic(torch.zeros_like(step)))

    loud, quiet = (math.fsum(moved(seed, residual) ** 2 for seed in range(12)) for residual in (True, False))
    assert math.sqrt(loud) > 2 * math.sqrt(quiet)


def test_cost_of_an_mnist_image() -> None:
    critic = PixelCritic(1, n_classes=10)
    with FlopCounterMode(display=False) as counter:
        critic(torch.zeros(2, 1, 28, 28))
    assert counter.get_total_flops() / 2 / 2 < 65e6


def test_refusals() -> None:
    with pytest.raises(ShapeError, match=r"takes \(b, 1, h, w\)"):
        build("pixel")(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ShapeError, match=r"\(2, 5\).*takes \(b, 6\).*Build it"):
        build("vector")(torch.zeros(2, 5))
    with pytest.raises(ShapeError, match=r"\(3, 5\) channels.*\(3, 4\).*channels of the maps"):
        ProjectedCritic(frozen_maps(), (3, 4)).double()(samples("projected"))
    with pytest.raises(ConfigError, match="channels\\[1\\]=0"):
        ProjectedCritic(frozen_maps(), (3, 0))
    with pytest.raises(ConfigError, match="maps=0"):
        ProjectedCritic(frozen_maps(), ())
    for name in SMALL:
        with pytest.raises(ConfigError, match=r"Noise labels.*noise=True"):
            build(name)(samples(name), None, torch.zeros(4))
        with pytest.raises(ConfigError, match=r"'label'.*takes no condition"):
            build(name)(samples(name), {"label": torch.zeros(4, dtype=torch.int64)})
        with pytest.raises(ConfigError, match="width=0"):
            CRITICS[name](**{**SMALL[name], "width": 0})
    with pytest.raises(ConfigError, match="side=0"):
        PixelCritic(1, side=0)
    with pytest.raises(ConfigError, match="caption_length"):
        PixelCritic(1, n_tokens=5)


def test_a_vector_critic_takes_no_captions() -> None:
    with pytest.raises(ConfigError, match=r"'tokens'.*a class label"):
        VectorCritic(2, n_classes=2)(torch.zeros(1, 2), {"tokens": torch.zeros(1, 3, dtype=torch.int64)})
