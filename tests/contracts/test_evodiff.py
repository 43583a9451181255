"""EVODiff: the paper variant against an independent transcription; what the default adds to the contracts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from reference.evodiff_release import evodiff_release
from reference.oracles import Mixture
from torch import Tensor

from contracts.inventory import CONSISTENT, consistent_solvers, f64, gap
from contracts.problems import Constant, MixtureDenoiser, batch
from fewstep.errors import BudgetError, ConfigError, LevelError
from fewstep.noise import (
    EDM,
    Explicit,
    Grid,
    Karras,
    LinearFlow,
    NoiseLevel,
    Schedule,
    Spacing,
    UniformLam,
    UniformTime,
    VPLinear,
)
from fewstep.sampling import Full, sample
from fewstep.solvers import EVODiff, evodiff_paper

SPACINGS: dict[str, Spacing] = {"uniform_lam": UniformLam(), "karras": Karras(rho=7.0), "uniform_time": UniformTime()}
SCHEDULES: dict[str, Schedule] = {"edm": EDM(), "vp_linear": VPLinear()}


def problem() -> tuple[Mixture, np.ndarray]:
    """A mixture of images with three channels, wide enough apart for every branch of the rule to be taken."""
    rng = np.random.default_rng(11)
    mixture = Mixture(
        rng.uniform(-1, 1, size=(6, 3, 4, 4)), rng.uniform(0.2, 0.5, size=6), rng.uniform(0.5, 1.5, size=6) / 6
    )
    return mixture, rng.normal(size=(4, 3, 4, 4))


def both(grid: Grid, mixture: Mixture, noise: np.ndarray, zero: bool) -> tuple[Tensor, Tensor, int]:
    x = noise * grid.at(0).sigma.item()
    release = evodiff_release(mixture, x, grid.levels.alpha.numpy(), grid.levels.sigma.numpy(), grid.t.numpy(), zero)
    ours = sample(MixtureDenoiser(mixture), EVODiff(variant="paper", denoise_to_zero=zero), grid, torch.tensor(x))
    return ours.x, torch.tensor(release), ours.nfe


@pytest.mark.parametrize("zero", [False, True], ids=["plain", "denoise_to_zero"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_paper_variant_is_the_release(spacing: str, schedule: str, zero: bool) -> None:
    mixture, noise = problem()
    worst = 0.0
    for steps in range(2, 25):
        grid = SPACINGS[spacing](SCHEDULES[schedule], steps)
        ours, release, nfe = both(grid, mixture, noise, zero)
        error = gap(ours, release)
        worst = max(worst, error)
        assert error <= 1e-10, f"{spacing} on {schedule}, N={steps}: max|a-b| = {error:.2e}"
        assert nfe == steps + zero
        assert release.abs().max() < 50, f"{spacing} on {schedule}, N={steps}: the reference blew up"
    print(f"{spacing} on {schedule}, denoise_to_zero={zero}: worst of N = 2..24 is {worst:.1e}")


def test_both_sides_of_every_branch_are_taken() -> None:
    """The parity above would prove little if it only saw one side of the rule's switches."""
    a, steps = [], set()
    for spacing in SPACINGS.values():
        for schedule in SCHEDULES.values():
            for n in range(2, 25):
                sigma = spacing(schedule, n).levels.sigma
                a.append((sigma[-1] / sigma[-2]).item())
                steps.add(n)
    assert min(a) < 0.5 < max(a), f"last ratios from {min(a):.3f} to {max(a):.3f}"
    assert min(steps) <= 20 < max(steps)


@pytest.mark.parametrize("steps", [6, 22])
def test_guards_change_nothing_in_healthy_channels(steps: int) -> None:
    """A dead channel is finite and leaves the others as the release has them, to the last digit that matters."""
    mixture, noise = problem()
    grid = UniformLam()(EDM(), steps)
    _, release, _ = both(grid, mixture, noise, False)
    for value in (0.0, 0.25):
        oracle = MixtureDenoiser(mixture)

        def dead(
            x: Tensor, level: NoiseLevel, cond: object = None, value: float = value, oracle: object = oracle
        ) -> Tensor:
            denoised = oracle(x[:, :3], level)
            return torch.cat([denoised, torch.full_like(denoised[:, :1], value)], 1)

        x = torch.tensor(np.concatenate([noise, noise[:, :1]], 1)) * grid.at(0).sigma
        got = sample(dead, EVODiff(variant="paper"), grid, x).x
        assert bool(got.isfinite().all()), f"a channel that is always {value} gives {got[:, 3].flatten()[:3].tolist()}"
        assert gap(got[:, :3], release) <= 1e-10, f"other channels moved by {gap(got[:, :3], release):.2e}"


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("value", [0.0, 0.5, -1.0])
def test_constant_predictions_are_finite(value: float, spacing: str) -> None:
    for schedule in SCHEDULES.values():
        for steps in (2, 3, 5, 9, 15, 24):
            grid = SPACINGS[spacing](schedule, steps)
            x = batch((2, 3, 4, 4)).requires_grad_(True) * grid.at(0).sigma
            c = torch.full((2, 3, 4, 4), value, dtype=torch.float64)
            got = sample(Constant(c), EVODiff(variant="paper", denoise_to_zero=False), grid, x).x
            assert bool(got.isfinite().all()), f"{spacing} on {schedule}, N={steps}, constant {value}: not finite"


