"""EVODiff's default rule against its description: weights, priors and mix, each with an answer of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference.evodiff_default import evodiff_default, pair_denoised, pair_exact
from reference.oracles import Mixture, ode_solution
from torch import Tensor

from contracts.inventory import f64, gap
from contracts.problems import MixtureDenoiser, batch
from fewstep.noise import (
    EDM,
    Explicit,
    Grid,
    Karras,
    LinearFlow,
    NoiseLevel,
    Spacing,
    UniformFlow,
    UniformLam,
    VPLinear,
)
from fewstep.sampling import Full, sample
from fewstep.solvers import DDIM, EVODiff
from fewstep.solvers.evodiff_default import DefaultRule, _mix
from fewstep.solvers.evodiff_prior import CLUSTERED, DIFFUSE, Family, _seen, weights_of

FAMILIES = {"diffuse": DIFFUSE, "clustered": CLUSTERED}
families = pytest.mark.parametrize("name", FAMILIES)


def mixture() -> tuple[Mixture, np.ndarray]:
    rng = np.random.default_rng(11)
    return Mixture(rng.uniform(-1, 1, size=(6, 12)), rng.uniform(0.1, 0.5, size=6), np.ones(6) / 6), rng.normal(
        size=(5, 12)
    )


# Levels of a straight path, begun at next to pure noise: the first step is blind to what is below it.
BLIND = (1e4, 7.0, 3.0, 5 / 3, 1.0, 0.6, 1 / 3, 1 / 7, 0.01)


@pytest.mark.parametrize(
    "spacing",
    [
        UniformLam(),
        Karras(),
        UniformLam(-3.0, 3.0),
        lambda schedule, steps: Explicit(BLIND[-1 - steps :])(EDM(sigma_max=1e4), steps),
    ],
    ids=["lam", "karras", "short", "blind"],
)
def test_the_rule_is_its_description(spacing: Spacing) -> None:
    """Against numpy: normal equations, scipy's roots, whole residuals; every sample of every run."""
    data, noise = mixture()
    for steps in (1, 2, 3, 5, 8, 12) if isinstance(spacing, UniformLam | Karras) else (8,):
        grid = spacing(EDM(), steps)
        kappa = grid.levels.kappa.numpy()
        want = evodiff_default(lambda y, k: data(y, 1.0, k), noise * kappa[0], kappa)
        got = sample(MixtureDenoiser(data), EVODiff(), grid, torch.tensor(noise * kappa[0])).trajectory
        for i, (ours, theirs) in enumerate(zip(got, want, strict=True)):
            error = gap(ours, torch.tensor(theirs)) / max(1.0, kappa[i])
            assert error <= 1e-9, f"{spacing}, {steps} steps, level {i}: max|a-b| = {error:.1e}"


@pytest.mark.parametrize("kappa", [30.0, 3.0, 1.0, 0.3, 0.03])
def test_clustered_family_is_exact(kappa: float) -> None:
    """The estimate is that of the mixture; the trajectory solves its ODE and keeps its quantile."""
    s, z = CLUSTERED.atoms()
    chosen = torch.arange(3, len(s), 37)
    s, z = s[chosen], z[chosen]
    here = NoiseLevel(f64(1.0), f64(kappa))
    x = CLUSTERED.exact(here, s, z)
    assert gap(x, torch.tensor(pair_exact(kappa, s.numpy(), z.numpy()))) <= 1e-12 * max(1.0, kappa)
    assert gap(CLUSTERED.denoised(x, here, s), torch.tensor(pair_denoised(x.numpy(), kappa, s.numpy()))) <= 1e-12
    for k in range(0, len(s), 2):
        data = Mixture(np.array([[-1.0], [1.0]]) * s[k].item(), np.full(2, 0.25 * s[k].item()), np.ones(2) / 2)
        start = CLUSTERED.exact(NoiseLevel(f64(1.0), f64(80.0)), s[k : k + 1], z[k : k + 1]).numpy()[None]
        there = ode_solution(data, start, (1.0, 80.0), (1.0, kappa))
        assert abs(there.item() - x[k].item()) <= 1e-8 * max(1.0, kappa), f"s = {s[k]:.3f}, z = {z[k]:.2f}"


