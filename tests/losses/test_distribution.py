"""MMD and the Fréchet distance as losses: definitions, the metrics' numbers, unbiasedness, gradients, memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fewstep import metrics
from fewstep.errors import ConfigError, DataError, ShapeError
from fewstep.features import RandomConv
from fewstep.losses.base import Outcome, Term
from fewstep.losses.distribution import KERNELS, MMD, RBF, FrechetEma, Kernel, Polynomial
from fewstep.losses.frechet import EmaMoments, frechet_distance
from fewstep.metrics.kernels import median_distance

DOUBLE = torch.float64
UNUSED = torch.Generator()


def normal(*shape: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) + shift


def flat(images: Tensor) -> Tensor:
    return images.flatten(1)


def outcome(fake: Tensor, real: Tensor) -> Outcome:
    return Outcome(fake, real, real)


def value(term: Term, fake: Tensor, real: Tensor) -> float:
    return float(term(outcome(fake, real), UNUSED))


# MMD -----------------------------------------------------------------------------------------------------------------


def kernel_of(kernel: Kernel, real: Tensor) -> Callable[[Tensor, Tensor], float]:
    """The kernel of two vectors, written with Python's own numbers."""
    if isinstance(kernel, Polynomial):
        return lambda a, b: ((kernel.gamma or 1 / len(a)) * float(a @ b) + kernel.coef) ** kernel.degree
    median = median_distance(real)

    def gaussian(a: Tensor, b: Tensor) -> float:
        squared = float((a - b).square().sum())
        return math.fsum(math.exp(-squared / (2 * (w * median) ** 2)) for w in kernel.widths) / len(kernel.widths)

    return gaussian


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("kernel", [Polynomial(), Polynomial(2, 0.5, 0.0), RBF(), RBF((0.7,))], ids=str)
def test_mmd_is_its_definition(kernel: Kernel, draws: int) -> None:
    fake, real = normal(draws, 7, 4, seed=0), normal(7, 4, seed=1, shift=0.4)
    k = kernel_of(kernel, real)
    summands = [
        k(f[i], g[j]) + k(real[i], real[j]) - k(f[i], real[j]) - k(real[i], g[j])
        for i in range(7)
        for j in range(7)
        if i != j
        for f in fake
        for g in fake
    ]
    assert value(MMD(flat, kernel), fake, real) == pytest.approx(math.fsum(summands) / len(summands), abs=1e-12)


def theirs(name: str, x: Tensor, y: Tensor) -> float:
    """The metric, which compares every row with every other."""
    median = median_distance(y)
    kernel = metrics.Polynomial() if name == "polynomial" else metrics.RBF((median / 2, median, 2 * median))
    return metrics.kernel_mmd(x, y, kernel)


@pytest.mark.parametrize("name", KERNELS)
def test_mmd_over_all_shifts_of_the_data_is_that_of_the_metrics(name: str) -> None:
    # Rows of equal number are left out here and compared there; over all shifts each pair is left out equally often.
    x, y = normal(9, 5, seed=2), normal(9, 5, seed=3, shift=0.5)
    shifted = [value(MMD(flat, KERNELS[name]()), x[None], y.roll(s, 0)) for s in range(9)]
    assert math.fsum(shifted) / 9 == pytest.approx(theirs(name, x, y), abs=1e-13)


@pytest.mark.parametrize("name", KERNELS)
def test_mmd_is_unbiased_for_draws_of_the_same_conditions(name: str) -> None:
    """Pairs of one condition resemble each other; to count them as any other pair is a bias."""
    term, values, naive = MMD(flat, KERNELS[name]()), [], []
    for seed in range(400):
        centre = normal(8, 2, seed=3 * seed).sign()
        fake = centre + 0.3 * normal(2, 8, 2, seed=3 * seed + 1)
        real = centre + 0.3 * normal(8, 2, seed=3 * seed + 2)
        values.append(value(term, fake, real))
        naive.append(theirs(name, fake.flatten(0, 1), real))
    mean, error = (float(of) for of in (torch.tensor(values).mean(), torch.tensor(values).std() / 20))
    print(f"{name}: {mean:.1e} +- {error:.1e}, all pairs {torch.tensor(naive).mean():.1e}")
    assert abs(mean) < 4 * error
    assert abs(float(torch.tensor(naive).mean())) > 8 * error


