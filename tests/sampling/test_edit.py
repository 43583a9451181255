"""Editing: where a run begins that does not begin at noise, and what inpainting keeps."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contracts.inventory import CONSISTENT, SCHEDULES_HERE, STOCHASTIC_HERE, consistent_solvers, f64, gap
from contracts.problems import ENDS, TwoBumps, batch, column, ends
from contracts.refusals import refuses
from torch import Tensor

from fewstep.denoisers import ClassifierFree, Gaussian, metered
from fewstep.errors import ConfigError, DtypeError, ShapeError
from fewstep.noise import EDM, Grid, Karras, LinearFlow, NoiseLevel, UniformFlow, UniformLam, VPLinear
from fewstep.sampling import START, Full, SeededNoise, inpaint, sample, start_from
from fewstep.solvers import DDIM, Churn, Heun, Solver

SEEDS = SeededNoise((4, 5, 6))
IMAGE = batch((3, 2, 4, 4)).tanh()
HALF = torch.zeros(1, 1, 4, 4)
HALF[..., :2, :] = 1


# start_from


@pytest.mark.parametrize("schedule", SCHEDULES_HERE.values(), ids=list(SCHEDULES_HERE))
def test_start_is_the_noised_image_at_the_level_of_the_strength(schedule: object) -> None:
    grid = UniformLam(-3, 3)(schedule, 10)
    for strength, left in ((0.1, 1), (0.35, 3), (0.7, 7), (1.0, 10)):
        x, rest = start_from(IMAGE, strength, grid, SEEDS)
        assert rest.steps == left
        for part, whole in zip((*rest.levels, rest.t), (*grid.levels, grid.t), strict=True):
            assert torch.equal(part, whole[10 - left :])
        alpha, sigma = grid.at(10 - left)
        assert gap(x, alpha * IMAGE + sigma * SEEDS(START, IMAGE)) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_steps_left_are_those_of_diffusers() -> None:
    """get_timesteps of the img2img pipeline; but for products that miss a whole number by their rounding."""
    pipelines = pytest.importorskip("diffusers.pipelines.stable_diffusion", reason="parity needs the extra 'diffusers'")
    class_ = pipelines.StableDiffusionImg2ImgPipeline
    missed = 0
    for steps in (1, 2, 5, 10, 15, 50, 100):
        scheduler = SimpleNamespace(timesteps=torch.arange(steps), order=1)
        for percent in range(1, 101):
            strength = percent / 100
            want = class_.get_timesteps(SimpleNamespace(scheduler=scheduler), steps, strength, None)[1]
            exact = steps * percent // 100  # in whole numbers
            missed += want != exact
            assert abs(want - exact) <= (0 if steps * percent % 100 else 1)
            if exact:
                got = start_from(IMAGE, strength, UniformLam(-3, 3)(EDM(), steps), SEEDS).grid.steps
                assert got == exact, f"{strength} of {steps}: {got}"
    assert missed, "0.29 * 100 is below 29"


def test_an_image_can_be_made_again_alone() -> None:
    grid = UniformLam(-3, 3)(VPLinear(), 10)
    x = start_from(IMAGE, 0.5, grid, SEEDS).x
    assert gap(start_from(IMAGE[1:2], 0.5, grid, SeededNoise((5,))).x, x[1:2]) == 0


def test_strength_one_at_pure_noise_forgets_the_image() -> None:
    x, grid = start_from(IMAGE, 1.0, UniformFlow()(LinearFlow(), 4), SEEDS)
    assert grid.steps == 4
    assert gap(x, SEEDS(START, IMAGE)) == 0


def test_little_strength_changes_little() -> None:
    """On the exact flow of a Gaussian: sampled from a level, an image of that Gaussian comes back noised and denoised.

    x0' = F x with F the flow from the level to clean data, so that mean and variance over the noise are known.
    """
    gauss, grid = Gaussian(torch.zeros(1, dtype=f64(0).dtype), 0.25), UniformLam(-3, 6, "zero")(VPLinear(), 400)
    image = f64([[0.7]]).expand(4000, 1)
    distances = []
    for strength in (0.2, 0.5, 0.8):
        x, rest = start_from(image, strength, grid, SeededNoise(tuple(range(4000))))
        alpha, sigma = (part.item() for part in rest.at(0))
        got = sample(gauss, DDIM(), rest, x).x
        factor = math.sqrt(0.25 / (alpha**2 * 0.25 + sigma**2))
        mean, std = factor * alpha * 0.7, factor * sigma
        assert abs(got.mean() - mean) <= 4 * std / math.sqrt(4000) + 0.01, f"{got.mean()} for {mean}"
        assert abs(got.std() / std - 1) <= 0.06, f"{got.std()} for {std}"
        distances.append((got - image).abs().mean().item())
    assert distances == sorted(distances)


def test_gradient_of_the_start() -> None:
    grid = UniformLam(-3, 3)(VPLinear(), 10)
    image = IMAGE.clone().requires_grad_(True)
    x, rest = start_from(image, 0.5, grid, SEEDS)
    (grad,) = torch.autograd.grad(x.sum(), image)
    assert gap(grad, rest.at(0).alpha.expand_as(grad)) == 0


@pytest.mark.parametrize("strength", [0.0, -0.2, 1.01, 75.0, math.nan, math.inf])
def test_strengths_out_of_range(strength: float) -> None:
    grid = UniformLam(-3, 3)(EDM(), 4)
    refuses(ConfigError, f"strength of {strength:g}", lambda: start_from(IMAGE, strength, grid, SEEDS))


@pytest.mark.parametrize(("strength", "steps"), [(0.05, 15), (0.09, 10), (0.3, 3), (0.99, 1), (0.001, 7)])
def test_strengths_that_leave_no_step(strength: float, steps: int) -> None:
    """What the message tells to do is enough, and what it tells is the least."""
    grids = {n: UniformLam(-3, 3)(EDM(), n) for n in (steps, math.ceil(1 / strength), math.ceil(1 / strength) - 1)}
    error = refuses(ConfigError, f"{strength:g} * {steps}", lambda: start_from(IMAGE, strength, grids[steps], SEEDS))
    least, enough = re.fullmatch(r"Use a strength of at least (\S+), or a grid of (\d+) steps", error.todo).groups()
    assert start_from(IMAGE, float(least), grids[steps], SEEDS).grid.steps == 1
    assert start_from(IMAGE, strength, grids[int(enough)], SEEDS).grid.steps == 1
    if float(least) > 0.001:
        refuses(ConfigError, "less than one", lambda: start_from(IMAGE, float(least) - 0.001, grids[steps], SEEDS))
    refuses(ConfigError, "less than one", lambda: start_from(IMAGE, strength, grids[int(enough) - 1], SEEDS))


def test_images_of_whole_numbers() -> None:
    pixels = torch.zeros(3, 2, 4, 4, dtype=torch.uint8)
    refuses(DtypeError, "uint8", lambda: start_from(pixels, 0.5, UniformLam(-3, 3)(EDM(), 4), SEEDS))
    refuses(DtypeError, "uint8", lambda: inpaint(TwoBumps(), pixels, HALF))
    refuses(ShapeError, "3 seeds", lambda: start_from(IMAGE[:2], 0.5, UniformLam(-3, 3)(EDM(), 4), SEEDS))


# inpaint


def chain(
    name: str, end: str, known: Tensor, image: Tensor = IMAGE
) -> tuple[Grid, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A grid, and the samples at every level with and without inpainting."""
    spacing, schedule = ENDS[end]
    x, grid = start_from(image, 1.0, spacing(schedule, 5), SEEDS)
    rule = CONSISTENT[name].rule
    painted = sample(inpaint(TwoBumps(), image, known), rule, grid, x).trajectory
    return grid, painted, sample(TwoBumps(), rule, grid, x).trajectory


