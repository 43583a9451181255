"""T8: dtype in is dtype out, and a picture does not depend on the batch it was made in."""

from __future__ import annotations

import math

import pytest
import torch

from contracts.inventory import PREDICTIONS_HERE, SOLVERS_HERE, gap, solvers
from contracts.problems import (
    LAM,
    TinyNetwork,
    TwoBumps,
    start_of,
)
from fewstep.denoisers import NetworkDenoiser
from fewstep.noise import (
    EDM,
    Karras,
    VPLinear,
    perturb,
)
from fewstep.sampling import START, SeededNoise, sample, start_noise

# T8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@solvers
def test_dtype_in_is_dtype_out(name: str, dtype: torch.dtype) -> None:
    rule, grid = SOLVERS_HERE[name].rule, LAM(VPLinear(), 5)
    x = start_of(grid, (3, 1, 4, 4)).to(dtype)
    result = sample(TwoBumps(), rule, grid, x)
    assert {t.dtype for t in result.trajectory} == {dtype}
    exact = sample(TwoBumps(), rule, grid, x.double()).x
    allowed = {torch.float64: 0.0, torch.float32: 2e-5, torch.bfloat16: 0.3}[dtype]
    assert gap(result.x, exact) <= allowed, f"{name} in {dtype}: max|a-b| = {gap(result.x, exact):.2e}"


@solvers
def test_half_precision_of_a_large_sample(name: str) -> None:
    """196 608 numbers of size 4 to 15: their sum of squares is far beyond float16's 65 504."""
    rule, grid, denoise = SOLVERS_HERE[name].rule, LAM(VPLinear(), 5), TwoBumps(4.0, 2.0)
    x = start_of(grid, (1, 3, 256, 256)).half()
    result = sample(denoise, rule, grid, x)
    assert {t.dtype for t in result.trajectory} == {torch.float16}
    error = gap(result.x, sample(denoise, rule, grid, x.double()).x)
    # float16 keeps 11 bits of numbers up to 15; an overflow in the weights costs 4 or is not finite.
    assert error <= 0.1, f"{name} in float16: max|a-b| = {error:.2e}"


@solvers
def test_low_precision_network_inside_a_float64_loop(name: str) -> None:
    rule, grid = SOLVERS_HERE[name].rule, LAM(VPLinear(), 5)
    x = start_of(grid, (2, 1, 8, 8))
    low = NetworkDenoiser(TinyNetwork(torch.bfloat16), PREDICTIONS_HERE["x0"], VPLinear())
    high = NetworkDenoiser(TinyNetwork(), PREDICTIONS_HERE["x0"], VPLinear())
    got, want = sample(low, rule, grid, x).x, sample(high, rule, grid, x).x
    assert got.dtype == torch.float64
    # bf16 keeps 8 bits; outputs are within [-1, 1].
    assert gap(got, want) <= 0.2, f"{name}: max|a-b| = {gap(got, want):.2e}"


@solvers
def test_images_do_not_depend_on_their_batch(name: str) -> None:
    rule, grid = SOLVERS_HERE[name].rule, LAM(VPLinear(), 6)
    seeds = (5, 0, 17, 123456789)
    x = start_noise(grid, (3, 5, 5), seeds, dtype=torch.float64)
    whole = sample(TwoBumps(), rule, grid, x).x
    for i in range(4):
        one = sample(TwoBumps(), rule, grid, start_noise(grid, (3, 5, 5), seeds[i : i + 1], dtype=torch.float64)).x
        assert gap(one, whole[i : i + 1]) == 0, f"{name}: sample {i} alone differs by {gap(one, whole[i : i + 1]):.2e}"
    back = sample(TwoBumps(), rule, grid, start_noise(grid, (3, 5, 5), seeds[::-1], dtype=torch.float64)).x
    assert gap(back.flip(0), whole) == 0, f"{name}: in another order {gap(back.flip(0), whole):.2e}"


