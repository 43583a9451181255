"""Bad input to the core: which exception, and that it says what was given, what is allowed and what to do."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from contracts.inventory import SOLVERS_HERE, f64
from contracts.problems import TwoBumps, batch
from contracts.refusals import GRID, X, refuses

from fewstep import errors
from fewstep.denoisers import (
    KDE,
    LABELS,
    PREDICTIONS,
    X0,
    EDMPrecond,
    EmpiricalData,
    Eps,
    Gaussian,
    GaussianMixture,
    NetworkDenoiser,
)
from fewstep.errors import (
    BudgetError,
    ConfigError,
    DtypeError,
    FewstepError,
    GridError,
    LevelError,
    ShapeError,
    UnknownName,
    choose,
)
from fewstep.noise import (
    DRAWS,
    EDM,
    SCHEDULES,
    SPACINGS,
    Explicit,
    Grid,
    Karras,
    LinearFlow,
    NoiseLevel,
    UniformLam,
    UniformTime,
    VPCosine,
    VPLinear,
    check_grid,
    perturb,
)
from fewstep.sampling import Checkpointed, LastSteps, grid_for, sample
from fewstep.solvers import DDIM, DEIS, IPNDM, SOLVERS, EVODiff, UniPC

# Names


TABLES = {"solver": SOLVERS, "schedule": SCHEDULES, "spacing": SPACINGS, "prediction": PREDICTIONS, "draw": DRAWS}


@pytest.mark.parametrize("kind", TABLES)
def test_unknown_names(kind: str) -> None:
    table = TABLES[kind]
    for known in table:
        typo = known[:-1] + "x" if len(known) < 4 else known[:1] + known[2:]
        if typo in table:
            continue
        error = refuses(UnknownName, repr(typo), lambda typo=typo: choose(typo, table, kind))
        assert all(name in error.allowed for name in table), f"{kind}: not all names in {error.allowed!r}"
        assert "Did you mean" in error.todo, f"{kind} {typo!r}: {error.todo}"
    assert isinstance(refuses(UnknownName, "'zzzzzz'", lambda: choose("zzzzzz", table, kind)), LookupError)
    for known, thing in table.items():
        assert choose(known, table, kind) is thing


def test_nearest_names() -> None:
    for typo, meant in (
        ("dpmpp2m", "dpmpp_2m"),
        ("evodif", "evodiff"),
        ("unpic", "unipc"),
        ("DDIM", "ddim"),
        ("ipmdm", "ipndm"),
    ):
        error = refuses(UnknownName, repr(typo), lambda typo=typo: choose(typo, SOLVERS, "solver"))
        assert repr(meant) in error.todo, f"{typo!r}: {error.todo}"


def test_unknown_label_of_a_network() -> None:
    refuses(UnknownName, "'angel'", lambda: NetworkDenoiser(lambda x, label, cond: x, X0(), EDM(), label="angel"))
    assert set(LABELS) == {"angle", "edm", "timestep"}


@pytest.mark.parametrize("name", SOLVERS_HERE)
def test_unknown_options_of_solvers(name: str) -> None:
    with pytest.raises(TypeError, match="ordr"):
        type(SOLVERS_HERE[name].rule)(ordr=2)
    with pytest.raises(TypeError):
        sample(TwoBumps(), SOLVERS_HERE[name].rule, GRID, X, chek="each")


# Budgets and grids


@pytest.mark.parametrize("name", SOLVERS_HERE)
def test_too_few_calls(name: str) -> None:
    rule = SOLVERS_HERE[name].rule
    least = {"heun": 2, "dualfast_heun": 2, "evodiff_paper": 3}.get(name, 1)
    for nfe in range(least - 1, -2, -1):
        error = refuses(BudgetError, str(nfe), lambda nfe=nfe: grid_for(rule, UniformLam(), EDM(), nfe))
        assert str(least) in error.allowed + error.todo, f"{name}: {error}"
    grid = grid_for(rule, UniformLam(), EDM(), least)
    assert rule.nfe(grid) == least
    assert sample(TwoBumps(), rule, grid, X).nfe == least


@pytest.mark.parametrize("name", SOLVERS_HERE)
def test_budgets_are_used_up(name: str) -> None:
    """The largest step count whose cost is at most the budget."""
    rule = SOLVERS_HERE[name].rule
    for spacing in (UniformLam(), Karras()) if name == "evodiff_paper" else (UniformLam(), Karras(end="zero")):
        for nfe in range(3, 21):
            grid = grid_for(rule, spacing, EDM(), nfe)
            assert rule.nfe(grid) <= nfe < rule.nfe(spacing(EDM(), grid.steps + 1)), (
                f"{name}: {grid.steps} steps for {nfe}"
            )
            assert sample(TwoBumps(), rule, grid, X).nfe == rule.nfe(grid)


def test_grids() -> None:
    for times, shows in (
        ((1.0, 2.0, 0.5), "2.0"),
        ((1.0, 1.0, 0.5), "1.0"),
        ((80.0, 3.0, 3.0), "3.0"),
        ((1.0, 0.0, 0.0), "0.0"),
    ):
        refuses(GridError, shows, lambda times=times: Explicit(times)(EDM(), 2))
    refuses(GridError, "0.9", lambda: Explicit((0.5, 0.9))(LinearFlow(), 1))
    error = refuses(GridError, "3 explicit times", lambda: Explicit((3.0, 2.0, 1.0))(EDM(), 5))
    assert "5" in error.given
    for spacing in (UniformLam(), Karras(), UniformTime()):
        for steps in (0, -3):
            refuses(GridError, str(steps), lambda spacing=spacing, steps=steps: spacing(EDM(), steps))
        refuses(ConfigError, "'zeor'", lambda spacing=spacing: type(spacing)(end="zeor")(EDM(), 3))
    refuses(ConfigError, "-1", lambda: Karras(rho=-1)(EDM(), 3))
    refuses(ConfigError, "0", lambda: Karras(rho=0)(EDM(), 3))


@pytest.mark.parametrize("name", SOLVERS_HERE)
def test_grids_made_by_hand(name: str) -> None:
    """A Grid is a plain tuple that anybody can fill, so the loop looks at it too."""
    rule = SOLVERS_HERE[name].rule
    for sigmas in (
        [4.0, 1.0, 2.0, 0.5],
        [1.0, 1.0, 0.5, 0.2],
        [0.1, 1.0, 2.0, 3.0],
        [4.0, math.nan, 1.0, 0.5],
        [4.0, 1.0, -1.0, -2.0],
    ):
        sigma = f64(sigmas)
        grid = Grid(NoiseLevel(torch.ones_like(sigma), sigma), sigma)
        refuses(GridError, f"{sigmas[1]:g}", lambda grid=grid: sample(TwoBumps(), rule, grid, X))


def test_levels_that_are_none() -> None:
    """Infinite noise, and neither data nor noise, have an angle too."""
    for alphas, sigmas in (
        ([1.0, 1.0], [math.inf, 1.0]),
        ([math.inf, math.inf], [2.0, 1.0]),
        ([0.0, 1.0], [math.inf, 1.0]),
        ([1.0, 0.0], [1.0, 0.0]),
        ([0.0, 0.0], [1.0, 0.0]),
    ):
        refuses(GridError, str(alphas), lambda a=alphas, s=sigmas: check_grid(Grid(NoiseLevel(f64(a), f64(s)), f64(s))))


# Levels


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_outside_the_schedule(name: str) -> None:
    schedule = SCHEDULES[name]()
    last = schedule.t_range()[1]
    for t in (-0.1, 1.5 * last, math.nan, math.inf):
        refuses(LevelError, f"{t:g}"[:3], lambda t=t: schedule.level(f64(t)))
        refuses(LevelError, f"{t:g}"[:3], lambda t=t: schedule.level(f64([0.5 * last, t])))


def test_levels_outside_the_schedule() -> None:
    refuses(LevelError, "-6", lambda: UniformLam(lam_min=-6.0)(EDM(), 4))
    refuses(LevelError, "-6", lambda: UniformLam(lam_min=-6.0)(VPLinear(), 4))
    refuses(LevelError, "3", lambda: UniformLam(lam_min=3.0, lam_max=3.0)(EDM(), 4))
    refuses(LevelError, "2", lambda: UniformLam(lam_min=2.0, lam_max=-2.0)(EDM(), 4))
    refuses(LevelError, "100", lambda: Karras(kappa_max=math.exp(100.0))(EDM(), 4))
    refuses(LevelError, "0", lambda: Karras(kappa_min=0.0)(EDM(), 4))
    refuses(LevelError, "-1", lambda: Karras(kappa_min=-1.0)(EDM(), 4))
    refuses(LevelError, "90", lambda: Explicit((90.0, 1.0))(EDM(), 1))
    refuses(LevelError, "1.2", lambda: Explicit((1.2, 0.1))(LinearFlow(), 1))
    for bound in (math.nan, math.inf, -math.inf):
        for spacing in (UniformLam(lam_min=bound), UniformLam(lam_max=bound)):
            error = refuses(LevelError, f"lam = {bound:g}", lambda spacing=spacing: spacing(LinearFlow(), 4))
            assert "no first lam was given" not in str(error)
    refuses(LevelError, "lam = -inf", lambda: Karras(kappa_max=math.inf)(EDM(), 4))
    for schedule in (LinearFlow(), VPCosine()):
        for spacing in (UniformLam(), Karras()):
            refuses(LevelError, "-inf", lambda spacing=spacing, schedule=schedule: spacing(schedule, 4))


def test_limits_of_schedules() -> None:
    for make, shows in (
        (lambda: EDM(sigma_min=1.0, sigma_max=0.5), "0.5"),
        (lambda: EDM(sigma_min=0.0), "0"),
        (lambda: EDM(sigma_max=math.inf), "inf"),
        (lambda: EDM(sigma_max=math.nan), "nan"),
        (lambda: VPLinear(beta_min=-1.0), "-1"),
        (lambda: VPLinear(t_min=2.0), "2"),
        (lambda: VPCosine(t_min=0.0), "0"),
        (lambda: VPCosine(offset=-0.1), "-0.1"),
        (lambda: LinearFlow(t_min=1.0), "1"),
    ):
        refuses(ConfigError, shows, make)


def test_eps_prediction_at_pure_noise() -> None:
    grid = UniformTime()(LinearFlow(), 4)
    denoiser = NetworkDenoiser(lambda x, label, cond: x, Eps(), LinearFlow())
    for name, case in SOLVERS_HERE.items():
        if case.consistent:
            error = refuses(LevelError, "alpha = 0", lambda case=case: sample(denoiser, case.rule, grid, X))
            assert "eps" in error.given, f"{name}: {error}"
    refuses(LevelError, "alpha = 0", lambda: Eps().to_denoised(X, X, grid.at(0)))
    refuses(LevelError, "alpha = 0", lambda: Eps().to_denoised(X, X, NoiseLevel(f64([0.5, 0.0]), f64([0.5, 1.0]))))


def test_networks_beyond_their_training() -> None:
    denoiser = NetworkDenoiser(lambda x, label, cond: x, X0(), EDM(sigma_max=10.0))
    error = refuses(LevelError, "80", lambda: sample(denoiser, DDIM(), UniformLam()(EDM(), 3), X))
    assert "10" in error.allowed, str(error)
    for schedule in (EDM(), VPLinear()):
        denoiser = NetworkDenoiser(lambda x, label, cond: x, X0(), schedule)
        for alpha in (1e-3, 1e-300):  # pure noise is legal (test_pure_noise.py), almost pure noise is not
            level = NoiseLevel(f64([0.0, alpha]), f64([1.0, 1.0]))
            error = refuses(LevelError, f"{1 / alpha:.4g}", lambda f=denoiser, level=level: f(X, level))
            assert "pure noise" in error.todo, str(error)


def test_label_at_the_ends() -> None:
    """EDM's label is infinite there; a network would turn that into NaN."""
    denoiser = NetworkDenoiser(lambda x, label, cond: x, X0(), LinearFlow(), label="edm")
    error = refuses(LevelError, "alpha = 0", lambda: sample(denoiser, DDIM(), UniformTime()(LinearFlow(), 3), X))
    assert "angle" in error.todo
    refuses(LevelError, "sigma = 0", lambda: denoiser.predict(X, NoiseLevel(f64(1.0), f64(0.0))))