@ends
@consistent_solvers
def test_the_known_half_is_the_noised_image_at_every_level_and_the_other_half_is_untouched(name: str, end: str) -> None:
    """TwoBumps looks at each number alone: what is painted is what would have been without the mask."""
    grid, painted, free = chain(name, end, HALF)
    eps = SEEDS(START, IMAGE)
    for i, (x, y) in enumerate(zip(painted, free, strict=True)):
        alpha, sigma = grid.at(i)
        error = gap(x[..., :2, :], (alpha * IMAGE + sigma * eps)[..., :2, :]) / max(1, sigma.item())
        assert error <= 1e-12, f"level {i}: max|a-b| = {error:.2e}"
        if name not in ("automatic", "evodiff"):  # they choose their weights by the whole sample
            assert gap(x[..., 2:, :], y[..., 2:, :]) == 0, f"level {i}"
    if grid.at(-1).sigma == 0:
        # Bit for bit, but for rules that weigh earlier estimates in the last step, too: their weights are rounded.
        allowed = 1e-12 if name.startswith(("ipndm", "deis", "dualfast", "evodiff", "tabulated")) else 0
        assert gap(painted[-1][..., :2, :], IMAGE[..., :2, :]) <= allowed


@pytest.mark.parametrize("name", STOCHASTIC_HERE)
def test_stochastic_rules_end_at_the_image_too(name: str) -> None:
    x, grid = start_from(IMAGE, 1.0, Karras(end="zero")(EDM(), 6), SEEDS)
    got = sample(inpaint(TwoBumps(), IMAGE, HALF), STOCHASTIC_HERE[name], grid, x, noise=SEEDS).x
    assert gap(got[..., :2, :], IMAGE[..., :2, :]) <= 1e-14
    assert got.isfinite().all()


