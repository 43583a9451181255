"""Denoising against the exact denoiser of a Gaussian: its loss is the known floor and its gradient averages to zero."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fewstep.data import Batch, seeded
from fewstep.denoisers import PREDICTIONS, NetworkDenoiser, Prediction
from fewstep.errors import ConfigError
from fewstep.losses import WEIGHTS, Plain, Weight
from fewstep.noise import DRAWS, LinearFlow, LogitNormalDraw, NoiseLevel, UniformDraw
from fewstep.objectives import GENERATOR, Denoising, normal_like

MEAN, STD = 0.3, 0.5
SCHEDULE = LinearFlow(t_min=0.05)


def data(n: int) -> Batch:
    return Batch(MEAN + STD * torch.randn(n, 1, 2, 2, dtype=torch.float64, generator=seeded("data")))


def level_of_angle(angle: Tensor) -> NoiseLevel:
    kappa = torch.tan(angle * (math.pi / 2))
    return NoiseLevel(1 / (1 + kappa), kappa / (1 + kappa))


class PerfectNetwork:
    """What an infinitely large network would answer on Gaussian data, off by `bias`."""

    def __init__(self, prediction: Prediction, bias: float | Tensor = 0.0) -> None:
        self.prediction, self.bias = prediction, bias

    def __call__(self, x: Tensor, noise_label: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        level = level_of_angle(noise_label)
        x = x / self.prediction.to_input(torch.ones_like(x), level)
        alpha, sigma = (value.reshape(-1, 1, 1, 1) for value in level)
        denoised = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        at_zero = self.prediction.to_denoised(torch.zeros_like(x), x, level)
        slope = self.prediction.to_denoised(torch.ones_like(x), x, level) - at_zero
        return (denoised - at_zero) / slope + self.bias


def floor(prediction: Prediction, weight: Weight, draw: LogitNormalDraw | UniformDraw) -> float:
    """E_t w_out(t) Var(x0 | x_t) / slope^2, by quadrature over the draw's uniforms."""
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    level = SCHEDULE.level(draw(SCHEDULE, u))
    variance = STD**2 * level.sigma**2 / (level.alpha**2 * STD**2 + level.sigma**2)
    zero = torch.zeros_like(u)
    slope = prediction.to_denoised(zero + 1, zero, level) - prediction.to_denoised(zero, zero, level)
    return float((weight(prediction, level) * variance / slope**2).nanmean())


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", [name for name in PREDICTIONS if name != "eps"])
def test_loss_of_the_exact_denoiser_is_the_floor(name: str, weight: str) -> None:
    prediction, rule, draw = PREDICTIONS[name](), WEIGHTS[weight](), LogitNormalDraw()
    objective = Denoising(NetworkDenoiser(PerfectNetwork(prediction), prediction, SCHEDULE), draw, rule)
    losses = objective.per_sample(data(20_000), seeded("noise"))
    error = float(losses.mean()) - floor(prediction, rule, draw)
    assert abs(error) < 4 * float(losses.std()) / math.sqrt(len(losses))


@pytest.mark.parametrize("name", ["x0", "flow", "v", "edm"])
def test_gradient_at_the_exact_denoiser_averages_to_zero(name: str) -> None:
    prediction = PREDICTIONS[name]()
    bias = torch.zeros(5_000, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    network = PerfectNetwork(prediction, bias)
    objective = Denoising(NetworkDenoiser(network, prediction, SCHEDULE), UniformDraw(), Plain())
    gradient = torch.autograd.grad(objective.per_sample(data(5_000), seeded("noise")).sum(), bias)[0].flatten()
    assert float(gradient.std()) > 0.05
    assert abs(float(gradient.mean())) < 4 * float(gradient.std()) / math.sqrt(5_000)


def test_a_wrong_denoiser_costs_its_error_squared() -> None:
    prediction = PREDICTIONS["x0"]()
    exact, wrong = (
        Denoising(NetworkDenoiser(PerfectNetwork(prediction, bias), prediction, SCHEDULE)) for bias in (0.0, 0.2)
    )
    extra = wrong.per_sample(data(20_000), seeded("a")) - exact.per_sample(data(20_000), seeded("a"))
    assert abs(float(extra.mean()) - 0.04) < 4 * float(extra.std()) / math.sqrt(20_000)


@pytest.mark.parametrize("draw", DRAWS)
def test_one_turn_that_repeats_with_its_generator(draw: str) -> None:
    prediction = PREDICTIONS["v"]()
    objective = Denoising(NetworkDenoiser(PerfectNetwork(prediction), prediction, SCHEDULE), DRAWS[draw]())
    losses = []
    for seed in (1, 1, 2):
        turns = list(objective.turns(data(64), 0, seeded(seed)))
        assert [turn.player for turn in turns] == [GENERATOR]
        loss, parts = turns[0].loss()
        assert float(loss) == float(parts["loss"])
        losses.append(float(loss))
    assert losses[0] == losses[1] != losses[2]


class Listener:
    """Remembers the condition it was called with."""

    cond: Mapping[str, Tensor] | None = None

    def __call__(self, x: Tensor, noise_label: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        self.cond = cond
        return x


def test_class_dropout_replaces_labels_by_the_null_class() -> None:
    network = Listener()
    labels = torch.arange(4000) % 7
    batch = Batch(torch.zeros(4000, 1, 1, 1), {"label": labels})
    for dropout in (0.0, 0.25, 1.0):
        objective = Denoising(
            NetworkDenoiser(network, PREDICTIONS["x0"](), SCHEDULE),
            null={"label": torch.tensor([7])},
            class_dropout=dropout,
        )
        objective.per_sample(batch, seeded("drop"))
        assert network.cond is not None
        null = network.cond["label"] == 7
        assert torch.equal(network.cond["label"][~null], labels[~null])
        deviation = math.sqrt(dropout * (1 - dropout) / 4000)
        assert abs(float(null.double().mean()) - dropout) <= 4 * deviation
    assert torch.equal(batch.cond["label"] if batch.cond else torch.empty(0), labels), "the data itself was changed"


def test_unconditional_training_hides_the_labels() -> None:
    network = Listener()
    objective = Denoising(NetworkDenoiser(network, PREDICTIONS["x0"](), SCHEDULE))
    objective.per_sample(Batch(torch.zeros(3, 1, 1, 1), {"label": torch.tensor([0, 1, 2])}), seeded(0))
    assert network.cond is None


def test_dropout_is_a_probability() -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Denoising(NetworkDenoiser(Listener(), PREDICTIONS["x0"](), SCHEDULE), class_dropout=1.5)


def test_normal_like_is_the_host_generators_noise() -> None:
    x = torch.empty(3, 5, dtype=torch.float64)
    expected = torch.randn(3, 5, dtype=torch.float64, generator=seeded("n"))
    assert torch.equal(normal_like(x, seeded("n")), expected)


@pytest.mark.gpu
def test_normal_like_on_a_gpu_repeats_with_the_host_generator() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    x = torch.empty(4000, device="cuda")
    first, second, third = (normal_like(x, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert abs(float(first.mean())) < 4 / math.sqrt(4000)
