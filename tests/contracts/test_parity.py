"""T9: elementwise parity with diffusers in float64, of the rules that draw nothing. How: see contracts/parity.py.

What is matched, per test: last step, final sigma, solver type. With final_sigmas_type "sigma_min" most sigma options
repeat the smallest sigma, a step of no length, which is left out. FlowMatchHeunDiscreteScheduler has no counterpart
here: it is the trapezoid in time, and our Heun the one in kappa.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contracts.parity import (
    F64,
    LATENT,
    SHAPE,
    SPACINGS,
    TRAIN,
    close,
    edm_grid,
    finals,
    in_eps,
    run,
    run_both,
    scheduler,
    spacings,
    steps_,
    vp_grid,
)
from contracts.problems import TwoBumps, batch
from fewstep.noise import Grid, NoiseLevel
from fewstep.sampling import sample
from fewstep.solvers import (
    DEIS,
    IPNDM,
    DPMpp2M,
    DPMpp2S,
    DPMpp3M,
    Euler,
    Heun,
    UniPC,
)

diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'diffusers'")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy 2 in diffusers, not ours


@pytest.mark.parametrize("promoted", [True, False])
@pytest.mark.parametrize("order", [2, 3])
@spacings("karras", "lam", "exponential", "time")
@finals
@steps_
def test_dpmpp(
    steps: int, final: str, spacing: str, order: int, promoted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DPMSolverMultistepScheduler, dpmsolver++, midpoint, lower_order_final off.

    final "zero": its last step, to sigma = 0, is of first order. "sigma_min": full order to the end.
    """
    run_both(
        DPMpp2M() if order == 2 else DPMpp3M(), "DPMSolverMultistepScheduler", steps, final,
        monkeypatch if promoted else None, algorithm_type="dpmsolver++", solver_type="midpoint", solver_order=order,
        lower_order_final=False, final_sigmas_type=final, **SPACINGS[spacing],
    )  # fmt: skip