def test_from_any_noise_the_end_is_the_image() -> None:
    grid = Karras(end="zero")(EDM(), 6)
    x = grid.at(0).sigma * batch(tuple(IMAGE.shape), 9)
    got = sample(inpaint(TwoBumps(), IMAGE, HALF), DDIM(), grid, x).x
    assert gap(got[..., :2, :], IMAGE[..., :2, :]) == 0


@pytest.mark.parametrize(
    "known",
    [HALF, HALF.bool(), HALF[0, 0], HALF.expand(3, 1, 4, 4), HALF.expand(3, 2, 4, 4), HALF.expand(1, 2, 4, 4)],
    ids=["11hw", "bool", "hw", "b1hw", "bchw", "1chw"],
)
def test_shapes_of_masks(known: Tensor) -> None:
    _, want, _ = chain("ddim", "zero_last", HALF)
    _, got, _ = chain("ddim", "zero_last", known)
    assert gap(got[-1], want[-1]) == 0


def test_masks_of_their_own_for_each_sample() -> None:
    known = torch.stack([HALF[0], 1 - HALF[0], torch.ones(1, 4, 4)])
    _, painted, free = chain("ddim", "zero_last", known)
    want = torch.where(known.bool(), IMAGE, free[-1])
    assert gap(painted[-1], want) == 0


def test_soft_masks_mix() -> None:
    x, level = batch((3, 2, 4, 4)), EDM().level(f64([0.3, 0.6, 1.5]))
    known = torch.linspace(0, 1, 16, dtype=f64(0).dtype).reshape(4, 4)
    got = inpaint(TwoBumps(), IMAGE, known)(x, level)
    error = gap(got, known * IMAGE + (1 - known) * TwoBumps()(x, level))
    assert error <= 1e-15, f"max|a-b| = {error:.2e}"


def test_other_ranks() -> None:
    for shape, known in (((3, 4), [[1.0, 0.0, 1.0, 0.0]]), ((3, 2, 4), [1.0, 0.0, 1.0, 0.0])):
        image, x = batch(shape), batch(shape, 1)
        got = inpaint(TwoBumps(), image, f64(known))(x, EDM().level(f64(0.5)))
        want = torch.where(f64(known).bool(), image, TwoBumps()(x, EDM().level(f64(0.5))))
        assert gap(got, want) == 0


def test_gradients_come_from_the_image_and_from_the_noise() -> None:
    grid = UniformLam(-2, 2, "zero")(VPLinear(), 3)
    image, noise = IMAGE[:1].clone().requires_grad_(True), batch((1, 2, 4, 4), 5).requires_grad_(True)

    def end(image: Tensor, noise: Tensor) -> Tensor:
        x = grid.at(0).alpha * image + grid.at(0).sigma * noise
        return sample(inpaint(TwoBumps(), image, HALF), DDIM(), grid, x, unroll=Full()).x

    assert torch.autograd.gradcheck(end, (image, noise))


