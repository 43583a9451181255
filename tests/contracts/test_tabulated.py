"""Tables of discrete models, shifted clocks and the variance clock: parity with diffusers, networks, refusals."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.inventory import PREDICTIONS_HERE, SCHEDULES_HERE, f64, gap
from contracts.problems import TwoBumps, batch
from contracts.refusals import refuses
from fewstep._part import Part
from fewstep.denoisers import X0, NetworkDenoiser, V
from fewstep.errors import ConfigError, LevelError
from fewstep.noise import (
    SCHEDULES,
    SPACINGS,
    VE,
    Karras,
    LinearFlow,
    NoiseLevel,
    PureNoise,
    Schedule,
    ShiftedFlow,
    Tabulated,
    Trailing,
    UniformFlow,
    UniformLam,
    UniformTime,
)
from fewstep.sampling import sample
from fewstep.solvers import DDIM

STRETCHED = Tabulated.scaled_linear(rescale_betas_zero_snr=True)
NEW = {name: SCHEDULES_HERE[name] for name in ("ve", "shifted_flow", "tabulated", "tabulated_scaled_linear")}
parity = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy 2 in diffusers, not ours


# Tables


def bars_of(schedule: Schedule) -> Tensor:
    """Alpha squared at the timesteps of a table."""
    return schedule.level(torch.arange(1, schedule.t_range()[1] + 1, dtype=torch.float64)).alpha.square()


def test_a_table_holds_its_timesteps() -> None:
    """At t = k + 1 the level is entry k; its sigma has no noise of cancellation."""
    table = (0.97, 0.6, 0.1, 1e-9, 0.0)
    level = Tabulated(table).level(torch.arange(6, dtype=torch.float64))
    errors = (
        gap(level.alpha, f64([1.0, *table]).sqrt()),
        gap(level.sigma, f64([0.0, *(math.sqrt(1 - entry) for entry in table)])),
    )
    assert max(errors) <= 2e-16, f"max|a-b| = {errors}"
    assert (level.alpha[-1].item(), level.sigma[-1].item(), level.sigma[0].item()) == (0.0, 1.0, 0.0)
    whole = Tabulated(table).level(torch.tensor([0, 3]))
    assert whole.sigma.dtype == torch.float64
    assert gap(whole.sigma, level.sigma[[0, 3]]) == 0


def test_between_timesteps_the_angle_is_a_line() -> None:
    schedule = Tabulated((0.9, 0.2))
    here, there = math.acos(math.sqrt(0.9)), math.acos(math.sqrt(0.2))
    for t, angle in ((0.25, 0.25 * here), (1.7, 0.3 * here + 0.7 * there)):
        level = schedule.level(f64(t))
        error = max(abs(level.sigma.item() - math.sin(angle)), abs(level.alpha.item() - math.cos(angle)))
        assert error <= 2e-16, f"t = {t}: {error:.2e}"
        assert abs(schedule.t_of_lam(level.lam).item() - t) <= 1e-15


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
@parity
def test_tables_are_those_of_diffusers(beta_schedule: str) -> None:
    """Against numpy in float64, and against diffusers, whose products are of float32."""
    diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'diffusers'")
    for start, end, n in ((1e-4, 0.02, 1000), (0.00085, 0.012, 1000), (0.001, 0.03, 50)):
        got = f64(getattr(Tabulated, beta_schedule)(start, end, n).alphas_cumprod)
        power = 1 if beta_schedule == "linear" else 2
        want = torch.tensor(np.cumprod(1 - np.linspace(start ** (1 / power), end ** (1 / power), n) ** power))
        assert gap(got / want, torch.ones(n).double()) <= 1e-12, f"{gap(got, want):.2e}"
        theirs = diffusers.DDIMScheduler(n, start, end, beta_schedule).alphas_cumprod.double()
        error = gap(got / theirs, torch.ones(n).double())
        assert error <= 1e-4, f"{beta_schedule}: relative {error:.2e}"


@parity
def test_zero_terminal_snr_is_that_of_diffusers() -> None:
    """In float64, its own function; elementwise in alphas_cumprod, and nothing but the end is pure noise."""
    ddim = pytest.importorskip("diffusers.schedulers.scheduling_ddim", reason="parity needs the extra 'diffusers'")
    for start, end in ((1e-4, 0.02), (0.00085, 0.012)):
        betas = torch.linspace(start, end, 1000, dtype=torch.float64)
        want = (1 - ddim.rescale_zero_terminal_snr(betas.clone())).cumprod(0)
        table = Tabulated.of_betas(betas.tolist()).zero_terminal_snr()
        error = gap(f64(table.alphas_cumprod), want)
        assert error <= 1e-12, f"max|a-b| = {error:.2e}"
        assert table == Tabulated.linear(start, end, rescale_betas_zero_snr=True)
        assert table.alphas_cumprod[-1] == 0.0 < table.alphas_cumprod[-2]
        assert table.alphas_cumprod[0] == pytest.approx(1 - start, abs=1e-16)
        again = table.zero_terminal_snr()
        assert gap(f64(again.alphas_cumprod), f64(table.alphas_cumprod)) <= 1e-15, "what is stretched stays"


def test_what_diffusers_holds_is_a_table() -> None:
    table = Tabulated.linear(num_train_timesteps=20)
    for given in (
        list(table.alphas_cumprod),
        np.array(table.alphas_cumprod),
        torch.tensor(table.alphas_cumprod, dtype=torch.float64),
        json.loads(json.dumps(table.alphas_cumprod)),
    ):
        assert Tabulated(given) == table  # type: ignore[arg-type]
    written = Part("tabulated", {"alphas_cumprod": json.loads(json.dumps(dataclasses.asdict(table)))["alphas_cumprod"]})
    assert written.build(SCHEDULES, "schedule") == table
    short = Part("tabulated_scaled_linear", {"rescale_betas_zero_snr": True})
    assert short.build(SCHEDULES, "schedule") == STRETCHED
    assert len(repr(STRETCHED)) < 100, "messages hold the table's name, not its thousand numbers"


@pytest.mark.parametrize("schedule", NEW.values(), ids=list(NEW))
def test_gradients_of_levels_are_those_of_differences(schedule: Schedule) -> None:
    """Through both maps, also at whole timesteps' neighbours, at lam = 0 and at the noisy end."""
    clean, noisy = schedule.t_range()
    t = f64([clean + share * (noisy - clean) for share in (0.003141, 0.31415, 0.6543, 0.9991)]).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda t: tuple(schedule.level(t)), t)
    lam = f64([-2.6, -1e-4, 1e-4, 2.3]).requires_grad_(True)
    assert torch.autograd.gradcheck(schedule.t_of_lam, lam, atol=1e-3 if noisy > 1 else 1e-5)
    (at_zero,) = torch.autograd.grad(schedule.t_of_lam(zero := f64(0.0).requires_grad_(True)), zero)
    beside = (schedule.t_of_lam(f64(1e-6)) - schedule.t_of_lam(f64(-1e-6))).item() / 2e-6
    assert abs(at_zero.item() / beside - 1) <= 1e-6, f"{schedule}: {at_zero.item():.6g} and {beside:.6g}"


