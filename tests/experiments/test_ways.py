"""How a model is sampled: its own chain if nothing else is asked for, and never another number of steps silently."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contracts.inventory import gap
from contracts.problems import TwoBumps
from contracts.refusals import refuses

from fewstep.errors import BudgetError, ConfigError, FewstepError, GridError, LevelError, UnknownName
from fewstep.experiments.evaluation.generators import ModelGenerator
from fewstep.experiments.runs import GridChoice, make_grid
from fewstep.experiments.ways import labelled, way_of
from fewstep.models import Chain, Model, ModelConfig, Part
from fewstep.noise import NoiseLevel, UniformFlow, VPLinear
from fewstep.sampling import LearnedChain, sample, start_noise
from fewstep.solvers import DDIM, EVODiff, Heun, UniPC

SHAPE = (1, 4, 4)


def model_with(chain: Chain | None) -> Model:
    """A model whose network has the estimate of two bumps at the level that its label names."""

    def network(x: torch.Tensor, noise_label: torch.Tensor, cond: object = None) -> torch.Tensor:
        angle = noise_label.double() * torch.pi / 2
        return TwoBumps()(x.double(), NoiseLevel(angle.cos(), angle.sin())).to(x.dtype)

    config = ModelConfig("bumps", Part("stub"), Part("x0"), Part("vp_linear"), SHAPE, chain=chain)
    return Model(config.denoiser(network), config, "none")


def test_a_model_without_a_chain() -> None:
    model, choice = model_with(None), GridChoice()
    way, grid = way_of(model), make_grid(model, EVODiff(), choice, 10)
    assert (way.rule, way.solver, way.nfe) == (EVODiff(), "evodiff", 10)
    assert way.said == "karras, kappa 80 to 0.002, 10 steps"
    assert torch.equal(way.grid.t, grid.t)
    heun = way_of(model, "heun", 9)
    assert (heun.rule, heun.grid.steps, heun.nfe) == (Heun(), 4, 9)
    for solver, nfe in (("heun", 7), ("unipc", 4), (None, 4)):  # Heun reaches sigma = 0 by Euler
        way = way_of(model, solver, steps=4, grid=GridChoice("uniform_flow"))
        assert (way.grid.steps, way.nfe, way.said) == (4, nfe, "uniform_flow, 4 steps"), solver
        assert torch.equal(way.grid.levels.sigma, UniformFlow()(VPLinear(), 4).levels.sigma)


def test_a_chain_is_the_default_of_its_model() -> None:
    model = model_with(Chain(Part("unipc"), steps=(1, 2, 4)))
    for asked, steps in ((None, 4), (1, 1), (2, 2), (4, 4)):
        way = way_of(model, steps=asked)
        assert (way.rule, way.solver, way.nfe) == (UniPC(), "unipc", steps)
        assert way.said == f"uniform_flow, {steps} steps (chain)"
        assert torch.equal(way.grid.levels.alpha, UniformFlow()(VPLinear(), steps).levels.alpha)


def test_whoever_asks_gets_ordinary_sampling() -> None:
    model = model_with(Chain())
    for asked in ({"solver": "ddim"}, {"nfe": 6}, {"grid": GridChoice()}):
        assert "chain" not in way_of(model, **asked).said
    assert way_of(model, "ddim", steps=3).grid.steps == 3, "ordinary sampling has any number of steps"


def test_what_is_said_of_a_chain() -> None:
    leaky = Chain(spacing=Part("uniform_lam", {"lam_min": -2.0}), steps=(2,), leaky=True)
    assert way_of(model_with(leaky)).said == "uniform_lam lam_min=-2.0, 2 steps (chain; leaky start: reads data)"
    karras = "karras, kappa 80 to 0.002, 4 steps (leaky start: reads data)"
    assert way_of(model_with(leaky), "ddim", 4).said == way_of(model_with(leaky), "ddim", steps=4).said == karras
    assert labelled(model_with(leaky)) == "bumps (leaky start: reads data)"
    assert labelled(model_with(Chain())) == labelled(model_with(None)) == "bumps"


def test_guidance_is_no_part_of_a_chain() -> None:
    model = model_with(Chain(steps=(1, 2)))
    error = refuses(ConfigError, "chain of 'bumps'", lambda: way_of(model, steps=2, guidance=2.0))
    assert "convert --guidance 2" in error.todo
    assert way_of(model, "ddim", 4, guidance=2.0).nfe == 4, "ordinary sampling takes it"
    assert way_of(model_with(None), guidance=2.0).nfe == 10
    assert way_of(model_with(Chain(Part("ipndm", {"order": 2})))).solver == "ipndm order=2"
    table = LearnedChain(UniformFlow()(VPLinear(), 2)).table()
    way = way_of(model_with(Chain(steps=(2,), learned={"2": table})))
    assert (way.solver, way.said) == ("learned", "learned, 2 steps (chain)")


def test_a_generator_samples_the_chain() -> None:
    """Bit for bit what `sample` makes of the same noise, and described as what it is."""
    model = model_with(Chain())
    generate = ModelGenerator(model, steps=2)
    drawn, grid = generate([3, 5]), UniformFlow()(VPLinear(), 2)
    want = sample(model.denoiser, DDIM(), grid, start_noise(grid, SHAPE, [3, 5])).x
    assert gap(drawn.images, want) == 0
    facts = generate.describe()
    assert (drawn.nfe, facts["nfe"]) == (2, 2)
    assert (facts["solver"], facts["grid"]) == ("ddim", "uniform_flow, 2 steps (chain)")
    assert gap(ModelGenerator(model)([3, 5]).images, want) > 0.01, "four steps are not two"


REFUSED: dict[str, tuple[Chain | None, dict[str, object], type[FewstepError], str]] = {
    "two budgets": (None, {"nfe": 5, "steps": 4}, ConfigError, "nfe=5 and steps=4"),
    "two budgets of a chain": (Chain(), {"nfe": 5, "steps": 4}, ConfigError, "nfe=5 and steps=4"),
    "steps that were not trained": (Chain(steps=(1, 2)), {"steps": 4}, ConfigError, "trained for 1, 2"),
    "no steps": (None, {"steps": 0}, GridError, "0 steps"),
    "no steps of a chain": (Chain(), {"steps": 0}, ConfigError, "0 steps"),
    "no calls": (Chain(), {"nfe": 0}, BudgetError, "0 calls"),
    "a solver that cannot start there": (Chain(Part("evodiff_paper")), {}, LevelError, "alpha = 0"),
    "an unknown solver": (Chain(), {"solver": "didm", "steps": 2}, UnknownName, "'ddim'"),
    "an unknown solver of a chain": (Chain(Part("didm")), {}, UnknownName, "'ddim'"),
}


@pytest.mark.parametrize(("chain", "asked", "kind", "shows"), REFUSED.values(), ids=REFUSED)
def test_refusals(chain: Chain | None, asked: dict[str, object], kind: type[FewstepError], shows: str) -> None:
    refuses(kind, shows, lambda: way_of(model_with(chain), **asked))  # type: ignore[arg-type]


def test_what_is_given_of_a_grid() -> None:
    assert GridChoice.given() is None
    cases: list[tuple[Callable[[], GridChoice | None], GridChoice]] = [
        (lambda: GridChoice.given("uniform_lam"), GridChoice("uniform_lam")),
        (lambda: GridChoice.given("", 5.0), GridChoice(kappa_max=5.0)),
        (lambda: GridChoice.given("", None, 0.0), GridChoice(kappa_min=0.0)),
        (lambda: GridChoice.given("karras", 9.0, 1.0), GridChoice("karras", 9.0, 1.0)),
    ]
    for make, want in cases:
        assert make() == want