def test_shapes_of_levels() -> None:
    network = NetworkDenoiser(lambda x, label, cond: x, X0(), LinearFlow())
    for shape in ((1,), (3,), (2, 1)):
        level = NoiseLevel(torch.full(shape, 0.6).double(), torch.full(shape, 0.4).double())
        refuses(ShapeError, str(shape), lambda level=level: network.predict(X, level))
        refuses(ShapeError, str(shape), lambda level=level: network(X, level))
    for shape in ((2, 1), (3,), (1,)):
        level = NoiseLevel(torch.full(shape, 0.6).double(), torch.full(shape, 0.8).double())
        refuses(ShapeError, str(shape), lambda level=level: perturb(X, X, level))
        refuses(ShapeError, str(shape), lambda level=level: PREDICTIONS["v"]().to_denoised(X, X, level))
    refuses(ShapeError, "(1, 1, 3, 3)", lambda: perturb(X, X[:1], GRID.at(0)))


# Options


def test_options() -> None:
    for action, shows in (
        (lambda: IPNDM(order=5), "5"),
        (lambda: IPNDM(order=0), "0"),
        (lambda: UniPC(order=1), "order=1"),
        (lambda: UniPC(order=3.0), "order=3.0"),
        (lambda: DEIS(order=2.0), "order=2.0"),
        (lambda: IPNDM(order=4.0), "4.0"),
        (lambda: UniPC(order=4), "order=4"),
        (lambda: UniPC(variant="bh3"), "bh3"),
        (lambda: DEIS(order=1), "order=1"),
        (lambda: DEIS(variable="lam"), "lam"),
        (lambda: EVODiff(order=3), "3"),
        (lambda: EVODiff(variant="papier"), "papier"),
        (lambda: LastSteps(0), "0"),
        (lambda: Checkpointed(-1), "-1"),
        (lambda: EDMPrecond(0.0), "0"),
        (lambda: EDMPrecond(-0.5), "-0.5"),
        (lambda: KDE(X, 0.0), "0"),
        (lambda: KDE(X, math.nan), "nan"),
    ):
        refuses(ConfigError, shows, action)