def test_ends_of_lam() -> None:
    """Pure noise and clean data have times on a table that reaches them, with gradients that are numbers."""
    lam = f64([-math.inf, math.inf, -800.0, 800.0]).requires_grad_(True)
    t = STRETCHED.t_of_lam(lam)
    assert gap(t.detach(), f64([1000.0, 0.0, 1000.0, 0.0])) <= 1e-12
    (grad,) = torch.autograd.grad(t.sum(), lam)
    assert bool(grad.isfinite().all()), grad.tolist()


def test_precision_of_times() -> None:
    """float32 in, float32 out: a time is right to a few of its last digits, and lam is what the level has."""
    for table in (Tabulated(), STRETCHED):
        lam = torch.linspace(-4, 4, 101)
        t, want = table.t_of_lam(lam), table.t_of_lam(lam.double())
        assert t.dtype == torch.float32
        assert gap(t, want) <= 1e-4, f"{table}: t off by {gap(t, want):.2e} of a timestep"
        inside = t > 1
        assert gap(table.level(t[inside]).lam, lam[inside]) <= 1e-5


def test_a_table_first_used_without_gradients() -> None:
    table = Tabulated.linear(num_train_timesteps=77)
    with torch.inference_mode():
        table.level(f64(3.5))
    t = f64(3.5).requires_grad_(True)
    (grad,) = torch.autograd.grad(table.t_of_lam(table.level(t).lam), t)
    assert abs(grad.item() - 1) <= 1e-12


