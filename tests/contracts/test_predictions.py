"""T11: predictions. One ideal network speaks five languages; what it means is the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contracts.inventory import PREDICTIONS_HERE, SCHEDULES_HERE, f64, gap
from contracts.problems import TwoBumps, batch
from fewstep.denoisers import PREDICTIONS, EDMPrecond, NetworkDenoiser
from fewstep.noise import LinearFlow, NoiseLevel, VPLinear, perturb

predictions = pytest.mark.parametrize("name", PREDICTIONS_HERE)
LEVELS = [(1.0, 40.0), (1.0, 0.01), (0.6, 0.8), (0.999, 0.05), (0.3, 0.7), (0.01, 1.0)]


def level_of(alpha: float, sigma: float) -> NoiseLevel:
    return NoiseLevel(f64(alpha), f64(sigma))


def ideal_output(name: str, denoised: Tensor, x: Tensor, alpha: float, sigma: float, s: float = 0.5) -> Tensor:
    """What a perfect network says, from the definitions of the five languages and eps = (x - alpha x0) / sigma."""
    eps = (x - alpha * denoised) / sigma
    if name == "eps":
        return eps
    if name == "x0":
        return denoised
    if name == "v":
        return alpha * eps - sigma * denoised
    if name == "flow":
        return eps - denoised
    if name == "edm":  # Karras et al. 2022, Table 1, in y = x / alpha and kappa; out has unit variance
        y, kappa = x / alpha, sigma / alpha
        skip, out = s**2 / (kappa**2 + s**2), kappa * s / math.sqrt(kappa**2 + s**2)
        return (denoised - skip * y) / out
    raise AssertionError(f"write down the definition of {name}")


def test_the_list_is_complete() -> None:
    assert set(PREDICTIONS_HERE) == set(PREDICTIONS)


@predictions
def test_ideal_network_means_the_same(name: str) -> None:
    for alpha, sigma in LEVELS:
        x = batch((3, 2, 4, 4)) * sigma + alpha * 0.3
        denoised = TwoBumps()(x, level_of(alpha, sigma))
        out = ideal_output(name, denoised, x, alpha, sigma)
        got = PREDICTIONS_HERE[name].to_denoised(out, x, level_of(alpha, sigma))
        # eps and v divide rounding of x by alpha; in float64 that is 1e-16 kappa.
        error = gap(got, denoised) / max(1.0, sigma / alpha)
        assert error <= 1e-12, f"{name} at alpha={alpha}, sigma={sigma}: max|a-b| = {error:.2e}"


@predictions
def test_target_gives_back_the_data(name: str) -> None:
    x0, eps = batch((3, 2, 4, 4), 1), batch((3, 2, 4, 4), 2)
    for alpha, sigma in LEVELS:
        level = level_of(alpha, sigma)
        x = perturb(x0, eps, level)
        target = PREDICTIONS_HERE[name].target(x0, eps, level)
        error = gap(PREDICTIONS_HERE[name].to_denoised(target, x, level), x0) / max(1.0, sigma / alpha)
        assert error <= 1e-12, f"{name} at alpha={alpha}, sigma={sigma}: max|a-b| = {error:.2e}"
        wanted = ideal_output(name, x0, x, alpha, sigma)
        # The definition gets eps by subtraction, which loses sigma^-1 digits where noise is small.
        off = gap(target, wanted) * min(1.0, sigma)
        assert off <= 1e-12, f"{name} target at alpha={alpha}, sigma={sigma}: max|a-b| = {off:.2e}"


@predictions
def test_levels_per_sample(name: str) -> None:
    """b = w, so a level that is not expanded would broadcast over columns unseen."""
    x0, eps, out = batch((3, 2, 3, 3), 1), batch((3, 2, 3, 3), 2), batch((3, 2, 3, 3), 3)
    alphas, sigmas = (f64(v) for v in zip(*LEVELS[2:5], strict=True))
    level, prediction = NoiseLevel(alphas, sigmas), PREDICTIONS_HERE[name]
    x = perturb(x0, eps, level)
    for what, whole, single in (
        ("denoised", prediction.to_denoised(out, x, level), lambda i, one: prediction.to_denoised(out[i], x[i], one)),
        ("target", prediction.target(x0, eps, level), lambda i, one: prediction.target(x0[i], eps[i], one)),
        ("input", prediction.to_input(x, level), lambda i, one: prediction.to_input(x[i], one)),
    ):
        rows = torch.stack([single(i, NoiseLevel(alphas[i], sigmas[i])) for i in range(3)])
        assert gap(whole, rows) <= 1e-14, f"{name} {what}: max|a-b| = {gap(whole, rows):.2e}"


def test_edm_input_and_target_have_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    n, s = 200_000, 0.7
    x0 = s * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    eps = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    for alpha, sigma in LEVELS:
        level = level_of(alpha, sigma)
        for what, values in (
            ("input", EDMPrecond(s).to_input(perturb(x0, eps, level), level)),
            ("target", EDMPrecond(s).target(x0, eps, level)),
        ):
            z = (values.var().item() - 1) / math.sqrt(2 / n)
            assert abs(z) <= 4, f"{what} at alpha={alpha}, sigma={sigma}: variance {values.var():.4f}, z = {z:.1f}"


@predictions
def test_network_denoiser_is_the_ideal_on_any_schedule(name: str) -> None:
    """A network trained on one schedule and asked at the levels of another gives the same denoised."""
    own, s = VPLinear(), 0.5

    def network(x_in: Tensor, noise_label: Tensor, cond: object = None) -> Tensor:
        """Ideal for TwoBumps: reads its level from the angle, undoes to_input, speaks its language row by row."""
        rows = []
        for row, label in zip(x_in, noise_label.tolist(), strict=True):
            alpha, sigma = math.cos(label * math.pi / 2), math.sin(label * math.pi / 2)
            x = row * math.sqrt(alpha**2 * s**2 + sigma**2) if name == "edm" else row
            rows.append(ideal_output(name, TwoBumps()(x, level_of(alpha, sigma)), x, alpha, sigma))
        return torch.stack(rows)

    denoiser = NetworkDenoiser(network, PREDICTIONS_HERE[name], own)
    for kappa in (0.02, 0.3, 1.0, 20.0):
        lam = torch.full((), -math.log(kappa), dtype=torch.float64)
        y = batch((3, 1, 2, 2)) * kappa + 0.4
        for other in SCHEDULES_HERE.values():
            level = other.level(other.t_of_lam(lam))
            x = level.alpha * y
            error = gap(denoiser(x, level), TwoBumps()(y, level_of(1.0, kappa))) / max(1.0, kappa)
            assert error <= 1e-11, f"{name} asked on {other} at kappa={kappa}: max|a-b| = {error:.2e}"


def test_labels() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, noise_label: Tensor, cond: object = None) -> Tensor:
        seen.append(noise_label)
        return x

    x = batch((3, 1, 2, 2))
    level = LinearFlow().level(f64([0.1, 0.5, 0.9]))
    NetworkDenoiser(network, PREDICTIONS_HERE["x0"], LinearFlow())(x, level)
    NetworkDenoiser(network, PREDICTIONS_HERE["x0"], LinearFlow(), label="edm")(x, level)
    kappa = f64([1 / 9, 1.0, 9.0])
    angle, quarter = kappa.atan() / (math.pi / 2), kappa.log() / 4
    assert gap(seen[0], angle) <= 1e-14, f"angle: {gap(seen[0], angle):.2e}"
    assert gap(seen[1], quarter) <= 1e-14, f"edm: {gap(seen[1], quarter):.2e}"


def test_network_denoiser_at_clean_data() -> None:
    """The norm form of the change of coordinates is finite at sigma = 0; the ratio of sigmas would be 0 / 0."""
    x = batch((2, 1, 2, 2))
    for own in (VPLinear(), LinearFlow()):
        denoiser = NetworkDenoiser(lambda x, label, cond: x, PREDICTIONS_HERE["flow"], own)
        error = gap(denoiser(x, level_of(0.5, 0.0)), x / 0.5)
        assert error <= 1e-15, f"{own}: max|a-b| = {error:.2e}"
