"""Couplings: what they tie together, what they must not look at, and the law of the noise that is left."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep._cond import conditions_of
from fewstep._files import write_tensors
from fewstep.data import Batch, seeded
from fewstep.denoisers import Cond, Gaussian
from fewstep.errors import CheckpointError, ConfigError, DataError, GridError, LevelError, MissingExtra, ShapeError
from fewstep.features.kernels import Polynomial
from fewstep.losses import MMD, Outcome
from fewstep.losses.energy import energy_score
from fewstep.noise import EDM, Grid, Karras, LinearFlow, NoiseLevel, PureNoise, UniformFlow, UniformTime, VPLinear
from fewstep.objectives import normal_like
from fewstep.objectives.couplings import (
    OT,
    Coupled,
    Coupling,
    Independent,
    Inversion,
    Leaky,
    NearestNoise,
    Pairs,
    Teacher,
    join_pairs,
    make_pairs,
    read_pairs,
    write_pairs,
)
from fewstep.sampling import START, SeededNoise, sample, start_noise
from fewstep.solvers import DDIM, Heun
from fewstep.training.e2e_couplings import COUPLINGS

DOUBLE = torch.float64
SHAPE = (1, 2, 2)
GRID = UniformFlow()(LinearFlow(), 8)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=seeded("couplings", seed))


@dataclass(frozen=True)
class Shifted:
    """The exact denoiser of Gaussian data, moved by the number of their class."""

    gaussian: Gaussian

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        shift = 0.0 if cond is None else cond["label"].to(x).reshape(-1, 1, 1, 1)
        return shift + self.gaussian(x - level.alpha * shift, level)


def gaussian(rank: int = 4) -> Gaussian:
    root = 0.4 * normal(4, rank, seed=1)
    return Gaussian(0.1 * normal(*SHAPE, seed=2), root @ root.T)


TEACHER = Teacher(Shifted(gaussian()), Heun(), GRID)


def data(n: int, classes: int = 3) -> Batch:
    return Batch(normal(n, *SHAPE, seed=3), {"label": torch.arange(n) % classes})


def pairs(n: int = 30, **options: bool) -> Pairs:
    made = make_pairs(TEACHER, torch.empty(0, *SHAPE, dtype=DOUBLE), range(n), cond={"label": torch.arange(n) % 3})
    return replace(made, **options)


EXAMPLES: Mapping[str, Coupling] = {
    "independent": Independent(),
    "teacher": TEACHER,
    "pairs": pairs(),
    "inversion": Inversion(TEACHER.denoiser, GRID),
    "ot": OT(),
    "nearest": NearestNoise(3),
    "leaky": Leaky(VPLinear(), -1.0),
}


def test_every_coupling_has_an_example() -> None:
    assert EXAMPLES.keys() == COUPLINGS.keys()


def same(a: Coupled, b: Coupled) -> bool:
    return all(torch.equal(x, y) for x, y in zip((a.z, a.target, a.real), (b.z, b.target, b.real), strict=True))


TIES = {**EXAMPLES, "teacher alone": replace(TEACHER, data_free=True), "pairs and data": pairs(data_free=False)}


@pytest.mark.parametrize("name", TIES)
def test_a_coupling_says_whether_its_noise_knows_the_real_samples(name: str) -> None:
    """It does not where they are the batch's, and other images of the batch leave the noise as it was."""
    batch = data(12)
    here, elsewhere = (TIES[name](Batch(x, batch.cond), seeded("a")) for x in (batch.x0, normal(12, *SHAPE, seed=99)))
    free = rows_of(here.z) == rows_of(elsewhere.z) and rows_of(here.real) == rows_of(batch.x0)
    assert here.tied != free


@pytest.mark.parametrize("name", EXAMPLES)
def test_rows_belong_together_and_repeat_with_their_generator(name: str) -> None:
    coupling, batch = EXAMPLES[name], data(6)
    one, two, other = (coupling(batch, seeded(seed)) for seed in ("a", "a", "b"))
    assert same(one, two)
    assert not torch.equal(one.z, other.z)
    assert one.z.shape == one.target.shape == one.real.shape == batch.x0.shape
    assert {part.dtype for part in (one.z, one.target, one.real)} == {DOUBLE}
    assert one.cond is not None
    assert len(one.cond["label"]) == 6
    assert not any(part.requires_grad for part in (one.z, one.target, one.real))
    assert (one.start is not None) == coupling.leaky == (name == "leaky")


