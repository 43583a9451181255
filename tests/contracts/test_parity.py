"""T9: elementwise parity with diffusers in float64.

The schedulers are set up as users do; then their float32 `sigmas` or `alphas_cumprod` are promoted to float64 and our
grid takes those very numbers. DPMSolverMultistepScheduler, EulerDiscreteScheduler and the flow schedulers cast the
sample to float32 inside `step`, so for DPM-Solver++ 2M their update functions are called directly, with the order that
`step` would choose; for the straight path the float32 loop itself is compared, unpromoted, to 1e-5.

What is matched, per test: last step, final sigma, solver type. Beyond that nothing is adjusted.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracts.inventory import gap
from contracts.problems import TwoBumps, batch
from fewstep.noise import Grid, NoiseLevel
from fewstep.sampling import sample
from fewstep.solvers import DDIM, IPNDM, DPMpp2M, Heun, UniPC

diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'diffusers'")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy 2 in diffusers, not ours

F64 = torch.float64
STEPS = [2, 5, 10, 20]
TRAIN = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
steps_ = pytest.mark.parametrize("steps", STEPS)


def grid_of_kappa(kappa: Tensor) -> Grid:
    """The VP levels that diffusers makes of a sigma / alpha ratio."""
    alpha = 1 / (kappa**2 + 1).sqrt()
    return Grid(NoiseLevel(alpha, kappa * alpha), kappa)


def close(got: Tensor, want: Tensor, what: str, allowed: float = 1e-10) -> None:
    error = gap(got, want)
    print(f"{what}: max|a-b| = {error:.1e}")
    assert error <= allowed, f"{what}: max|a-b| = {error:.2e}"


@steps_
def test_ddim(steps: int) -> None:
    """DDIMScheduler, eta = 0, trailing steps, no clipping; its last step is to alpha = 1 (set_alpha_to_one)."""
    theirs = diffusers.DDIMScheduler(
        **TRAIN, clip_sample=False, set_alpha_to_one=True, prediction_type="sample", timestep_spacing="trailing"
    )
    theirs.set_timesteps(steps)
    theirs.alphas_cumprod = theirs.alphas_cumprod.to(F64)
    theirs.final_alpha_cumprod = theirs.final_alpha_cumprod.to(F64)
    # DDIM steps by 1000 // steps from each timestep; where that is past 0 it takes the final alpha.
    ts = [*theirs.timesteps.tolist(), theirs.timesteps.tolist()[-1] - 1000 // steps]
    bars = torch.stack([theirs.alphas_cumprod[t] if t >= 0 else theirs.final_alpha_cumprod for t in ts])
    grid = Grid(NoiseLevel(bars.sqrt(), (1 - bars).sqrt()), torch.tensor(ts, dtype=F64))
    x = start = batch((3, 2, 4, 4))
    for i, t in enumerate(theirs.timesteps):
        x = theirs.step(TwoBumps()(x, grid.at(i)), t, x).prev_sample
    close(sample(TwoBumps(), DDIM(), grid, start).x, x, f"DDIM, {steps} steps")


def multistep(name: str, steps: int, **options: object) -> object:
    theirs = getattr(diffusers, name)(**TRAIN, solver_order=2, prediction_type="sample", **options)
    theirs.set_timesteps(steps)
    theirs.sigmas = theirs.sigmas.to(F64)
    return theirs


@pytest.mark.parametrize("spacing", ["karras", "lam", "time"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@steps_
def test_dpmpp_2m(steps: int, final: str, spacing: str) -> None:
    """DPMSolverMultistepScheduler, dpmsolver++, midpoint, lower_order_final off.

    final "zero": its last step, to sigma = 0, is of first order. "sigma_min": the last step is a 2M step; diffusers
    then repeats the smallest sigma, a step of no length that is left out.
    """
    options = {"karras": {"use_karras_sigmas": True}, "lam": {"use_lu_lambdas": True}, "time": {}}[spacing]
    theirs = multistep(
        "DPMSolverMultistepScheduler", steps, algorithm_type="dpmsolver++", solver_type="midpoint",
        lower_order_final=False, final_sigmas_type=final, **options,
    )  # fmt: skip
    kappa = theirs.sigmas if final == "zero" else theirs.sigmas[:-1]
    grid = grid_of_kappa(kappa)
    x = start = batch((3, 2, 4, 4))
    history: list[Tensor] = []
    for i in range(grid.steps):
        theirs._step_index = i
        history = [*history, TwoBumps()(x, grid.at(i))][-2:]
        if len(history) < 2 or not bool(kappa[i + 1] > 0):
            x = theirs.dpm_solver_first_order_update(history[-1], sample=x)
        else:
            x = theirs.multistep_dpm_solver_second_order_update(history, sample=x)
    close(sample(TwoBumps(), DPMpp2M(), grid, start).x, x, f"DPM++2M, {spacing}, {final}, {steps} steps")


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@steps_
def test_unipc(steps: int, final: str) -> None:
    """UniPCMultistepScheduler through its own `step`: order 2, bh2, predict_x0, karras sigmas.

    final "zero": lower_order_final on, so the step to sigma = 0 is of first order. "sigma_min": lower_order_final off,
    and the repeated smallest sigma is left out.
    """
    theirs = multistep(
        "UniPCMultistepScheduler", steps, solver_type="bh2", predict_x0=True, use_karras_sigmas=True,
        lower_order_final=final == "zero", final_sigmas_type=final,
    )  # fmt: skip
    theirs.set_begin_index(0)
    kappa = theirs.sigmas if final == "zero" else theirs.sigmas[:-1]
    grid = grid_of_kappa(kappa)
    x = start = batch((3, 2, 4, 4))
    # The corrector changes x before the prediction of the next step, so diffusers hands the predicted x to the model.
    for i in range(grid.steps):
        x = theirs.step(TwoBumps()(x, grid.at(i)), theirs.timesteps[i], x).prev_sample
    close(sample(TwoBumps(), UniPC(), grid, start).x, x, f"UniPC-2 bh2, {final}, {steps} steps")


@steps_
def test_heun(steps: int) -> None:
    """HeunDiscreteScheduler on Karras sigmas, eps prediction, in coordinates x / alpha; ends at sigma = 0 by Euler."""
    theirs = diffusers.HeunDiscreteScheduler(**TRAIN, prediction_type="epsilon", use_karras_sigmas=True)
    theirs.set_timesteps(steps)
    theirs.sigmas = theirs.sigmas.to(F64)
    theirs.set_begin_index(0)
    kappa = torch.cat([theirs.sigmas[:-1:2], theirs.sigmas[-1:]])
    grid = Grid(NoiseLevel(torch.ones_like(kappa), kappa), kappa)
    x = start = batch((3, 2, 4, 4)) * kappa[0]
    # It asks for one call per entry of its doubled list of sigmas; the second of a step is made at the step's end.
    for t in theirs.timesteps:
        sigma = theirs.sigmas[theirs.step_index or 0]
        denoised = TwoBumps()(x, NoiseLevel(torch.ones((), dtype=F64), sigma))
        x = theirs.step((x - denoised) / sigma, t, x).prev_sample
    close(sample(TwoBumps(), Heun(), grid, start).x, x, f"Heun, {steps} steps")


@steps_
def test_ipndm(steps: int) -> None:
    """IPNDMScheduler through its own `step`, on its own sine schedule; betas are sigma, alphas are alpha there."""
    theirs = diffusers.IPNDMScheduler(1000)
    theirs.set_timesteps(steps)
    theirs.betas = theirs.betas.to(F64)
    theirs.alphas = (1 - theirs.betas**2).sqrt()  # as it makes them, from the promoted betas
    # Its noise estimate is sample * beta + output * alpha: with v-prediction on a circle that is eps.
    first = 1  # its first level is alpha = 0, where kappa is infinite: our rule keeps no history from there
    alpha, sigma = theirs.alphas, theirs.betas
    grid = Grid(NoiseLevel(alpha[first:], sigma[first:]), sigma[first:])
    if grid.steps < 1:
        pytest.skip("nothing left")
    theirs._step_index = first
    x = start = batch((3, 2, 4, 4))
    for i in range(grid.steps):
        level = grid.at(i)
        denoised = TwoBumps()(x, level)
        v = (level.alpha * x - denoised) / level.sigma  # alpha eps - sigma x0 for alpha^2 + sigma^2 = 1
        x = theirs.step(v, theirs.timesteps[i + first], x).prev_sample
    close(sample(TwoBumps(), IPNDM(), grid, start).x, x, f"iPNDM-4, {steps} steps")


@steps_
def test_flow_euler(steps: int) -> None:
    """FlowMatchEulerDiscreteScheduler, float32 as it casts: Euler on the straight path is DDIM, to 1e-5."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    theirs.set_timesteps(steps)
    theirs.set_begin_index(0)
    sigma = theirs.sigmas
    grid = Grid(NoiseLevel(1 - sigma.to(F64), sigma.to(F64)), sigma.to(F64))
    x = start = batch((3, 2, 4, 4)).float()
    for i, t in enumerate(theirs.timesteps):
        flow = (x - TwoBumps()(x, grid.at(i))) / sigma[i]
        x = theirs.step(flow, t, x).prev_sample
    close(sample(TwoBumps(), DDIM(), grid, start).x, x, f"flow Euler, {steps} steps, float32", 1e-5)