@spacings("karras", "time")
@finals
@pytest.mark.parametrize("steps", [2, 3, 5, 10, 20])
def test_dpmpp_2s(steps: int, final: str, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DPMSolverSinglestepScheduler, dpmsolver++, midpoint, order 2, by its own list of orders.

    final "zero" (lower_order_final on): 1, 2, 1, 2... with a last step of order 1, for an even number of steps the
    last two. "sigma_min", whose last step is left out: 1, 2, 1, 2..., so an even number leaves half a pair, of order 1.
    """
    run_both(
        DPMpp2S(), "DPMSolverSinglestepScheduler", steps, final, monkeypatch, algorithm_type="dpmsolver++",
        solver_type="midpoint", solver_order=2, lower_order_final=final == "zero" or steps % 2 == 1,
        final_sigmas_type=final, **SPACINGS[spacing],
    )  # fmt: skip


@pytest.mark.parametrize(("variant", "final"), [("bh1", "sigma_min"), ("bh2", "sigma_min"), ("bh2", "zero")])
@pytest.mark.parametrize("order", [2, 3])
@spacings("karras", "exponential", "time")
@steps_
def test_unipc(steps: int, final: str, spacing: str, order: int, variant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """UniPCMultistepScheduler, predict_x0, lower_order_final off but for a last step to sigma = 0.

    With lower_order_final on all the way it would also take the last step but one at order 2, which we do not. Its bh1
    returns NaN where sigma = 0, as B = h is infinite there.
    """
    theirs = scheduler(
        "UniPCMultistepScheduler", steps, monkeypatch, **TRAIN, prediction_type="sample", solver_order=order,
        solver_type=variant, predict_x0=True, lower_order_final=False, final_sigmas_type=final, **SPACINGS[spacing],
    )  # fmt: skip
    grid = vp_grid(theirs, final)
    x = start = batch(SHAPE)
    # The corrector changes x before the prediction of the next step, so diffusers hands the predicted x to the model.
    for i in range(grid.steps):
        if final == "zero" and i + 1 == grid.steps:
            theirs.register_to_config(lower_order_final=True)
        x = theirs.step(TwoBumps()(x, grid.at(i)), theirs.timesteps[i], x).prev_sample
    got = sample(TwoBumps(), UniPC(order, variant), grid, start).x
    close(got, x, f"UniPC-{order} {variant}, {spacing}, {final}, {steps} steps")


@pytest.mark.parametrize("order", [2, 3])
@spacings("karras", "exponential", "time")
@steps_
def test_deis(steps: int, spacing: str, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """DEISMultistepScheduler (log-rho), lower_order_final off; it always ends at its smallest sigma."""
    run_both(
        DEIS(order, "log_kappa"), "DEISMultistepScheduler", steps, "sigma_min", monkeypatch, solver_order=order,
        lower_order_final=False, **SPACINGS[spacing],
    )  # fmt: skip


@spacings("karras", "exponential", "time")
@pytest.mark.parametrize("promoted", [True, False])
@steps_
def test_euler(steps: int, promoted: bool, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """EulerDiscreteScheduler, in coordinates x / alpha; ends at sigma = 0."""
    theirs = scheduler(
        "EulerDiscreteScheduler", steps, monkeypatch if promoted else None, **LATENT, prediction_type="sample",
        **SPACINGS[spacing],
    )  # fmt: skip
    theirs.is_scale_input_called = True
    grid = edm_grid(theirs.sigmas.to(F64))
    start = batch(SHAPE).to(theirs.sigmas.dtype) * theirs.sigmas[0]
    got = sample(TwoBumps(), Euler(), grid, start).x
    close(got, run(theirs, grid, start), f"Euler, {spacing}, {steps} steps", 1e-10 if promoted else 1e-5)


@spacings("karras", "exponential", "time")
@steps_
def test_heun(steps: int, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """HeunDiscreteScheduler, in coordinates x / alpha; ends at sigma = 0 by Euler.

    It asks for one call per entry of its doubled list of sigmas; the second of a step is made at the step's end.
    """
    theirs = scheduler(
        "HeunDiscreteScheduler", steps, monkeypatch, **TRAIN, prediction_type="epsilon", **SPACINGS[spacing]
    )
    grid = edm_grid(torch.cat([theirs.sigmas[:-1:2], theirs.sigmas[-1:]]))
    start = batch(SHAPE) * grid.at(0).sigma
    want = in_eps(theirs, lambda: theirs.sigmas[theirs.step_index or 0], start)
    close(sample(TwoBumps(), Heun(), grid, start).x, want, f"Heun, {spacing}, {steps} steps")


@steps_
def test_ipndm(steps: int) -> None:
    """IPNDMScheduler on its own sine schedule; betas are sigma, alphas are alpha there; ends at sigma = 0."""
    theirs = diffusers.IPNDMScheduler(1000)
    theirs.set_timesteps(steps)
    theirs.betas = theirs.betas.to(F64)
    theirs.alphas = (1 - theirs.betas**2).sqrt()  # as it makes them, from the promoted betas
    # Its noise estimate is sample * beta + output * alpha: with v-prediction on a circle that is eps.
    first = 1  # its first level is alpha = 0, where kappa is infinite: our rule keeps no history from there
    alpha, sigma = theirs.alphas, theirs.betas
    grid = Grid(NoiseLevel(alpha[first:], sigma[first:]), sigma[first:])
    theirs._step_index = first
    x = start = batch(SHAPE)
    for i in range(grid.steps):
        level = grid.at(i)
        denoised = TwoBumps()(x, level)
        v = (level.alpha * x - denoised) / level.sigma  # alpha eps - sigma x0 for alpha^2 + sigma^2 = 1
        x = theirs.step(v, theirs.timesteps[i + first], x).prev_sample
    close(sample(TwoBumps(), IPNDM(), grid, start).x, x, f"iPNDM-4, {steps} steps")