def test_oracles() -> None:
    means = batch((3, 1, 2, 2))
    refuses(ShapeError, "(2,)", lambda: GaussianMixture(means, f64([0.1, 0.2])))
    refuses(ShapeError, "(2,)", lambda: GaussianMixture(means, f64(0.1), f64([0.5, 0.5])))
    refuses(ShapeError, "()", lambda: GaussianMixture(f64(0.0), f64(0.1)))
    refuses(ConfigError, "-0.1", lambda: GaussianMixture(means, f64(-0.1)))
    refuses(ConfigError, "0.0", lambda: GaussianMixture(means, f64(0.1), f64([0.5, 0.5, 0.0])))
    refuses(ShapeError, "(3, 4)", lambda: Gaussian(means[0], batch((3, 4))))
    refuses(ShapeError, "(0, 2)", lambda: EmpiricalData(torch.zeros(0, 2)))
    refuses(ConfigError, "nan", lambda: GaussianMixture(means, f64(math.nan)))
    refuses(ConfigError, "inf", lambda: GaussianMixture(means, f64(math.inf)))
    refuses(ConfigError, "nan", lambda: GaussianMixture(means, f64(0.1), f64([0.5, 0.5, math.nan])))
    refuses(ConfigError, "inf", lambda: GaussianMixture(means, f64(0.1), f64([0.5, 0.5, math.inf])))
    for make in (EmpiricalData, lambda data: KDE(data, 0.1), lambda data: GaussianMixture(data, 0.1),
                 lambda data: Gaussian(data, 1.0)):  # fmt: skip
        refuses(DtypeError, "int64", lambda make=make: make(torch.ones(3, 2, dtype=torch.int64)))
        refuses(ConfigError, "NaN", lambda make=make: make(f64([[1.0, math.nan]])))


