"""How a model is sampled: its own chain if nothing else is asked for, and never another number of steps silently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contracts.inventory import gap
from contracts.problems import TwoBumps
from contracts.refusals import refuses

from fewstep.calibration import FILE, Entry, Origin, Table
from fewstep.errors import BudgetError, CheckpointError, ConfigError, FewstepError, GridError, LevelError, UnknownName
from fewstep.experiments.evaluation.generators import ModelGenerator
from fewstep.experiments.runs import GridChoice, make_grid
from fewstep.experiments.ways import is_table, labelled, own_table, serves, way_of
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


KAPPA = (50.0, 4.0, 1.0, 0.1)


def table_with(*, first: bool = False, guidance: tuple[float, float] = (1.0, 1.0), mark: str = "none") -> Table:
    """DDIM on three levels of nobody's grid, or with the first of its calls given."""
    entry = Entry(KAPPA, ((0.0,), (0.0, 0.0)), first, "ddim", "by hand", 0.1, 0.1, 0.1)
    mean = torch.zeros(SHAPE) if first else None
    return Table(Origin("bumps", mark, repr(VPLinear()), guidance), {3 - first: entry}, mean)


def calibrated(**options: object) -> Model:
    return replace(model_with(None), calibration=table_with(**options).to_json())  # type: ignore[arg-type]


def test_a_table_beside_the_weights_is_the_default() -> None:
    """With all weights 0 it is DDIM on the levels of the table, bit for bit."""
    model = calibrated()
    way = way_of(model, nfe=3)
    assert (way.solver, way.nfe, way.grid.steps) == ("calibrated", 3, 3)
    assert way.said.startswith("by hand, kappa 50 to 0.1, 3 steps (table ")
    kappa = way.grid.levels.sigma / way.grid.levels.alpha
    assert gap(kappa, torch.tensor(KAPPA, dtype=torch.float64)) < 1e-9
    x = start_noise(way.grid, SHAPE, [3, 5])
    made, want = (sample(model.denoiser, rule, way.grid, x) for rule in (way.rule, DDIM()))
    assert gap(made.x, want.x) == 0
    assert made.nfe == 3
    assert gap(ModelGenerator(model, nfe=3)([3, 5]).images, want.x) == 0
    for asked in ({"nfe": 4}, {}, {"nfe": 3, "guidance": 2.0}, {"nfe": 3, "grid": GridChoice()}, {"steps": 3}):
        assert way_of(model, **asked).solver == "evodiff", asked
    assert serves(model, (9, 3), 1.0)
    assert not serves(model, (9, 3), 1.1)
    assert not serves(model_with(None), (3,), 1.0)


def test_a_first_step_without_a_call() -> None:
    model = calibrated(first=True, guidance=(0.5, 3.0))
    for guidance in (0.5, 1.0, 3.0):
        way = way_of(model, nfe=2, guidance=guidance)
        assert (way.solver, way.nfe, way.grid.steps) == ("calibrated", 2, 3)
    assert sample(model.denoiser, way.rule, way.grid, start_noise(way.grid, SHAPE, [0])).nfe == 2
    assert way_of(model, nfe=2, guidance=3.1).solver == "evodiff"


def test_a_table_in_a_file(tmp_path: Path) -> None:
    """The same images as beside the weights, and the same name in a protocol; another table has another name."""
    path = tmp_path / "t.json"
    table_with().save(path)
    way, own = way_of(model_with(None), str(path), 3), way_of(calibrated(), "calibrated", 3)
    assert (way.solver, way.said, way.nfe) == (own.solver, own.said, own.nfe)
    assert gap(way.grid.levels.sigma, own.grid.levels.sigma) == 0
    table = table_with()
    other = {3: replace(table.entries[3], weights=((0.1,), (0.0, 0.0)))}
    assert way_of(replace(calibrated(), calibration=replace(table, entries=other).to_json()), nfe=3).said != way.said