# Flows


SHIFTS = (0.5, 1.0, 3.0, 7.0)


def test_a_shift_multiplies_kappa() -> None:
    t = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    plain = LinearFlow().level(t).kappa
    for shift in SHIFTS:
        level = ShiftedFlow(shift).level(t)
        error = gap(level.kappa / plain, torch.full_like(t, shift))
        assert error <= 1e-13 * shift, f"shift {shift}: kappa off by {error:.2e}"
        assert gap(level.alpha + level.sigma, torch.ones_like(t)) <= 3e-16
    assert gap(ShiftedFlow(1.0).level(t).sigma, LinearFlow().level(t).sigma) <= 2e-16


@parity
def test_static_shift_is_that_of_diffusers() -> None:
    """FlowMatchEulerDiscreteScheduler's training levels, in float32; its default grid applies the shift twice."""
    diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'diffusers'")
    for shift in SHIFTS:
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        t = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
        error = gap(ShiftedFlow(shift).level(t).sigma, theirs.sigmas.double())
        assert error <= 2e-7, f"shift {shift}: max|a-b| = {error:.2e}"
        for steps in (1, 4, 7):
            theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))  # once, as the pipelines of SD3 mean it
            error = gap(Trailing()(ShiftedFlow(shift), steps).levels.sigma, theirs.sigmas.double())
            assert error <= 2e-7, f"shift {shift}, {steps} steps: max|a-b| = {error:.2e}"
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(4)
    twice = gap(Trailing()(ShiftedFlow(3.0), 4).levels.sigma, theirs.sigmas.double())
    assert twice > 0.1, f"diffusers no longer shifts its own grid twice ({twice:.2e}): say so in docs/schedules.md"


@parity
def test_shift_by_tokens_is_that_of_diffusers() -> None:
    """The Flux pipeline's mu, and the exponential time shift, in float64."""
    diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'diffusers'")
    flux = pytest.importorskip("diffusers.pipelines.flux.pipeline_flux", reason="parity needs Flux in diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for tokens in (1, 256, 1024, 2531, 4096, 16384):
        schedule, mu = ShiftedFlow.of_tokens(tokens), flux.calculate_shift(tokens)
        assert abs(schedule.shift / math.exp(mu) - 1) <= 1e-14, f"{tokens} tokens: {schedule.shift} and {math.exp(mu)}"
        for steps in (1, 4, 9):
            plain = np.linspace(1, 1 / steps, steps)
            grid = Trailing()(schedule, steps)
            error = gap(grid.levels.sigma[:-1], torch.tensor(theirs.time_shift(mu, 1.0, plain)))
            assert error <= 1e-14, f"{tokens} tokens, {steps} steps: max|a-b| = {error:.2e}"
            theirs.set_timesteps(sigmas=plain, mu=mu)
            assert gap(grid.levels.sigma, theirs.sigmas.double()) <= 2e-7
    other = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 5120}
    want = flux.calculate_shift(2000, 1024, 5120, 0.95, 2.05)
    assert abs(math.log(ShiftedFlow.of_tokens(2000, **other).shift) - want) <= 1e-14


def test_shift_by_resolution() -> None:
    """The root of the ratio of pixels: then sigma / alpha per root of the pixels is the same at the same time."""
    assert ShiftedFlow.of_pixels(1024 * 1024, 1024 * 1024) == ShiftedFlow(1.0)
    assert ShiftedFlow.of_pixels(1024 * 1024, 256 * 256) == ShiftedFlow(4.0)
    t = f64([0.1, 0.5, 0.9])
    large, small = (ShiftedFlow.of_pixels(side * side, 256 * 256).level(t).kappa / side for side in (512, 256))
    assert gap(large, small) <= 1e-16 * 300


