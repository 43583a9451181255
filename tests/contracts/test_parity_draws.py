"""T9: elementwise parity with diffusers in float64, of the rules that may draw noise. How: see contracts/parity.py.

Both are handed the same draws. What is matched, per test: last step, final sigma, solver type.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracts.parity import (
    F64,
    SHAPE,
    SPACINGS,
    TRAIN,
    close,
    draws,
    edm_grid,
    finals,
    in_eps,
    patched_draws,
    run,
    run_both,
    scheduler,
    spacings,
    steps_,
)
from contracts.problems import TwoBumps, batch
from fewstep.noise import Grid, NoiseLevel
from fewstep.sampling import sample
from fewstep.solvers import (
    DDIM,
    Churn,
    DPMpp2MSDE,
    Euler,
    EulerAncestral,
    Renoise,
)

diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'diffusers'")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy 2 in diffusers, not ours


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@steps_
def test_ddim(steps: int, spacing: str, eta: float) -> None:
    """DDIMScheduler, no clipping; its last step is to alpha = 1 (set_alpha_to_one)."""
    theirs = diffusers.DDIMScheduler(
        **TRAIN, clip_sample=False, set_alpha_to_one=True, prediction_type="sample", timestep_spacing=spacing
    )
    theirs.set_timesteps(steps)
    theirs.alphas_cumprod = theirs.alphas_cumprod.to(F64)
    theirs.final_alpha_cumprod = theirs.final_alpha_cumprod.to(F64)
    # DDIM steps by 1000 // steps from each timestep; where that is past 0 it takes the final alpha.
    ts = [*theirs.timesteps.tolist(), theirs.timesteps.tolist()[-1] - 1000 // steps]
    bars = torch.stack([theirs.alphas_cumprod[t] if t >= 0 else theirs.final_alpha_cumprod for t in ts])
    grid = Grid(NoiseLevel(bars.sqrt(), (1 - bars).sqrt()), torch.tensor(ts, dtype=F64))
    x, noise = batch(SHAPE), draws(steps)
    got = sample(TwoBumps(), DDIM(eta), grid, x, noise=lambda i, like: noise[i]).x
    for i, t in enumerate(theirs.timesteps):
        x = theirs.step(TwoBumps()(x, grid.at(i)), t, x, eta=eta, variance_noise=noise[i]).prev_sample
    close(got, x, f"DDIM, eta {eta}, {spacing}, {steps} steps")


@spacings("karras", "lam", "time")
@finals
@steps_
def test_dpmpp_2m_sde(steps: int, final: str, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DPMSolverMultistepScheduler, sde-dpmsolver++, midpoint, lower_order_final off; eta = 1 is the one that it has."""
    run_both(
        DPMpp2MSDE(), "DPMSolverMultistepScheduler", steps, final, monkeypatch, draws(steps),
        algorithm_type="sde-dpmsolver++", solver_type="midpoint", solver_order=2, lower_order_final=False,
        final_sigmas_type=final, **SPACINGS[spacing],
    )  # fmt: skip