@pytest.mark.parametrize("name", EXAMPLES)
def test_paired_says_whether_noise_tells_of_its_target(name: str) -> None:
    """Regress the target on its noise over many rows of one class: pairs explain nearly all, what is no pair little."""
    coupling, n = EXAMPLES[name], 1000
    if name == "pairs":
        coupling = make_pairs(TEACHER, torch.empty(0, *SHAPE, dtype=DOUBLE), range(n))
    x0 = gaussian().draw(n, seeded("draw"))
    coupled = coupling(Batch(x0), seeded("z"))
    z, target = (part.flatten(1) - part.flatten(1).mean(0) for part in (coupled.z, coupled.target))
    left = target - z @ torch.linalg.lstsq(z, target).solution
    explained = 1 - float(left.square().sum() / target.square().sum())
    print(f"{name}: {explained:.3f}")
    assert explained < 0.2 if coupling.pairing == "none" else explained > 0.9  # a batch says much in four dimensions
    assert (explained < 0.02) == (name == "independent"), "four regressors explain 0.004 by chance"


@pytest.mark.parametrize("name", ["independent", "teacher", "pairs"])
def test_the_start_knows_nothing_of_the_data(name: str) -> None:
    batch = data(6)
    shuffled = Batch(batch.x0.flip(0) + 1, batch.cond)
    assert torch.equal(EXAMPLES[name](batch, seeded(0)).z, EXAMPLES[name](shuffled, seeded(0)).z)


def test_independent_is_normal_noise_beside_the_data() -> None:
    batch = data(5)
    coupled = Independent()(batch, seeded(1))
    assert torch.equal(coupled.z, normal_like(batch.x0, seeded(1)))
    assert coupled.target is coupled.real is batch.x0


# Teachers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [GRID, Karras()(EDM(), 5)], ids=["from pure noise", "from kappa 80"])
def test_the_target_is_what_the_teacher_samples(grid) -> None:
    batch, teacher = data(6), replace(TEACHER, grid=grid)
    coupled = teacher(batch, seeded(2))
    run = sample(teacher.denoiser, Heun(), grid, grid.at(0).sigma * coupled.z, cond=batch.cond)
    assert torch.equal(coupled.target, run.x)
    assert coupled.real is batch.x0
    without = replace(teacher, data_free=True)(batch, seeded(2))
    assert torch.equal(without.real, coupled.target)


def test_a_teacher_is_a_map() -> None:
    @dataclass(frozen=True)
    class Noisy(DDIM):
        stochastic = True

    with pytest.raises(ConfigError, match=r"samples with .*Noisy.*same noise gives the same sample.*DDIM or Heun"):
        replace(TEACHER, solver=Noisy())


def test_pairs_are_the_samples_of_their_seeds() -> None:
    seeds, label = [5, 3, 2**40, 11, 7], torch.tensor([0, 2, 1, 1, 0])
    made = make_pairs(TEACHER, torch.empty(0, *SHAPE, dtype=DOUBLE), seeds, cond={"label": label}, batch_size=2)
    start = start_noise(GRID, SHAPE, seeds, dtype=DOUBLE)
    run = sample(TEACHER.denoiser, Heun(), GRID, start, cond={"label": label})
    assert float((made.x - run.x).abs().max()) < 1e-14
    coupled = made(data(40), seeded(4))
    for z, target, own in zip(coupled.z, coupled.target, coupled.cond["label"], strict=True):
        row = int((made.x - target).flatten(1).abs().sum(1).argmin())
        assert torch.equal(target, made.x[row])
        assert own == label[row]
        assert torch.equal(z[None], SeededNoise((seeds[row],))(START, target[None]))
    assert torch.equal(coupled.real, coupled.target)


def test_pairs_are_drawn_equally_often() -> None:
    table = pairs(6)
    rows = table(data(6000), seeded(5)).target[:, None].sub(table.x).flatten(2).abs().sum(2).argmin(1)
    counts = torch.bincount(rows, minlength=6).double()
    assert float((counts - 1000).abs().max()) < 4 * math.sqrt(6000 * 5 / 36)