def test_the_variance_clock() -> None:
    schedule = VE(sigma_min=0.01, sigma_max=50.0)
    assert schedule.t_range() == (0.01**2, 2500.0)
    level = schedule.level(f64([0.0, 1e-4, 4.0, 2500.0]))
    assert gap(level.sigma, f64([0.0, 0.01, 2.0, 50.0])) <= 1e-17
    assert level.alpha.tolist() == [1.0] * 4
    assert gap(UniformTime()(schedule, 5).levels.sigma.square().diff(), f64([-(2500 - 1e-4) / 5] * 5)) <= 1e-11


# Networks


def estimates(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """TwoBumps row by row."""
    rows = [TwoBumps()(row[None], NoiseLevel(a, s)) for row, a, s in zip(x, alpha, sigma, strict=True)]
    return torch.cat(rows)


def bumps(name: str) -> Any:
    """The network that is right about TwoBumps where alpha^2 + sigma^2 = 1: reads its angle, speaks one language."""

    def network(x: Tensor, noise_label: Tensor, cond: object = None) -> Tensor:
        angle = noise_label * (math.pi / 2)
        alpha, sigma = angle.cos().reshape(-1, 1, 1, 1), angle.sin().reshape(-1, 1, 1, 1)
        spread = (alpha**2 * 0.25 + sigma**2).sqrt()
        x = x * spread if name == "edm" else x
        denoised = estimates(x, angle.cos(), angle.sin())
        eps = (x - alpha * denoised) / sigma
        return {
            "x0": denoised,
            "eps": eps,
            "v": alpha * eps - sigma * denoised,
            "flow": eps - denoised,
            "edm": (denoised - alpha * 0.25 / spread**2 * x) * spread / (sigma * 0.5),
        }[name]

    return network


@pytest.mark.parametrize("name", PREDICTIONS_HERE)
@pytest.mark.parametrize("table", [Tabulated(), STRETCHED], ids=["tabulated", "stretched"])
def test_any_grid_of_any_schedule_samples_a_network_of_a_table(name: str, table: Tabulated) -> None:
    """The network's labels come from its table; what is sampled is what the exact denoiser samples on that grid."""
    denoiser = NetworkDenoiser(bumps(name), PREDICTIONS_HERE[name], table)
    for own, schedule in SCHEDULES_HERE.items():
        for spacing in (UniformLam(-4.0, 3.0), Karras(kappa_max=50.0, end="zero")):
            grid = spacing(schedule, 4)
            x = batch((2, 1, 2, 2)) * torch.hypot(*grid.at(0))
            error = gap(sample(denoiser, DDIM(), grid, x).x, sample(TwoBumps(), DDIM(), grid, x).x)
            assert error <= 1e-10, f"{name} on {own}, {spacing}: max|a-b| = {error:.2e}"


@pytest.mark.parametrize("name", NEW)
def test_networks_of_the_new_schedules(name: str) -> None:
    """They are shown samples in their own coordinates: alpha = 1, alpha + sigma = 1, or the unit circle."""
    own = NEW[name]

    def network(x: Tensor, noise_label: Tensor, cond: object = None) -> Tensor:
        alpha, sigma = (noise_label * (math.pi / 2)).cos(), (noise_label * (math.pi / 2)).sin()
        size = {"ve": alpha, "shifted_flow": alpha + sigma}.get(name, torch.ones_like(alpha))
        return estimates(x, alpha / size, sigma / size)

    denoiser = NetworkDenoiser(network, X0(), own)
    for schedule in (own, LinearFlow()):
        for spacing in (Karras(kappa_max=50.0, end="zero"), UniformLam(-4.0, 3.0)):
            grid = spacing(schedule, 5)
            x = batch((2, 1, 2, 2)) * torch.hypot(*grid.at(0))
            error = gap(sample(denoiser, DDIM(), grid, x).x, sample(TwoBumps(), DDIM(), grid, x).x)
            assert error <= 1e-10, f"{name}, {spacing} on {schedule}: max|a-b| = {error:.2e}"


def test_pure_noise_on_a_stretched_table() -> None:
    """Its first call is at alpha = 0 with the noise as it is; trailing steps begin there by themselves."""
    seen: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, noise_label: Tensor, cond: object = None) -> Tensor:
        seen.append((x, noise_label))
        return bumps("v")(x, noise_label)

    z = batch((2, 1, 2, 2))
    for spacing in (Trailing(), UniformFlow(), PureNoise(Karras(kappa_max=50.0, end="zero"))):
        grid = spacing(STRETCHED, 4)
        assert (grid.at(0).alpha.item(), grid.at(0).sigma.item()) == (0.0, 1.0), spacing
        seen.clear()
        got = sample(NetworkDenoiser(network, V(), STRETCHED), DDIM(), grid, z).x
        assert gap(seen[0][0], z) == 0, spacing
        assert seen[0][1].tolist() == [1.0, 1.0], spacing
        error = gap(got, sample(TwoBumps(), DDIM(), grid, z).x)
        assert error <= 1e-10, f"{spacing}: max|a-b| = {error:.2e}"


