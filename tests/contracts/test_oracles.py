"""The package's exact denoisers against closed forms in numpy that share no line with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference.oracles import Mixture, gaussian_mean, gaussian_ode, mixture_mean, ode_solution

from contracts.inventory import f64, gap
from contracts.problems import batch
from fewstep.denoisers import KDE, EmpiricalData, Gaussian, GaussianMixture
from fewstep.noise import NoiseLevel

LEVELS = [(1.0, 80.0), (1.0, 2.0), (1.0, 0.05), (0.6, 0.8), (0.9, 0.1), (0.02, 1.0), (0.0, 1.0)]
levels = pytest.mark.parametrize(("alpha", "sigma"), LEVELS)


def level_of(alpha: float, sigma: float) -> NoiseLevel:
    return NoiseLevel(f64(alpha), f64(sigma))


def noisy(shape: tuple[int, ...], alpha: float, sigma: float) -> torch.Tensor:
    return alpha * batch(shape, 11) + sigma * batch(shape, 12)


def gaussian_data(d: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    root = rng.normal(size=(d, d))
    return rng.normal(size=d), root @ root.T / d


@levels
def test_gaussian(alpha: float, sigma: float) -> None:
    mean, cov = gaussian_data()
    x = noisy((5, 2, 2, 2), alpha, sigma)
    got = Gaussian(torch.tensor(mean).reshape(2, 2, 2), torch.tensor(cov))(x, level_of(alpha, sigma))
    want = torch.tensor(gaussian_mean(x.flatten(1).numpy(), alpha, sigma, mean, cov)).reshape(x.shape)
    assert gap(got, want) <= 1e-12, f"max|a-b| = {gap(got, want):.2e}"
    got = Gaussian(torch.tensor(mean).reshape(2, 2, 2), f64(0.3))(x, level_of(alpha, sigma))
    want = torch.tensor(gaussian_mean(x.flatten(1).numpy(), alpha, sigma, mean, 0.3 * np.eye(8))).reshape(x.shape)
    assert gap(got, want) <= 1e-12, f"scalar covariance: max|a-b| = {gap(got, want):.2e}"


def test_gaussian_flow() -> None:
    mean, cov = gaussian_data()
    oracle = Gaussian(torch.tensor(mean).reshape(2, 2, 2), torch.tensor(cov))
    for here, there in (((1.0, 80.0), (1.0, 0.01)), ((0.1, 0.99), (0.8, 0.6)), ((0.0, 1.0), (1.0, 0.0))):
        x = noisy((5, 2, 2, 2), *here)
        got = oracle.flow(x, level_of(*here), level_of(*there))
        want = torch.tensor(gaussian_ode(x.flatten(1).numpy(), here, there, mean, cov)).reshape(x.shape)
        assert gap(got, want) <= 1e-12, f"{here} to {there}: max|a-b| = {gap(got, want):.2e}"


def test_numpy_flow_solves_the_ode() -> None:
    """The reference itself: closed form against DOP853."""
    mean, cov = gaussian_data()
    x = noisy((5, 8), 1.0, 10.0).numpy()
    closed = gaussian_ode(x, (1.0, 10.0), (1.0, 0.01), mean, cov)
    solved = ode_solution(lambda y, a, s: gaussian_mean(y, a, s, mean, cov), x, (1.0, 10.0), (1.0, 0.01))
    assert abs(closed - solved).max() <= 1e-11, f"max|a-b| = {abs(closed - solved).max():.2e}"


@levels
def test_mixture(alpha: float, sigma: float) -> None:
    rng = np.random.default_rng(6)
    means, std, weights = rng.normal(size=(6, 2, 3, 3)), rng.uniform(0.1, 0.6, size=6), rng.uniform(0.2, 1.0, size=6)
    x = noisy((4, 2, 3, 3), alpha, sigma)
    got = GaussianMixture(torch.tensor(means), torch.tensor(std), torch.tensor(weights))(x, level_of(alpha, sigma))
    want = torch.tensor(mixture_mean(x.numpy(), alpha, sigma, means, std, weights / weights.sum()))
    assert gap(got, want) <= 1e-11, f"max|a-b| = {gap(got, want):.2e}"
    got = GaussianMixture(torch.tensor(means), f64(0.2))(x, level_of(alpha, sigma))
    want = torch.tensor(mixture_mean(x.numpy(), alpha, sigma, means, 0.2, np.ones(6) / 6))
    assert gap(got, want) <= 1e-11, f"one std, equal weights: max|a-b| = {gap(got, want):.2e}"
    vectorised = Mixture(means, std, weights / weights.sum())(x.numpy(), alpha, sigma)
    by_loop = mixture_mean(x.numpy(), alpha, sigma, means, std, weights / weights.sum())
    assert abs(vectorised - by_loop).max() <= 1e-13, "the two numpy forms disagree"


@levels
def test_kde_and_empirical_data(alpha: float, sigma: float) -> None:
    data = np.random.default_rng(8).uniform(-1, 1, size=(40, 1, 4, 4))
    x = noisy((4, 1, 4, 4), alpha, sigma)
    equal = np.full(40, 1 / 40)
    for what, oracle, std in (
        ("KDE", KDE(torch.tensor(data), 0.15), 0.15),
        ("EmpiricalData", EmpiricalData(torch.tensor(data)), 0.0),
    ):
        want = torch.tensor(mixture_mean(x.numpy(), alpha, sigma, data, std, equal))
        error = gap(oracle(x, level_of(alpha, sigma)), want)
        assert error <= 1e-11, f"{what}: max|a-b| = {error:.2e}"


def test_data_far_from_the_origin() -> None:
    """A large common offset must not cost digits."""
    rng = np.random.default_rng(9)
    means = 1000 + rng.normal(size=(5, 4))
    x = torch.tensor(means[:3] + 0.3 * rng.normal(size=(3, 4)))
    got = GaussianMixture(torch.tensor(means), f64(0.2))(x, level_of(1.0, 0.3))
    want = torch.tensor(mixture_mean(x.numpy(), 1.0, 0.3, means, 0.2, np.ones(5) / 5))
    assert gap(got, want) <= 1e-9, f"max|a-b| = {gap(got, want):.2e}"


def test_levels_per_sample_and_rank() -> None:
    rng = np.random.default_rng(10)
    mean, cov = gaussian_data()
    alphas, sigmas = f64([1.0, 0.6, 0.1]), f64([0.5, 0.8, 1.0])
    means = torch.tensor(rng.normal(size=(4, 2, 2, 2)))
    oracles = {
        "Gaussian": Gaussian(torch.tensor(mean).reshape(2, 2, 2), torch.tensor(cov)),
        "GaussianMixture": GaussianMixture(means, f64([0.1, 0.2, 0.3, 0.4])),
        "EmpiricalData": EmpiricalData(means),
        "KDE": KDE(means, 0.2),
    }
    x = batch((3, 2, 2, 2))
    for name, oracle in oracles.items():
        whole = oracle(x, NoiseLevel(alphas, sigmas))
        rows = torch.cat([oracle(x[i : i + 1], NoiseLevel(alphas[i], sigmas[i])) for i in range(3)])
        assert gap(whole, rows) <= 1e-13, f"{name}: max|a-b| = {gap(whole, rows):.2e}"
    flat = GaussianMixture(means.flatten(1), f64([0.1, 0.2, 0.3, 0.4]))
    error = gap(flat(x.flatten(1), level_of(0.7, 0.7)), oracles["GaussianMixture"](x, level_of(0.7, 0.7)).flatten(1))
    assert error <= 1e-14, f"rank 2 and rank 4: max|a-b| = {error:.2e}"


def test_draws_have_the_right_moments() -> None:
    n = 100_000
    mean, cov = gaussian_data(4)
    means, std = f64([[-1.0, 0.0], [1.0, 2.0]]), f64([0.1, 0.5])
    weights = f64([1.0, 3.0])
    points = f64([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]])
    centre = 0.25 * means[0] + 0.75 * means[1]
    spread = sum(w * (s**2 * torch.eye(2) + torch.outer(m - centre, m - centre))
                 for w, s, m in zip((0.25, 0.75), (0.1, 0.5), means, strict=True))  # fmt: skip
    cases = {
        "Gaussian": (Gaussian(torch.tensor(mean), torch.tensor(cov)), torch.tensor(mean), torch.tensor(cov)),
        "GaussianMixture": (GaussianMixture(means, std, weights), centre, spread),
        "EmpiricalData": (EmpiricalData(points), points.mean(0), points.T.cov(correction=0)),
        "KDE": (KDE(points, 0.3), points.mean(0), points.T.cov(correction=0) + 0.09 * torch.eye(2)),
    }
    for name, (oracle, want_mean, want_cov) in cases.items():
        x = oracle.draw(n, torch.Generator().manual_seed(1))
        z_mean = ((x.mean(0) - want_mean) / (want_cov.diagonal() / n).sqrt()).abs().max().item()
        scale = (torch.outer(want_cov.diagonal(), want_cov.diagonal()) + want_cov**2).sqrt() * math.sqrt(1 / n)
        z_cov = ((x.T.cov() - want_cov) / scale).abs().max().item()
        assert z_mean <= 4.5, f"{name}: z of mean {z_mean:.1f}"
        assert z_cov <= 6, f"{name}: z of covariance {z_cov:.1f}"


def test_float32_near_points() -> None:
    """Two near points at a small sigma: the responsibilities hang on digits that float32 distances do not have."""
    data = batch((6, 3, 8, 8), 21)
    data[1] = data[0] + 3e-4 * batch((3, 8, 8), 22)
    x = (0.6 * data[:1] + 0.4 * data[1:2] + 0.002 * batch((1, 3, 8, 8), 23)).float()
    for what, oracle in (("EmpiricalData", EmpiricalData), ("KDE", lambda data: KDE(data, 1e-3))):
        low = oracle(data.float())(x, level_of(1.0, 0.002))
        high = oracle(data.float().double())(x.double(), level_of(1.0, 0.002))
        assert low.dtype == torch.float32
        assert gap(low, high) <= 5e-7, f"{what}: max|a-b| = {gap(low, high):.2e}"


def test_data_very_far_from_the_origin() -> None:
    """Here even float64 needs the distances around the common centre."""
    rng = np.random.default_rng(9)
    means = 1e6 + 0.1 * rng.normal(size=(5, 4))
    x = torch.tensor(means[:3] + 0.05 * rng.normal(size=(3, 4)))
    got = EmpiricalData(torch.tensor(means))(x, level_of(1.0, 0.05))
    want = torch.tensor(mixture_mean(x.numpy(), 1.0, 0.05, means, 0.0, np.ones(5) / 5))
    assert gap(got, want) <= 1e-7, f"max|a-b| = {gap(got, want):.2e}"


def test_gaussian_without_spread() -> None:
    """A singular covariance is finite at every level, clean data included."""
    mean = f64([1.0, -1.0])
    x = torch.stack([mean + f64([0.3, 0.0]), mean])
    for cov in (f64([[0.5, 0.0], [0.0, 0.0]]), f64([[0.5, 0.0], [0.0, 0.0]]) * 0):
        oracle, variance = Gaussian(mean, cov), cov[0, 0].item()
        got = oracle(x, level_of(1.0, 0.0))
        assert gap(got, x if variance else mean.expand(2, 2)) <= 1e-15, f"variance {variance}: {got.tolist()}"
        moved = oracle.flow(x, level_of(1.0, 0.0), level_of(0.5, 0.0))
        assert gap(moved, x / 2 if variance else mean.expand(2, 2) / 2) <= 1e-15, f"{variance}: {moved.tolist()}"
    assert gap(Gaussian(mean, 0.0)(x, level_of(1.0, 0.0)), mean.expand(2, 2)) == 0.0


def test_sets_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call neither builds nor checks the mixture again."""
    oracles = EmpiricalData(batch((3, 2))), KDE(batch((3, 2)), 0.1)
    monkeypatch.setattr(GaussianMixture, "__post_init__", lambda self: pytest.fail("built again"))
    for oracle in oracles:
        oracle(batch((2, 2)), level_of(1.0, 0.5))
        oracle.draw(2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_draws_of_data_on_another_device() -> None:
    points = batch((3, 2)).cuda()
    oracles = Gaussian(points[0], torch.eye(2)), GaussianMixture(points, 0.1), EmpiricalData(points), KDE(points, 0.1)
    for oracle in oracles:
        host = oracle.draw(4, torch.Generator().manual_seed(0))
        assert host.device == points.device
        assert oracle.draw(4, torch.Generator("cuda").manual_seed(0)).device == points.device
        assert oracle.draw(4).device == points.device
