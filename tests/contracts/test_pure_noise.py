"""Grids that start at pure noise, and networks that are asked there though their schedule ends at a finite kappa."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contracts.inventory import CONSISTENT, PREDICTIONS_HERE, SCHEDULES_HERE, f64, gap
from contracts.problems import TinyNetwork, batch
from contracts.refusals import refuses
from fewstep.denoisers import X0, Eps, NetworkDenoiser, Prediction
from fewstep.errors import GridError, LevelError
from fewstep.noise import (
    EDM,
    Explicit,
    Grid,
    Karras,
    LinearFlow,
    NoiseLevel,
    PureNoise,
    Schedule,
    UniformFlow,
    UniformLam,
    UniformTime,
    VPCosine,
    VPLinear,
    flow_grid,
)
from fewstep.sampling import Full, sample
from fewstep.solvers import DDIM

FINITE = {"edm": EDM(sigma_max=7.0), "vp_linear": VPLinear()}
NOISE = NoiseLevel(f64(0.0), f64(1.0))
finite = pytest.mark.parametrize("own", FINITE.values(), ids=list(FINITE))
schedules = pytest.mark.parametrize("schedule", SCHEDULES_HERE.values(), ids=list(SCHEDULES_HERE))
predictions = pytest.mark.parametrize("name", PREDICTIONS_HERE)


# Grids


@schedules
def test_uniform_flow_is_its_definition(schedule: Schedule) -> None:
    for steps in (1, 2, 4, 8):
        grid = UniformFlow()(schedule, steps)
        alpha, sigma = grid.levels
        tau = sigma / (alpha + sigma)
        error = gap(tau, torch.linspace(1, 0, steps + 1, dtype=torch.float64))
        assert error <= 1e-15, f"{schedule}, {steps} steps: tau off by {error:.2e}"
        ends = alpha[0].item(), sigma[0].item(), sigma[-1].item()
        assert ends == (0.0, 1.0, 0.0), f"{schedule}: alpha, sigma of the first level and sigma of the last are {ends}"
        own = schedule.level(grid.t)
        inner = slice(1, None)
        assert torch.equal(own.alpha[inner], alpha[inner]), schedule
        assert torch.equal(own.sigma[inner], sigma[inner]), schedule
        assert grid.t[0].item() == schedule.t_range()[1]


def test_uniform_flow_on_the_straight_path() -> None:
    for steps in (1, 3, 4, 7):
        flow, time = UniformFlow()(LinearFlow(), steps), UniformTime(end="zero")(LinearFlow(), steps)
        for got, want in zip((*flow.levels, flow.t), (*time.levels, time.t), strict=True):
            assert gap(got, want) <= 2e-16, f"{steps} steps: {got.tolist()} and {want.tolist()}"


def test_uniform_flow_on_a_narrow_schedule() -> None:
    schedule = EDM(sigma_max=4.0)  # tau = 0.8: four equal steps have 0.75 first, five 0.8, six 0.833
    assert abs(UniformFlow()(schedule, 5).at(1).kappa.item() - 4.0) <= 1e-14
    refuses(LevelError, "5.0", lambda: UniformFlow()(schedule, 6))
    refuses(GridError, "0 steps", lambda: UniformFlow()(schedule, 0))
    refuses(GridError, "0.25", lambda: flow_grid(EDM(), f64([0.2, 0.5])))


@schedules
def test_any_grid_can_start_at_pure_noise(schedule: Schedule) -> None:
    for spacing in (UniformLam(-4.0, 3.0), Karras(kappa_max=50.0, end="zero"), UniformTime(), UniformFlow()):
        grid, plain = PureNoise(spacing)(schedule, 5), spacing(schedule, 5)
        assert (grid.at(0).alpha.item(), grid.at(0).sigma.item()) == (0.0, 1.0), spacing
        assert torch.equal(grid.t, plain.t), spacing
        for i in range(1, 6):
            assert grid.at(i) == plain.at(i), f"{spacing}, level {i}"
    explicit = PureNoise(Explicit((50.0, 3.0, 0.0)))(EDM(), 2)
    assert explicit.levels.alpha.tolist() == [0.0, 1.0, 1.0]
    assert explicit.levels.sigma.tolist() == [1.0, 3.0, 0.0]


def test_a_chain_that_exits_early() -> None:
    grid = UniformFlow()(VPLinear(), 4)
    for i in range(4):
        short = grid.exit_at(i)
        assert short.steps == i + 1
        assert short.t.tolist() == [*grid.t.tolist()[: i + 1], 0.0]
        assert [short.at(k) for k in range(-1, i + 1)] == [grid.at(k) for k in range(-1, i + 1)]
    denoiser, z = NetworkDenoiser(TinyNetwork(), X0(), VPLinear()), batch((2, 1, 4, 4))
    whole = sample(denoiser, DDIM(), grid, z).trajectory
    for i in range(4):  # at sigma = 0 DDIM returns the estimate: the exit shows what the chain thinks at level i
        want = denoiser(whole[i], grid.at(i))
        error = gap(sample(denoiser, DDIM(), grid.exit_at(i), z).x, want)
        assert error <= 1e-15, f"exit at {i}: max|a-b| = {error:.2e}"
    for i in (-1, 4):
        refuses(GridError, str(i), lambda i=i: grid.exit_at(i))


# Networks


def noisiest(own: Schedule) -> tuple[float, float]:
    """The last level of a schedule, from its definition."""
    if isinstance(own, EDM):
        return 1.0, 7.0
    log_alpha = -(0.1 + 20.0) / 4  # minus half the integral of beta(t) = 0.1 + 19.9 t
    return math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha))


def meaning(name: str, out: Tensor, x: Tensor, alpha: float, sigma: float, s: float = 0.5) -> Tensor:
    """What an output means, solved by hand from x = alpha x0 + sigma eps and the definition of the language."""
    variance = (alpha * s) ** 2 + sigma**2
    return {
        "eps": (x - sigma * out) / alpha,
        "x0": out,
        "v": (alpha * x - sigma * out) / (alpha**2 + sigma**2),
        "flow": (x - sigma * out) / (alpha + sigma),
        "edm": alpha * s**2 / variance * x + sigma * s / math.sqrt(variance) * out,
    }[name]


class Spy:
    """A network that keeps what it is shown."""

    def __init__(self) -> None:
        self.body = TinyNetwork()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, noise_label: Tensor, cond: object = None) -> Tensor:
        self.seen.append((x, noise_label))
        return self.body(x, noise_label)


@finite
@predictions
def test_a_network_of_finite_range_at_pure_noise(name: str, own: Schedule) -> None:
    """It sees sigma' z with its own input scaling and its noisiest label; its output means what it means there."""
    z, spy, (alpha, sigma) = batch((3, 1, 3, 3)), Spy(), noisiest(own)
    scaling = 1 / math.sqrt((alpha * 0.5) ** 2 + sigma**2) if name == "edm" else 1.0
    for factor in (1.0, 0.3):  # pure noise is pure noise in any units
        got = NetworkDenoiser(spy, PREDICTIONS_HERE[name], own)(factor * z, NoiseLevel(f64(0.0), f64(factor)))
        x, label = spy.seen[-1]
        assert gap(x, scaling * sigma * z) <= 1e-13, f"input off by {gap(x, scaling * sigma * z):.2e}"
        assert abs(label[0].item() - math.atan(sigma / alpha) / (math.pi / 2)) <= 1e-15
        want = meaning(name, spy.body(scaling * sigma * z, label), sigma * z, alpha, sigma)
        error = gap(got, want) / (sigma / alpha)
        assert error <= 1e-13, f"{name} on {own}: max|a-b| = {error:.2e} kappa"