def test_evaluations_are_those_of_the_denoiser() -> None:
    cond = {"label": torch.tensor([0, 1, 2])}

    def told(x: Tensor, level: NoiseLevel, cond: dict[str, Tensor]) -> Tensor:
        return TwoBumps()(x, level) + 0.1 * column(cond["label"], x)

    guided = ClassifierFree(told, 2.0, {"label": torch.tensor([9])})
    x, grid = start_from(IMAGE, 0.5, Karras()(EDM(), 8), SEEDS)
    result = sample(inpaint(guided, IMAGE, HALF), DDIM(), grid, x, cond=cond)
    assert (result.nfe, result.network_evals) == (4, 8)
    with metered() as meter:
        inpaint(TwoBumps(), IMAGE, HALF)(x, grid.at(0))
    assert meter.samples == 3


def painted_of_a_gaussian(rho: float, rule: Solver, steps: int, n: int) -> Tensor:
    """Two numbers of correlation rho; the first is known to be 0.6, the second is painted n times."""
    gauss = Gaussian(torch.zeros(2, dtype=f64(0).dtype), f64([[1.0, rho], [rho, 1.0]]))
    generator, image = torch.Generator().manual_seed(0), f64([[0.6, 0.0]]).expand(n, 2)

    def noise(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    x, grid = start_from(image, 1.0, Karras(end="zero", kappa_max=20.0)(EDM(), steps), noise)
    return sample(inpaint(gauss, image, f64([[1.0, 0.0]])), rule, grid, x, noise=noise).x[:, 1]


def test_independent_numbers_are_painted_by_their_own_law() -> None:
    got = painted_of_a_gaussian(0.0, DDIM(), 60, 4000)
    assert abs(got.mean()) <= 4 / math.sqrt(4000)
    assert abs(got.std() - 1) <= 0.06, f"{got.std()}: 4 / sqrt(2n), and 60 steps of DDIM"


def test_correlated_numbers_are_painted_by_the_conditional_law_if_there_is_enough_churn() -> None:
    """N(rho a, 1 - rho^2) in the limit; without fresh noise the painted number follows the known one half-way only."""
    n, mean, std = 2000, 0.8 * 0.6, 0.6
    got = painted_of_a_gaussian(0.8, Heun(Churn(400.0)), 960, n)
    assert abs(got.mean() - mean) <= 4 * std / math.sqrt(n), f"{got.mean()} for {mean}"
    assert abs(got.std() / std - 1) <= 4 / math.sqrt(2 * n), f"{got.std()} for {std}"
    got = painted_of_a_gaussian(0.8, DDIM(), 400, n)
    assert 0.25 * mean < got.mean() < 0.6 * mean, got.mean()


@pytest.mark.parametrize("shape", [(3,), (3, 4, 4), (2, 4, 4), (1, 4, 4), (4,), (5, 1, 4, 4), (1, 1, 2, 2), (4, 3), ()])
def test_wrong_shapes_of_masks(shape: tuple[int, ...]) -> None:
    error = refuses(ShapeError, str(shape), lambda: inpaint(TwoBumps(), IMAGE, torch.ones(shape)))
    assert "(4, 4)" in error.allowed


def test_a_mask_for_vectors_has_their_axes() -> None:
    refuses(ShapeError, "(4,)", lambda: inpaint(TwoBumps(), batch((4, 4)), torch.ones(4)))


def test_wrong_numbers_in_masks() -> None:
    for bad, shows in ((255 * HALF, "0 to 255"), (HALF - 0.5, "-0.5"), (HALF * math.nan, "nan")):
        refuses(ConfigError, shows, lambda bad=bad: inpaint(TwoBumps(), IMAGE, bad))
    refuses(DtypeError, "int64", lambda: inpaint(TwoBumps(), IMAGE, HALF.long()))


def test_inpainting_inside_guidance_is_refused() -> None:
    """There the batch is twice as long, and each half would meet the image of another sample."""
    inside = ClassifierFree(inpaint(TwoBumps(), IMAGE, HALF), 2.0, {"label": torch.tensor([9])})
    error = refuses(
        ShapeError, "(6, 2, 4, 4)", lambda: inside(IMAGE, EDM().level(f64(1.0)), {"label": torch.tensor([0, 1, 2])})
    )
    assert "around guidance" in error.todo


def test_dtype_of_samples_is_kept() -> None:
    half = IMAGE.to(torch.bfloat16)
    level = EDM().level(f64(0.5))
    got = inpaint(lambda x, level, cond: x, IMAGE, HALF)(half, level)
    assert got.dtype == torch.bfloat16
    assert np.isfinite(got.float().numpy()).all()
