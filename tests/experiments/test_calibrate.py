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
from fewstep.calibration import FILE, Refinement, Settings, Table, fit
from fewstep.errors import ConfigError, FewstepError, UnknownName
from fewstep.experiments.calibrate import CalibratePlan, described, place_of, prepared, settings_of
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


def test_where_a_table_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights" / "toy").mkdir(parents=True)
    (tmp_path / "weights" / "toy" / "config.json").write_text('{"prediction": {}}')
    monkeypatch.setattr(models, "_BUNDLED", tmp_path / "weights")
    assert place_of(str(tmp_path), None) == tmp_path / FILE
    assert place_of("toy", None) == Path(FILE)
    assert place_of("toy", tmp_path) == tmp_path / FILE
    assert place_of("toy", tmp_path / "new" / "t") == tmp_path / "new" / "t"
    assert (tmp_path / "new").is_dir()


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
    "first": (lambda: settings_of((4,), first="none"), UnknownName, "'none'"),
}


@pytest.mark.parametrize(("make", "kind", "shows"), REFUSED.values(), ids=REFUSED)
def test_refusals(make: Callable[[], object], kind: type[FewstepError], shows: str) -> None:
    refuses(kind, shows, make)