@pytest.mark.parametrize("name", KERNELS)
def test_mmd_of_the_data_themselves_is_zero(name: str) -> None:
    real = normal(20, 6, seed=4)
    assert abs(value(MMD(flat, KERNELS[name]()), real[None], real)) < 1e-14


@pytest.mark.parametrize("name", KERNELS)
def test_mmd_gradient(name: str) -> None:
    real = normal(5, 3, seed=5)
    fake = normal(2, 5, 3, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: MMD(flat, KERNELS[name]())(outcome(f, real), UNUSED), fake)


def test_rbf_does_not_depend_on_unit_or_offset() -> None:
    fake, real = normal(1, 12, 4, seed=7), normal(12, 4, seed=8)
    plain = value(MMD(flat), fake, real)
    assert value(MMD(flat), 1e3 * fake + 5e4, 1e3 * real + 5e4) == pytest.approx(plain, abs=1e-10)


@pytest.mark.parametrize("make", [lambda f, c: MMD(f, chunk=c), lambda f, c: FrechetEma(f, 16, chunk=c)])
def test_chunks_change_memory_only(make: Callable[[RandomConv, int | None], Term]) -> None:
    features = RandomConv(1, dim=16).double()
    real = normal(6, 1, 8, 8, seed=9)
    gradients = []
    for chunk in (None, 5):
        fake = normal(2, 6, 1, 8, 8, seed=10).requires_grad_()
        make(features, chunk)(outcome(fake, real), UNUSED).backward()
        gradients.append(fake.grad)
    assert float(gradients[0].abs().max()) > 1e-5
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-12 * float(gradients[0].abs().max())


@pytest.mark.parametrize("make", [MMD, lambda features: FrechetEma(features, 64)])
def test_only_the_samples_receive_a_gradient_and_autocast_changes_nothing(make: Callable[..., Term]) -> None:
    fake = normal(1, 6, 64, seed=11).float().requires_grad_()
    real = normal(6, 64, seed=12).float().requires_grad_()
    expected = make(flat)(outcome(fake, real), UNUSED)
    with torch.autocast("cpu", torch.bfloat16):
        loss = make(flat)(outcome(fake, real), UNUSED)
    loss.backward()
    assert torch.equal(loss.detach(), expected.detach())
    assert fake.grad is not None
    assert real.grad is None


# Fréchet -------------------------------------------------------------------------------------------------------------


def moments_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    centred = rows - rows.mean(0)
    return rows.mean(0), centred.T @ centred / len(rows)


def test_frechet_is_that_of_the_metrics() -> None:
    a, b = (moments_of(normal(50, 6, seed=seed) @ normal(6, 6, seed=seed + 9)) for seed in (20, 21))
    theirs = metrics.frechet_distance(*(metrics.Moments.from_statistics(*m, n=50) for m in (a, b)))
    assert float(frechet_distance(a, b, 1e-13)) == pytest.approx(theirs, rel=1e-10)


def test_frechet_of_commuting_covariances_is_its_closed_form() -> None:
    mean, sd, mean_real, sd_real = (normal(5, seed=seed).abs() for seed in range(22, 26))
    truth = (mean - mean_real).square().sum() + (sd - sd_real).square().sum()
    distance = frechet_distance((mean, sd.square().diag()), (mean_real, sd_real.square().diag()), 1e-13)
    assert float(distance) == pytest.approx(float(truth), rel=1e-10)


def test_frechet_gradient() -> None:
    real = moments_of(normal(30, 3, seed=26, shift=0.3))
    rows = normal(8, 3, seed=27).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: frechet_distance(moments_of(r), real, 1e-6), rows)