def test_the_label_of_edm_at_pure_noise() -> None:
    spy = Spy()
    NetworkDenoiser(spy, PREDICTIONS_HERE["edm"], EDM(), label="edm")(batch((2, 1, 2, 2)), NOISE)
    assert gap(spy.seen[0][1], f64([math.log(80) / 4] * 2)) <= 1e-15


@finite
def test_pure_noise_beside_other_levels(own: Schedule) -> None:
    """A level per sample, some of them pure noise: each sample as if it were alone."""
    denoiser, x = NetworkDenoiser(TinyNetwork(), X0(), own), batch((3, 1, 3, 3))
    level = NoiseLevel(f64([0.0, 0.4, 0.0]), f64([1.0, 0.8, 0.5]))
    alone = [denoiser(x[i : i + 1], NoiseLevel(level.alpha[i], level.sigma[i])) for i in range(3)]
    assert gap(denoiser(x, level), torch.cat(alone)) <= 1e-14


@predictions
@pytest.mark.parametrize("own", [LinearFlow(), VPCosine()], ids=["linear_flow", "vp_cosine"])
def test_networks_that_reach_pure_noise_are_as_before(name: str, own: Schedule) -> None:
    """Bit for bit the formula of equal kappa, x' = x |(alpha', sigma')| / |(alpha, sigma)|, at t_of_lam(-inf)."""
    prediction, network, z = PREDICTIONS_HERE[name], TinyNetwork(), batch((2, 1, 3, 3))
    for level in (NOISE, NoiseLevel(f64(0.0), f64(0.37)), NoiseLevel(f64(0.2), f64(0.9))):
        there = own.level(own.t_of_lam(level.lam))
        x = z * (torch.hypot(there.alpha, there.sigma) / torch.hypot(level.alpha, level.sigma))
        denoiser = NetworkDenoiser(network, prediction, own)
        if name == "eps" and level.alpha == 0:
            refuses(LevelError, "alpha = 0", lambda denoiser=denoiser, level=level: denoiser(z, level))
            continue
        want = prediction.to_denoised(denoiser.predict(x, there), x, there)
        assert torch.equal(denoiser(z, level), want), f"{name} on {own} at {level}"