def test_paper_variant_is_not_consistent() -> None:
    """A known defect of the rule, kept on purpose: a constant comes back 1.07 to 1.09 times as large at 5 to 15 NFE."""
    c = batch((2, 3, 4, 4), 1)
    for steps in (5, 6, 8, 10, 12, 15):
        grid = UniformLam()(EDM(), steps)
        got = sample(Constant(c), EVODiff(variant="paper"), grid, batch((2, 3, 4, 4), 2) * 80).x
        gain = ((got * c).sum() / (c * c).sum()).item()
        assert 1.065 <= gain <= 1.095, f"N={steps}: gain {gain:.4f}"
        default = sample(Constant(c), EVODiff(), grid, batch((2, 3, 4, 4), 2) * 80).x
        gain = ((default * c).sum() / (c * c).sum()).item()
        # What is left of the start is sigma_N / sigma_0 = 2.5e-5 of noise of size 80.
        assert abs(gain - 1) <= 2e-3, f"default, N={steps}: gain {gain:.5f}"


def test_guards_of_the_paper_variant_take_the_neutral_value() -> None:
    """Where a quotient is 0 / 0: similarity 1, no pull towards either difference, no correction of the scale."""
    s = evodiff_paper._scalars(UniformLam()(EDM(), 8), 3)
    m, zero = batch((2, 3, 4, 4)), torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    assert gap(evodiff_paper._rho(m, zero, s), ((1 - s.w) * s.beta + s.w).expand(2, 3, 1, 1)) <= 1e-15
    d2 = m / s.r**2
    blend = evodiff_paper._blend(m, d2, m, s)
    assert gap(blend, -0.25 / s.r * m + 0.75 * s.r * d2) <= 1e-14, "forward and backward differences are equal"
    half = torch.sigmoid(f64(-0.5)).expand(2, 3, 1, 1)
    assert gap(evodiff_paper._zeta(m, zero, evodiff_paper.Pair(m, m), s, 8), half) <= 1e-15
    # Above 20 steps the release scales by how much m changes; for a constant m that share is 0.
    turned = torch.sigmoid(0.5 * torch.sigmoid(f64(0.0))).expand(2, 3, 1, 1)
    assert gap(evodiff_paper._zeta(m, zero, evodiff_paper.Pair(m, m), s, 24), turned) <= 1e-15


def test_paper_variant_takes_any_rank() -> None:
    """Channels are the second axis; what follows is summed, in one axis or three."""
    mixture, noise = problem()
    grid = Karras()(EDM(), 7)
    x = torch.tensor(noise) * grid.at(0).sigma
    flat = Mixture(mixture.means.reshape(6, 3, 16), mixture.std, mixture.weights)
    deep = Mixture(mixture.means.reshape(6, 3, 2, 2, 4), mixture.std, mixture.weights)
    rule = EVODiff(variant="paper")
    want = sample(MixtureDenoiser(mixture), rule, grid, x).x
    for other in (flat, deep):
        shape = (4, *other.means.shape[1:])
        got = sample(MixtureDenoiser(other), rule, grid, x.reshape(shape)).x
        assert gap(got.reshape(want.shape), want) <= 1e-12, (
            f"{shape}: max|a-b| = {gap(got.reshape(want.shape), want):.2e}"
        )


def test_paper_variant_refuses_what_it_cannot_run() -> None:
    x = batch((2, 1, 2, 2))
    for grid in (UniformTime()(LinearFlow(), 4), UniformLam(-2, 2, end="zero")(EDM(), 4)):
        with pytest.raises(LevelError) as hit:
            sample(Constant(x), EVODiff(variant="paper"), grid, x)
        assert "lam" in hit.value.allowed
        assert hit.value.todo
    with pytest.raises((BudgetError, LevelError)) as hit:
        sample(Constant(x), EVODiff(variant="paper"), UniformLam()(EDM(), 1), x)
    assert "2" in hit.value.allowed
    for order in (1, 3):
        with pytest.raises(ConfigError) as hit:
            EVODiff(variant="paper", order=order)
        assert f"order={order}" in str(hit.value), str(hit.value)
    for wrong in (
        {"variant": "papr"},
        {"denoise_to_zero": True},
        {"final_gain": 0.0},
        {"variant": "paper", "final_gain": 1.1},
    ):
        with pytest.raises(ConfigError) as hit:
            EVODiff(**wrong)
        assert repr(next(iter(wrong.values()))) in str(hit.value) or str(next(iter(wrong.values()))) in str(hit.value)