@pytest.mark.parametrize("rank", [2, 6])
def test_frechet_and_its_gradient_vanish_at_equal_moments(rank: int) -> None:
    rows = normal(40, rank, seed=28) @ normal(rank, 6, seed=29)
    rows.requires_grad_()
    distance = frechet_distance(moments_of(rows), moments_of(rows.detach()), 1e-6)
    distance.backward()
    assert abs(float(distance.detach())) < 1e-8  # roots of eigenvalues that are 0 but for rounding
    assert rows.grad is not None
    assert float(rows.grad.abs().max()) < 1e-6


def test_frechet_pulls_a_collapsed_direction_apart() -> None:
    """Data along one axis, samples almost in a point: finite gradients, and against them the samples spread there."""
    real = moments_of(torch.cat([normal(50, 1, seed=30), torch.zeros(50, 2, dtype=DOUBLE)], 1))
    rows = (1e-9 * normal(10, 3, seed=31)).requires_grad_()
    frechet_distance(moments_of(rows), real, 1e-6).backward()
    assert rows.grad is not None
    assert bool(rows.grad.isfinite().all())
    spread, push = (x - x.mean(0) for x in (rows.detach(), -rows.grad))
    along, across = (spread * push).sum(0)[0] / spread[:, 0].square().sum(), (spread * push).sum(0)[1:]
    print(f"growth along the data {float(along):.3g}, across {across.tolist()}")
    assert float(along) > 1
    assert float(across.abs().max()) < 1e-12 * float(along)


def test_moments_are_a_plain_mean_first_and_a_moving_average_then() -> None:
    beta, batches = 0.75, [normal(6, 3, seed=40 + t, shift=t) for t in range(8)]
    ema, means, seconds = EmaMoments(3, beta), [], []
    for t, rows in enumerate(batches, 1):
        own = rows.mean(0), torch.stack([torch.outer(row, row) for row in rows]).mean(0)
        weight = 1.0 if t == 1 else max(1 / t, 1 - beta)
        for history, new in zip((means, seconds), own, strict=True):
            history.append(new if t == 1 else (1 - weight) * history[-1] + weight * new)
        mean, cov = ema(rows)
        assert float((mean - means[-1]).abs().max()) < 1e-13
        assert float((cov - seconds[-1] + torch.outer(mean, mean)).abs().max()) < 1e-12
        if t == 3:
            assert float((mean - torch.cat(batches[:3]).mean(0)).abs().max()) < 1e-13


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_the_gradient_does_not_shrink_with_the_memory(beta: float) -> None:
    ema, a, b = EmaMoments(2, beta), normal(2, seed=50), normal(2, 2, seed=51)
    for t in range(5):
        rows = normal(4, 2, seed=52 + t).requires_grad_()
        mean, cov = ema(rows)
        (mean @ a + (cov * b).sum()).backward()
    # d mean = 1/n; d cov = (row d row^T + d row row^T - mean d row^T - d row mean^T) / n at the mean of the average.
    truth = (a + (rows.detach() - mean.detach()) @ (b + b.T)) / 4
    assert rows.grad is not None
    assert float((rows.grad - truth).abs().max()) < 1e-14


def test_frechet_state_travels_and_features_do_not() -> None:
    def step(term: FrechetEma, t: int) -> float:
        return value(term, normal(2, 6, 1, 8, 8, seed=t), normal(6, 1, 8, 8, seed=99 + t))

    term, other = (FrechetEma(RandomConv(1, dim=8), 8) for _ in range(2))
    for t in range(3):
        step(term, t)
    assert {name.rpartition(".")[2] for name in term.state_dict()} == {"mean", "second", "seen"}
    assert list(term.parameters()) == []
    other.load_state_dict(term.state_dict())
    assert step(other, 7) == step(term, 7)


def test_chains_of_each_length_are_measured_by_themselves() -> None:
    # Chains of 1 step make ones, chains of 2 make minus ones: half of each has the moments of the data, N(0, 1).
    term, real = FrechetEma(flat, 1, beta=0.5, chains=(1, 2)), torch.tensor([[-1.0], [1.0]], dtype=DOUBLE)
    for steps in (1, 2, 1, 2):
        fake = torch.full((1, 2, 1), 3.0 - 2 * steps, dtype=DOUBLE)
        found = float(term(Outcome(fake, real, real, steps=steps), UNUSED))
        assert found == pytest.approx(2.0, rel=2e-3)  # (1 - 0)^2 + (0 - 1)^2, but for the ridge


