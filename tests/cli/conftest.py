"""A small model, trained for a second, and the command line as a function."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cli.running import TINY, Cli, Ran
from cli.tables import with_table
from fewstep._files import read_json, write_json
from fewstep.cli import shell
from fewstep.cli.app import app
from fewstep.data import digits, to_unit
from fewstep.experiments import PRESETS
from fewstep.features import ClassifierFeatures
from fewstep.metrics import Judge, image_moments, save_judge
from fewstep.networks import SmallClassifier
from fewstep.training import RunConfig, override, train_model


def tiny(*overrides: str) -> RunConfig:
    return override(PRESETS["digits"], (*TINY, "train.lr=4e-3", "train.ema=0.9", *overrides))


def random_features() -> ClassifierFeatures:
    torch.manual_seed(0)
    return ClassifierFeatures(SmallClassifier(width=4, dim=6), "random", (8, 8))


@pytest.fixture(scope="session", autouse=True)
def on_the_cpu() -> Iterator[None]:
    """Bits are compared, so a GPU must not be picked up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, on_the_cpu: None) -> Path:
    """A class-conditional model of 8x8 digits: blurred, but no two classes alike."""
    folder = tmp_path_factory.mktemp("models") / "conditional"
    train_model(tiny("train.steps=80", "name=tiny"), folder)
    return folder


@pytest.fixture(scope="session")
def unconditional(tmp_path_factory: pytest.TempPathFactory, on_the_cpu: None) -> Path:
    folder = tmp_path_factory.mktemp("models") / "unconditional"
    train_model(tiny("train.steps=2", "diffusion.conditional=false", "name=plain"), folder)
    return folder


@pytest.fixture(scope="session")
def judged(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, with a judge named in its configuration: random features, and the moments of real digits in them."""
    folder = tmp_path_factory.mktemp("judged")
    features = random_features()
    reference = image_moments(features, to_unit(digits().images))
    (folder / "judge").mkdir()
    save_judge(
        folder / "judge", Judge(features, reference, {"data": "digits", "split": "whole", "floors": {"halves": 0.25}})
    )
    shutil.copytree(model, folder / "model")
    config = read_json(folder / "model" / "config.json")
    config["facts"]["judge"] = str(folder / "judge")
    write_json(folder / "model" / "config.json", config)
    return folder / "model"


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Path:
    """A model with a table for 4 and 10 calls beside its weights."""
    return with_table(shutil.copytree(model, tmp_path / "own"), 4, 10)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line, as the installed program runs it once its process stands."""

    def run(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["fewstep", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            shell.run(app)
        out, err = capsys.readouterr()
        return Ran(int(stop.value.code or 0), out, err)

    return run
