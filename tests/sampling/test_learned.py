"""Learned chains: legal for any parameters, DDIM to begin with, differentiable, and the same again out of JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch
from contracts.inventory import SCHEDULES_HERE, f64, gap
from contracts.problems import Constant, TinyNetwork, TwoBumps, batch, by_hand
from contracts.refusals import refuses
from torch import Tensor

from fewstep.denoisers import Denoiser, Flow, NetworkDenoiser
from fewstep.errors import CheckpointError, ConfigError, GridError, LevelError
from fewstep.noise import EDM, Karras, LinearFlow, PureNoise, Schedule, UniformFlow, UniformLam, UniformTime, VPLinear
from fewstep.sampling import Checkpointed, Full, LearnedChain, from_table, sample
from fewstep.solvers import DDIM, TabulatedSolver

schedules = pytest.mark.parametrize("schedule", SCHEDULES_HERE.values(), ids=list(SCHEDULES_HERE))


def some_chain(steps: int = 3, seed: int = 0) -> LearnedChain:
    """A chain that has been somewhere: any parameters will do."""
    chain = LearnedChain(UniformFlow()(LinearFlow(), steps))
    with torch.no_grad():
        for i, parameter in enumerate(chain.parameters()):
            parameter += batch(tuple(parameter.shape), 2 * seed + i)
    return chain


@schedules
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_chain_begins_as_ddim_on_its_grid(schedule: Schedule, steps: int) -> None:
    for spacing in (UniformFlow(), PureNoise(Karras(kappa_max=60.0, end="zero"))):
        grid = spacing(schedule, steps)
        chain = LearnedChain(grid)
        for got, want in zip(chain.grid(schedule).levels, grid.levels, strict=True):
            assert gap(got, want) <= 1e-12 * want.max().item(), f"{spacing}: {gap(got, want):.2e}"
        z = batch((2, 1, 3, 3))
        assert torch.equal(sample(TwoBumps(), chain.solver(), grid, z).x, sample(TwoBumps(), DDIM(), grid, z).x)


def test_any_parameters_make_a_legal_grid() -> None:
    for seed in range(20):
        chain = LearnedChain(UniformFlow()(LinearFlow(), 6))
        with torch.no_grad():
            chain.gaps.copy_(3 * batch((6,), seed))
        grid = chain.grid(EDM(sigma_max=1e9))  # check_grid is inside
        tau = torch.cat([f64([1.0]), chain.tau.detach(), f64([0.0])])
        assert bool((tau.diff() < 0).all())
        want = f64([1.0]) - chain.gaps.detach().softmax(0).cumsum(0)
        assert gap(tau[1:], want) <= 1e-14, f"tau off by {gap(tau[1:], want):.2e}"
        assert (grid.at(0).alpha.item(), grid.at(0).sigma.item(), grid.at(-1).sigma.item()) == (0.0, 1.0, 0.0)


def transcribed(denoise: Denoiser, chain: LearnedChain, x: Tensor) -> Tensor:
    """Three steps of the rule on the straight path, where alpha = 1 - tau and sigma = tau, written out."""
    (t1, t2), (c10, c20, c21) = chain.tau.tolist(), chain.weights.tolist()

    def level(t: float) -> tuple[Tensor, Tensor]:
        return f64(1 - t), f64(t)

    def at(x: Tensor, t: float) -> Tensor:
        return denoise(x, type(LinearFlow().level(f64(0.5)))(*level(t)))

    m0 = at(x, 1.0)
    x1 = t1 * x + (1 - t1) * m0
    m1 = at(x1, t1)
    r = t2 / t1
    x2 = r * x1 + (1 - t2 - (1 - t1) * r) * ((1 - c10) * m1 + c10 * m0)
    m2 = at(x2, t2)
    return (1 - c20 - c21) * m2 + c20 * m0 + c21 * m1


def test_the_rule_is_its_formula() -> None:
    chain, z = some_chain(), batch((2, 1, 3, 3))
    got = sample(TwoBumps(), chain.solver(), chain.grid(LinearFlow()), z).x
    error = gap(got, transcribed(TwoBumps(), chain, z))
    assert error <= 1e-14, f"max|a-b| = {error:.2e}"


@schedules
def test_constants_calls_and_coordinates(schedule: Schedule) -> None:
    """Exact for a constant whatever the weights, one call a step, and the same x / alpha on every schedule."""
    chain, c, z = some_chain(4), batch((2, 1, 3, 3), 1), batch((2, 1, 3, 3), 2)
    grid = chain.grid(schedule)
    run = sample(Constant(c), chain.solver(), grid, z)
    assert gap(run.x, c) <= 1e-13, f"a constant is off by {gap(run.x, c):.2e}"
    assert run.nfe == chain.solver().nfe(grid) == 4
    here = sample(TwoBumps(), chain.solver(), grid, z).x
    there = sample(TwoBumps(), chain.solver(), chain.grid(LinearFlow()), z).x
    assert gap(here, there) <= 1e-12, f"{schedule}: max|a-b| = {gap(here, there):.2e}"


def test_two_trajectories_share_one_rule() -> None:
    chain = some_chain()
    rule, grid = chain.solver(), chain.grid(LinearFlow())
    starts = [batch((2, 1, 2, 2), seed) for seed in (1, 2)]
    alone = [by_hand(rule, TwoBumps(), grid, x)[-1] for x in starts]
    states, now = [rule.init(x, grid) for x in starts], list(starts)
    for i in range(grid.steps):
        for k in (0, 1):
            now[k], states[k] = rule.step(TwoBumps(), now[k], grid, i, states[k])
    assert all(torch.equal(a, b) for a, b in zip(now, alone, strict=True))


@pytest.mark.parametrize("schedule", [LinearFlow(), VPLinear(), EDM()], ids=["linear_flow", "vp_linear", "edm"])
def test_gradients_in_levels_and_weights(schedule: Schedule) -> None:
    """Finite differences through three steps of a network that reads its label; recomputed, the same."""
    chain, z = some_chain(), batch((2, 1, 2, 2))
    denoiser = NetworkDenoiser(TinyNetwork(), Flow(), schedule)

    def end(gaps: Tensor, weights: Tensor) -> Tensor:
        chain.gaps, chain.weights = gaps, weights  # type: ignore[assignment]
        return sample(denoiser, chain.solver(), chain.grid(schedule), z, unroll=Full()).x

    parameters = [p.detach().clone().requires_grad_(True) for p in (chain.gaps, chain.weights)]
    chain._parameters.clear()
    assert torch.autograd.gradcheck(end, parameters, rtol=1e-5)
    grads = []
    for unroll in (Full(), Checkpointed()):
        out = sample(denoiser, chain.solver(), chain.grid(schedule), z, unroll=unroll).x
        grads.append(torch.autograd.grad(out.square().sum(), parameters))
    assert all(bool((grad != 0).all()) for grad in grads[0]), "every parameter matters"
    for full, again in zip(*grads, strict=True):
        assert gap(full, again) <= 1e-12, f"max|a-b| = {gap(full, again):.2e}"


def test_what_is_learned_is_better() -> None:
    """Four steps against the exact end of the flow: the parameters of the solver alone bring it nearer."""
    z = torch.linspace(-2.5, 2.5, 64, dtype=torch.float64)[:, None]
    exact = sample(TwoBumps(), DDIM(), UniformFlow()(LinearFlow(), 2000), z).x
    chain = LearnedChain(UniformFlow()(LinearFlow(), 4))
    optimiser, errors = torch.optim.Adam(chain.parameters(), lr=0.03), []
    for _ in range(150):
        out = sample(TwoBumps(), chain.solver(), chain.grid(LinearFlow()), z, unroll=Full()).x
        loss = (out - exact).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(math.sqrt(loss.item()))
    assert errors[-1] < errors[0] / 10, f"RMSE {errors[0]:.4f} -> {errors[-1]:.4f}"


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_table_in_json_is_the_chain(steps: int) -> None:
    chain, z = some_chain(steps), batch((2, 1, 3, 3))
    solver, grid = from_table(json.loads(json.dumps(chain.table())), VPLinear())
    assert isinstance(solver, TabulatedSolver)
    live = chain.grid(VPLinear())
    for got, want in zip((*grid.levels, grid.t), (*live.levels, live.t), strict=True):
        assert torch.equal(got, want)
    assert torch.equal(sample(TwoBumps(), solver, grid, z).x, sample(TwoBumps(), chain.solver(), live, z).x)


def test_half_a_module_samples_all_the_same() -> None:
    """Parameters may be cast and moved with the network; grid and weights come back to float64 on the host."""
    chain = some_chain().float()
    run = sample(TwoBumps(), chain.solver(), chain.grid(LinearFlow()), batch((2, 1, 2, 2)).float())
    assert run.x.dtype == torch.float32
    assert chain.tau.dtype == torch.float64


def test_a_chain_may_exit_early_and_not_late() -> None:
    chain, z = some_chain(3), batch((2, 1, 2, 2))
    grid = chain.grid(LinearFlow())
    assert sample(TwoBumps(), chain.solver(), grid.exit_at(1), z).nfe == 2
    longer = UniformFlow()(LinearFlow(), 4)
    error = refuses(GridError, "4 steps", lambda: sample(TwoBumps(), chain.solver(), longer, z))
    assert "3" in error.allowed


def test_refusals() -> None:
    for spacing, shows in ((UniformTime(), "0.001"), (UniformLam(-4.0, 4.0, end="zero"), "0.98")):
        error = refuses(GridError, shows, lambda spacing=spacing: LearnedChain(spacing(LinearFlow(), 3)))
        assert "PureNoise" in error.todo
    refuses(ConfigError, "[2, 1]", lambda: TabulatedSolver(((0.1, 0.2), (0.3,))))
    refuses(LevelError, "Time", lambda: LearnedChain(UniformFlow()(EDM(), 8)).grid(EDM(sigma_max=1.0)))
    good = {"tau": [0.6, 0.2], "weights": [[0.1], [0.2, 0.3]]}
    assert from_table(good, LinearFlow())[1].steps == 3
    for change, shows in (
        ({"tau": [0.2, 0.6]}, "GridError"),
        ({"tau": [0.6, 0.0]}, "GridError"),
        ({"tau": [0.6, float("nan")]}, "LevelError"),
        ({"tau": [0.6, 0.4, 0.2]}, "4 steps"),
        ({"tau": "wide"}, "TypeError"),
        ({"weights": [[0.1], [0.2]]}, "[1, 1]"),
        ({"weights": [["x"], [0.2, 0.3]]}, "ValueError"),
        ({"weights": None}, "TypeError"),
    ):
        refuses(CheckpointError, shows, lambda change=change: from_table({**good, **change}, LinearFlow()))
    refuses(CheckpointError, "KeyError", lambda: from_table({"tau": [0.5]}, LinearFlow()))