@families
def test_families_at_both_ends(name: str) -> None:
    family = FAMILIES[name]
    s, z = family.atoms()
    noise = family.exact(NoiseLevel(f64(0.0), f64(1.0)), s, z)
    assert gap(noise, z) <= 1e-14, "pure noise is z itself"
    clean = family.exact(NoiseLevel(f64(1.0), f64(0.0)), s, z)
    near = family.exact(NoiseLevel(f64(1.0), f64(1e-9)), s, z)
    assert gap(clean, near) <= 1e-7
    assert bool((clean > 0).all())


@families
def test_weights_are_the_minimum_they_claim(name: str) -> None:
    """Run the family through the rule by hand: no other weights of the same sum have a smaller objective."""
    family, grid = FAMILIES[name], Karras(kappa_max=40.0, kappa_min=0.01)(VPLinear(), 8)
    s, z = family.atoms()
    alpha, sigma = grid.levels
    weights = weights_of(family, grid)
    states, said = [family.exact(grid.at(0), s, z)], []
    for i in range(8):
        said.append(family.denoised(states[i], grid.at(i), s))
        a = max(0, i - 4)
        decay, w = sigma[i + 1] / sigma[a], weights.step[i]
        assert abs(w.sum() - (alpha[i + 1] - alpha[a] * decay)) <= 1e-13, "constants are exact"
        window, truth = torch.stack(said[a:]), family.exact(grid.at(i + 1), s, z)
        h = 1 - sigma[i + 1] * alpha[i] / (alpha[i + 1] * sigma[i])
        ridge = family.ridge * (s**2).sum() * h**8 * (1 + 1e4 * h**16)

        def objective(
            w: Tensor, i: int = i, window: Tensor = window, truth: Tensor = truth, ridge: Tensor = ridge, a: int = a
        ) -> Tensor:
            miss = truth - sigma[i + 1] / sigma[a] * states[a] - w @ window
            return ((miss**2).sum() + ridge * (w[:-1] ** 2).sum()) / alpha[i + 1] ** 2

        best = objective(w)
        for j in range(len(w) - 1):
            for move in (1e-4, -1e-4):
                moved = w.clone()
                moved[j] += move
                moved[-1] -= move
                assert objective(moved) >= best * (1 - 1e-12), f"step {i}: moving weight {j} by {move} is better"
        states.append(decay * states[a] + w @ window)
        if i:
            assert abs(weights.foresee[i].sum() - 1) <= 1e-13
            assert len(weights.foresee[i]) == min(i, 3)


def test_theta_makes_the_surprise_vary_least() -> None:
    """Two steps of surprises: the quotient is the minimum over all of [0, 1], if nothing draws it."""
    r, other = batch((2, 3, 7), 1), batch((2, 3, 7), 2)
    above = (r * (r - other)).sum((0, 2)).reshape(3, 1)
    below = ((r - other) ** 2).sum((0, 2)).reshape(3, 1)
    theta = _mix(above, below, torch.zeros(3, 1, dtype=torch.float64))
    for n in range(3):
        costs = [((1 - t) * r[:, n] + t * other[:, n]).square().sum().item() for t in np.linspace(0, 1, 2001)]
        assert abs(theta[n].item() - np.linspace(0, 1, 2001)[int(np.argmin(costs))]) <= 5e-4
    drawn = _mix(above, below, below / 0.1)
    assert gap(drawn, (above / (2 * below)).clamp(0, 1)) <= 1e-14
    still = torch.zeros(3, 1, dtype=torch.float64)
    assert gap(_mix(still, still, still), still) == 0, "nothing has changed: 0, not 0 / 0"


def test_theta_finds_the_family_of_the_data() -> None:
    """Data of 48 coordinates with scales from 0.1 to 10: theta goes to 0 on Gaussian and up on clustered data."""
    scales, noise = torch.logspace(-1, 1, 48, dtype=torch.float64), batch((20, 48), 4) * 80
    for spacing in (Karras(), UniformLam()):
        found = {}
        for name, family in FAMILIES.items():
            rule, grid, x = DefaultRule(1.0), spacing(EDM(), 8), noise
            state = rule.init(x, grid)
            for i in range(8):
                x, state = rule.step(lambda x, at, family=family: family.denoised(x, at, scales), x, grid, i, state)
            found[name] = _mix(state.above, state.below, state.gram[0][0]).mean().item()
        assert found["diffuse"] <= 0.1, f"{spacing}: theta on Gaussian data is {found['diffuse']:.2f}"
        assert found["clustered"] >= 0.4, f"{spacing}: theta on clustered data is {found['clustered']:.2f}"