@spacings("karras", "time")
@steps_
def test_euler_churn(steps: int, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """EulerDiscreteScheduler with s_churn, an interval and s_noise; ends at sigma = 0.

    Its pipelines call the network before `step` adds the noise. Here, as in EDM's Algorithm 2, the noise estimate that
    `step` is given was made at the noisier sample; what it does with it is compared.
    """
    noise, churn = draws(steps), Churn(3.0, kappa_min=0.05, kappa_max=50.0, scale=1.003)
    theirs = scheduler(
        "EulerDiscreteScheduler", steps, monkeypatch, noise, **TRAIN, prediction_type="epsilon", **SPACINGS[spacing]
    )
    theirs.is_scale_input_called = True
    grid = edm_grid(theirs.sigmas)
    x = start = batch(SHAPE) * theirs.sigmas[0]
    for i, sigma in enumerate(theirs.sigmas[:-1]):
        gamma = min(3.0 / steps, 2**0.5 - 1) if 0.05 <= sigma <= 50.0 else 0.0
        noisier = x + 1.003 * noise[i] * ((1 + gamma) ** 2 - 1) ** 0.5 * sigma
        level = NoiseLevel(torch.ones((), dtype=F64), sigma * (1 + gamma))
        eps = (noisier - TwoBumps()(noisier, level)) / level.sigma
        x = theirs.step(eps, theirs.timesteps[i], x, s_churn=3.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.003).prev_sample
    got = sample(TwoBumps(), Euler(churn), grid, start, noise=lambda i, like: noise[i]).x
    close(got, x, f"Euler with churn, {spacing}, {steps} steps")


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@steps_
def test_euler_ancestral(steps: int, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """EulerAncestralDiscreteScheduler; eta = 1 is the one that it has; ends at sigma = 0."""
    noise = draws(steps)
    theirs = scheduler("EulerAncestralDiscreteScheduler", steps, monkeypatch, noise, **TRAIN, timestep_spacing=spacing)
    theirs.is_scale_input_called = True
    start = batch(SHAPE) * theirs.sigmas[0]
    want = in_eps(theirs, lambda: theirs.sigmas[theirs.step_index or 0], start)
    got = sample(TwoBumps(), EulerAncestral(), edm_grid(theirs.sigmas), start, noise=lambda i, like: noise[i]).x
    close(got, want, f"ancestral Euler, {spacing}, {steps} steps")


@pytest.mark.parametrize("scaling", [10.0, 1e9])
@steps_
def test_lcm(steps: int, scaling: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """LCMScheduler, no clipping; its last step is to alpha = 1.

    Its boundary scalings belong to the network for us: the denoiser is c_skip x + c_out m. At a timestep_scaling of 10,
    its default, they matter in the late steps; at 1e9 they are 0 and 1 up to rounding, and m is handed over as it is.
    """
    noise = draws(steps)
    theirs = diffusers.LCMScheduler(
        **TRAIN, clip_sample=False, set_alpha_to_one=True, prediction_type="sample", timestep_scaling=scaling
    )
    theirs.set_timesteps(steps)
    theirs.set_begin_index(0)
    theirs.alphas_cumprod = theirs.alphas_cumprod.to(F64)
    patched_draws(monkeypatch, theirs, noise)
    bars = torch.cat([theirs.alphas_cumprod[theirs.timesteps], torch.ones(1, dtype=F64)])
    grid = Grid(NoiseLevel(bars.sqrt(), (1 - bars).sqrt()), torch.arange(steps, -1.0, -1.0, dtype=F64))

    def network(x: Tensor, level: NoiseLevel, cond: object = None) -> Tensor:
        t = theirs.timesteps[(grid.levels.alpha == level.alpha).nonzero().item()]
        skip, out = theirs.get_scalings_for_boundary_condition_discrete(t) if scaling == 10 else (0.0, 1.0)
        return skip * x + out * TwoBumps()(x, level)

    start = batch(SHAPE)
    got = sample(network, Renoise(), grid, start, noise=lambda i, like: noise[i]).x
    close(got, run(theirs, grid, start), f"LCM, timestep_scaling {scaling:g}, {steps} steps")


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("draw", [False, True])
@pytest.mark.parametrize("promoted", [True, False])
@steps_
def test_flow_euler(steps: int, promoted: bool, draw: bool, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlowMatchEulerDiscreteScheduler: Euler on the straight path is DDIM; its stochastic_sampling is re-noising."""
    noise = draws(steps) if promoted else draws(steps).float()
    theirs = scheduler(
        "FlowMatchEulerDiscreteScheduler", steps, monkeypatch if promoted else None, num_train_timesteps=1000,
        shift=shift, stochastic_sampling=draw,
    )  # fmt: skip
    sigma = theirs.sigmas
    grid = Grid(NoiseLevel(1 - sigma.to(F64), sigma.to(F64)), sigma.to(F64))
    x = start = batch(SHAPE).to(sigma.dtype)
    patched_draws(monkeypatch, theirs, noise)
    for i, t in enumerate(theirs.timesteps):
        flow = (x - TwoBumps()(x, grid.at(i))) / sigma[i]
        x = theirs.step(flow, t, x).prev_sample
    got = sample(TwoBumps(), Renoise() if draw else DDIM(), grid, start, noise=lambda i, like: noise[i]).x
    close(got, x, f"flow Euler, drawing {draw}, shift {shift}, {steps} steps", 1e-10 if promoted else 1e-5)