def test_covariances() -> None:
    mean = batch((2,))
    for cov, shows in (
        (-0.2, "-0.2"),
        (math.nan, "NaN"),
        (f64([[1.0, 0.0], [0.0, -0.5]]), "-0.5"),
        (f64([[1.0, 2.0], [2.0, 1.0]]), "-1"),
        (f64([[1.0, 0.5], [0.0, 1.0]]), "transpose"),
        (f64([[1.0, math.nan], [math.nan, 1.0]]), "NaN"),
    ):
        refuses(ConfigError, shows, lambda cov=cov: Gaussian(mean, cov))
    for dtype in (torch.float32, torch.float64):  # rounding is forgiven
        root = batch((50, 3)).to(dtype)
        Gaussian(batch((50,)).to(dtype), root @ root.T)


def test_samples_that_do_not_fit_an_oracle() -> None:
    """Broadcasting would answer without a word."""
    data, level = batch((3, 1, 2, 2)), NoiseLevel(f64(1.0), f64(0.5))
    oracles = Gaussian(data[0], 1.0), GaussianMixture(data, 0.1), EmpiricalData(data), KDE(data, 0.1)
    for oracle in oracles:
        for shape in ((5, 3, 2, 2), (5, 4), (5, 1, 2, 1), (5, 1), (1, 2, 2), ()):
            refuses(ShapeError, str(shape), lambda oracle=oracle, shape=shape: oracle(batch(shape), level))
    refuses(ShapeError, "(5, 3, 2, 2)", lambda: oracles[0].flow(batch((5, 3, 2, 2)), level, level))