def test_a_network_is_not_asked_past_its_table() -> None:
    denoiser = NetworkDenoiser(bumps("v"), V(), Tabulated.scaled_linear())
    level = NoiseLevel(f64(1.0), f64(14.7))  # Stable Diffusion ends at 14.61
    error = refuses(LevelError, "14.7", lambda: denoiser(batch((1, 1, 2, 2)), level))
    assert "1000" in error.allowed


# Refusals


@pytest.mark.parametrize(
    ("make", "shows"),
    [
        (lambda: Tabulated(()), "0 entries"),
        (lambda: Tabulated((0.5,)), "1 entries"),
        (lambda: Tabulated((0.9, 0.9)), "0.9 after 0.9 at timestep 1"),
        (lambda: Tabulated((0.1, 0.5, 0.9)), "0.5 after 0.1 at timestep 1"),
        (lambda: Tabulated((0.9, 0.0, 0.0)), "0 after 0 at timestep 2"),
        (lambda: Tabulated((1.0, 0.5)), "1 at timestep 0"),
        (lambda: Tabulated((0.5, -0.1)), "-0.1 after 0.5"),
        (lambda: Tabulated((0.5, math.nan)), "nan after 0.5"),
        (lambda: Tabulated((math.inf, 0.5)), "inf at timestep 0"),
        (lambda: Tabulated(("wide", 0.5)), "'wide'"),
        (lambda: Tabulated(0.5), "float"),
        (lambda: Tabulated.of_betas([0.1, 0.0, 0.2]), "A beta of 0"),
        (lambda: Tabulated.of_betas([0.1, 1.5]), "A beta of 1.5"),
        (lambda: Tabulated.of_betas([1.0, 0.5]), "0 after 0"),
        (lambda: Tabulated.linear(num_train_timesteps=1), "num_train_timesteps=1"),
        (lambda: Tabulated.linear(num_train_timesteps=1e3), "num_train_timesteps=1000.0"),
        (lambda: Tabulated.linear(beta_start=-0.1), "A beta of -0.1"),
        (lambda: Tabulated.scaled_linear(beta_start=-0.1), "A beta of -0.1"),
        (lambda: ShiftedFlow(0.0), "shift of 0"),
        (lambda: ShiftedFlow(-3.0), "shift of -3"),
        (lambda: ShiftedFlow(math.nan), "shift of nan"),
        (lambda: ShiftedFlow(math.inf), "shift of inf"),
        (lambda: ShiftedFlow(t_min=0.0), "limits 0"),
        (lambda: ShiftedFlow.of_tokens(0), "0 tokens"),
        (lambda: ShiftedFlow.of_tokens(5, base_image_seq_len=64, max_image_seq_len=64), "between 64 and 64"),
        (lambda: ShiftedFlow.of_pixels(0, 4), "from 4 to 0"),
        (lambda: VE(sigma_min=0.0), "limits 0"),
        (lambda: VE(sigma_min=2.0, sigma_max=1.0), "limits 2 and 1"),
        (lambda: VE(sigma_max=math.inf), "inf"),
    ],
)  # fmt: skip
def test_refusals(make: Any, shows: str) -> None:
    refuses(ConfigError, shows, make)


def test_every_spacing_runs_on_a_table() -> None:
    """By its name alone, four steps: legal levels in the range of the table."""
    for name, make in SPACINGS.items():
        schedule = Tabulated() if name != "ays_svd" else STRETCHED
        grid = make()(schedule, 4)  # check_grid is inside
        assert grid.steps == 4, name
        assert grid.t[0].item() <= 1000.0, name