def test_pairs_beside_real_data_have_the_conditions_of_the_batch() -> None:
    table, batch = pairs(data_free=False), Batch(normal(50, *SHAPE, seed=6), {"label": torch.arange(50) % 2 + 1})
    coupled = table(batch, seeded(7))
    assert torch.equal(coupled.cond["label"], batch.cond["label"])
    assert coupled.real is batch.x0
    known = {tuple(x.flatten().tolist()): int(label) for x, label in zip(table.x, table.cond["label"], strict=True)}
    assert [known[tuple(x.flatten().tolist())] for x in coupled.target] == batch.cond["label"].tolist()


def test_pairs_without_conditions_ignore_those_of_the_batch() -> None:
    table = make_pairs(TEACHER, torch.empty(0, *SHAPE, dtype=DOUBLE), range(4))
    for data_free in (True, False):
        assert replace(table, data_free=data_free)(data(9), seeded(8)).cond is None


def test_pairs_on_disk_are_the_same_bits(tmp_path: Path) -> None:
    table = replace(pairs(7), made_by="0123456789ab")
    write_pairs(tmp_path / "pairs.safetensors", table)
    read = read_pairs(tmp_path / "pairs.safetensors")
    assert torch.equal(read.seeds, table.seeds)
    assert torch.equal(read.x, table.x)
    assert (set(read.cond), read.made_by) == ({"label"}, "0123456789ab")
    assert torch.equal(read.cond["label"], table.cond["label"])
    assert same(read(data(20), seeded(9)), table(data(20), seeded(9)))


def test_joined_pairs_are_those_made_at_once() -> None:
    def part(first: int, last: int) -> Pairs:
        cond = {"label": torch.arange(first, last) % 3}
        return make_pairs(TEACHER, torch.empty(0, *SHAPE, dtype=DOUBLE), range(first, last), cond=cond)

    joined, whole = join_pairs([part(0, 4), part(4, 9)]), part(0, 9)
    assert torch.equal(joined.seeds, whole.seeds)
    assert torch.equal(joined.cond["label"], whole.cond["label"])
    assert float((joined.x - whole.x).abs().max()) < 1e-14


# Inversion -----------------------------------------------------------------------------------------------------------


