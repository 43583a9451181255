"""T4 and T7: differentiation through the loop, by every policy and from every end of a grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.inventory import CONSISTENT, PREDICTIONS_HERE, SOLVERS_HERE, consistent_solvers, f64, gap, solvers
from contracts.problems import (
    ENDS,
    LAM,
    TinyNetwork,
    TwoBumps,
    batch,
    by_hand,
    start_of,
    value_and_gradients,
)
from fewstep.denoisers import NetworkDenoiser
from fewstep.noise import (
    EDM,
    Grid,
    LinearFlow,
    NoiseLevel,
    Schedule,
    UniformTime,
    VPCosine,
    VPLinear,
)
from fewstep.sampling import Checkpointed, Full, LastSteps, NoGrad, sample

# T4


@solvers
def test_gradcheck_through_three_steps(name: str) -> None:
    rule = SOLVERS_HERE[name].rule
    grid = LAM(VPLinear(), 3)

    def run(x: Tensor, m: Tensor, s: Tensor) -> Tensor:
        return sample(TwoBumps(m, s), rule, grid, x, unroll=Full()).x

    x = start_of(grid).requires_grad_(True)
    m = f64(0.8).requires_grad_(True)
    s = f64([0.4, 0.5]).requires_grad_(True)
    assert torch.autograd.gradcheck(run, (x, m, s), eps=1e-6, atol=1e-7, rtol=1e-5)


@consistent_solvers
def test_gradcheck_in_the_levels(name: str) -> None:
    """Grids can be learned: alpha and sigma carry gradients through the loop."""
    rule, flat = CONSISTENT[name].rule, LAM(VPLinear(), 3)
    x = start_of(flat)

    def run(alpha: Tensor, sigma: Tensor) -> Tensor:
        return sample(TwoBumps(), rule, Grid(NoiseLevel(alpha, sigma), flat.t), x, unroll=Full()).x

    alpha, sigma = (part.clone().requires_grad_(True) for part in flat.levels)
    assert torch.autograd.gradcheck(run, (alpha, sigma), eps=1e-6, atol=1e-7, rtol=1e-5)


@consistent_solvers
def test_gradient_in_sigma_alone_is_the_same(name: str) -> None:
    """On EDM levels alpha carries no gradient; nothing may be remembered from a grid that carried none at all."""
    rule, flat = CONSISTENT[name].rule, LAM(EDM(), 4)
    x = start_of(flat)
    sample(TwoBumps(), rule, flat, x)

    def gradient(both: bool) -> Tensor:
        alpha, sigma = flat.levels.alpha.clone().requires_grad_(both), flat.levels.sigma.clone().requires_grad_(True)
        out = sample(TwoBumps(), rule, Grid(NoiseLevel(alpha, sigma), flat.t), x, unroll=Full()).x
        return torch.autograd.grad(out.square().sum(), sigma)[0]

    alone, together = gradient(False), gradient(True)
    assert gap(alone, together) <= 1e-12, f"{name}: {alone.tolist()} and {together.tolist()}"
    assert bool((alone != 0).all()), f"{name}: {alone.tolist()}"


@consistent_solvers
def test_an_ensemble_of_denoisers_on_one_start(name: str) -> None:
    """torch.func.vmap over what the denoiser is made of, x shared: the same as one after the other."""
    rule, grid = CONSISTENT[name].rule, LAM(VPLinear(), 4)
    x, spreads = start_of(grid), f64([0.3, 0.5, 0.9])

    def run(s: Tensor) -> Tensor:
        return by_hand(rule, TwoBumps(0.8, s), grid, x)[-1]

    got = torch.func.vmap(run)(spreads)
    want = torch.stack([run(s) for s in spreads])
    assert gap(got, want) <= 1e-12, f"{name}: max|a-b| = {gap(got, want):.1e}"


@solvers
def test_checkpointed_is_full(name: str) -> None:
    rule = SOLVERS_HERE[name].rule
    for end in ("finite", "zero_last", "noise_first_zero_last") if name in CONSISTENT else ("finite",):
        spacing, schedule = ENDS[end]
        grid = spacing(schedule, 5)
        full = value_and_gradients(rule, grid, Full())
        assert gap(full[0], by_hand(rule, TwoBumps(0.8, f64([0.4, 0.5])), grid, start_of(grid))[-1]) == 0
        assert all(g.abs().max() > 0 for g in full[1:]), f"{name}: a gradient of Full is zero"
        for every in (1, 2, 5, 9):
            for what, a, b in zip(
                ("x", "d/dx", "d/dm", "d/ds"), full, value_and_gradients(rule, grid, Checkpointed(every)), strict=True
            ):
                assert gap(a, b) <= 1e-12, f"{name}, {end}, every={every}: {what} differs by {gap(a, b):.2e}"
        assert gap(full[0], sample(TwoBumps(0.8, f64([0.4, 0.5])), rule, grid, start_of(grid)).x) == 0


@solvers
def test_checkpointed_counts_and_watches_once(name: str) -> None:
    """The backward pass runs steps again; nobody may notice."""
    rule, grid, watched = SOLVERS_HERE[name].rule, LAM(EDM(), 6), []
    x = start_of(grid).requires_grad_(True)
    result = sample(TwoBumps(), rule, grid, x, unroll=Checkpointed(2), watch=lambda i, x: watched.append(i))
    result.x.sum().backward()
    assert (result.nfe, result.network_evals) == (rule.nfe(grid), rule.nfe(grid))
    assert watched == list(range(6))
    assert len(result.trajectory) == 7


def detached(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, tuple):
        parts = [detached(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


@pytest.mark.parametrize("k", [1, 2, 3])
@solvers
def test_last_steps_is_full_with_a_detached_head(name: str, k: int) -> None:
    rule, grid = SOLVERS_HERE[name].rule, LAM(VPLinear(), 5)
    got = value_and_gradients(rule, grid, LastSteps(k))
    m = f64(0.8).requires_grad_(True)
    s = f64([0.4, 0.5]).requires_grad_(True)
    x, denoise = start_of(grid), TwoBumps(m, s)
    state = rule.init(x, grid)
    for i in range(5):
        if i == 5 - k:
            x, state = detached(x), detached(state)
        x, state = rule.step(denoise, x, grid, i, state)
    grads = torch.autograd.grad((x**2).sum() + x.sum(), (m, s), allow_unused=True)
    want = [
        x.detach(),
        torch.zeros_like(x),
        *(torch.zeros_like(p) if g is None else g for g, p in zip(grads, (m, s), strict=True)),
    ]
    for what, a, b in zip(("x", "d/dx", "d/dm", "d/ds"), got, want, strict=True):
        assert gap(a, b) <= 1e-12, f"{name}, k={k}: {what} differs by {gap(a, b):.2e}"


@solvers
def test_last_steps_beyond_the_grid_is_full(name: str) -> None:
    rule, grid = SOLVERS_HERE[name].rule, LAM(VPLinear(), 4)
    for k in (4, 9):
        for a, b in zip(
            value_and_gradients(rule, grid, LastSteps(k)), value_and_gradients(rule, grid, Full()), strict=True
        ):
            assert gap(a, b) == 0, f"{name}, k={k}: max|a-b| = {gap(a, b):.2e}"


@solvers
def test_no_grad_is_the_default_and_keeps_no_graph(name: str) -> None:
    rule, grid = SOLVERS_HERE[name].rule, LAM(VPLinear(), 4)
    x = start_of(grid).requires_grad_(True)
    plain, named = sample(TwoBumps(), rule, grid, x), sample(TwoBumps(), rule, grid, x, unroll=NoGrad())
    assert not plain.x.requires_grad
    assert not named.x.requires_grad
    assert gap(plain.x, named.x) == 0
    assert gap(plain.x, sample(TwoBumps(), rule, grid, x, unroll=Full()).x) == 0


# T7


@pytest.mark.parametrize("end", ["zero_last", "zero_last_edm", "noise_first", "noise_first_zero_last", "cosine_both"])
@consistent_solvers
def test_ends_have_finite_values_and_gradients(name: str, end: str) -> None:
    spacing, schedule = ENDS[end]
    for steps in range(1, 7):
        got = value_and_gradients(CONSISTENT[name].rule, spacing(schedule, steps), Full())
        for what, value in zip(("x", "d/dx", "d/dm", "d/ds"), got, strict=True):
            assert bool(value.isfinite().all()), f"{name}, {end}, {steps} steps: {what} = {value.flatten().tolist()}"


@pytest.mark.parametrize("source", ["TwoBumps", *(p for p in PREDICTIONS_HERE if p != "eps")])
@consistent_solvers
def test_ends_have_finite_gradients_in_the_grid(name: str, source: str) -> None:
    rule = CONSISTENT[name].rule
    for end, (spacing, schedule) in ENDS.items():
        network = None if source == "TwoBumps" else NetworkDenoiser(TinyNetwork(), PREDICTIONS_HERE[source], schedule)
        for steps in range(1, 7) if network is None else (1, 3):
            flat = spacing(schedule, steps)
            alpha, sigma = (part.clone().requires_grad_(True) for part in flat.levels)
            grid = Grid(NoiseLevel(alpha, sigma), flat.t)
            out = sample(network or TwoBumps(), rule, grid, start_of(flat), unroll=Full()).x
            grads = torch.autograd.grad(out.square().sum(), (alpha, sigma), allow_unused=True)
            for what, grad in zip(("alpha", "sigma"), grads, strict=True):
                fine = grad is None or bool(grad.isfinite().all())
                assert fine, f"{name}, {end}, {steps} steps: d/d{what} = {grad}"


@pytest.mark.parametrize("own", [LinearFlow(), VPCosine()], ids=["linear_flow", "vp_cosine"])
@pytest.mark.parametrize("prediction", [p for p in PREDICTIONS_HERE if p != "eps"])
def test_gradients_in_the_level_are_continuous_at_pure_noise(prediction: str, own: Schedule) -> None:
    """At alpha = 0 the gradient is not merely finite: it is the limit from alpha > 0."""
    denoiser, x = NetworkDenoiser(TinyNetwork(), PREDICTIONS_HERE[prediction], own), batch((2, 1, 4, 4))

    def gradients(alphas: list[float]) -> tuple[Tensor, ...]:
        level = NoiseLevel(f64(alphas).requires_grad_(True), f64([0.8, 1.0]).requires_grad_(True))
        value = denoiser(x, level)
        return value, *torch.autograd.grad(value.square().sum(), tuple(level))

    for what, got, near in zip(
        ("value", "d/dalpha", "d/dsigma"), gradients([0.0, 0.4]), gradients([1e-9, 0.4]), strict=True
    ):
        assert gap(got, near) <= 1e-4, f"{prediction} on {own}: {what} jumps by {gap(got, near):.2e} at alpha = 0"


@pytest.mark.parametrize("prediction", [p for p in PREDICTIONS_HERE if p != "eps"])
@consistent_solvers
def test_networks_from_pure_noise_to_clean(name: str, prediction: str) -> None:
    """Every prediction but eps runs from alpha = 0 to sigma = 0, with finite gradients in its weights."""
    network, schedule = TinyNetwork(), LinearFlow()
    denoiser = NetworkDenoiser(network, PREDICTIONS_HERE[prediction], schedule)
    for steps in (1, 2, 3, 5):
        x = start_of(UniformTime(end="zero")(schedule, steps), (2, 1, 4, 4)).requires_grad_(True)
        out = sample(denoiser, CONSISTENT[name].rule, UniformTime(end="zero")(schedule, steps), x, unroll=Full()).x
        grads = torch.autograd.grad(out.square().sum(), (x, *network.parameters()))
        for value in (out, *grads):
            assert bool(value.isfinite().all()), f"{name}, {prediction}, {steps} steps: {value.flatten().tolist()[:4]}"
        assert all(g.abs().max() > 0 for g in grads[1:]), f"{name}: no gradient reaches the weights"