def test_numbers_of_a_grid_are_made_once_and_carry_its_gradient() -> None:
    rule = DefaultRule(1.0)
    grid = UniformFlow()(LinearFlow(), 5)
    x = batch((2, 3))
    assert rule.init(x, grid).steps is rule.init(x, UniformFlow()(LinearFlow(), 5)).steps
    alpha, sigma = (part.clone().requires_grad_(True) for part in grid.levels)
    learned = rule.init(x, Grid(NoiseLevel(alpha, sigma), grid.t)).steps
    for plain, live in zip(rule.init(x, grid).steps, learned, strict=True):
        for a, b in zip(
            (plain.decay, plain.newest, *plain.diffuse), (live.decay, live.newest, *live.diffuse), strict=True
        ):
            assert isinstance(b, Tensor)
            assert abs(a - b.item()) <= 1e-12
    assert learned[3].newest.requires_grad


@families
def test_a_family_of_one_scale_is_solved(name: str) -> None:
    """If the prior is the data, every step is exact to what the ridge leaves, from pure noise to clean."""
    one = Family(0.5, 0.5, 1, FAMILIES[name].width, 1e-16)
    grid = UniformFlow()(LinearFlow(), 9)
    s, z = one.atoms()
    weights, states, said = weights_of(one, grid), [one.exact(grid.at(0), s, z)], []
    for i in range(9):
        said.append(one.denoised(states[i], grid.at(i), s))
        a = max(0, i - 4)
        decay = grid.levels.sigma[i + 1] / grid.levels.sigma[a]
        states.append(decay * states[a] + weights.step[i] @ torch.stack(said[a:]))
    worst = gap(states[-1], one.exact(grid.at(-1), s, z))
    assert worst <= (1e-6 if name == "diffuse" else 0.02), f"{name}: {worst:.1e}"


def test_gradient_through_the_mix() -> None:
    """Finite differences in the data of the denoiser, through theta too."""
    grid = Karras(kappa_max=20.0, kappa_min=0.1)(EDM(), 5)
    x = batch((2, 3)) * 20
    s = f64([0.3, 0.6, 1.2]).requires_grad_(True)

    def run(s: Tensor) -> Tensor:
        return sample(lambda x, level, cond=None: CLUSTERED.denoised(x, level, s), EVODiff(), grid, x, unroll=Full()).x

    assert torch.autograd.gradcheck(run, (s,), eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("steps", [3, 4, 5, 6, 8, 10, 15, 20, 24])
def test_a_straight_path_from_pure_noise_is_no_trap(steps: int) -> None:
    """Its first step is long, and larger scales than that has seen would have to be undone: with weights of 20."""
    data, noise = mixture()
    schedule, x = LinearFlow(), torch.tensor(noise)
    # Data off the origin: what a network says at pure noise is a mean, and nothing of a prior around 0.
    moved = Mixture(data.means + 0.9, data.std, data.weights)
    exact = sample(MixtureDenoiser(moved), EVODiff(), UniformFlow()(schedule, 400), x).x
    grid = UniformFlow()(schedule, steps)
    error = {rule: (sample(MixtureDenoiser(moved), rule, grid, x).x - exact).norm() for rule in (EVODiff(), DDIM())}
    assert error[EVODiff()] < error[DDIM()]
    largest = max(float(w.abs().max()) for family in FAMILIES.values() for w in weights_of(family, grid).step)
    assert largest < 6


@families
def test_only_a_blind_first_step_leaves_scales_out(name: str) -> None:
    family = FAMILIES[name]

    def largest(grid: Grid) -> float:
        return float(family.atoms(_seen(*grid.levels))[0].max())

    for first in (90.0, 80.0, 14.6, 1.0):  # the worst case: straight to clean data
        assert largest(Explicit((first, 1e-3 * first, 0.0))(EDM(sigma_max=90.0), 2)) == pytest.approx(family.largest)
    assert largest(Karras()(EDM(), 5)) == pytest.approx(family.largest)
    assert largest(UniformFlow()(LinearFlow(), 9)) == pytest.approx(3.0), "1 + kappa / 4 at the first finite kappa, 8"
    assert largest(UniformFlow()(LinearFlow(), 64)) == pytest.approx(family.largest)
