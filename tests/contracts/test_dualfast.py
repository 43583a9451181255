"""Mixed noise estimates: by hand, what they mend, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from contracts.inventory import gap
from contracts.problems import ENDS, LAM, TwoBumps, batch, ends, start_of
from contracts.refusals import refuses
from fewstep._part import Part
from fewstep.errors import ConfigError
from fewstep.noise import EDM, Karras, LinearFlow, NoiseLevel, UniformTime, VPLinear
from fewstep.sampling import SeededNoise, sample
from fewstep.solvers import DDIM, SOLVERS, DPMpp2M, DualFast, EulerAncestral, EVODiff, UniPC


def test_three_ddim_steps_by_hand() -> None:
    grid, c = LAM(VPLinear(), 3), 0.4
    x, eps, kappas = start_of(grid), [], []
    got = sample(TwoBumps(), DualFast(DDIM(), share=c), grid, x).trajectory
    for i in range(3):
        (alpha, sigma), (alpha1, sigma1) = grid.at(i), grid.at(i + 1)
        eps.append((x - alpha * TwoBumps()(x, grid.at(i))) / sigma)
        kappas.append(sigma / alpha)
        mixed = eps[i]
        if i:
            share = c * (1 - kappas[i] / kappas[i - 1])
            mixed = (1 - share) * eps[i] + share * eps[i - 1]
        x = alpha1 * (x - sigma * mixed) / alpha + sigma1 * mixed
        assert gap(got[i + 1], x) <= 1e-14, f"step {i}: max|a-b| = {gap(got[i + 1], x):.2e}"


def test_after_pure_noise_the_whole_share_is_taken() -> None:
    """Kappa is infinite there: the noise estimate is x / sigma, and the ratio of kappas is 0."""
    grid, c = UniformTime()(LinearFlow(), 2), 0.4
    z = start_of(grid)
    got = sample(TwoBumps(), DualFast(DDIM(), share=c), grid, z).trajectory
    (alpha, sigma), (alpha1, sigma1) = grid.at(1), grid.at(2)
    mixed = (1 - c) * (got[1] - alpha * TwoBumps()(got[1], grid.at(1))) / sigma + c * z
    want = alpha1 * (got[1] - sigma * mixed) / alpha + sigma1 * mixed
    assert gap(got[2], want) <= 1e-14, f"max|a-b| = {gap(got[2], want):.2e}"


@ends
def test_no_share_is_the_base(end: str) -> None:
    spacing, schedule = ENDS[end]
    grid = spacing(schedule, 6)
    x = start_of(grid)
    for base in (DDIM(), DPMpp2M(), UniPC(order=3), EVODiff()):
        error = gap(sample(TwoBumps(), DualFast(base, 0.0), grid, x).x, sample(TwoBumps(), base, grid, x).x)
        assert error == 0, f"{base}, {end}: max|a-b| = {error:.2e}"


class Wrong:
    """Data N(0, 1) with a noise estimate that is the more wrong the less noise there is."""

    def __init__(self, size: float) -> None:
        self.error = size * batch((1, 6), 3)

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Any = None) -> Tensor:
        alpha, sigma = level
        eps = sigma * x / (alpha**2 + sigma**2)
        return (x - sigma * (eps + self.error / (1 + sigma / alpha))) / alpha


def test_it_mends_errors_of_a_network() -> None:
    """All is linear here: what the wrong noise adds to the sample is the network's part of its error."""
    grid, x = Karras(kappa_max=20.0, kappa_min=0.05)(EDM(), 10), 20 * batch((50, 6), 4)

    def part(share: float) -> float:
        rule = DualFast(share=share)
        return (sample(Wrong(0.3), rule, grid, x).x - sample(Wrong(0.0), rule, grid, x).x).square().mean().sqrt().item()

    found = [part(share) for share in (-0.3, 0.0, 0.3, 0.6, 1.0)]
    assert found == sorted(found, reverse=True), found
    assert found[-1] < 0.97 * found[1], found


def test_it_is_what_its_base_is() -> None:
    draws, grid = DualFast(EulerAncestral()), LAM(VPLinear(), 4)
    assert draws.stochastic
    assert DualFast(EVODiff(variant="paper", denoise_to_zero=True)).nfe(grid) == 5
    x, noise = start_of(grid), SeededNoise((0, 1))
    assert (
        gap(sample(TwoBumps(), draws, grid, x, noise=noise).x, sample(TwoBumps(), draws, grid, x, noise=noise).x) == 0
    )
    assert DualFast(DDIM()).order == 1
    assert Part("dualfast", {"share": 0.1}).build(SOLVERS, "solver") == DualFast(share=0.1)


@pytest.mark.parametrize("share", [-1.5, 1.01, float("nan"), float("inf")])
def test_shares_out_of_range_are_refused(share: float) -> None:
    refuses(ConfigError, f"share={share:g}", lambda: DualFast(share=share))


def test_a_base_that_is_no_solver_is_refused() -> None:
    wrong: tuple[tuple[Any, str], ...] = (("ddim", "base='ddim'"), (DPMpp2M, "DPMpp2M'>"), (None, "base=None"))
    for base, shown in wrong:  # a class has a step as well, but not of its own
        error = refuses(ConfigError, shown, lambda base=base: DualFast(base))
        assert "an object and not its class" in error.allowed


def test_the_command_line_is_told_what_it_can_give() -> None:
    error = refuses(ConfigError, "base='ddim'", lambda: Part.spelled("dualfast:base=ddim").build(SOLVERS, "solver"))
    assert "on the command line only the share can be given" in error.allowed
    assert "dualfast:share=0.3" in error.todo
    assert Part.spelled("dualfast:share=0.3").build(SOLVERS, "solver") == DualFast()