def test_inversion_is_the_ode_backwards_of_first_order() -> None:
    oracle, eps = gaussian(), normal(20, *SHAPE, seed=10)
    x0, errors, returns = oracle.draw(20, seeded("x0")), [], []
    for steps in (64, 128, 256):
        grid = Karras(kappa_min=0.02, kappa_max=50.0)(EDM(), steps)
        uphill = PureNoise(Karras(kappa_min=0.02, kappa_max=50.0))(EDM(), steps)
        z = Inversion(oracle, uphill).noise(x0, eps)
        start = x0 + 0.02 * eps
        exact = oracle.flow(start, grid.at(-1), NoiseLevel(*torch.tensor([0.0, 1.0], dtype=DOUBLE)))
        errors.append(float((z - exact).abs().max()))
        returns.append(float((sample(oracle, DDIM(), uphill, z).x - start).abs().max()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    print(f"errors {errors}, slopes {slopes}, back at the data within {returns}")
    assert min(slopes) > 0.85
    assert returns[2] < 0.6 * returns[1] < 0.36 * returns[0]


def test_sampling_from_inverted_noise_returns_the_data() -> None:
    oracle = gaussian()
    x0, grid = oracle.draw(50, seeded("x0")), UniformFlow()(LinearFlow(), 400)
    z = Inversion(oracle, grid)(Batch(x0), seeded(11)).z
    error = float((sample(oracle, Heun(), grid, z).x - x0).abs().max())
    print(f"largest error {error:.4f} for data of standard deviation {float(x0.std()):.2f}")
    assert error < 4.5 / 400 + 0.01  # the noise at the clean end, up to 4.5 deviations, and the discretisation


def test_inverted_noise_is_standard_normal_where_images_are_flat_too() -> None:
    oracle, n = gaussian(rank=2), 4000
    x0 = oracle.draw(n, seeded("flat"))
    inversion = Inversion(oracle, UniformFlow()(LinearFlow(), 200))
    z = inversion.noise(x0, normal(n, *SHAPE, seed=12)).flatten(1)
    error = (torch.cov(z.T) - torch.eye(4)).abs().max()
    print(f"covariance off the identity by {float(error):.3f}")
    assert float(error) < 4 * math.sqrt(2 / n) + 0.03
    bare = inversion.noise(x0, torch.zeros_like(x0)).flatten(1)
    assert float(torch.linalg.eigvalsh(torch.cov(bare.T))[1]) < 1e-6, "without noise two of four directions stay flat"


def test_inversion_is_told_the_condition_and_moves_with_the_coordinates() -> None:
    x0, eps, label = normal(6, *SHAPE, seed=20), normal(6, *SHAPE, seed=21), torch.arange(6)
    z = Inversion(TEACHER.denoiser, GRID).noise(x0, eps)
    moved = Inversion(TEACHER.denoiser, GRID).noise(x0 + label.reshape(-1, 1, 1, 1), eps, {"label": label})
    assert float((moved - z).abs().max()) < 1e-12, "data and denoiser moved alike"
    thrice = Grid(NoiseLevel(3 * GRID.levels.alpha, 3 * GRID.levels.sigma), GRID.t)
    assert float((Inversion(TEACHER.denoiser, thrice).noise(x0, eps) - z).abs().max()) < 1e-12


@pytest.mark.parametrize(
    "grid", [Karras()(EDM(), 20), UniformFlow()(LinearFlow(), 1)], ids=["from kappa 80", "one level"]
)
def test_inversion_needs_pure_noise_and_a_way_to_it(grid) -> None:
    with pytest.raises(GridError, match=r"An inversion along alpha \[.*where alpha is 0.*UniformFlow\(\)"):
        Inversion(gaussian(), grid)


# Assignments ---------------------------------------------------------------------------------------------------------


def cost(z: Tensor, x: Tensor) -> float:
    return float((z - x).square().sum())


def test_ot_is_the_cheapest_of_all_permutations() -> None:
    batch = Batch(normal(6, *SHAPE, seed=13))
    drawn, coupled = normal_like(batch.x0, seeded(14)), OT()(batch, seeded(14))
    cheapest = min(cost(drawn[list(order)], batch.x0) for order in itertools.permutations(range(6)))
    assert cost(coupled.z, batch.x0) == pytest.approx(cheapest, abs=1e-12)
    assert cheapest < cost(drawn, batch.x0) - 1


def test_ot_is_exact_where_training_runs_in_half_precision() -> None:
    batch = Batch(normal(96, 64, seed=13).float())
    with torch.autocast("cpu", torch.bfloat16):
        half = OT()(batch, seeded(14))
    assert torch.equal(half.z, OT()(batch, seeded(14)).z)


def rows_of(x: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in x.flatten(1).tolist()}


def test_ot_deals_out_the_same_draws_among_equal_conditions_only() -> None:
    batch = data(40, classes=4)
    drawn, coupled = normal_like(batch.x0, seeded(15)), OT()(batch, seeded(15))
    for label in range(4):
        own = batch.cond["label"] == label
        assert rows_of(coupled.z[own]) == rows_of(drawn[own])
    assert cost(coupled.z, batch.x0) < cost(drawn, batch.x0)
    alone = OT()(Batch(batch.x0, {"tokens": torch.arange(120).reshape(40, 3)}), seeded(15))
    assert torch.equal(alone.z, drawn), "every image has its own caption: nothing to choose"


def test_under_ot_distributions_are_compared_without_bias() -> None:
    """F = z against x ~ N(0, I): no discrepancy, and an energy score that is flat in the spread of the samples."""
    spread, batches, n = torch.ones(4000, dtype=DOUBLE, requires_grad=True), 4000, 6
    x, together = normal(batches, n, 4, seed=16), torch.zeros(n, dtype=torch.int64)
    dealt = [OT()(Batch(row), seeded("ot", i)) for i, row in enumerate(x)]
    mmd = MMD(partial(torch.flatten, start_dim=1), Polynomial())
    gaps = [float(mmd(Outcome(own.z[None], own.target, own.real, tied=own.tied), seeded(0))) for own in dealt]
    scores = [
        energy_score(s * own.z[None], own.real, together, tied=own.tied).mean()
        for s, own in zip(spread, dealt, strict=True)
    ]
    (slopes,) = torch.autograd.grad(torch.stack(scores).sum(), spread)
    for found in (torch.tensor(gaps), slopes):
        assert abs(float(found.mean() / found.std())) * batches**0.5 < 4


def test_groups_are_equal_where_every_condition_is() -> None:
    cond = {"label": torch.tensor([0, 0, 1, 1, 0]), "tokens": torch.tensor([[1, 2], [1, 3], [1, 2], [1, 2], [1, 2]])}
    groups = conditions_of(cond, 5, "cpu").tolist()
    assert groups[0] == groups[4]
    assert groups[2] == groups[3]
    assert len(set(groups)) == 3
    assert conditions_of(None, 3, "cpu").tolist() == [0, 0, 0]


def test_ot_without_scipy_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtra, match=r"'scipy'.*extra 'train'.*pip install 'fewstep\[train\]'"):
        OT()(data(3), seeded(0))


def test_the_nearest_of_k_draws() -> None:
    batch, generator = data(30), seeded(16)
    draws = torch.stack([normal_like(batch.x0, generator) for _ in range(5)])
    nearest = (draws - batch.x0).flatten(2).square().sum(2).argmin(0)
    assert torch.equal(NearestNoise(5)(batch, seeded(16)).z, draws[nearest, torch.arange(30)])
    assert same(NearestNoise(1)(batch, seeded(16)), Independent()(batch, seeded(16)))


def test_the_bias_of_the_nearest_noise_is_the_one_stated() -> None:
    n, d, largest_of_four = 10_000, 256, 1.02938
    x = torch.sign(normal(1, d, seed=17)).expand(n, d)
    z = NearestNoise(4)(Batch(x), seeded(18)).z
    along = (z * x[0] / math.sqrt(d)).sum(1)
    stated = largest_of_four * math.sqrt(d) / math.sqrt(d + d / 2)
    print(f"mean along the image {float(along.mean()):.4f}, stated {stated:.4f}")
    assert abs(float(along.mean()) - stated) < 4 / math.sqrt(n) + 0.01  # and what d = 256 is off a normal law


def test_a_leaky_start_is_data_with_noise_on_them() -> None:
    batch, schedule = data(5), VPLinear()
    leaky = Leaky(schedule, -2.0)
    coupled = leaky(batch, seeded(19))
    alpha, sigma = leaky.level
    assert coupled.start == leaky.level
    assert float(alpha.log() - sigma.log()) == pytest.approx(-2.0, abs=1e-12)
    assert float(alpha**2 + sigma**2) == pytest.approx(1.0, abs=1e-12)
    assert torch.equal(coupled.z, alpha * batch.x0 + sigma * normal_like(batch.x0, seeded(19)))
    first = UniformTime()(schedule, 4).at(0)
    assert float((Leaky(schedule, float(first.lam)).level.alpha - first.alpha).abs()) < 1e-12


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NearestNoise(0), ConfigError, r"NearestNoise\(k=0\).*1 or more.*k=4"),
        (lambda: Leaky(LinearFlow(), -math.inf), LevelError, r"lam = -inf.*data and noise.*Independent"),
        (lambda: Leaky(VPLinear(), -9.0), LevelError, r"Time .*clock of this schedule"),
        (lambda: replace(pairs(), x=pairs().x[:4]), ShapeError, r"30 seeds, and rows: .*'x': 4.*one row.*make_pairs"),
        (lambda: make_pairs(TEACHER, torch.empty(0, *SHAPE), []), ShapeError, r"0 seeds.*At least one pair"),
        (
            lambda: make_pairs(TEACHER, torch.empty(0, *SHAPE), [1], batch_size=0),
            ConfigError,
            r"Batches of 0 pairs.*One or more.*batch_size=256",
        ),
        (
            lambda: pairs(data_free=False)(
                Batch(normal(2, *SHAPE, seed=0), {"label": torch.tensor([1, 8])}), seeded(0)
            ),
            DataError,
            r"No pair of the condition {'label': \(8,\)} among 30.*own condition.*data_free=True",
        ),
        (
            lambda: pairs(data_free=False)(Batch(normal(2, *SHAPE, seed=0)), seeded(0)),
            DataError,
            r"without the condition label.*matched by their conditions.*data_free=True",
        ),
    ],
)
def test_refusals_name_what_to_do(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_file_without_pairs_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"holds the tensors x.*seeds \(int64\).*make_pairs"):
        read_pairs(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_pairs(tmp_path / "missing.safetensors")
