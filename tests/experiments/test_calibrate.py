"""From a model to a problem: who leads which trajectory, what it is told, and where the table goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contracts.inventory import gap
from contracts.problems import TwoBumps
from contracts.refusals import refuses

from fewstep import models
from fewstep.calibration import FILE, Entry, Origin, Refinement, Settings, Table, fit
from fewstep.data import Scenes
from fewstep.errors import ConfigError, FewstepError, UnknownName
from fewstep.experiments.calibrate import CalibratePlan, again, described, place_of, prepared, settings_of
from fewstep.models import Model, ModelConfig, Part
from fewstep.noise import Karras, NoiseLevel, VPLinear
from fewstep.sampling import sample, start_noise
from fewstep.solvers import Heun

SHAPE = (1, 4, 4)
QUICK = settings_of((3,), teacher_steps=16, bases=("ddim",), grids=("karras:rho=7",), iterations=0, first="network")


def model_with(classes: tuple[str, ...] = ()) -> Model:
    """Two bumps; a class moves nothing, so that only what a denoiser is told can be looked at."""

    def network(x: torch.Tensor, noise_label: torch.Tensor, cond: object = None) -> torch.Tensor:
        angle = noise_label.double() * torch.pi / 2
        return TwoBumps()(x.double(), NoiseLevel(angle.cos(), angle.sin())).to(x.dtype)

    config = ModelConfig("bumps", Part("stub"), Part("x0"), Part("vp_linear"), SHAPE, classes=classes)
    return Model(config.denoiser(network), config, "0123456789ab")


def test_trajectories_begin_as_sampling_does() -> None:
    """The noise of trajectory k is that of the sample with seed + k."""
    model, plan = model_with(), CalibratePlan(QUICK, seed=3, trajectories=8)
    ready = prepared(model, plan)
    grid = Karras(kappa_max=80, kappa_min=0.002)(VPLinear(), 4)
    want = start_noise(grid, SHAPE, range(3, 11))
    alpha, sigma = (part[0] for part in grid.levels)
    assert ready.problem.kappa_max == pytest.approx(float(sigma / alpha), rel=1e-9)
    assert gap(ready.problem.start * sigma.float(), want) < 1e-6
    assert ready.problem.cond is None
    assert (ready.origin.model, ready.origin.fingerprint) == ("bumps", "0123456789ab")
    assert ready.origin.schedule == repr(VPLinear())


def test_every_scale_walks_through_every_condition() -> None:
    """Two scales and four classes: turns that go on by one would give each scale half of the classes."""
    plan = CalibratePlan(QUICK, guidance=(1.0, 3.0), trajectories=16)
    ready = prepared(model_with(("a", "b", "c", "d")), plan)
    assert ready.problem.cond is not None
    labels = ready.problem.cond["label"]
    for k in range(2):
        assert labels[ready.problem.led_by(k)].tolist() == [0, 1, 2, 3] * 2
    assert ready.origin.guidance == (1.0, 3.0)
    some = prepared(model_with(("a", "b", "c", "d")), replace(plan, classes=(2, 0)))
    assert some.problem.cond is not None
    assert some.problem.cond["label"].tolist() == [2, 2, 0, 0] * 4


def test_a_table_of_a_model_is_its_solver() -> None:
    """On noise that it has not seen its error is the one that it names."""
    model, plan = model_with(), CalibratePlan(QUICK, trajectories=32)
    ready = prepared(model, plan)
    table = described(fit(ready.problem, plan.settings, ready.origin), model, plan)
    table.check(model.fingerprint, model.denoiser.schedule)
    rule, grid = table.way(model.denoiser.schedule, 3)
    fine = Karras(kappa_max=80, kappa_min=0.002)(model.denoiser.schedule, 64)
    seeds = range(100, 164)
    ends = sample(model.denoiser, rule, grid, start_noise(grid, SHAPE, seeds)).x
    want = sample(model.denoiser, Heun(), fine, start_noise(fine, SHAPE, seeds)).x
    missed = float((ends - want).square().mean().sqrt())
    assert missed < 2 * table.entries[3].held, f"RMSE {missed:.4g} on fresh noise, {table.entries[3].held:.4g} held out"
    assert (table.facts["seed"], table.facts["conditions"], table.facts["guidance"]) == (10**9, "none", [1.0])
    assert Table.from_json(table.to_json()).facts == table.facts


def test_settings_in_words() -> None:
    assert settings_of(Settings.nfe) == Settings()
    made = settings_of((5, 4, 5), bases=("ddim",), grids=("gits",), first="analytic", iterations=0, distribution=0.5)
    assert (made.nfe, made.bases, made.grids, made.first) == ((5, 4), ("ddim",), ("gits",), "analytic")
    assert made.refinement == Refinement(0, distribution=0.5)


def placed(out: str | Path | None, *, name: str = "toy", nfe: tuple[int, ...] = (3,)) -> Path:
    return place_of(name, Origin("bumps", "0123456789ab"), nfe, out)


def table_with(*nfe: int, mark: str = "0123456789ab") -> Table:
    """DDIM, fitted to nothing, under the fingerprint of the model above or another."""
    entries = {
        n: Entry(
            tuple(2.0**-k for k in range(n + 1)), tuple((0.0,) * k for k in range(1, n)), False, "", "", 0.1, 0.1, 0.1
        )
        for n in nfe
    }
    return Table(Origin("bumps", mark), entries)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundled model called toy, and a folder to stand in."""
    (tmp_path / "weights" / "toy").mkdir(parents=True)
    (tmp_path / "weights" / "toy" / "config.json").write_text('{"prediction": {}}')
    monkeypatch.setattr(models, "_BUNDLED", tmp_path / "weights")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_where_a_table_goes(toy: Path) -> None:
    assert placed(None, name=str(toy)) == toy / FILE
    assert placed(None) == Path(FILE)
    assert placed(toy) == toy / FILE
    assert placed(toy / "new" / "t") == toy / "new" / "t"
    assert placed("nf/") == Path("nf") / FILE, "a slash makes a folder of it"
    assert list(toy.iterdir()) == [], "a folder is made with the table"