def test_what_is_spelled_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("table", "ddim", "ddim:eta=0.5", FILE):
        Path(name).write_text("{}")
    for folder in ("full", "heun"):
        Path(folder).mkdir()
        table_with().save(Path(folder) / FILE)
    spelled = ("calibrated", "absent.json", "table", "./ddim", "full", "./heun")
    assert [name for name in spelled if not is_table(name)] == []
    assert [name for name in ("ddim", "ddim:eta=0.5", "absent", "heun", "", "x" * 5000) if is_table(name)] == []
    assert way_of(model_with(None), "full", 3).said == way_of(model_with(None), f"full/{FILE}", 3).said


def test_forced() -> None:
    """Of other weights, under other guidance, and at a number of calls above its own; always said."""
    model = calibrated(mark="other")
    for asked in ({"solver": "calibrated", "nfe": 3}, {"nfe": 3}):
        assert "; forced)" in way_of(model, **asked, force=True).said
    own = calibrated()
    assert "; forced)" in way_of(own, "calibrated", 3, guidance=2.0, force=True).said
    way = way_of(own, "calibrated", 7, force=True)
    assert (way.grid.steps, way.rule.nfe(way.grid), way.nfe) == (3, 3, 7)
    for asked in ({"nfe": 7}, {"nfe": 3, "guidance": 2.0}, {}):  # no solver is named, and the own table is meant
        forced = way_of(own, **asked, force=True)  # type: ignore[arg-type]
        assert (forced.solver, forced.grid.steps) == ("calibrated", 3), asked
        assert "; forced)" in forced.said, asked
    assert "forced" not in way_of(own, nfe=3, force=True).said, "nothing had to be forced"


def test_tables_that_are_refused() -> None:
    cases: list[tuple[Model, dict[str, object], type[FewstepError], str]] = [
        (calibrated(mark="other"), {"nfe": 3}, ConfigError, f"delete {FILE}"),
        (calibrated(mark="other"), {"solver": "calibrated", "nfe": 3}, ConfigError, "fitted to the weights other"),
        (calibrated(), {"solver": "calibrated"}, ConfigError, "10 calls with a calibrated table"),
        (calibrated(), {"solver": "calibrated", "nfe": 0}, ConfigError, "0 calls"),
        (calibrated(), {"solver": "calibrated", "nfe": 2, "force": True}, ConfigError, "2 calls"),
        (calibrated(), {"solver": "calibrated", "nfe": 3, "guidance": 2.0}, ConfigError, "under guidance 1"),
        (calibrated(), {"nfe": 2, "force": True}, ConfigError, "2 calls"),
        (calibrated(), {"solver": "ddim", "force": True}, ConfigError, "--force with ddim"),
        (calibrated(), {"steps": 4, "force": True}, ConfigError, "--force with evodiff"),
        (model_with(None), {"force": True}, ConfigError, "--force with evodiff"),
        (model_with(Chain()), {"force": True}, ConfigError, "--force with the chain of 'bumps'"),
        (calibrated(), {"solver": "calibrated", "steps": 3}, ConfigError, "steps=3 for the calibrated solver"),
        (calibrated(), {"solver": "calibrated", "grid": GridChoice()}, ConfigError, "a grid for the calibrated"),
        (model_with(None), {"solver": "calibrated"}, ConfigError, "this one has none"),
        (model_with(None), {"solver": "absent.json"}, CheckpointError, "absent.json cannot be read"),
        (replace(model_with(None), calibration={}), {}, CheckpointError, f"delete {FILE}"),
        (
            replace(model_with(None), calibration=CheckpointError("It is cut", "whole", "mend")),
            {},
            CheckpointError,
            "cut",
        ),
    ]
    for model, asked, kind, shows in cases:
        refuses(kind, shows, lambda model=model, asked=asked: way_of(model, **asked))  # type: ignore[misc]
    assert own_table(calibrated()).entries == table_with().entries


def test_a_leaky_chain_is_named_beside_its_table() -> None:
    leaky = model_with(Chain(spacing=Part("uniform_lam", {"lam_min": -2.0}), steps=(2,), leaky=True))
    model = replace(leaky, calibration=table_with().to_json())
    assert way_of(model).solver == "ddim", "its chain comes first"
    assert way_of(model, nfe=3).said.endswith("; leaky start: reads data)")


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