def test_label_of_a_low_precision_network() -> None:
    """Half precision would merge neighbouring noise levels, so the label stays in float32 or better."""
    seen = []

    class Listener(TinyNetwork):
        def forward(self, x: torch.Tensor, noise_label: torch.Tensor, cond: object = None) -> torch.Tensor:
            seen.append((x.dtype, noise_label.dtype))
            return x

    for dtype, label in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ):
        denoiser = NetworkDenoiser(Listener(dtype), PREDICTIONS_HERE["x0"], VPLinear())
        denoiser(torch.zeros(2, 1, 3, 3), LAM(VPLinear(), 5).at(2))
        assert seen[-1] == (dtype, label), f"a network of {dtype} was given {seen[-1]}"


def test_levels_per_sample_do_not_change_the_dtype() -> None:
    """A level (b,) in float64 is no scalar to torch: without a cast it would promote float32 samples."""
    levels = VPLinear().level(torch.tensor([0.2, 0.7], dtype=torch.float64))
    x = start_of(LAM(VPLinear(), 2), (2, 1, 3, 3)).float()
    assert perturb(x, x, levels).dtype == torch.float32
    for prediction in PREDICTIONS_HERE.values():
        assert prediction.to_input(x, levels).dtype == torch.float32
        assert prediction.to_denoised(x, x, levels).dtype == torch.float32
        assert NetworkDenoiser(TinyNetwork(torch.float32), prediction, VPLinear())(x, levels).dtype == torch.float32


def test_noise_belongs_to_the_sample() -> None:
    like = torch.empty(4, 2, 3, 3, dtype=torch.float64)
    whole = SeededNoise((3, 1, 4, 1))(2, like)
    for i, seed in enumerate((3, 1, 4, 1)):
        assert gap(SeededNoise((seed,))(2, like[:1])[0], whole[i]) == 0
    assert gap(whole[1], whole[3]) == 0
    assert gap(SeededNoise((1, 4, 1, 3))(2, like), whole[[1, 2, 3, 0]]) == 0
    assert gap(SeededNoise((3, 1, 4, 1))(2, like.float()), whole.float()) == 0, "float32 noise is not the float64 noise"
    for other in (
        SeededNoise((3, 1, 4, 1))(3, like),
        SeededNoise((3, 1, 4, 1))(START, like),
        SeededNoise((4, 2, 5, 2))(2, like),
    ):
        assert gap(other, whole) > 0.1, "another step or seed gave the same noise"
    torch.manual_seed(0)
    before = torch.get_rng_state()
    SeededNoise((3, 1, 4, 1))(2, like)
    assert torch.equal(before, torch.get_rng_state()), "drawing noise moved the global generator"


def test_noise_is_standard_normal_and_uncorrelated() -> None:
    n, d = 400, 500
    like = torch.empty(n, d, dtype=torch.float64)
    first, second = SeededNoise(tuple(range(n)))(0, like), SeededNoise(tuple(range(n)))(1, like)
    z_mean, z_var = first.mean().item() * math.sqrt(n * d), (first.var().item() - 1) / math.sqrt(2 / (n * d))
    z_steps = (first * second).mean().item() * math.sqrt(n * d)
    z_seeds = (first[1:] * first[:-1]).mean().item() * math.sqrt((n - 1) * d)
    assert max(map(abs, (z_mean, z_var, z_steps, z_seeds))) <= 4, (
        f"z: {z_mean:.1f} {z_var:.1f} {z_steps:.1f} {z_seeds:.1f}"
    )


def test_start_noise_has_the_scale_of_the_first_level() -> None:
    grid = Karras()(EDM(), 3)
    x = start_noise(grid, (2, 2), range(3), dtype=torch.float64)
    want = 80.0 * SeededNoise((0, 1, 2))(START, torch.empty(3, 2, 2, dtype=torch.float64))
    assert gap(x, want) <= 1e-12
    assert x.shape == (3, 2, 2)
    assert start_noise(grid, (2, 2), range(3)).dtype == torch.float32