def test_points_without_noise() -> None:
    data = batch((3, 2))
    for level in (NoiseLevel(f64(1.0), f64(0.0)), NoiseLevel(f64([1.0, 1.0]), f64([0.5, 0.0]))):
        for oracle in (EmpiricalData(data), GaussianMixture(data, f64([0.1, 0.0, 0.1]))):
            refuses(LevelError, "sigma = 0", lambda oracle=oracle, level=level: oracle(data[:2], level))
        assert bool(KDE(data, 0.1)(data[:2], level).isfinite().all())


# The errors themselves


def test_every_error_is_also_a_builtin_and_survives_pickling() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if not isinstance(kind, type) or kind is FewstepError or issubclass(kind, Warning):
            continue
        assert issubclass(kind, FewstepError)
        builtin = [
            base
            for base in kind.__mro__
            if base.__module__ == "builtins" and base not in (Exception, BaseException, object)
        ]
        assert builtin, f"{name} is no built-in exception"
        error = kind("Given 3", "1 or 2 are allowed", "Give 2")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.given, again.allowed, again.todo) == (
            kind,
            "Given 3",
            "1 or 2 are allowed",
            "Give 2",
        )
        assert str(again) == "Given 3. 1 or 2 are allowed. Give 2."
        with pytest.raises(TypeError):
            kind("only one part")