@pytest.mark.parametrize(
    ("earlier", "shows"),
    [(table_with(3, mark="other"), "which was fitted to bumps with other weights"), (None, "which is none")],
)
def test_only_in_the_folder_of_the_model_is_what_serves_nothing_written_over(
    toy: Path, earlier: Table | None, shows: str
) -> None:
    if earlier is None:
        (toy / FILE).write_text('{"mine": 1}')
    else:
        earlier.save(toy / FILE)
    before = (toy / FILE).read_text()
    for out in (None, FILE, toy):
        refuses(ConfigError, shows, lambda out=out: placed(out))  # type: ignore[misc]
    assert placed(None, name=str(toy)) == placed(toy, name=str(toy)) == toy / FILE
    assert (toy / FILE).read_text() == before


def test_no_number_of_calls_is_lost(toy: Path) -> None:
    table_with(2, 3).save(toy / FILE)
    for name in ("toy", str(toy)):
        error = refuses(ConfigError, "would lose 2", lambda name=name: placed(None, name=name, nfe=(4, 3)))  # type: ignore[misc]
        assert "--nfe 2,3,4" in error.todo
        assert placed(None, name=name, nfe=(4, 3, 2)).name == FILE
    assert placed("other.json", nfe=(4,)) == Path("other.json")


def test_the_command_that_fits_again() -> None:
    assert again("my run", table_with(3), (7, 2)) == "fewstep calibrate --model 'my run' --nfe 2,3,7"
    scaled = replace(table_with(3), facts={"guidance": [3.0, 1.0, 2.0]})
    assert again("m", scaled, (3,), "t.json") == "fewstep calibrate --model m --nfe 3 --guidance 3,1,2 --out t.json"
    ranged = replace(table_with(3), origin=Origin(guidance=(2.0, 2.0)))
    assert again("m", ranged, ()) == "fewstep calibrate --model m --nfe 3 --guidance 2"


def test_captions_are_walked_through_by_every_scale() -> None:
    """A model that reads the captions of the scenes is fitted under those of scenes number 5, 6 and so on."""
    words = Scenes().vocabulary
    config = replace(model_with().config, captions=words)
    model = replace(model_with(), config=config)
    plan = CalibratePlan(QUICK, trajectories=8, seed=5, guidance=(1.0, 2.0))
    ready = prepared(model, plan)
    want = model.cond_of_captions([Scenes().caption(k) for k in range(5, 9)])
    assert ready.problem.cond is not None
    for k in range(2):
        told = {name: rows[ready.problem.led_by(k)] for name, rows in ready.problem.cond.items()}
        assert told.keys() == want.keys()
        assert all(torch.equal(told[name], want[name]) for name in want)
    one = prepared(model, replace(plan, captions=("a large cyan cross at the top",)))
    alone = model.cond_of_captions(["a large cyan cross at the top"] * 8)
    assert one.problem.cond is not None
    assert all(torch.equal(one.problem.cond[name], alone[name]) for name in alone)


REFUSED: dict[str, tuple[Callable[[], object], type[FewstepError], str]] = {
    "trajectories": (lambda: CalibratePlan(trajectories=7, guidance=(1.0, 2.0)), ConfigError, "7 trajectories for 2"),
    "no scale": (lambda: CalibratePlan(guidance=()), ConfigError, "No guidance scale"),
    "batch": (lambda: CalibratePlan(batch_size=0), ConfigError, "Batches of 0"),
    "guided": (lambda: prepared(model_with(), CalibratePlan(guidance=(2.0,))), ConfigError, "Guidance 2"),
    "no number": (lambda: prepared(model_with(), CalibratePlan(guidance=(float("nan"),))), ConfigError, "nan"),
    "class": (lambda: prepared(model_with(("a",)), CalibratePlan(classes=(1,))), ConfigError, "Class 1"),
    "base": (lambda: settings_of((4,), bases=("unipc",)), ConfigError, "UniPC"),
    "base that draws": (lambda: settings_of((4,), bases=("ddim:eta=1",)), ConfigError, "eta=1"),
    "grid": (lambda: settings_of((4,), grids=("karas",)), UnknownName, "'karras'"),
    "end of a grid": (lambda: settings_of((4,), grids=("karras:kappa_max=20",)), ConfigError, "from kappa 20"),
    "first": (lambda: settings_of((4,), first="none"), ConfigError, "first='none'"),
}


@pytest.mark.parametrize(("make", "kind", "shows"), REFUSED.values(), ids=REFUSED)
def test_refusals(make: Callable[[], object], kind: type[FewstepError], shows: str) -> None:
    refuses(kind, shows, make)