# The default


def test_final_gain_multiplies_the_last_sample() -> None:
    mixture, noise = problem()
    grid = Karras()(EDM(), 6)
    x = torch.tensor(noise) * 80
    plain = sample(MixtureDenoiser(mixture), EVODiff(), grid, x)
    raised = sample(MixtureDenoiser(mixture), EVODiff(final_gain=1.08), grid, x)
    assert gap(raised.x, 1.08 * plain.x) <= 1e-13
    assert gap(raised.trajectory[-2], plain.trajectory[-2]) == 0


@consistent_solvers
def test_weights_are_continuous_in_the_grid(name: str) -> None:
    """Moving any one level by 1e-7 of itself moves the result by about as much: there is no switch to fall over."""
    mixture, noise = problem()
    for spacing in (UniformLam(), Karras(), UniformTime()):
        for steps in (5, 20, 21):
            grid = spacing(EDM(), steps)
            x = torch.tensor(noise) * grid.at(0).sigma
            rule = CONSISTENT[name].rule
            base = sample(MixtureDenoiser(mixture), rule, grid, x).x
            for i in (1, steps // 2, steps - 1):
                sigma = grid.levels.sigma.clone()
                sigma[i] *= 1 + 1e-7
                moved = sample(MixtureDenoiser(mixture), rule, Grid(NoiseLevel(grid.levels.alpha, sigma), grid.t), x).x
                assert gap(moved, base) <= 1e-4, f"{name}, {spacing}, N={steps}, level {i}: {gap(moved, base):.2e}"


@consistent_solvers
def test_the_basis_of_a_sample_is_nobodys_business(name: str) -> None:
    """Turn all numbers of a sample by an orthogonal map before, and back after: nothing changes."""
    mixture, noise = problem()
    turn = torch.tensor(np.linalg.qr(np.random.default_rng(1).normal(size=(48, 48)))[0])
    oracle = MixtureDenoiser(mixture)

    def turned(x: Tensor, level: NoiseLevel, cond: object = None) -> Tensor:
        back = (x.flatten(1) @ turn.T).reshape(x.shape)
        return (oracle(back, level).flatten(1) @ turn).reshape(x.shape)

    grid = Karras()(EDM(), 8)
    x = torch.tensor(noise) * 80
    want = sample(oracle, CONSISTENT[name].rule, grid, x).x
    got = sample(turned, CONSISTENT[name].rule, grid, (x.flatten(1) @ turn).reshape(x.shape)).x
    error = gap((got.flatten(1) @ turn.T).reshape(x.shape), want)
    assert error <= 1e-10, f"{name}: max|a-b| = {error:.2e}"


@consistent_solvers
def test_gradient_of_a_constant_prediction(name: str) -> None:
    """Where slopes vanish every closed-form weight is 0/0; its gradient must be the exact one all the same."""
    for grid in (UniformLam()(EDM(), 6), UniformTime(end="zero")(LinearFlow(), 6)):
        (a0, s0), (a1, s1) = grid.at(0), grid.at(-1)
        x = batch((2, 2, 2, 2)).requires_grad_(True)
        c = batch((2, 2, 2, 2), 1).requires_grad_(True)
        out = sample(Constant(c), CONSISTENT[name].rule, grid, x, unroll=Full()).x
        d_x, d_c = torch.autograd.grad(out.sum(), (x, c), allow_unused=True)
        d_x = torch.zeros_like(x) if d_x is None else d_x
        error = max(
            gap(d_c, torch.full_like(c, (a1 - a0 * s1 / s0).item())), gap(d_x, torch.full_like(x, (s1 / s0).item()))
        )
        assert error <= 1e-12, f"{name}: max|a-b| = {error:.2e}"


@pytest.mark.parametrize("end", ["noise", "clean"])
@pytest.mark.parametrize("steps", [2, 3, 4])
def test_default_is_continuous_at_both_ends_of_the_grid(end: str, steps: int) -> None:
    """A first level that tends to pure noise, or a last one that tends to clean, tends to the result at that end."""
    mixture, noise = problem()
    x = torch.tensor(noise)

    def run(gap_to_end: float) -> torch.Tensor:
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        t[0 if end == "noise" else -1] += -gap_to_end if end == "noise" else gap_to_end
        return sample(MixtureDenoiser(mixture), EVODiff(), Explicit(tuple(t.tolist()))(LinearFlow(), steps), x).x

    there = run(0.0)
    distances = [gap(run(delta), there) for delta in (1e-2, 1e-4, 1e-6, 1e-8)]
    # x itself is the same noise at every first level, so all of the distance is the rule's.
    assert distances[-1] <= 1e-5, f"distances {distances}"
    assert all(later < sooner for sooner, later in itertools.pairwise(distances)), f"distances {distances}"