def test_known_moments_of_the_data_stay_as_they_are() -> None:
    mean, cov = moments_of(normal(100, 4, seed=60, shift=0.5))
    term = FrechetEma(flat, 4, beta=0.0, real=(mean, cov))
    for seed in (61, 62):
        fake = normal(1, 12, 4, seed=seed)
        expected = float(frechet_distance(moments_of(fake[0]), (mean, cov), 1e-6))
        assert value(term, fake, normal(12, 4, seed=seed + 2, shift=9.0)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", [lambda: MMD(flat), lambda: FrechetEma(flat, 2, beta=0.9)], ids=["mmd", "frechet"])
def test_an_affine_generator_finds_the_gaussian_from_near_collapse(make: Callable[[], Term]) -> None:
    term, root = make(), torch.tensor([[1.0, 0.0], [0.8, 0.5]], dtype=DOUBLE)
    generator = nn.Linear(2, 2).double()
    nn.init.zeros_(generator.bias)
    nn.init.eye_(generator.weight).data.mul_(0.05)
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.04)
    for t in range(200):
        optimizer.param_groups[0]["lr"] = 0.04 * (1 - t / 200)
        fake = generator(normal(128, 2, seed=2 * t))[None]
        loss = term(outcome(fake, normal(128, 2, seed=2 * t + 1) @ root.T + 1.0), UNUSED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight, truth = generator.weight.detach(), root @ root.T
    error = (weight @ weight.T - truth).abs().max()
    print(f"covariance off by {float(error):.3f}, mean by {float((generator.bias.detach() - 1).abs().max()):.3f}")
    assert float(error) < 0.1
    assert float((generator.bias.detach() - 1).abs().max()) < 0.05


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RBF(()), ConfigError, r"widths = \(\).*At least one width.*Use \(0.5, 1, 2\)"),
        (lambda: RBF((1.0, 0.0)), ConfigError, r"widths = \(1.0, 0.0\).*all above 0"),
        (lambda: EmaMoments(3, 1.0), ConfigError, r"beta=1.*in \[0, 1\).*Use 0.999"),
        (lambda: FrechetEma(flat, 3, ridge=0.0), ConfigError, r"ridge=0.*above 0.*Use 1e-6"),
        (
            lambda: FrechetEma(flat, 3, real=(torch.zeros(2), torch.eye(3))),
            ShapeError,
            r"shapes \(2,\) and \(3, 3\) for features of 3.*\(3,\) and a covariance \(3, 3\).*same features",
        ),
        (
            lambda: FrechetEma(flat, 2)(Outcome(torch.rand(1, 4, 2), *torch.rand(2, 4, 2), steps=8), UNUSED),
            ConfigError,
            r"chain of 8 steps.*chains of 1, 2, 4.*Pass all lengths",
        ),
        (
            lambda: value(MMD(flat), torch.zeros(1, 1, 2), torch.zeros(1, 2)),
            ShapeError,
            r"batch of 1 for MMD.*two samples on.*larger batches",
        ),
        (
            lambda: value(MMD(flat), torch.zeros(4, 2), torch.zeros(4, 2)),
            ShapeError,
            r"\(4, 2\).*for MMD.*\(k, b, \*d\)",
        ),
        (
            lambda: value(MMD(flat), torch.rand(1, 4, 2), torch.ones(4, 2)),
            DataError,
            r"4 real images.*median distance of 0.*images that differ.*copies",
        ),
        (
            lambda: value(FrechetEma(flat, 2), torch.rand(1, 4, 2), torch.ones(4, 2)),
            DataError,
            r"mean variance of 0.*data that vary.*larger batches",
        ),
    ],
)
def test_refusals_name_what_to_do(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