@finite
@predictions
def test_gradients_at_pure_noise(name: str, own: Schedule) -> None:
    """Finite through a whole chain, in noise, weights and levels; in z they are those of finite differences."""
    network = TinyNetwork()
    denoiser = NetworkDenoiser(network, PREDICTIONS_HERE[name], own)
    plain, z = UniformFlow()(own, 3), batch((1, 1, 2, 2)).requires_grad_(True)
    alpha, sigma = (part.clone().requires_grad_(True) for part in plain.levels)
    grid = Grid(NoiseLevel(alpha, sigma), plain.t)
    for rule in (case.rule for case in CONSISTENT.values()):
        out = sample(denoiser, rule, grid, z, unroll=Full()).x
        for grad in torch.autograd.grad(out.square().sum(), (z, alpha, sigma, *network.parameters())):
            assert bool(grad.isfinite().all()), f"{rule}: {grad.flatten().tolist()[:4]}"
    assert torch.autograd.gradcheck(lambda z: sample(denoiser, DDIM(), plain, z, unroll=Full()).x, z, rtol=1e-6)


@finite
@predictions
def test_gradients_in_the_level_of_pure_noise(name: str, own: Schedule) -> None:
    """The level asked of the network is its last one whatever the noise's scale, which x alone is divided by."""
    denoiser, z = NetworkDenoiser(TinyNetwork(), PREDICTIONS_HERE[name], own), batch((1, 1, 2, 2))
    alpha, sigma = f64(0.0).requires_grad_(True), f64(0.7).requires_grad_(True)
    (grad,) = torch.autograd.grad(denoiser(z, NoiseLevel(alpha, sigma)).sum(), alpha)
    assert grad.item() == 0.0, f"{name} on {own}: d/dalpha = {grad.item():.2e}"
    assert torch.autograd.gradcheck(lambda s: denoiser(z, NoiseLevel(f64(0.0), s)), sigma, rtol=1e-6)


@finite
@pytest.mark.parametrize("prediction", [X0(), Eps()], ids=["x0", "eps"])
def test_the_ideal_network_of_a_gaussian(own: Schedule, prediction: Prediction) -> None:
    """Data N(m, s^2): every step is affine, so the chain has a closed form; and with steps it finds the data."""
    m, s, (a, k) = 0.4, 0.5, noisiest(own)

    def network(x: Tensor, noise_label: Tensor, cond: object = None) -> Tensor:
        """The posterior mean, and the noise that goes with it, from the label alone."""
        kappa = (noise_label[0] * math.pi / 2).tan()
        alpha = 1.0 if isinstance(own, EDM) else 1 / (1 + kappa**2).sqrt()
        mean = (m * kappa**2 + s**2 * x / alpha) / (kappa**2 + s**2)
        return mean if isinstance(prediction, X0) else (x - alpha * mean) / (alpha * kappa)

    denoiser, z = NetworkDenoiser(network, prediction, own), batch((4, 1, 2, 2))
    kappa = k / a
    first = (m * kappa**2 + s**2 * kappa * z) / (kappa**2 + s**2)  # shown kappa z, not z: a trace of s stays
    one = sample(denoiser, DDIM(), UniformFlow()(own, 1), z).x
    assert gap(one, first) <= 1e-10, f"one step: max|a-b| = {gap(one, first):.2e}"
    # In kappa the exact path from the first inner level is x -> m + (x - m) sqrt(s^2 / (s^2 + kappa^2)).
    grid = UniformFlow()(own, 2)
    y = z + first  # level tau = 1/2 has kappa = 1: x / alpha = denoised + kappa z
    second = (m + s**2 * y) / (1 + s**2)
    two = sample(denoiser, DDIM(), grid, z).x
    assert gap(two, second) <= 1e-10, f"two steps: max|a-b| = {gap(two, second):.2e}"
    fine = PureNoise(Karras(kappa_max=kappa * 0.99, end="zero"))(own, 400)
    spread = sample(denoiser, DDIM(), fine, z).x
    error = gap((spread - m) / s, z)
    assert error <= 0.05, f"400 steps: distance to m + s z is {error:.3f}"
